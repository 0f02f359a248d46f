"""How an object that this process did not write is gone on with.

Its row in the index says how far it reaches, so that after a restart at full load thousands of
recordings that grow go on at once: only what lies behind that, written and not acknowledged, is
read then. The rest is read when there is time, at the latest when the recording ends: the trailer
lists every frame, and the SHA-256 is of every byte. Rules: FORMAT.md §9. Who goes on with what:
storaged.recordings.growing. Pure.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from storaged.format import walk
from storaged.format.sealing import HEADER_BYTES, LAST, LOCATOR_BYTES, Header, ObjectWriter
from storaged.format.walk import Bytes, Opener, chunks_of
from storaged.index.rows import Reach
from storaged.recordings.gathering import Have

MOST_STREAMS: Final = 64  # of a recording whose row tells how to go on; else it is read


class GoneOn(NamedTuple):
    """An object that can be written on. end: where the file must be cut before that."""

    writer: ObjectWriter
    end: int
    have: Have


def reach(writer: ObjectWriter, have: Have) -> Reach | int:
    """What to note of an object as it is now; its size alone if the rest would be too much."""
    latest = have.latest()
    if len(latest) > MOST_STREAMS or not writer.segments:
        return writer.size
    segments = writer.next_segment
    return Reach(writer.size, writer.segments[-1], writer.sequence, segments, tuple(latest))


def go_on(
    data: Bytes, recording_id: bytes, known: Reach, find_key: Callable[[int], bytes]
) -> GoneOn:
    """Read what lies behind an object's acknowledged bytes, nothing else.

    The writer's digest, trailer and segments are not the object's: it cannot end it, see read().
    Raises ValueError if what is there is not what the row says: then it must be read whole.
    """
    if len(data) < known.size:
        raise ValueError(f"{len(data)} bytes, {known.size} were acknowledged")
    header = Header.parse(data[known.header : known.header + HEADER_BYTES])
    if header.recording_id != recording_id or header.segment != known.segments - 1:
        raise ValueError(f"another segment's header lies at byte {known.header}")
    layout = walk.behind(data, known.header, header, known.size, known.sequence)
    if layout.faults:
        raise ValueError(layout.faults[0])
    opener = Opener(data, layout, find_key)
    opener.check_key(0)
    have, end = Have(known.latest), known.size
    for place in layout.places:
        try:
            plain = opener.open(place)
            if place.flag != LAST:
                for piece in chunks_of(plain, recording_id):
                    have.add(int(piece.header["stream"]), int(piece.header["start_ns"]))
        except ValueError:
            break  # torn by the crash: nothing was acknowledged from here on
        end = place.end + (LOCATOR_BYTES if place.flag == LAST else 0)
    writer = ObjectWriter(recording_id, header.key_id, header.tier)
    writer.segments = [offset for offset, _ in layout.headers if offset < end]
    writer.next_segment = known.segments + len(writer.segments) - 1
    writer.sequence = walk.next_sequence(layout, end)
    if end == known.size:
        writer.sequence = known.sequence
    writer.size = end
    return GoneOn(writer, end, have)


def read(
    data: Bytes, writer: ObjectWriter, have: Have, find_key: Callable[[int], bytes]
) -> list[str]:
    """Make up for what go_on() left out. Returns what is damaged.

    data: the object as far as its writer has written it. Raises ValueError if it cannot be read.
    """
    found = walk.resume(data, writer.size, find_key)
    writer.digest, writer.entries = found.writer.digest, found.writer.entries
    writer.segments = found.writer.segments
    for stream, start_ns in found.have:
        have.add(stream, start_ns)
    return found.faults
