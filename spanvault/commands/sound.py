"""`spanvault export`: calls as files: sound, caller left, callee right; or a film of both.

Rendering: rendering.py. Encoding: spanvault.audio, spanvault.video.
"""

import io
import os
import sys
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import typer

from spanvault.audio.encode import FORMATS
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
    say,
    short,
)
from spanvault.commands.rendering import Sound, has, has_film
from spanvault.messages import Call
from spanvault.sandbox import SandboxDied
from spanvault.video.film import FILMS

ALL: Final = (*FORMATS, *FILMS)
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
        typer.Option("--format", help=f"{', '.join(ALL)}; else by PATH's ending, else wav."),
    ] = None,
    store: StoreOption = None,
    unlock_key: UnlockOption = None,
    config: ConfigOption = CONFIG,
    json: JsonOption = False,
) -> None:
    """Write calls as stereo sound: caller left, callee right, on one time line.

    mp4 and mkv hold a call's video too.
    """
    name = _format(format, output, len(ids))
    if output == "-" and (json or len(ids) > 1):
        raise CommandFailed("stdout takes one call's sound", "Name a folder: -o FOLDER.", USAGE)
    with reach(store, unlock_key, config) as client:
        failures = sum(not _attempt(client, one, output, name, len(ids), json) for one in ids)
    if failures:
        raise typer.Exit(FAILED)


def _format(given: str | None, output: str, count: int) -> str:
    ending = Path(output).suffix.removeprefix(".").lower() if count == 1 else ""
    name = given or (ending if ending in ALL else "wav")
    if name not in ALL:
        raise CommandFailed(f"'{name}' is no format", f"One of: {', '.join(ALL)}.", USAGE)
    if name in FILMS and output == "-":
        raise CommandFailed(f"{name} is written back and forth", f"Name a file: x.{name}", USAGE)
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
    sound = _rendering(client, call, name)
    if output == "-":
        _to_stdout(sound, name)
    else:
        path = _path(output, call, name, count)
        seconds = _to_file(sound, name, path)
        if not json:
            heard = f"{sound.renderer.rate} Hz, caller left, callee right"
            say(f"{path}: {seconds:.2f} s, {heard if sound.heard else 'without sound'}")
    if sound.film is None and has_film(call):
        say(f"The call has video too: spanvault export {short(call)} -o {short(call)}.mkv")
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
                "warnings": list(sound.warnings),
            }
        )
    return whole


def _rendering(client: Client, call: Call, name: str) -> Sound:
    """What is to be written. Raises CommandFailed where the call has nothing for the format."""
    film = name in FILMS
    if not has(call, "audio") and not (film and has_film(call)):
        raise CommandFailed(
            f"call {call.id.hex()} has no sound: no audio was heard",
            f"It has video: -o x.mkv shows it; see: spanvault show {short(call)}"
            if has_film(call)
            else f"Its outcome was {call.outcome}; see: spanvault show {short(call)}",
        )
    sound = Sound(client, call, film=film)
    if sound.film is not None and (foreign := sound.film.codecs - FILMS[name][1]):
        raise CommandFailed(f"{name} takes no {', '.join(sorted(foreign))}", "Try -o x.mkv.", USAGE)
    return sound


def _path(output: str, call: Call, name: str, count: int) -> Path:
    path = Path(output)
    try:
        if count > 1:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path / f"{call.id.hex()}.{name}" if path.is_dir() else path
    except OSError as error:
        raise CommandFailed(f"{path}: {(error.strerror or '').lower()}") from None


def _to_file(sound: Sound, name: str, path: Path) -> float:
    """Written beside and renamed: a broken-off export leaves no half file. Mode 0600."""
    if path.exists() and not path.is_file():  # a rename would put a file in a device's place
        raise CommandFailed(f"{path} is no regular file", "For stdout: -o -", USAGE)
    part = path.with_name(f".{path.name}.part")
    try:
        with _private(part) as file:
            seconds = sound.write(name, file)
        part.replace(path)
    except SandboxDied as death:
        raise CommandFailed(
            f"{path} cannot be written: what writes it {death}", "For the sound alone: -o x.wav"
        ) from None
    except OSError as error:
        raise CommandFailed(
            f"{path} cannot be written: {(error.strerror or str(error)).lower()}"
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return seconds


def _private(path: Path) -> BinaryIO:
    """A new file that only its owner reads, whatever the umask allows: it holds a conversation."""
    path.unlink(missing_ok=True)  # left behind by one that was killed
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _to_stdout(sound: Sound, name: str) -> None:
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
