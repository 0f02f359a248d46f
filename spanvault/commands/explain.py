"""`spanvault explain`: what a capture file holds, and why it was understood so.

The capture core runs as a process of its own on the file alone, without store, key or daemon, and
tells documents (spanvault.explained). The picture of one call: ladder.py.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from spanvault.callline import call_line, iso_utc
from spanvault.commands.access import JsonOption
from spanvault.commands.exportable import exportable
from spanvault.commands.ladder import ladder
from spanvault.commands.output import (
    FAILED,
    CommandFailed,
    calls_table,
    complain,
    document,
    fields_table,
    people,
    visible,
    warn,
)
from spanvault.commands.times import local_time
from spanvault.explained import Document, Explained, Flow, OnlyTheirs, Summary, Unowned
from spanvault.messages import Call

MAX_SHOWN: Final = 50  # streams of nobody that people are shown; --json has all
SUFFIXES: Final = (".pcap", ".pcapng", ".cap", ".gz")  # of what is surely meant as a file
DECODER: Final = msgspec.json.Decoder(Document)


def explain(
    captures: Annotated[
        list[str],
        typer.Argument(
            metavar="CAPTURE… [CALL-ID]",
            help="pcap or pcapng files of one time, or a folder of them; behind them a Call-ID, "
            "or its beginning, for its ladder.",
        ),
    ],
    tshark: Annotated[
        bool | None,
        typer.Option(
            "--tshark/--no-tshark", help="Ask tshark, too; by default unless the file is large."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Why is a call missing, silent, one-sided? What a capture holds, and what was concluded."""
    paths, call_id = _asked(captures)
    documents = _documents(paths, call_id, tshark)
    if json:
        done = _as_json(documents)
    elif call_id is None:
        done = _overview(documents)
    else:
        done = _ladders(documents, call_id)
    if not done:
        raise typer.Exit(FAILED)


def _asked(words: list[str]) -> tuple[list[Path], str | None]:
    """Files, and the Call-ID behind them, which is what is none. Raises CommandFailed."""
    *files, last = words
    if not files or Path(last).exists() or Path(last).suffix in SUFFIXES:
        files, call_id = words, None
    else:
        call_id = last
    paths = [Path(each) for each in files]
    for path in paths:
        if not path.exists():
            raise CommandFailed(f"{path}: no such file", "Give a pcap or pcapng file.")
    return paths, call_id


def _documents(paths: list[Path], call_id: str | None, tshark: bool | None) -> Iterator[Document]:
    """What the process tells. Raises CommandFailed if it ends without a summary."""
    option = [] if tshark is None else ["--tshark" if tshark else "--no-tshark"]
    option += [] if call_id is None else [f"--call-id={call_id}"]
    # -P: what lies in the folder that we were called in is not ours to run.
    command = [sys.executable, "-P", "-m", "capture.explain", *option, "--", *map(str, paths)]
    last: Document | None = None
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                last = DECODER.decode(line)
                yield last
        finally:
            process.terminate()
    if not isinstance(last, Summary):
        raise CommandFailed(
            f"the capture could not be explained to its end (status {process.returncode})",
            "Report it with the file, if you may: no capture file should do that.",
        )


def _as_json(documents: Iterator[Document]) -> bool:
    done = False
    for each in documents:
        document(_plain(each))
        done = isinstance(each, Summary) and _whole(each)
    return done


def _plain(told: Document) -> dict[str, Any]:
    """A document as `--json` has it: times and SSRCs as everywhere, the call as its line."""
    fields: dict[str, Any] = msgspec.to_builtins(told)
    line = None
    if isinstance(told, Explained):
        line = call_line(told.call, exportable)
        del fields["call"], line["id"], line["recording_id"]  # nothing was recorded
    readable: dict[str, Any] = _readable(fields)
    return readable if line is None else {**readable, "call": line}


def _readable(value: Any) -> Any:
    if isinstance(value, list):
        return [_readable(each) for each in value]
    if isinstance(value, dict):
        return dict(_readable_item(name, each) for name, each in value.items())
    return value


def _readable_item(name: str, value: Any) -> tuple[str, Any]:
    if name.endswith("_ns"):
        return f"{name.removesuffix('_ns')}_at", iso_utc(value)
    return name, f"{value:#010x}" if name == "ssrc" else _readable(value)


def _whole(summary: Summary) -> bool:
    return summary.found and not summary.faults


def _overview(documents: Iterator[Document]) -> bool:
    """All calls, streams that nobody owns, and counts, each with its remedy."""
    console, unowned, theirs = people(), list[Unowned](), list[OnlyTheirs]()
    done, calls = False, list[Explained]()
    for each in documents:
        if isinstance(each, Explained):
            calls.append(each)
        elif isinstance(each, Unowned):
            if len(unowned) < MAX_SHOWN:
                unowned.append(each)
        elif isinstance(each, OnlyTheirs):
            if len(theirs) < MAX_SHOWN:
                theirs.append(each)
        else:
            _show_calls(console, calls)
            if not calls:
                _line(console, _no_calls(each))
            _show_unowned(console, unowned, each.unowned)
            _show_theirs(console, theirs)
            _show_summary(console, each)
            done = _whole(each)
    return done


