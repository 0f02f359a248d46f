"""`spanvault calls` and `spanvault show`: which calls there are, and one in full."""

import shutil
from datetime import datetime
from typing import Annotated, Any, get_args

import typer

from spanvault.audio import Picture
from spanvault.callline import call_line, iso_utc
from spanvault.client import Client
from spanvault.commands.access import (
    CONFIG,
    ConfigOption,
    JsonOption,
    StoreOption,
    UnlockOption,
    find_call,
    reach,
)
from spanvault.commands.dialled import Dialled
from spanvault.commands.encrypted import read_far_ends
from spanvault.commands.output import (
    FAILED,
    USAGE,
    CommandFailed,
    calls_table,
    complain,
    document,
    fields_table,
    people,
    say,
    talk_seconds,
)
from spanvault.commands.rendering import Sound, exportable
from spanvault.commands.times import duration, local_time, parse_moment, parse_seconds
from spanvault.messages import Call, GetReply, Outcome, Search


def calls(
    since: Annotated[
        str | None, typer.Option(help="Started then or later: 2026-11-22, -1h …")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Started before then.")] = None,
    number: Annotated[str | None, typer.Option(help="Caller or callee, exactly.")] = None,
    outcome: Annotated[str | None, typer.Option(help=", ".join(get_args(Outcome)))] = None,
    longer: Annotated[str | None, typer.Option(help="Lasted longer than 90s, 2m, 1h …")] = None,
    shorter: Annotated[str | None, typer.Option(help="Lasted shorter than that.")] = None,
    call_id: Annotated[str | None, typer.Option(help="SIP Call-ID, exactly.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 200,
    store: StoreOption = None,
    unlock_key: UnlockOption = None,
    config: ConfigOption = CONFIG,
    json: JsonOption = False,
) -> None:
    """List calls, newest first. What is given restricts; all of it must hold."""
    question = _question(since, until, number, outcome, longer, shorter, call_id, limit)
    with reach(store, unlock_key, config) as client:
        found = client.search(question)
        if json:
            for call in found:
                document(call_line(call, exportable))
            _say_locked(client.locked)
            return
        listed = list(found)
    print_calls(listed)
    _say_locked(client.locked)
    if len(listed) == limit:
        say(f"The newest {limit}; --limit shows more.")


def _say_locked(pools: list[str]) -> None:
    for pool in pools:
        say(f"Pool {pool} is locked: its calls are not listed. See: spanvault keys unlock {pool}")


def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="A call's id, or its beginning.")],  # noqa: A002
    waveform: Annotated[bool, typer.Option("--waveform", help="Draw the sound.")] = False,
    digits: Annotated[
        bool, typer.Option("--digits", help="What was dialled within it; takes a right.")
    ] = False,
    far_end: Annotated[
        bool, typer.Option("--far-end", help="Open an encrypted call's RTCP: what was lost there.")
    ] = False,
    store: StoreOption = None,
    unlock_key: UnlockOption = None,
    config: ConfigOption = CONFIG,
    json: JsonOption = False,
) -> None:
    """One call in full: parties, times, channels, the recording and its copies."""
    with reach(store, unlock_key, config) as client:
        reply = client.get(find_call(client, id).id)
        unread = read_far_ends(client, reply.call) if far_end else []
        dialled = Dialled(client, reply.call) if digits else None
        if json:
            said = {"digits": dialled.documents()} if dialled else {}
            document(_document(reply) | said)
        else:
            _print(reply, dialled)
        for fault in dialled.faults if dialled else []:
            complain(fault, "What else was dialled is there. See: spanvault verify")
        for fault in unread:
            complain(fault, "What else was reported is there. See: spanvault verify")
        if unread or (dialled and dialled.faults):
            raise typer.Exit(FAILED)
        if waveform and not _draw(client, reply.call):
            raise typer.Exit(FAILED)


def print_calls(listed: list[Call]) -> None:
    """Calls as a table, or a word that there are none."""
    console = people()
    if listed:
        console.print(calls_table(listed, console.width))
    else:
        say("No calls.")


