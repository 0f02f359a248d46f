"""How the command speaks: documents on stdout, everything for people's eyes only on stderr.

With --json: one document a line on stdout. Without: tables, that fit narrow terminals.
Which fields a call has: spanvault.callline.
"""

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from spanvault.callline import main_codec
from spanvault.commands.times import duration, local_time
from spanvault.messages import Call

OK: Final = 0
FAILED: Final = 1  # the job, or a part of it, could not be done; or faults were found
USAGE: Final = 2  # a wrong option, setting or value
UNAVAILABLE: Final = 69  # no storaged answers, or the store cannot be opened
INTERRUPTED: Final = 130

SHORT_ID: Final = 16  # hex digits shown in tables: 12 of time, 3 of chance (capture.ids)
NARROW: Final = 90  # columns under which a table leaves out what `show` can tell
OUTCOME_STYLES: Final = {"answered": "green", "in_progress": "cyan", "failed": "red"}


class CommandFailed(Exception):
    """The command cannot go on. hint: what the operator can do; code: the exit code."""

    def __init__(self, error: str, hint: str = "", code: int = FAILED) -> None:
        super().__init__(error)
        self.error, self.hint, self.code = error, hint, code


def people() -> Console:
    """stdout, for tables. A pipe is taken to be as wide as the table needs."""
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
    return Console(highlight=False, width=wide)


def messages() -> Console:
    """stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def visible(text: str) -> str:
    """Text as it may be shown: what callers wrote must not steer a terminal, nor hide in it.

    Line feeds stay; other characters that cannot be printed become escapes as `\\x1b`.
    """
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode()
        for one in text
    )


def say(text: str, style: str = "") -> None:
    """A line on stderr."""
    messages().print(Text(visible(text), style=style))


def complain(error: str, hint: str = "") -> None:
    """A fault and its remedy on stderr."""
    line = Text.assemble(("error: ", "bold red"), visible(error))
    messages().print(line)
    if hint:
        messages().print(Text(f"  {visible(hint)}", style="dim"))


def warn(text: str) -> None:
    """Something that did not stop the job, on stderr."""
    messages().print(Text.assemble(("warning: ", "yellow"), visible(text)))


def document(value: Any) -> None:
    """One JSON document as a line on stdout."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def progress(unit: str) -> Progress:
    """A bar on stderr, invisible where that is no terminal."""
    console = messages()
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:g}" + f" {unit}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def short(call: Call) -> str:
    """The beginning of a call's id, as tables show it."""
    return call.id.hex()[:SHORT_ID]


def talk_seconds(call: Call) -> float | None:
    """From answer to end, where both are known."""
    if call.answered_ns is None or call.ended_ns is None:
        return None
    return max(0.0, (call.ended_ns - call.answered_ns) / 1e9)


def media_words(call: Call) -> str:
    """Codecs by party, as `caller PCMA, callee PCMA ×2`."""
    seen: dict[str, int] = {}
    for stream in call.streams:
        codec = main_codec(stream)
        if stream.packets:
            word = f"{stream.party} {codec.name if codec else 'unknown'}"
            seen[word] = seen.get(word, 0) + 1
    return ", ".join(word + (f" ×{count}" if count > 1 else "") for word, count in seen.items())


def print_calls(listed: list[Call]) -> None:
    """Calls as a table, or a word that there are none."""
    console = people()
    if listed:
        console.print(calls_table(listed, console.width))
    else:
        say("No calls.")


def calls_table(
    calls: Iterable[Call], width: int, title: str = "ID", name: Callable[[Call], str] = short
) -> Table:
    """Calls for people. width: columns of the terminal.  title, name: what the first one shows."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    wide = width >= NARROW
    for head in (title, "Started", "Caller", "Callee", "Outcome"):
        table.add_column(head, overflow="fold", no_wrap=head in ("ID", "Started", "Outcome"))
    table.add_column("Talk", justify="right")
    if wide:
        table.add_column("Media", overflow="fold")
        table.add_column("Flags", overflow="fold", style="dim")
    for call in calls:
        started = local_time(call.started_ns)
        row = [
            Text(_cell(name(call))),
            Text(started if wide else started[5:16]),
            Text(_cell(call.caller)),
            Text(_cell(call.callee)),
            Text(call.outcome, style=OUTCOME_STYLES.get(call.outcome, "yellow")),
            Text(duration(talk_seconds(call))),
        ]
        media = media_words(call) or "none"
        more = [Text(_cell(media)), Text(_cell(", ".join(call.flags)))]
        table.add_row(*row, *(more if wide else []))
    return table


def _cell(text: str) -> str:
    """As visible(), on one line: a line feed would look like a row of its own."""
    return visible(text).replace("\n", "\\n")


def fields_table(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and values, one pair a line."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(visible(name)), Text(visible(value)))
    return table
