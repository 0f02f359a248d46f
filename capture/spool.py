"""Batches on the capture's own disk, sealed so that this host cannot read them back.

One file a batch, SEQUENCE.KEYID.sealed: the key id names the ingest key it was sealed to, so that
spooled batches survive a change of that key. A file is written beside and renamed: what has the
right name is whole. Sealing: spanvault.spool. Who decides what goes to disk: capture.outbox.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spanvault.spool import key_id, seal_batch


class Spool:
    """The folder of sealed batches. Raises OSError as the disk does."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        for torn in folder.glob("*.part"):
            torn.unlink()
        self._files: dict[int, tuple[Path, int]] = {}
        for path in sorted(folder.glob("*.sealed")):
            sequence, _, _ = path.name.partition(".")
            if sequence.isdecimal():
                self._files[int(sequence)] = path, path.stat().st_size
        self.bytes = sum(size for _, size in self._files.values())

    def sequences(self) -> list[int]:
        """The batches that lie here, oldest first."""
        return sorted(self._files)

    def put(self, sequence: int, frames: Sequence[Any], ingest_key: bytes) -> None:
        """Seal a batch's wire frames to storaged's public key and keep them."""
        sealed = seal_batch(frames, ingest_key)
        path = self._folder / f"{sequence:020d}.{key_id(ingest_key)}.sealed"
        part = path.with_suffix(".part")
        try:
            part.write_bytes(sealed)
            part.rename(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        self._files[sequence] = path, len(sealed)
        self.bytes += len(sealed)

    def get(self, sequence: int) -> tuple[str, bytes]:
        """The key id and the sealed bytes of one batch."""
        path, _ = self._files[sequence]
        return path.name.split(".")[1], path.read_bytes()

    def size(self, sequence: int) -> int:
        """Bytes of one sealed batch."""
        return self._files[sequence][1]

    def remove(self, sequence: int) -> None:
        """Forget a batch that storaged has acknowledged."""
        path, size = self._files.pop(sequence)
        self.bytes -= size
        path.unlink(missing_ok=True)

    def sync(self) -> None:
        """Put everything through to the medium, names included."""
        for path in [*(path for path, _ in self._files.values()), self._folder]:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
