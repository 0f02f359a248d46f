"""Find the frames in an object's bytes, open them, and say where it is damaged.

Works on anything that can be sliced like bytes (storaged.pools.pool.ObjectFile). A torn tail, as a
crash leaves it, is no fault of an unsealed object; anything else that does not fit is reported with
its place, and reading goes on behind it. Bytes: storaged.format.sealing, FORMAT.md §4. Pure.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from spanvault.media import chunk
from spanvault.media.chunk import Chunk
from storaged.format.sealing import (
    EVENTS,
    FRAME_HEAD_BYTES,
    HEADER_BYTES,
    LAST,
    LOCATOR_BYTES,
    MAGIC,
    Header,
    Locator,
    ObjectWriter,
    SegmentKey,
    Trailer,
    parse_frame_head,
)

R = TypeVar("R")
FindKey = Callable[[int], bytes]  # key id → DEK
Steps = Generator[None, None, R]  # work that can be put off between its steps, and its result
STEP: Final = 1 << 20  # bytes read at a time where all are wanted, and between two looks


class Bytes(Protocol):
    """What can be walked: bytes, or a file that reads the slice it is asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> bytes: ...


_MAX_FAULTS: Final = 100
_FRAMES_A_STEP: Final = 256  # heads only, nothing opened
_STEP_COST: Final = 4 << 10  # what finding a frame costs, in bytes of it opened


class Place(NamedTuple):
    """Where a frame lies. offset: of its length field; start, end: of its ciphertext."""

    offset: int
    start: int
    end: int
    segment: int
    sequence: int
    flag: int


class Layout(NamedTuple):
    """The structure of an object, nothing of it opened yet."""

    headers: list[tuple[int, Header]]  # offset, header
    places: list[Place]
    sealed: bool  # the last thing in it is a LAST frame with its locator
    end: int  # bytes that have a structure; what is behind is a torn tail
    faults: list[str]


def walk(data: Bytes) -> Layout:
    """Follow headers, frames and locators. Raises ValueError only if not even a header is there."""
    return finish(walking(data))


def walking(data: Bytes) -> "Steps[Layout]":
    """walk() in steps of some milliseconds, so that other work can go on between them."""
    walker, steps = _Walker(data), 0
    while walker.step():
        steps += 1
        if steps % _FRAMES_A_STEP == 0:
            yield
    return walker.layout()


