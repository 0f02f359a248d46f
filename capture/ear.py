"""One worker's half of a recorder: frames in; signalling, new streams and media out.

Where one core is too slow for a port, each of several workers hears some of its flows. It decodes
them and orders their media; whose they are is decided elsewhere, by one call table for all workers,
whose orders come a moment later: packets wait for them as they do for late signalling. Whatever is
said carries the time up to which this ear has heard everything.
No clock, socket or file here. The call table of all ears: capture.ensemble. How they talk to each
other: capture.worker.
"""

from collections import Counter
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from capture.clock import Clock, stretches
from capture.media.engine import Media
from capture.media.leaving import Leaving
from capture.media.streams import FREE, GENERATION
from capture.model import Attach, Block, Close, Contest, Datagram, NewStream, Overdue
from capture.packets.decode import Decoded, Decoder
from capture.packets.slowpath import SlowPath
from capture.packets.tls import Sighting
from spanvault.daemon.config import CaptureConfig

TICK_NS: Final = 1_000_000_000

TOTALS: Final = np.dtype(
    [
        ("row", "<i8"), ("packets", "<i8"), ("lost", "<i8"), ("duplicates", "<i8"),
        ("late", "<i8"), ("jitter", "<f8"), ("first_ns", "<i8"), ("last_ns", "<i8"),
        ("events", "<i8"), ("events_first_ns", "<i8"), ("events_last_ns", "<i8"),
    ]
)  # fmt: skip
# Packets of a payload type: at is the place of the stream in the TOTALS they travel with.
TYPES: Final = np.dtype([("at", "<u4"), ("payload_type", "u1"), ("packets", "<u4")])


class Orders(msgspec.Struct, array_like=True):
    """What the call table wants done, in this order."""

    number: int  # one higher each time
    attach: list[Attach] = []
    close: list[Close] = []
    release: list[int] = []
    stop: bool = False  # tell all there is, and wait for the last orders
    contest: list[Contest] = []
    last: bool = False


class Word(msgspec.Struct, array_like=True):
    """What an ear has to say; totals and media go beside it."""

    time_ns: int  # nothing from before will be told of any more
    counted_ns: int  # media from before is counted in the totals
    done: int = 0  # number of the last orders carried out; what they claimed has left
    datagrams: list[Datagram] = []
    opened: list[NewStream] = []
    overdue: list[Overdue] = []
    lossy: bool = False  # frames were lost by the capture, since last told
    flooded: int = 0  # frames that the slow path had no time for
    counters: dict[str, int] = {}
    last: bool = False
    control: list[Datagram] = []  # RTCP
    ending: bool = False  # all has been heard; what nobody claims now is let go
    clock_ns: int = 0  # what the time of day is ahead of all these times: capture.clock
    secure: list[Sighting] = []  # connections that are TLS


class Report(msgspec.Struct):
    """A word and its bulk. totals: TOTALS[n], of the streams that changed; types: TYPES[m]."""

    word: Word
    totals: NDArray[np.void]
    types: NDArray[np.void]
    media: Leaving


