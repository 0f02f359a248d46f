"""Batches on the capture's own disk, sealed so that this host cannot read them back.

One file a batch, SEQUENCE.KEYID.sealed: the key id names the ingest key it was sealed to, so that
spooled batches survive a change of that key. A file is written beside and renamed: what has the
right name is whole. What waits for the disk (seal, read, delete, probe) is for one thread aside;
what the folder holds is known by another. A disk that fails stops no recording: the fault is kept
for the operator until a probe finds it mended. Sealing: spanvault.spool. Who decides what goes to
disk: capture.delivery.outbox.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from spanvault.daemon import disks
from spanvault.spool import finish_shredding, key_id, seal_batch, shred, shred_torn

PROBE_BYTES: Final = 2 << 20  # room for a batch: else a nearly full disk would seem to be mended


class Lying(NamedTuple):
    """One batch on disk."""

    path: Path
    size: int


class Spool:
    """The folder of sealed batches.

    fault: what its disk refused, in one line; empty while it works. To begin raises nothing: on a
    disk that fails, recording goes on in memory. All else raises OSError as the disk does.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self.fault = folder, ""
        self._left: list[Path] = []  # not wanted any more, and not removed
        self._files: dict[int, Lying] = {}
        self._given_up: set[str] = set()  # key ids of files that this life could not read
        self._looked = False
        with contextlib.suppress(OSError), self._noting("written"):
            self._clear()
        with contextlib.suppress(OSError), self._noting("read"):
            self._look()
            self._looked = True
        self.bytes = sum(file.size for file in self._files.values())

    def _clear(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for torn in self._folder.glob("*.part"):
            shred_torn(torn)
        finish_shredding(self._folder)

    def _look(self) -> None:
        try:  # glob() would take what may not be read for empty
            paths = sorted(self._folder.iterdir())
        except FileNotFoundError:
            return
        for path in paths:
            sequence, _, _ = path.name.partition(".")
            if sequence.isdecimal() and path.suffix == ".sealed":
                self._files[int(sequence)] = Lying(path, path.stat().st_size)

    @contextlib.contextmanager
    def _noting(self, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.fault = f"the spool cannot be {verb}: {disks.line(error, self._folder)}"
            raise

    # --- what the folder holds: for one thread --------------------------------------------------

    def sequences(self) -> list[int]:
        """The batches that lie here, oldest first."""
        return sorted(self._files)

    def put(self, sequence: int, file: Lying) -> None:
        """A batch that was sealed lies here."""
        self._files[sequence] = file
        self.bytes += file.size

    def file(self, sequence: int) -> Lying:
        """Where one batch lies."""
        return self._files[sequence]

    def forget(self, sequence: int) -> Lying:
        """A batch is not wanted any more: gives the file that is to be deleted."""
        file = self._files.pop(sequence)
        self.bytes -= file.size
        return file

    def give_up(self, sequence: int) -> None:
        """A batch cannot be read: its file stays, for the next life to try."""
        self._given_up.add(_key_of(self.forget(sequence)))

    @property
    def key_ids(self) -> set[str] | None:
        """Ids of the ingest keys that what lies here is sealed to; None: nobody can tell."""
        return {*map(_key_of, self._files.values()), *self._given_up} if self._looked else None

    # --- what waits for the disk: for the thread aside -------------------------------------------

    def seal(self, sequence: int, frames: Sequence[Any], ingest_key: bytes) -> Lying:
        """Seal a batch's wire frames to storaged's public key and write them.

        Raises OSError, and ValueError if the key is none; then nothing is left behind.
        """
        sealed = seal_batch(frames, ingest_key)
        path = self._folder / f"{sequence:020d}.{key_id(ingest_key)}.sealed"
        part = path.with_suffix(".part")
        with self._noting("written"):
            try:
                part.write_bytes(sealed)
                part.rename(path)
            except OSError:
                with contextlib.suppress(OSError):  # what the disk said first is what is told
                    shred_torn(part)
                raise
        return Lying(path, len(sealed))

    def read(self, file: Lying) -> tuple[str, bytes]:
        """The key id and the sealed bytes of one batch."""
        with self._noting("read"):
            return _key_of(file), file.path.read_bytes()

    def delete(self, file: Lying) -> None:
        """Remove the file of a batch that storaged has, for good: the call may be erased there.

        On a disk that fails it stays until a probe finds that mended.
        """
        self._left.append(file.path)
        self._remove_left()

    def _remove_left(self) -> None:
        with self._noting("written"):
            while self._left:
                shred(self._left[-1])
                self._left.pop()

    def sync(self) -> None:
        """Put everything through to the medium, names included."""
        with self._noting("written"):
            for path in [*(file.path for file in self._files.values()), self._folder]:
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def probe(self) -> None:
        """See whether the disk is mended: it is if it has room for a batch, and takes it."""
        path = self._folder / "probe.part"
        with self._noting("written"):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                with path.open("wb", buffering=0) as file:
                    os.posix_fallocate(file.fileno(), 0, PROBE_BYTES)
                    os.fsync(file.fileno())
            finally:
                with contextlib.suppress(OSError):
                    path.unlink()
        self._remove_left()
        self.fault = ""


def _key_of(file: Lying) -> str:
    """The id of the ingest key that a file's name tells."""
    return file.path.name.split(".")[1]