def _show_calls(console: Console, calls: list[Explained]) -> None:
    if not calls:
        return
    calls.sort(key=lambda each: (each.call.started_ns, each.call.call_ids))
    shown = (each.call for each in calls)
    console.print(calls_table(shown, console.width, "Call-ID", _call_id))
    for each in calls:
        notes = [*each.remedies, *_differences(each)]
        if notes:
            _line(console, _call_id(each.call), "bold")
        for note in notes:
            _line(console, f"  {note}", "red" if note.startswith("≠") else "")


def _no_calls(told: Summary) -> str:
    if told.sip:
        return f"No calls: none of the {told.sip} SIP messages begins one, or shows one to go on."
    return "No calls: no SIP message that can be read is in it. Is the signalling captured, too?"


def _call_id(call: Call) -> str:
    return " ".join(call.call_ids)


def _differences(told: Explained) -> list[str]:
    flows = [
        f"≠ {_ends(flow)}: {difference}" for flow in told.flows for difference in flow.differences
    ]
    return [*(f"≠ {difference}" for difference in told.differences), *flows]


def _show_unowned(console: Console, shown: list[Unowned], total: int) -> None:
    if not total:
        return
    _line(console, f"\nRTP that no call owns: {total}", "bold")
    for each in shown:
        seconds = (each.flow.last_ns - each.flow.first_ns) / 1e9
        _line(
            console,
            f"{_ends(each.flow)}  {each.flow.codec}, {each.flow.packets} packets, {seconds:.1f} s",
        )
        _line(console, f"  {each.why}")
        for difference in each.flow.differences:
            _line(console, f"  ≠ {difference}", "red")
    if total > len(shown):
        _line(console, f"… and {total - len(shown)} more (--json has all)", "dim")


def _show_theirs(console: Console, shown: list[OnlyTheirs]) -> None:
    if shown:
        _line(console, "\nOnly tshark has", "bold")
    for each in shown:
        if each.call is not None:
            what = f"call {each.call.call_id} ({each.call.state}, {each.call.messages} messages)"
        elif each.flow is not None:
            what = f"RTP {each.flow.source} → {each.flow.destination}, {each.flow.packets} packets"
        _line(console, f"≠ {what}{': ' if each.why else ''}{each.why}", "red")


def _show_summary(console: Console, told: Summary) -> None:
    rows = [
        ("frames", str(told.frames)),
        ("calls", str(told.calls)),
        ("RTP streams", f"{told.streams} of calls, {told.unowned} of none"),
        ("around IP", ", ".join(each.what for each in told.encapsulations) or "Ethernet only"),
        ("tshark", told.tshark.removeprefix("tshark ") or "not asked"),
    ]
    console.print()
    console.print(fields_table(rows))
    for each in told.counts:
        remedy = f" → {each.remedy}" if each.remedy else ""
        _line(console, f"{each.count} {each.what}{remedy}")
    if told.without_tshark:
        warn(told.without_tshark)
    for fault in told.faults:
        complain(fault)


def _ladders(documents: Iterator[Document], call_id: str) -> bool:
    """Each call of this Call-ID, then what else ran between its hosts."""
    console, done, unowned = people(), False, list[Unowned]()
    for each in documents:
        if isinstance(each, Explained):
            _show_ladder(console, each)
        elif isinstance(each, Unowned):
            unowned.append(each)
        elif isinstance(each, Summary):
            _show_unowned(console, unowned[:MAX_SHOWN], len(unowned))
            for fault in each.faults:
                complain(fault)
            if not each.found:
                complain(
                    f"no call of the capture has a Call-ID that begins with {call_id}",
                    "spanvault explain CAPTURE lists all calls.",
                )
            if each.without_tshark:
                warn(each.without_tshark)
            done = _whole(each)
    return done


def _show_ladder(console: Console, told: Explained) -> None:
    call = told.call
    rows = [
        ("Call-ID", _call_id(call)),
        ("from, to", f"{call.caller} → {call.callee}"),
        ("began", local_time(call.started_ns)),
        ("outcome", f"{call.outcome}, {call.end_reason}"),
        ("flags", ", ".join(call.flags) or "none"),
        *(("remedy", remedy) for remedy in told.remedies),
        *(("related", f"{each.kind} {each.call_id}") for each in call.related),
    ]
    if told.theirs is not None:
        rows.append(("tshark", f"{told.theirs.state}, {told.theirs.messages} SIP messages"))
    rows += [("≠", difference) for difference in told.differences]
    console.print(fields_table(rows))
    console.print()
    for line, style in ladder(told, console.width):
        _line(console, line, style)
    if not any(flow.packets for flow in told.flows):
        _line(console, "No RTP stream is this call's.", "yellow")
    console.print()


def _ends(flow: Flow) -> str:
    return f"{flow.source} → {flow.destination} {flow.ssrc:#010x}"


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(visible(text), style=style))