class Ear:
    """Decoder, slow path and streams of one worker. now_ns is always the time of the packets."""

    def __init__(self, settings: CaptureConfig) -> None:
        self.decoder = Decoder()
        self.slow_path = SlowPath()
        self.media = Media(settings)
        self.clock = Clock()
        self.now_ns = 0  # by that clock, as all that follows
        self._last_ns = 0  # of the last frame
        self._next_tick_ns = 0
        self._word = Word(0, 0)
        self._flushed: Leaving = Leaving()
        self._counted = False  # totals have changed
        self._told = np.zeros(0, np.int64)  # by slot: what its totals were when last told

    @property
    def urgent(self) -> bool:
        """Whether there is more to tell than the time."""
        word = self._word
        lost = word.lossy or word.flooded
        return self._counted or bool(word.datagrams or word.opened or word.control or lost)

    def receive(self, block: Block) -> None:
        """Take a block in; what it brings is in the next report."""
        for stretch in stretches(block):
            part = stretch.earlier(self.clock.offset_ns)
            gap_ns = int(part.time_ns[0]) - self._last_ns if self._last_ns else 0
            part = part.earlier(self.clock.follow(gap_ns))
            self._last_ns = int(part.time_ns[-1])
            self._stretch(part)

    def _stretch(self, block: Block) -> None:
        decoded = [self.decoder.decode(block)]
        if (refused := decoded[0].refused).count:
            found = self.slow_path.receive(block, refused.rows, refused.inner)
            decoded.append(self.decoder.admit(found))
            self._word.secure += self.slow_path.tls.sightings()
            self._word.flooded += self.slow_path.dropped
        fast, *slow = decoded
        self._word.lossy |= self.media.losses(block)
        self._packets(fast)
        for part in slow:
            self._packets(part, among=len(fast.packets.ssrc) > 0, slow=True)
        self._tick(int(block.time_ns.max()))

    def tick(self, now_ns: int) -> None:
        """Let time pass, with or without packets. Raises nothing if the clock was set."""
        now_ns -= self.clock.offset_ns
        self._tick(now_ns - self.clock.follow(now_ns - self.now_ns if self.now_ns else 0))

    def _tick(self, now_ns: int) -> None:
        self.now_ns = max(self.now_ns, now_ns)
        if self.now_ns >= self._next_tick_ns:
            self._word.opened += self.media.contested()
            self._flush(self.media.tick(self.now_ns))
            self._counted = True
            self._next_tick_ns = self.media.due_ns(self.now_ns)

    def obey(self, orders: Orders) -> None:
        """Do what the call table wants; what was claimed by it leaves."""
        for attach in orders.attach:
            self.media.attach(attach)
        self._word.opened += self.media.close(orders.close)
        for contest in orders.contest:
            self.media.contest(contest)
        if self.now_ns >= self.media.due_ns(self.now_ns):
            self._word.opened += self.media.contested()
        self._flush(self.media.tick(self.now_ns))
        for row in orders.release:
            self.media.release(row)
        self._word.done = orders.number

    def stop(self) -> None:
        """The daemon stops: give what was heard so far, and ask about what nobody has claimed."""
        self._word.opened += self.media.contested()
        self._flush(self.media.flush())
        self._counted = self._word.ending = True
        self._word.overdue = self.media.overdue(everything=True)

    def finish(self, orders: Orders | None) -> None:
        """Carry out the last orders, if any came, and give what was claimed by them."""
        if orders is not None:
            self.obey(orders)
        self._word.opened += self.media.contested()
        self._flush(self.media.flush())
        self._counted = self._word.last = True

    def report(self) -> Report:
        """What there is to say since last asked."""
        word, self._word = self._word, Word(0, 0, self._word.done)
        word.time_ns, word.clock_ns = self.now_ns, self.clock.offset_ns
        word.counted_ns = self.media.counted_ns(self.now_ns)
        word.counters = self._counters()
        word.overdue += self.media.overdue()
        media, self._flushed = self._flushed, Leaving()
        totals, types = self._totals()
        return Report(word, totals, types, media)

    def _packets(self, decoded: Decoded, among: bool = False, slow: bool = False) -> None:
        packets = decoded.packets
        self._word.datagrams += decoded.signalling
        self._word.control += decoded.control
        new = self.media.receive(packets, decoded.endpoints, among)
        self._word.opened += [stream._replace(slow=slow) for stream in new]

    def _flush(self, media: Leaving) -> None:
        self._flushed += media
        self._counted |= bool(media)

    def _counters(self) -> dict[str, int]:
        slow = {f"slow_{key}": count for key, count in self.slow_path.counters.items()}
        return dict(Counter({**self.decoder.counters, **slow, **self.media.counters}))

    def _totals(self) -> tuple[NDArray[np.void], NDArray[np.void]]:
        """TOTALS and TYPES of the streams whose totals changed since they were last told."""
        streams = self.media.streams
        if not self._counted:
            return np.zeros(0, TOTALS), np.zeros(0, TYPES)
        self._counted = False
        # Nothing changes in a stream without the time it was heard at or a count growing.
        state = streams.heard_ns + streams.packets + streams.duplicates + streams.late
        told = np.zeros_like(state)
        told[: len(self._told)] = self._told
        slots = np.flatnonzero((state != told) & (streams.state != FREE))
        self._told = state
        totals = np.zeros(len(slots), TOTALS)
        totals["row"] = streams.generation[slots] * GENERATION + slots
        totals["lost"] = np.maximum(0, streams.expected(slots) - streams.packets[slots])
        for name in (
            "packets", "duplicates", "late", "jitter", "first_ns",
            "events", "events_first_ns", "events_last_ns",
        ):  # fmt: skip
            totals[name] = getattr(streams, name)[slots]
        totals["last_ns"] = np.maximum(streams.last_ns[slots], streams.heard_ns[slots])
        at, kind, packets = streams.types_of(slots)
        types = np.zeros(len(at), TYPES)
        types["at"], types["payload_type"], types["packets"] = at, kind, packets
        return totals, types
