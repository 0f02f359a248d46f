"""Batches on the capture's own disk, sealed so that this host cannot read them back.

One file a batch, SEQUENCE.KEYID.sealed: the key id names the ingest key it was sealed to, so that
spooled batches survive a change of that key. A file is written beside and renamed: what has the
right name is whole. What waits for the disk (seal, read, delete) bears any thread; what the folder
holds is known by one. Sealing: spanvault.spool. Who decides what goes to disk: capture.outbox.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spanvault.spool import finish_shredding, key_id, seal_batch, shred


class Lying(NamedTuple):
    """One batch on disk."""

    path: Path
    size: int


class Spool:
    """The folder of sealed batches. Raises OSError as the disk does."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        for torn in folder.glob("*.part"):
            torn.unlink()
        finish_shredding(folder)
        self._files: dict[int, Lying] = {}
        for path in sorted(folder.glob("*.sealed")):
            sequence, _, _ = path.name.partition(".")
            if sequence.isdecimal():
                self._files[int(sequence)] = Lying(path, path.stat().st_size)
        self.bytes = sum(file.size for file in self._files.values())

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

    # --- what waits for the disk: for any thread -------------------------------------------------

    def seal(self, sequence: int, frames: Sequence[Any], ingest_key: bytes) -> Lying:
        """Seal a batch's wire frames to storaged's public key and write them.

        Raises OSError, and ValueError if the key is none; then nothing is left behind.
        """
        sealed = seal_batch(frames, ingest_key)
        path = self._folder / f"{sequence:020d}.{key_id(ingest_key)}.sealed"
        part = path.with_suffix(".part")
        try:
            part.write_bytes(sealed)
            part.rename(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        return Lying(path, len(sealed))

    @staticmethod
    def read(file: Lying) -> tuple[str, bytes]:
        """The key id and the sealed bytes of one batch."""
        return file.path.name.split(".")[1], file.path.read_bytes()

    @staticmethod
    def delete(file: Lying) -> None:
        """Remove the file of a batch that storaged has, for good: the call may be erased there."""
        shred(file.path)

    def sync(self) -> None:
        """Put everything through to the medium, names included."""
        for path in [*(file.path for file in self._files.values()), self._folder]:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
