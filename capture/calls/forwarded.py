"""Streams that a B2BUA or SBC hands on as they are: the same sound between other ends.

An SBC that hides topology gives each leg a Call-ID, hosts and numbers of its own, and no header is
the same on both sides. What it does not decode it hands on under the SSRC and timestamps of who
spoke: two streams of one SSRC whose timestamps are equal at every moment are one sound. Many
senders choose neither at random, load generators play one file in all calls: so they must come from
other hosts and go to others, and an SSRC that many bear at once says nothing.
Sources: RFC 3550 §7 (translators leave the SSRC as it is), §5.1 (timestamps), RFC 7092 (B2BUAs).
Streams that two legs list: capture.calls.attachment. Other signs: capture.calls.relations.
"""

from collections.abc import Iterator
from typing import Final

from capture.calls.livecall import LiveCall
from capture.calls.rows import Row

SMALL: Final = 1 << 16  # an SSRC below was hardly chosen at random
MANY: Final = 8  # streams of one SSRC; a chain of B2BUAs has fewer
APART_NS: Final = 300_000_000  # a B2BUA holds packets up no longer
DRIFT: Final = 5_000  # 200 ppm: no two clocks are further apart
WRAP: Final = 1 << 32


def forwarded(row: Row, same: dict[int, Row]) -> Iterator[LiveCall]:
    """The calls in which the sound of a row is heard, too.

    same: the rows that bear its SSRC.
    """
    if row.stream.ssrc < SMALL or not 1 < len(same) <= MANY:
        return
    for other in same.values():
        if other.call is not None and other.call is not row.call and _handed_on(row, other):
            yield other.call


def _handed_on(row: Row, other: Row) -> bool:
    """Whether two rows of an SSRC run between other hosts, in step."""
    ours, theirs = row.stream, other.stream
    if ours.source.address == theirs.source.address:
        return False
    if ours.destination.address == theirs.destination.address:
        return False
    return not (row.unsignalled or other.unsignalled) and _in_step(row, other)


def _in_step(row: Row, other: Row) -> bool:
    rate = _clock_rate(row)
    ours, theirs = row.stream, other.stream
    if not rate or rate != _clock_rate(other) or None in (ours.timestamp, theirs.timestamp):
        return False
    passed_ns = ours.time_ns - theirs.time_ns
    passed = passed_ns * rate // 1_000_000_000
    off = ((ours.timestamp or 0) - (theirs.timestamp or 0) - passed + WRAP // 2) % WRAP - WRAP // 2
    return abs(off) * 1_000_000_000 <= (APART_NS + abs(passed_ns) // DRIFT) * rate


def _clock_rate(row: Row) -> int:
    """Of the payload type that a row began with; 0 if nobody named it."""
    if row.call is None or row.number >= len(row.call.streams):
        return 0
    codec = row.call.streams[row.number].codecs.get(row.stream.payload_type)
    return codec.clock_rate if codec else 0
