"""The check of one object against its row in the index: hash, structure, tags, in one pass.

Its bytes are read once, from front to back: each block is hashed as it comes, and its frames are
opened out of it while it is at hand. Who asks for it: storaged.recordings.reading (Verify),
storaged.integrity.scrub, storaged.integrity.mending. Structure and tags: storaged.format.walk.
Pure.
"""

import hashlib
from collections.abc import Iterator
from typing import Final

from spanvault.messages import VerifyReply
from storaged.format import walk
from storaged.format.walk import STEP, Bytes, FindKey, Layout, Steps
from storaged.index.rows import SEALED, State

_KEPT: Final = 2  # a frame that lies in two blocks is hashed and opened without a second read


class Hashed:
    """Bytes that are hashed as they are read: sliced like any, the blocks last read are kept."""

    def __init__(self, data: Bytes) -> None:
        self._data, self._digest = data, hashlib.sha256()
        self._next = 0  # the block to be hashed next
        self._blocks: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(len(self._data))
        if start >= stop:
            return b""
        first, last = start // STEP, (stop - 1) // STEP
        if first == last:
            return self._block(first)[start - first * STEP : stop - first * STEP]
        blocks = b"".join([self._block(number) for number in range(first, last + 1)])
        return blocks[start - first * STEP : stop - first * STEP]

    def finishing(self) -> Steps[bytes]:
        """Read what is left, in steps of a block. Gives the SHA-256 of all bytes."""
        while self._next * STEP < len(self._data):
            self._block(self._next)
            yield
        return self._digest.digest()

    def _block(self, number: int) -> bytes:
        block = self._blocks.get(number)
        if block is None:
            if len(self._blocks) == _KEPT:
                del self._blocks[next(iter(self._blocks))]
            block = self._blocks[number] = self._data[number * STEP : (number + 1) * STEP]
            if number == self._next:
                self._digest.update(block)
                self._next += 1
        return block


def examining(
    recording_id: bytes, state: State, data: Bytes, find_key: FindKey | None
) -> Steps[VerifyReply]:
    """Check an object's bytes against its row, in steps of some milliseconds.

    find_key: None if its pool is locked; then only its size and SHA-256 are looked at.
    """
    hashed, faults, frames = Hashed(data), list[str](), 0
    sealed = bool(state.bits & SEALED)
    if find_key is not None:
        try:
            layout, faults = yield from walk.checking(hashed, find_key)
            frames = len(layout.places)
            faults += _misfits(recording_id, layout, len(data), sealed=sealed)
        except ValueError as error:
            faults.append(str(error))
    digest = yield from hashed.finishing()
    if sealed and len(data) != state.size:
        faults.append(f"{len(data)} bytes, {state.size} were sealed")
    if sealed and digest != state.sha256:
        faults.append(f"SHA-256 differs from the sealed object's {state.sha256.hex()}")
    return VerifyReply(recording_id, sealed, frames, len(data), digest.hex(), faults)


def _misfits(recording_id: bytes, layout: Layout, size: int, *, sealed: bool) -> Iterator[str]:
    """What does not fit though every frame may be whole."""
    if layout.headers[0][1].recording_id != recording_id:
        yield "the object is another recording's"
    if layout.end < size and not layout.faults:
        yield f"bytes {layout.end}-{size}: cut within a frame"
    if sealed and not layout.sealed:
        yield "the last frame is missing, though the recording was sealed"
