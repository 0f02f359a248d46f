"""`spanvault export`: calls as sound files, caller left, callee right.

Rendering and encoding: spanvault.audio.
"""

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import typer

from spanvault.audio import FORMATS, Block, Pages, Renderer, in_time_order, output_rate, write
from spanvault.callline import encrypted
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
from spanvault.commands.output import (
    FAILED,
    USAGE,
    CommandFailed,
    complain,
    document,
    progress,
    say,
    short,
    warn,
)
from spanvault.messages import Call

# Into a pipe a WAV's length cannot be written afterwards: up to so many seconds we wait for it.
HELD_S: Final = 2 * 3600


def export(
    ids: Annotated[list[str], typer.Argument(metavar="ID…", help="Ids, or their beginnings.")],
    output: Annotated[
        str,
        typer.Option(
            "-o", "--output", metavar="PATH|-", help="A file; a folder for several; - for stdout."
        ),
    ],
    format: Annotated[  # noqa: A002
        str | None,
        typer.Option("--format", help="wav, flac, mp3 or opus; else by PATH's ending, else wav."),
    ] = None,
    store: StoreOption = None,
    unlock_key: UnlockOption = None,
    config: ConfigOption = CONFIG,
    json: JsonOption = False,
) -> None:
    """Write calls as stereo sound: caller left, callee right, on one time line."""
    name = _format(format, output, len(ids))
    if output == "-" and (json or len(ids) > 1):
        raise CommandFailed("stdout takes one call's sound", "Name a folder: -o FOLDER.", USAGE)
    with reach(store, unlock_key, config) as client:
        failures = sum(not _attempt(client, one, output, name, len(ids), json) for one in ids)
    if failures:
        raise typer.Exit(FAILED)


class Sound:
    """One call's sound, to be heard or drawn once."""

    def __init__(self, client: Client, call: Call) -> None:
        self.renderer = Renderer(call.streams, output_rate(call.streams), encrypted(call))
        self._pages = Pages(lambda cursor: client.fetch(call.id, cursor))
        heard = [s for s in call.streams if s.packets and s.media == "audio"]
        first, last = (s.first_ns for s in heard), (s.last_ns for s in heard)
        self.span_s = (max(last, default=0) - min(first, default=0)) / 1e9

    def blocks(self) -> Iterator[Block]:
        """Stereo, a second each; a bar on stderr meanwhile."""
        with progress("s") as bar:
            task = bar.add_task("rendering", total=self.span_s)
            for block in self.renderer.render(in_time_order(self._pages)):
                yield block
                bar.advance(task, len(block) / self.renderer.rate)

    def write(self, name: str, target: BinaryIO) -> float:
        """Encode it; give the seconds written."""
        return write(self.blocks(), self.renderer.rate, name, target)

    def tell(self) -> bool:
        """What could not be heard, on stderr; False where something stored was unreadable."""
        for text, times in self.renderer.warnings.items():
            warn(f"{text} ({times})")
        faults = list(self._pages.faults)
        if self.renderer.unread > 0:
            faults.append(f"{self.renderer.unread} packets that were heard cannot be read")
        for fault in faults:
            complain(fault, "Silence is in its place, the rest is there. See: spanvault verify")
        return not faults


def _format(given: str | None, output: str, count: int) -> str:
    ending = Path(output).suffix.removeprefix(".").lower() if count == 1 else ""
    name = given or (ending if ending in FORMATS else "wav")
    if name not in FORMATS:
        raise CommandFailed(f"'{name}' is no format", f"One of: {', '.join(FORMATS)}.", USAGE)
    return name


def _attempt(client: Client, one: str, output: str, name: str, count: int, json: bool) -> bool:
    """Export one call; False, and a message, where it was not done in full."""
    try:
        return _export(client, find_call(client, one), output, name, count, json)
    except CommandFailed as error:
        if count == 1:
            raise
        complain(error.error, error.hint)
        return False


def _export(client: Client, call: Call, output: str, name: str, count: int, json: bool) -> bool:
    if not any(stream.packets and stream.media == "audio" for stream in call.streams):
        raise CommandFailed(
            f"call {call.id.hex()} has no sound: no audio was heard",
            f"Its outcome was {call.outcome}; see: spanvault show {short(call)}",
        )
    sound = Sound(client, call)
    if output == "-":
        _to_stdout(sound, name)
    else:
        path = _path(output, call, name, count)
        seconds = _to_file(sound, name, path)
        if not json:
            say(f"{path}: {seconds:.2f} s, {sound.renderer.rate} Hz, caller left, callee right")
    whole = sound.tell()
    if json:
        rate = sound.renderer.rate
        document(
            {
                "id": call.id.hex(),
                "path": str(path),
                "seconds": round(seconds, 3),
                "sample_rate": rate,
                "whole": whole,
                "warnings": list(sound.renderer.warnings),
            }
        )
    return whole


def _path(output: str, call: Call, name: str, count: int) -> Path:
    path = Path(output)
    try:
        if count > 1:
            path.mkdir(parents=True, exist_ok=True)
        return path / f"{call.id.hex()}.{name}" if path.is_dir() else path
    except OSError as error:
        raise CommandFailed(f"{path}: {(error.strerror or '').lower()}") from None


def _to_file(sound: "Sound", name: str, path: Path) -> float:
    """Written beside and renamed: a broken-off export leaves no half file."""
    if path.exists() and not path.is_file():  # a rename would put a file in a device's place
        raise CommandFailed(f"{path} is no regular file", "For stdout: -o -", USAGE)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            seconds = sound.write(name, file)
        part.replace(path)
    except OSError as error:
        raise CommandFailed(
            f"{path} cannot be written: {(error.strerror or str(error)).lower()}"
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return seconds


def _to_stdout(sound: "Sound", name: str) -> None:
    out = sys.stdout.buffer
    if out.isatty():
        raise CommandFailed("sound is not for a terminal", "Name a file, or pipe it on.", USAGE)
    if name == "wav" and not out.seekable() and sound.span_s <= HELD_S:
        held = io.BytesIO()
        sound.write(name, held)
        out.write(held.getbuffer())
    else:
        sound.write(name, out)
    out.flush()
