"""Capture files as blocks of frames: pcap and pcapng, either byte order, any clock resolution.

A file is read window by window into one buffer, so its size does not matter; mapping it would take
as much time, and count all of it as our memory. Record after record would cost 130 ns a frame, so a
window is searched for what looks like record headers, and the chain of lengths says which of them
are (45 ns).
Sources: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng. Live frames: capture.sources.ring.
"""

import bz2
import gzip
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from capture.model import Block
from capture.sources.pcap import PcapReader
from capture.sources.pcapng import PcapngReader

WINDOW: Final = 2 << 20  # bytes looked at at once; half of it, or twice, costs more
MAX_FRAMES: Final = 65_536
LATEST_NS: Final = 4_102_444_800 * 10**9  # 2100: twice as much still fits into 64 bits
REMEDY: Final = "Give a pcap or pcapng file, as tcpdump -w or Wireshark write it."
# By a file's first bytes: what unpacks it, or what its owner has to call for that.
Stream = BufferedReader | gzip.GzipFile | lzma.LZMAFile | bz2.BZ2File
UNPACKED: Final[Mapping[bytes, Callable[[BufferedReader], Stream]]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"BZh": bz2.BZ2File,
}
PACKED: Final[Mapping[bytes, str]] = {
    b"\x28\xb5\x2f\xfd": "zstdcat",
    b"\x04\x22\x4d\x18": "lz4cat",
    b"PK\3\4": "unzip -p",
}


class Reader(Protocol):
    """What the two formats have in common. position: where in the file reading goes on."""

    position: int

    def read(self, window: NDArray[np.uint8], limit: int) -> Block | None:
        """The block of frames at the start of the window, which lies at `position`.

        Advances position past what was used; None if the next record is not whole.
        An empty block means that something else than frames was used up.
        Raises ValueError if what is there cannot be a record.
        """


def blocks(path: Path) -> Generator[Block, None, None]:
    """The frames of a capture file, in blocks of at most 2 MiB and 65,536 frames.

    A block's data is lent until the next is asked for. Raises ValueError, naming file, offset,
    fault and remedy; of a damaged or cut file only after all frames before the fault were given.
    """
    with closing(_open(path)) as source:
        try:
            reader = _reader(source.window(0))
            yield from _blocks(reader, source)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def captures(paths: Iterable[Path]) -> list[Path]:
    """Files as they are; of folders those in them that are captures by their first bytes.

    Raises ValueError where a folder has none, OSError where it is closed to us.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = [each for each in sorted(path.iterdir()) if each.is_file() and _is_capture(each)]
        if not inside:
            raise ValueError(f"{path}: no capture file lies in this folder. {REMEDY}")
        found += inside
    return found


def in_order(paths: Sequence[Path]) -> list[Path]:
    """Capture files by the time of their first frame: names of rotated ones sort otherwise.

    Files that cannot be read go first, to be complained about early. Where one is a pipe, which
    can be read only once, the order stays. Raises OSError where a folder is closed to us.
    """
    if not all(path.is_file() for path in paths if path.exists()):
        return list(paths)
    return sorted(paths, key=_begins_ns)


def _is_capture(path: Path) -> bool:
    try:
        with closing(_open(path)) as source:
            _reader(source.window(0))
    except ValueError:
        return False
    return True


def _begins_ns(path: Path) -> int:
    try:
        with closing(blocks(path)) as found:
            first = next(found, None)
            return int(first.time_ns[0]) if first else 0
    except ValueError:
        return 0


def _blocks(reader: Reader, source: "Seekable | Streamed") -> Iterator[Block]:
    while len(window := source.window(reader.position)):
        at = reader.position
        block = reader.read(window, MAX_FRAMES)
        if block is None:
            if source.fault:
                raise source.fault
            raise ValueError(
                f"cut off at byte {at + len(window)}: the record at offset {at} is not whole. "
                "The frames before it were read."
            )
        if len(block.start):
            yield _dated(block)
    if source.fault:
        raise source.fault


def _dated(block: Block) -> Block:
    """A block with no time that no clock shows: a damaged one could not be reckoned with."""
    if int(block.time_ns.min()) >= 0 and int(block.time_ns.max()) < LATEST_NS:
        return block
    return replace(block, time_ns=np.clip(block.time_ns, 0, LATEST_NS))


def _reader(head: NDArray[np.uint8]) -> Reader:
    for kind in (PcapReader, PcapngReader):
        if (reader := kind.open(head)) is not None:
            return reader
    if not len(head):
        raise ValueError(f"the file is empty. {REMEDY}")
    for magic, program in PACKED.items():
        if bytes(head[: len(magic)]) == magic:
            raise ValueError(f"compressed. Unpack it: {program} FILE > FILE.pcap")
    raise ValueError(f"not a capture file (it begins with {bytes(head[:4]).hex()}). {REMEDY}")


def _open(path: Path) -> "Seekable | Streamed":
    try:
        file = path.open("rb")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}). {REMEDY}") from None
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode):
        return Streamed(file, file)
    begins = file.peek(max(map(len, UNPACKED)))
    for magic, unpacked in UNPACKED.items():
        if begins.startswith(magic):
            return Streamed(file, unpacked(file))
    return Seekable(file)


class Seekable:
    """A file of which any part can be read."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self._buffer = np.empty(WINDOW, np.uint8)
        self.fault: Exception | None = None

    def window(self, position: int) -> NDArray[np.uint8]:
        """Up to WINDOW bytes from this position on; fewer only at the end of the file."""
        filled = 0
        while filled < WINDOW and self.fault is None:
            rest = self._buffer[filled:].data
            try:
                count = os.preadv(self._file.fileno(), [rest], position + filled)
            except OSError as error:
                self.fault = ValueError(f"cannot be read to its end ({error})")
                break
            if not count:
                break
            filled += count
        return self._buffer[:filled]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Streamed:
    """A source that can only be read onwards: a pipe, or a compressed file."""

    def __init__(self, file: BufferedReader, stream: Stream) -> None:
        self._file = file
        self._stream = stream
        self._buffer = np.empty(WINDOW, np.uint8)
        self._position = self._filled = 0
        self.fault: Exception | None = None

    def window(self, position: int) -> NDArray[np.uint8]:
        """Up to WINDOW bytes from this position on, which never goes back."""
        self._forget(position)
        while self._filled < WINDOW and self.fault is None:
            try:
                # readinto would lose what it had got when a cut gzip file raises in the middle.
                count = self._stream.readinto1(self._buffer[self._filled :].data)
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                self.fault = ValueError(f"cannot be read to its end ({error})")
                break
            if not count:
                break
            self._filled += count
        return self._buffer[: self._filled]

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        self._file.close()

    def _forget(self, position: int) -> None:
        skip = position - self._position
        left = max(0, self._filled - skip)
        self._buffer[:left] = self._buffer[self._filled - left : self._filled].copy()
        beyond = max(0, skip - self._filled)  # a record that is passed over reaches further
        while beyond and (passed := len(self._stream.read(min(beyond, WINDOW)))):
            beyond -= passed
        self._position, self._filled = position, left