def finish(steps: "Steps[R]") -> R:
    """Take all steps at once."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: R = done.value
            return result


def behind(data: Bytes, header_at: int, header: Header, at: int, sequence: int) -> Layout:
    """What lies behind a byte of which it is known: in which segment, and which frame is next."""
    walker = _Walker(data, header_at, header)
    walker.skip_to(at, sequence)
    while walker.step():
        pass
    return walker.layout()


class _Walker:
    """Where a walk is, and what it has found so far: headers and places as a Layout has them."""

    def __init__(self, data: Bytes, header_at: int = 0, header: Header | None = None) -> None:
        self._data, self._at, self._sequence = data, header_at + HEADER_BYTES, 0
        self.headers = [(header_at, header or Header.parse(data[:HEADER_BYTES]))]
        self.places: list[Place] = []
        self._faults: list[str] = []
        self._sealed = False

    def layout(self) -> Layout:
        end = min(self._at, len(self._data))
        return Layout(self.headers, self.places, self._sealed, end, self._faults[:_MAX_FAULTS])

    def skip_to(self, at: int, sequence: int) -> None:
        """Go on at a frame further behind in the segment."""
        self._at, self._sequence = at, sequence

    def step(self) -> bool:
        """Take the next header or frame, or skip what is neither. False at the end."""
        if self._at >= len(self._data):
            return False
        if self._data[self._at : self._at + len(MAGIC)] == MAGIC:
            return self._header()
        try:
            place = self._frame()
        except _Cut:
            return False
        except ValueError as error:
            return self._skip(f"at byte {self._at}: {error}")
        self.places.append(place)
        self._sequence += 1
        self._at, self._sealed = place.end, place.flag == LAST
        if self._sealed:
            self._locator(place)
        return True

    def _locator(self, place: Place) -> None:
        """Step over the locator behind a LAST frame."""
        behind = place.end + LOCATOR_BYTES
        try:
            locator = Locator.parse(self._data[place.end : behind])
        except ValueError as error:
            self._faults.append(f"at byte {place.end}: {error}")
            if behind != len(self._data):
                self._sealed = False  # rather a DATA frame whose flag was changed: go on behind it
                return
        else:
            if locator != Locator(self.headers[-1][0], place.offset, place.sequence):
                self._faults.append(f"the locator at byte {place.end} points elsewhere")
        self._at = behind

    def _header(self) -> bool:
        at, first = self._at, self.headers[0][1]
        if len(self._data) - at < HEADER_BYTES:
            return False
        try:
            header = Header.parse(self._data[at : at + HEADER_BYTES])
        except ValueError as error:
            return self._skip(f"segment header at byte {at}: {error}")
        if (header.recording_id, header.key_id) != (first.recording_id, first.key_id):
            return self._skip(f"segment header at byte {at} belongs to another recording")
        if header.segment != (wanted := self.headers[-1][1].segment + 1):
            self._faults.append(f"segment {header.segment} at byte {at} where {wanted} belongs")
        self.headers.append((at, header))
        self._at, self._sequence, self._sealed = at + HEADER_BYTES, 0, False
        return True

    def _frame(self) -> Place:
        """The frame here. Raises _Cut if the bytes end within it, ValueError if it is none."""
        data, at = self._data, self._at
        if self._sealed:
            raise ValueError(f"{len(data) - at} bytes behind the last frame")
        if len(data) - at < FRAME_HEAD_BYTES:
            raise _Cut
        length, flag = parse_frame_head(data[at : at + FRAME_HEAD_BYTES])
        start = at + FRAME_HEAD_BYTES
        end = start + length
        place = Place(at, start, end, len(self.headers) - 1, self._sequence, flag)
        if end + (LOCATOR_BYTES if flag == LAST else 0) > len(data):
            if _find_magic(data, at) is not None:
                raise ValueError(f"frame {self._sequence} reaches beyond the end")
            raise _Cut
        return place

    def _skip(self, fault: str) -> bool:
        """Note a fault and go on at the next segment header, if there is one."""
        self._faults.append(fault)
        behind = _find_magic(self._data, self._at + 1)
        if behind is None:
            return False
        self._at, self._sealed = behind, False
        return True


class _Cut(Exception):
    """The bytes end within a frame: a torn tail."""


def _find_magic(data: Bytes, start: int) -> int | None:
    """Where the next segment header may begin."""
    for at in range(start, len(data), STEP):
        found = data[at : at + STEP + len(MAGIC) - 1].find(MAGIC)
        if found >= 0:
            return at + found
    return None


class Headed(Protocol):
    """What knows the headers of an object: a Layout, or what its trailer says."""

    @property
    def headers(self) -> list[tuple[int, Header]]:
        """Offset and header of each segment."""


class Opener:
    """Opens the frames of one object; derives each segment's key once."""

    def __init__(self, data: Bytes, headed: Headed, find_key: FindKey) -> None:
        self._data, self._headers = data, headed.headers
        self._dek = find_key(self._headers[0][1].key_id)
        self._keys: dict[int, SegmentKey] = {}

    def check_key(self, segment: int) -> SegmentKey:
        """The key of a segment. Raises ValueError if its header was made with another."""
        if segment not in self._keys:
            self._keys[segment] = SegmentKey.open(self._headers[segment][1], self._dek)
        return self._keys[segment]

    def open(self, place: Place) -> bytes:
        """The plaintext of a frame. Raises ValueError, naming frame and bytes."""
        try:
            return self.check_key(place.segment).open_frame(
                place.sequence, place.flag, self._data[place.start : place.end]
            )
        except ValueError as error:
            raise ValueError(
                f"segment {place.segment}, bytes {place.offset}-{place.end}: {error}"
            ) from None


def chunks_of(plain: bytes, recording_id: bytes) -> Iterator[Chunk]:
    """The chunks of a frame. Raises ValueError if they are another recording's."""
    for piece in chunk.unpack(plain):
        if piece.recording_id != recording_id:
            raise ValueError("a chunk of another recording lies in this one")
        yield piece


def is_events(piece: Chunk) -> bool:
    """Whether a chunk holds telephone events."""
    return int(piece.header["stream"]) >= chunk.EVENTS


class Checked(NamedTuple):
    """What a check found. faults: empty if all is well."""

    layout: Layout
    faults: list[str]


def check(data: Bytes, find_key: FindKey) -> Checked:
    """Every fault of an object: structure, tags, chunks, trailer. ValueError as walk()."""
    return finish(checking(data, find_key))


def checking(data: Bytes, find_key: FindKey) -> Steps[Checked]:
    """check() in steps of some milliseconds, in one pass: a frame is opened where it is met."""
    walker = _Walker(data)
    opener = Opener(data, walker, find_key)
    faults, times = list[str](), dict[int, tuple[int, int]]()
    work = frames = 0
    while walker.step():
        work += _STEP_COST
        if len(walker.places) > frames:
            frames, place = frames + 1, walker.places[-1]
            work += place.end - place.offset
            try:
                _check_frame(opener.open(place), walker, place, times)
            except ValueError as error:
                faults.append(str(error))
        if work >= STEP:
            yield
            work = 0
    layout = walker.layout()
    return Checked(layout, (layout.faults + faults)[:_MAX_FAULTS])


