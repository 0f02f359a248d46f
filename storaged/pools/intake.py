"""What waits for a pool that cannot take it now: locked, or its own disk is full or failing.

Each batch is one file, sealed to the pool's public ingest key just as a capture's spool is, synced
before it is acknowledged. Whoever has the store and not the pool's keys can add to it and cannot
read it. FORMAT.md §5.5. Who fills and empties it: storaged.recordings.sorting.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Final

from spanvault import spool, wire
from spanvault.media.chunk import NO_MEDIA, Media
from spanvault.messages import Batch, Call
from storaged import files
from storaged.stopwatch import Stopwatch

log = logging.getLogger(__name__)
SUFFIX: Final = ".sealed"
MOVING: Final = ".moving"
_NAME_MAX: Final = 80  # bytes of a capture's name that a file's name tells
_NAME: Final = re.compile(r"[0-9]{12,}\.[0-9a-f]+(\.[0-9a-f]*)?\.sealed")  # others are no batch
_CALLS_BYTES: Final = 8 << 20  # of call records in a file; a wire header has at most 16 MiB


class Intake:
    """The folder of one pool. For the writer's thread; counts may be read by any."""

    def __init__(self, folder: Path) -> None:
        for made in (folder.parent, folder):
            made.mkdir(mode=0o700, exist_ok=True)
        self.folder, self.stopwatch = folder, Stopwatch()
        for path in list(folder.iterdir()):  # glob() would take what may not be read for empty
            if path.suffix == ".new":
                spool.shred_torn(path)
        spool.finish_shredding(folder)
        ours = [path for path in folder.glob("*" + SUFFIX) if _NAME.fullmatch(path.name)]
        self._files = {path: path.stat().st_size for path in sorted(ours)}
        self._next = 1 + max((int(path.name.split(".")[0]) for path in self._files), default=0)

    def __len__(self) -> int:
        """Files that wait."""
        return len(self._files)

    @property
    def size(self) -> int:
        """Their bytes together."""
        return sum(list(self._files.values()))

    @property
    def device(self) -> int:
        """The file system it is on."""
        return self.folder.stat().st_dev

    def holds(self, key_id: str) -> bool:
        """Whether anything in it needs an ingest key to open, what is being moved here included.

        Raises OSError.
        """
        waiting = {path.name.split(".")[1] for path in list(self._files)}
        moving = {path.name.split(".")[2] for path in self._moving("*")}
        return key_id in waiting | moving

    def put(self, calls: Iterable[Call], media: Iterable[Media], public_key: bytes) -> None:
        """Keep calls and media, synced. Raises OSError: then none of it counts."""
        first = self._next
        try:
            for some in _portions(calls):
                self._put(some, NO_MEDIA, public_key)
            for each in media:
                self._put([], each, public_key)
        except OSError:
            self._take_back(first)
            raise

    def _take_back(self, first: int) -> None:
        """Each try would leave what a full disk still takes: the small files, again and again."""
        for path in [one for one in self._files if int(one.name.split(".")[0]) >= first]:
            del self._files[path]
            with contextlib.suppress(OSError):  # what stays comes twice after a start: no harm
                spool.shred(path)

    def put_sealed(self, key_id: str, capture: str, sealed: bytes) -> None:
        """Keep a batch as a capture's spool sealed it: to the same key. Raises OSError."""
        self._keep(self._number(), f"{key_id}.{capture.encode()[:_NAME_MAX].hex()}", sealed)

    def put_moving(
        self, move: bytes, calls: list[Call], media: Media | None, public_key: bytes
    ) -> None:
        """Keep something of a call that is being moved here, synced; it does not count yet.

        move: the id of its erasure in the lower pool. What was put first is taken first.
        Raises OSError.
        """
        number = len(self._moving(move.hex()))
        frames: list[Any] = wire.encode_media(Batch("moved", 0, calls), media or NO_MEDIA)
        name = f"{move.hex()}.{number:06d}.{spool.key_id(public_key)}{MOVING}"
        self._write(self.folder / name, spool.seal_batch(frames, public_key))

    def publish_moving(self, move: bytes) -> None:
        """From now on all of that counts. The pool must be held. Raises OSError."""
        for path in self._moving(move.hex()):
            new = path.with_name(f"{self._number():012d}.{path.name.split('.')[2]}{SUFFIX}")
            path.rename(new)
            self._files[new] = new.stat().st_size
        files.sync_folder(self.folder)

    def drop_moving(self, kept: Collection[bytes] = ()) -> None:
        """Away with what came to nothing: all but these moves, which took place."""
        names = {move.hex() for move in kept}
        for path in self._moving("*"):
            if path.name.split(".")[0] not in names:
                spool.shred(path)

    def _moving(self, move: str) -> list[Path]:
        return sorted(self.folder.glob(f"{move}.*{MOVING}"))

    def open_first(self, private_key: Callable[[str], bytes]) -> tuple[Path, Batch, Media] | None:
        """The oldest batch; None if none waits. private_key: finds an ingest key by its id.

        A file that does not open is set aside, and said so. Raises OSError, Fault.
        """
        while self._files:
            path = next(iter(self._files))
            try:
                key = private_key(path.name.split(".")[1])
                return path, *_open(path.read_bytes(), key)
            except ValueError as error:
                self.set_aside(path, error)
        return None

    def set_aside(self, path: Path, error: ValueError) -> None:
        """Leave a batch out that can never become part of recordings. Raises OSError."""
        log.error("A batch of the intake cannot be taken, it was set aside",
                  extra={"FILE": str(path), "FAULT": str(error)})  # fmt: skip
        path.rename(path.with_suffix(".damaged"))
        del self._files[path]

    def remove(self, path: Path) -> None:
        """Forget a batch that has become part of recordings."""
        spool.shred(path)
        self._files.pop(path, None)

    def _put(self, calls: list[Call], media: Media, public_key: bytes) -> None:
        number = self._number()
        frames: list[Any] = wire.encode_media(Batch("intake", number, calls), media)
        self._keep(number, spool.key_id(public_key), spool.seal_batch(frames, public_key))

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    def _keep(self, number: int, source: str, sealed: bytes) -> None:
        path = self.folder / f"{number:012d}.{source}{SUFFIX}"
        self._write(path, sealed)
        self._files[path] = len(sealed)

    def _write(self, path: Path, sealed: bytes) -> None:
        """Raises OSError: then nothing of it takes up space."""
        try:
            with self.stopwatch.running():
                files.replace(path, sealed)
        except OSError:
            spool.shred_torn(path.with_name(path.name + ".new"))
            raise


def capture_of(path: Path) -> str | None:
    """The name of the capture whose spooled batch a file is; None: storaged itself wrote it."""
    _, _, *capture = path.stem.split(".")
    return bytes.fromhex(capture[0]).decode(errors="replace") if capture else None


def _open(sealed: bytes, private_key: bytes) -> tuple[Batch, Media]:
    """Raises ValueError."""
    batch, bulk = wire.decode_to_ingest(spool.open_batch(sealed, private_key))
    if not isinstance(batch, Batch):
        raise ValueError("the file holds no batch")
    return batch, wire.decode_media(bulk)


def _portions(calls: Iterable[Call]) -> list[list[Call]]:
    """Calls in lists that each fit into a wire header."""
    portions: list[list[Call]] = []
    size = _CALLS_BYTES
    for call in calls:
        encoded = sum(memoryview(frame).nbytes for frame in wire.encode(Batch("", 0, [call])))
        if size + encoded > _CALLS_BYTES:
            portions.append([])
            size = 0
        portions[-1].append(call)
        size += encoded
    return portions