def _question(
    since: str | None, until: str | None, number: str | None, outcome: str | None,
    longer: str | None, shorter: str | None, call_id: str | None, limit: int,
) -> Search:  # fmt: skip
    now = datetime.now()  # of no zone: parse_moment then knows summer time
    if outcome is not None and outcome not in get_args(Outcome):
        raise CommandFailed(
            f"'{outcome}' is no outcome", f"One of: {', '.join(get_args(Outcome))}.", USAGE
        )
    try:
        return Search(
            since_ns=None if since is None else parse_moment(since, now),
            until_ns=None if until is None else parse_moment(until, now),
            number=number,
            outcome=outcome,  # type: ignore[arg-type] # checked above
            longer_s=None if longer is None else parse_seconds(longer),
            shorter_s=None if shorter is None else parse_seconds(shorter),
            call_id=call_id,
            limit=limit,
        )
    except ValueError as error:
        raise CommandFailed(str(error), code=USAGE) from None


def _document(reply: GetReply) -> dict[str, Any]:
    receipts = [
        {"target": r.target, "size": r.size, "sha256": r.sha256, "at": iso_utc(r.verified_ns)}
        for r in reply.receipts
    ]
    recording = {
        "sealed": reply.sealed, "size": reply.size, "pool": reply.pool, "receipts": receipts,
    }  # fmt: skip
    return call_line(reply.call, exportable) | {"recording": recording}


def _print(reply: GetReply, dialled: Dialled | None) -> None:
    call, console = reply.call, people()
    rows = [
        ("call", call.id.hex()),
        ("caller", call.caller),
        ("callee", call.callee),
        ("started", local_time(call.started_ns)),
        ("answered", local_time(call.answered_ns)),
        ("ended", local_time(call.ended_ns)),
        ("talk", duration(talk_seconds(call))),
        ("outcome", call.outcome + (f" ({call.end_reason})" if call.end_reason else "")),
        ("Call-ID", "\n".join(call.call_ids)),
        ("flags", ", ".join(call.flags) or "–"),
        ("related", "\n".join(f"{one.kind} {one.call_id}" for one in call.related) or "–"),
        *_channels(call),
        *(dialled.rows() or [("digits", "–")] if dialled else []),
        ("recording", _recording(reply)),
        *(
            ("copy", f"{r.target}: {r.size} bytes, verified {local_time(r.verified_ns)}")
            for r in reply.receipts
        ),
    ]
    console.print(fields_table(rows))


def _channels(call: Call) -> list[tuple[str, str]]:
    return [
        (
            channel["party"],
            f"{channel['media']} {channel['codec']}/{channel['clock_rate']}"
            f"{'' if channel['decodable'] else ' (cannot be decoded)'}, "
            f"{channel['source']} → {channel['destination']}, {channel['seconds']} s, "
            f"{channel['packets']} packets, {channel['lost']} lost, "
            f"{channel['duplicates']} duplicates"
            f"{_far_end(channel['far_end'])}{_bye(channel['bye_at'])}",
        )
        for channel in call_line(call, exportable)["channels"]
    ]


def _far_end(told: dict[str, Any] | None) -> str:
    if told is None:
        return ""
    trip = told["round_trip_ms"]
    return (
        f"; at the far end {told['lost']} lost, jitter {told['jitter_ms']} ms"
        f"{'' if trip is None else f', round trip {trip} ms'}"
    )


def _bye(at: str | None) -> str:
    return f"; RTCP BYE at {at}" if at else ""


def _recording(reply: GetReply) -> str:
    if not reply.size:
        return "none: no media was heard"
    state = "sealed" if reply.sealed else "still open"
    return f"{state}, {reply.size} bytes encrypted, pool {reply.pool}"


def _draw(client: Client, call: Call) -> bool:
    """The sound as a picture. False where something stored was unreadable."""
    sound = Sound(client, call)
    picture = Picture(sound.renderer.rate)
    for block in sound.blocks():
        picture.add(block)
    width = min(shutil.get_terminal_size((80, 24)).columns, 120)
    for line in ["", *picture.lines(width)]:
        people().print(line, markup=False)
    return sound.tell()