def _check_frame(
    plain: bytes, walker: "_Walker", place: Place, times: dict[int, tuple[int, int]]
) -> None:
    """Raise ValueError unless a frame holds what one of its kind must.

    times: by offset, the earliest and the latest chunk start of each frame that opened, in ns.
    """
    if place.flag == LAST:
        return _check_trailer(Trailer.parse(plain), walker, place, times)
    starts = []
    for piece in chunks_of(plain, walker.headers[0][1].recording_id):
        if is_events(piece) != (place.flag == EVENTS):
            raise ValueError(f"frame {place.sequence}: digits and sound in one place")
        starts.append(int(piece.header["start_ns"]))
    if starts:
        times[place.offset] = min(starts), max(starts)
    return None


def _check_trailer(
    trailer: Trailer, walker: "_Walker", place: Place, times: dict[int, tuple[int, int]]
) -> None:
    """Raise ValueError unless a trailer's table is that of the frames before it."""
    frames = [
        (other.offset, walker.headers[other.segment][1].segment, other.sequence)
        for other in walker.places
        if other.flag != LAST and other.offset < place.offset
    ]
    segments = [offset for offset, _ in walker.headers if offset < place.offset]
    listed = trailer.entries.tolist()
    if trailer.segments != segments or [row[:3] for row in listed] != frames:
        raise ValueError(f"the trailer at byte {place.offset} does not list the frames before it")
    for offset, _, _, *told in listed:
        if tuple(told) != times.get(offset, tuple(told)):
            raise ValueError(
                f"the trailer at byte {place.offset} tells other times of the frame at {offset}"
            )


class Resumed(NamedTuple):
    """An object that can be written on. end: where the file must be cut before that."""

    writer: ObjectWriter
    end: int
    sealed: bool
    have: list[tuple[int, int]]  # (stream, start_ns) of every chunk in it
    faults: list[str]


def resume(data: Bytes, committed: int, find_key: FindKey) -> Resumed:
    """Read an object that this process did not write, so that a new segment can follow.

    committed: bytes known to have been acknowledged: never cut, whatever is in them.
    Raises ValueError if not even its header can be used.
    """
    layout = walk(data)
    first = layout.headers[0][1]
    opener = Opener(data, layout, find_key)
    SegmentKey.open(first, find_key(first.key_id))
    writer = ObjectWriter(first.recording_id, first.key_id, first.tier)
    have: list[tuple[int, int]] = []
    faults = list(layout.faults)
    end, sealed = max(committed, HEADER_BYTES), False
    for place in layout.places:
        try:
            plain = opener.open(place)
            if place.flag != LAST:
                keys = _chunk_keys(plain, first.recording_id)
                have += keys
                times = [start_ns for _, start_ns in keys] or [0]
                segment = layout.headers[place.segment][1].segment
                writer.add_entry(place.offset, segment, place.sequence, min(times), max(times))
        except ValueError as error:
            faults.append(str(error))
            continue
        behind = place.end + (LOCATOR_BYTES if place.flag == LAST else 0)
        sealed = place.flag == LAST and layout.sealed and place is layout.places[-1]
        end = max(end, behind)
    writer.segments = [offset for offset, _ in layout.headers if offset < end]
    writer.next_segment = layout.headers[len(writer.segments) - 1][1].segment + 1
    writer.sequence = next_sequence(layout, end)
    writer.size = end
    writer.digest = digest_of(data, end)
    return Resumed(writer, end, sealed, have, faults)


def next_sequence(layout: Layout, end: int) -> int:
    """Of the frame that would follow at `end` in the segment there."""
    segment = sum(offset < end for offset, _ in layout.headers) - 1
    numbers = [one.sequence for one in layout.places if one.segment == segment and one.end <= end]
    return max(numbers, default=-1) + 1


def digest_of(data: Bytes, size: int) -> Any:
    """The running SHA-256 of an object's first `size` bytes."""
    digest = hashlib.sha256()
    for at in range(0, size, STEP):
        digest.update(data[at : min(at + STEP, size)])
    return digest


def _chunk_keys(plain: bytes, recording_id: bytes) -> list[tuple[int, int]]:
    return [
        (int(piece.header["stream"]), int(piece.header["start_ns"]))
        for piece in chunks_of(plain, recording_id)
    ]
