"""The packets of one video stream to its pictures; what was lost takes its own picture with it.

A picture is the packets of one timestamp, up to the marker. It counts only if none is missing
within, and if it is known that none is missing at either end. Source: RFC 6184 §5.1, RFC 7741 §4.1,
RFC 7798 §4.1, RFC 9628 §4.1. How a picture is wrapped: nal.py, vp8.py, vp9.py.
"""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Protocol

from spanvault.messages import Codec
from spanvault.video.nal import H264, H265, NalUnits
from spanvault.video.vp8 import Vp8Frames
from spanvault.video.vp9 import Vp9Frames


class Packet(NamedTuple):
    """One RTP packet of a stream. ticks: its place on the time line, in the codec's clock."""

    sequence: int
    timestamp: int
    marker: bool
    cut: bool
    ticks: int
    payload: bytes


class Unit(NamedTuple):
    """One picture. key: it needs no other."""

    ticks: int
    key: bool
    data: bytes


class Pictures(Protocol):
    """How a codec wraps its pictures."""

    def starts(self, payload: bytes) -> bool:
        """Whether a picture begins with this payload."""

    def add(self, payload: bytes) -> None:
        """Take a payload in. Raises ValueError."""

    def take(self) -> tuple[bytes, bool] | None:
        """The picture and whether it is a key; None if there is none yet. Raises ValueError."""

    def drop(self) -> None:
        """The picture is damaged."""


class Kind(NamedTuple):
    """raw: FFmpeg's format of a file that is nothing else. fourcc: the codec's name in IVF."""

    pictures: Callable[[Codec], Pictures]
    raw: str
    fourcc: bytes = b""


# By the lower-case name in SDP. A new one goes here.
KINDS: Final[dict[str, Kind]] = {
    "h264": Kind(lambda codec: NalUnits(H264, codec.parameters), "h264"),
    "h265": Kind(lambda codec: NalUnits(H265, codec.parameters), "hevc"),
    "vp8": Kind(lambda _: Vp8Frames(), "ivf", b"VP80"),
    "vp9": Kind(lambda _: Vp9Frames(), "ivf", b"VP90"),
}


class Assembler:
    """The pictures of one stream in one codec. damaged: how many were left out.

    Before the first key picture nothing is given: nobody could see it.
    """

    def __init__(self, codec: Codec) -> None:
        self.damaged = 0
        self.early = 0  # pictures before the first key
        self._pictures = KINDS[codec.name.lower()].pictures(codec)
        self._last: Packet | None = None
        self._open: Packet | None = None  # the first packet of the picture under way
        self._whole = True
        self._seen_key = False
        self._marks = False

    def receive(self, packet: Packet) -> Iterator[Unit]:
        """Take the next packet by sequence number; give the pictures that are whole by it."""
        last = self._last
        if last is not None and packet.sequence <= last.sequence:
            return  # too late: its picture is gone
        gap = last is not None and packet.sequence != last.sequence + 1
        if self._open is not None and packet.timestamp != self._open.timestamp:
            # Without a marker, only the next picture tells where this one ended.
            self._whole &= not gap
            yield from self._close()
        self._last = packet
        if not packet.payload:
            return  # sent to probe the network
        if self._open is None:
            self._open = packet
            # What follows a picture's last packet without a gap begins another.
            self._whole = (last is not None and not gap) or self._pictures.starts(packet.payload)
        else:
            self._whole &= not gap
        self._add(packet)
        self._marks |= packet.marker
        if packet.marker:
            yield from self._close()

    def finish(self) -> Iterator[Unit]:
        """The last picture, if its sender sets no markers; else it lacks its end."""
        if self._open is not None:
            self._whole &= not self._marks
            yield from self._close()

    def _add(self, packet: Packet) -> None:
        self._whole &= not packet.cut
        if self._whole:
            try:
                self._pictures.add(packet.payload)
            except ValueError:
                self._whole = False

    def _close(self) -> Iterator[Unit]:
        first, self._open = self._open, None
        assert first is not None
        if not self._whole:
            self._pictures.drop()
            self.damaged += 1
            return
        try:
            taken = self._pictures.take()
        except ValueError:
            self._pictures.drop()
            self.damaged += 1
            return
        if taken is None:
            return
        data, key = taken
        self._seen_key |= key
        if self._seen_key:
            yield Unit(first.ticks, key, data)
        else:
            self.early += 1


def muxable(codec: Codec | None) -> bool:
    """Whether an export can carry this video."""
    return codec is not None and codec.name.lower() in KINDS and codec.clock_rate > 0
