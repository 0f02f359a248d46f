"""Moving pictures, encoded and packetised as a video telephone would.

A bright bar that moves through a grey picture: its place tells which picture one sees. Encoders are
PyAV's (x264, x265, libvpx).
Sources: RFC 6184 §5.6–5.8, RFC 7798 §4.4, RFC 7741 §4.2, RFC 9628 §4.2.
"""

import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple

import av
import numpy as np

from spanvault.messages import Codec
from spanvault.video.nal import H264, H265, Layout

WIDTH, HEIGHT = 176, 144
CLOCK: Final = 90_000
STEP: Final = 6_000  # ticks from one picture to the next: 15 a second
MOST: Final = 400  # bytes of a payload
ENCODERS: Final = {
    "H264": ("libx264", {"tune": "zerolatency", "x264-params": "repeat-headers=1:slices=2"}),
    "H265": ("libx265", {"x265-params": "log-level=0:repeat-headers=1:bframes=0"}),
    "VP8": ("libvpx", {"deadline": "realtime"}),
    "VP9": ("libvpx-vp9", {"deadline": "realtime", "lag-in-frames": "0"}),
}


class Sent(NamedTuple):
    """One packet. picture: which one it is of."""

    picture: int
    marker: bool
    payload: bytes


def encoded(name: str, count: int, every: int = 15) -> list[bytes]:
    """So many pictures; every so many is a key picture."""
    encoder, options = ENCODERS[name]
    context: Any = av.CodecContext.create(encoder, "w")
    context.width, context.height, context.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    context.time_base, context.framerate = Fraction(1, CLOCK), Fraction(15)
    context.gop_size, context.max_b_frames, context.thread_count = every, 0, 1
    context.options = options
    pictures: list[bytes] = []
    for number in range(count):
        frame = av.VideoFrame.from_ndarray(drawn(number), "yuv420p")
        frame.pts = number * STEP
        pictures += [bytes(packet) for packet in context.encode(frame)]
    return pictures + [bytes(packet) for packet in context.encode(None)]


class Turned(NamedTuple):
    """Pictures in the order of sending, and the number of each in the order of showing."""

    pictures: list[bytes]
    shown: list[int]


def turned(name: str, count: int) -> Turned:
    """So many pictures, most of which hang on later ones (B-pictures), on each other, too."""
    encoder, keep = {"H264": ("libx264", "x264-params"), "H265": ("libx265", "x265-params")}[name]
    context: Any = av.CodecContext.create(encoder, "w")
    context.width, context.height, context.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    context.time_base, context.framerate = Fraction(1, CLOCK), Fraction(15)
    context.gop_size, context.max_b_frames, context.thread_count = 30, 3, 1
    context.options = {keep: "log-level=0:repeat-headers=1:bframes=3:b-adapt=0:b-pyramid=1"}
    packets: list[Any] = []
    for number in range(count):
        frame = av.VideoFrame.from_ndarray(drawn(number), "yuv420p")
        frame.pts = number * STEP
        packets += context.encode(frame)
    packets += context.encode(None)
    return Turned([bytes(one) for one in packets], [one.pts // STEP for one in packets])


def drawn(number: int) -> np.ndarray[Any, Any]:
    """A picture, as planes of 4:2:0."""
    planes = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
    planes[:HEIGHT, bar(number) : bar(number) + 8] = 235
    return planes


def bar(number: int) -> int:
    """Where the bar is in a picture."""
    return number * 8 % (WIDTH - 8)


def shown(luma: np.ndarray[Any, Any]) -> int:
    """Where the bar is in a decoded picture."""
    columns = luma[:HEIGHT, :WIDTH].astype(int).sum(axis=0)
    return int(columns.reshape(-1, 8).sum(axis=1).argmax()) * 8


def units(picture: bytes) -> list[bytes]:
    """The NAL units of a byte stream (Annex B)."""
    parts = picture.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")
    return [part for part in parts if part]


def packetised(codec: Codec, pictures: Sequence[bytes]) -> Iterator[Sent]:
    """RTP payloads of each picture."""
    for number, picture in enumerate(pictures):
        if codec.name == "VP8":
            payloads = list(_vp8(picture, number))
        elif codec.name == "VP9":
            payloads = list(_vp9(picture, number))
        else:
            payloads = list(_nal(H264 if codec.name == "H264" else H265, units(picture)))
        for place, payload in enumerate(payloads):
            yield Sent(number, place == len(payloads) - 1, payload)


def _nal(layout: Layout, parts: Sequence[bytes]) -> Iterator[bytes]:
    """Parameter sets together in one packet, other units alone, long ones in fragments."""
    sets = [part for part in parts if layout.kind(part) in layout.before]
    if sum(map(len, sets)) > MOST:
        sets = []
    if sets:
        body = b"".join(struct.pack(">H", len(part)) + part for part in sets)
        yield _typed(layout, sets[0], layout.aggregate) + body
    for part in parts:
        if part in sets:
            continue
        if len(part) <= MOST:
            yield part
        else:
            yield from _fragments(layout, part)


def _fragments(layout: Layout, unit: bytes) -> Iterator[bytes]:
    body, kind = unit[layout.header :], layout.kind(unit)
    for at in range(0, len(body), MOST):
        first, last = at == 0, at + MOST >= len(body)
        flags = first << 7 | last << 6 | kind
        yield _typed(layout, unit, layout.fragment) + bytes([flags]) + body[at : at + MOST]


def _typed(layout: Layout, unit: bytes, kind: int) -> bytes:
    """A unit's header with another type."""
    kept = unit[0] & ~(layout.mask << layout.shift) & 0xFF
    return bytes([kept | kind << layout.shift]) + unit[1 : layout.header]


def _vp8(frame: bytes, number: int) -> Iterator[bytes]:
    """With a picture id of 15 bits, and without any further extension."""
    for at in range(0, len(frame), MOST):
        first = 0x80 | (0x10 if at == 0 else 0)
        yield bytes([first, 0x80, 0x80 | number >> 8, number & 0xFF]) + frame[at : at + MOST]


def _vp9(frame: bytes, number: int) -> Iterator[bytes]:
    """In flexible mode, as a picture of one layer that hangs on the one before it."""
    for at in range(0, len(frame), MOST):
        predicted = frame[0] & 0x04
        head = 0x80 | 0x10 | (0x40 if predicted else 0)
        head |= (0x08 if at == 0 else 0) | (0x04 if at + MOST >= len(frame) else 0)
        behind = bytes([1 << 1]) if predicted else b""
        yield bytes([head, 0x80 | number >> 8, number & 0xFF]) + behind + frame[at : at + MOST]
