"""Blocks of frames in, call records and media out: the rooms of capture put together.

Within a block signalling goes first, then media: every answer of the call table is dated, so a
stream belongs to the call that was expecting it at the time it was heard. A block of a sparse
capture may hold hours: it is taken in stretches, so that neither runs far ahead of the other.
No clock, socket or file here. Who sends what comes out: capture.delivery.courier.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from capture.calls.calls import Calls
from capture.calls.continuity import on_hold, waited_too_long
from capture.calls.witness import SILENT, Witness
from capture.clock import Clock, stretches
from capture.media.engine import Media
from capture.media.leaving import Leaving
from capture.model import Attach, Block, Close, Datagram, NewStream
from capture.packets.decode import RTCP_PER_SECOND, Decoded, Decoder
from capture.packets.slowpath import FRAMES_PER_SECOND, SlowPath
from spanvault.daemon.config import CaptureConfig
from spanvault.messages import Call

TICK_NS: Final = 1_000_000_000


@dataclass(slots=True)
class Heard:
    """What is ready to leave."""

    calls: list[Call] = field(default_factory=list)
    media: Leaving = field(default_factory=Leaving)
    ticked: bool = False  # a second has passed: the call table may have changed

    def add(self, later: "Heard") -> None:
        """Append what became ready after this."""
        self.calls += later.calls
        self.media += later.media
        self.ticked |= later.ticked


class Recorder:
    """One capture's calls and streams. Times that are handed in are those of the packets."""

    def __init__(
        self,
        settings: CaptureConfig,
        new_id: Callable[[], bytes],
        slow_frames: int | None = FRAMES_PER_SECOND,
        witness: Witness = SILENT,
    ) -> None:
        """slow_frames: how many a second may take the slow path; None: all, for files can wait.

        witness: who is told of every decision.
        """
        self.decoder = Decoder(control_per_second=None if slow_frames is None else RTCP_PER_SECOND)
        self.slow_path = SlowPath(slow_frames)
        self.media = Media(settings)
        self.clock = Clock()
        self.calls = Calls(settings, self.media.totals, new_id, witness, self.clock)
        self._now_ns: int | None = None  # by our clock, as all that follows
        self._last_ns = 0  # of the last frame
        self._next_tick_ns = 0

    @property
    def now_ns(self) -> int | None:
        """The time of the packets; None before the first."""
        return None if self._now_ns is None else self._now_ns + self.clock.offset_ns

    def receive(self, block: Block) -> Heard:
        """Take a block in; what became due leaves."""
        heard = Heard()
        for stretch in stretches(block):
            part = stretch.earlier(self.clock.offset_ns)
            decoded = self.decoder.decode(part)
            if step_ns := self._step(int(part.time_ns[0]) - self._last_ns, decoded):
                part, decoded = part.earlier(step_ns), decoded.earlier(step_ns)
            heard.add(self._count(int(part.time_ns[0])))
            heard.add(self._stretch(part, decoded))
            self._last_ns = int(part.time_ns[-1])
        return heard

    def _step(self, gap_ns: int, heard: Decoded | None = None) -> int:
        """By how much the clock was set in a gap. heard: what came behind it."""
        if self._now_ns is None:
            return 0
        now_ns = self._now_ns + gap_ns

        def said() -> int | None:
            if heard is None:
                return None
            calls = list(self.calls.live())
            by_media = self.media.step(heard.packets, on_hold(calls))
            if by_media is None and waited_too_long(calls, heard.signalling, now_ns, gap_ns):
                return gap_ns
            return by_media

        step_ns = self.clock.follow(gap_ns, said, now_ns)
        if step_ns:
            self.calls.clock_set()
        return step_ns

    def _stretch(self, block: Block, fast: Decoded) -> Heard:
        decoded = [fast]
        if (refused := fast.refused).count:
            slow = self.slow_path.receive(block, refused.rows, refused.inner)
            decoded.append(self.decoder.admit(slow))
            self.calls.sip_tls.sighted(self.slow_path.tls.sightings())
            if self.slow_path.dropped:
                self.calls.dropped(slow=True)
        if self.media.losses(block):
            self.calls.dropped()
        self._signalling(datagram for part in decoded for datagram in part.signalling)
        self._packets(fast)
        for part in decoded[1:]:
            self._packets(part, among=len(fast.packets.ssrc) > 0, slow=True)
        for part in decoded:
            for datagram in part.control:
                self.calls.control(datagram)
        return self._tick(int(block.time_ns.max()))

    def tick(self, now_ns: int) -> Heard:
        """Let time pass, with or without packets. Raises nothing if the clock was set."""
        now_ns -= self.clock.offset_ns
        return self._tick(now_ns - self._step(now_ns - (self._now_ns or 0)))

    def _tick(self, now_ns: int) -> Heard:
        if self._now_ns is None:
            self._next_tick_ns = now_ns + TICK_NS
            self._now_ns = self._last_ns = now_ns
        now_ns = self._now_ns = max(now_ns, self._now_ns)
        if now_ns < self._next_tick_ns:
            return Heard()
        self._opened(self.media.contested())
        flushed = self.media.tick(now_ns)
        self.calls.overdue(self.media.overdue())
        # In step with the media: a second that is due just after a tick would wait for the next.
        self._next_tick_ns = self.media.due_ns(now_ns)
        # A block of a sparse capture holds many seconds: no call may end before its media counts.
        self.calls.tick(self.media.counted_ns(now_ns))
        self._obey()
        flushed += self.media.tick(now_ns)
        return self._heard(flushed)

    def finish(self, reason: str = "capture_end") -> Heard:
        """The capture ends here, and every call with it."""
        if self._now_ns is None:
            return Heard()
        self._opened(self.media.contested())
        flushed = self.media.flush()
        self.calls.finish(self._now_ns, reason, self.media.overdue(everything=True))
        self._obey()
        flushed += self.media.flush()
        return self._heard(flushed, everything=True)

    def pause(self) -> Heard:
        """The daemon stops, the calls go on: give what was heard of them so far."""
        self._opened(self.media.contested())
        flushed = self.media.flush()
        self.calls.overdue(self.media.overdue(everything=True))
        self._obey()
        flushed += self.media.flush()
        self.calls.renew()
        return self._heard(flushed, everything=True)

    def counters(self) -> dict[str, int]:
        """Everything counted, for status and journal."""
        return {
            **self.decoder.counters,
            **{f"slow_{key}": count for key, count in self.slow_path.counters.items()},
            **self.media.counters,
            **self.calls.counters,
        }

    def _count(self, now_ns: int) -> Heard:
        """Count the media before a stretch: the call table asks what had fallen silent by then.

        No call ends here: a pause may be a clock that was set, and then its media goes on.
        """
        if self._now_ns is None or now_ns < self._next_tick_ns:
            return Heard()
        self._opened(self.media.contested())
        flushed = self.media.tick(now_ns)
        self.calls.overdue(self.media.overdue())
        self._obey()
        self.calls.counted(self.media.counted_ns(now_ns))
        return Heard(media=flushed)

    def _signalling(self, datagrams: Iterable[Datagram]) -> None:
        for datagram in sorted(datagrams, key=lambda datagram: datagram.time_ns):
            self.calls.receive(datagram)
        self._obey()

    def _packets(self, decoded: Decoded, among: bool = False, slow: bool = False) -> None:
        """Media opens streams; a stream that is closed within the block opens the next."""
        new = self.media.receive(decoded.packets, decoded.endpoints, among)
        self._opened([stream._replace(slow=slow) for stream in new])

    def _obey(self) -> None:
        """Do what the call table says. Streams that open by it may call for more."""
        self._opened(self._carry_out())

    def _opened(self, new: list[NewStream]) -> None:
        while new:
            for stream in sorted(new, key=lambda stream: stream.time_ns):
                self.calls.opened(stream)
            new = self._carry_out()

    def _carry_out(self) -> list[NewStream]:
        """The table's commands; returns the streams that open by them."""
        closes: list[Close] = []
        for command in self.calls.commands():
            if isinstance(command, Attach):
                self.media.attach(command)
            elif isinstance(command, Close):
                closes.append(command)
            else:
                self.media.contest(command)
        return self.media.close(closes)

    def _heard(self, media: Leaving, everything: bool = False) -> Heard:
        """What leaves at the end of a second, media before the records that count it."""
        media += Leaving([self.calls.media()])
        heard = Heard(media=media, ticked=True)
        heard.calls = self.calls.records(everything)
        for row in self.calls.released():
            self.media.release(row)
        return heard
