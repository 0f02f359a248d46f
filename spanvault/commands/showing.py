"""`spanvault show`: one call in full. Which there are: listing.py."""

import shutil
from typing import Annotated, Any

import typer

from spanvault.audio.picture import Picture
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
from spanvault.commands.exportable import exportable
from spanvault.commands.output import (
    FAILED,
    complain,
    document,
    fields_table,
    people,
    talk_seconds,
)
from spanvault.commands.rendering import Sound
from spanvault.commands.times import duration, local_time
from spanvault.messages import Call, GetReply
from spanvault.remedies import of_flags


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
        *(("note", line) for line in of_flags(call.flags)),
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
