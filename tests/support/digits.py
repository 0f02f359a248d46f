"""Telephone events as phones send them: RFC 4733 §2.5."""

import struct
from typing import Final

from tests.support.callgen import PACKET_NS, Frame, Phone, rtp, udp_frame

EVENT_TYPE: Final = 101
SIGNS: Final = "0123456789*#ABCD"


def event(code: int, duration: int, *, end: bool = False, volume: int = 10) -> bytes:
    """A payload. duration: media clock units."""
    return struct.pack(">BBH", code, 0x80 * end | volume, duration)


def press(sign: str, packets: int = 5, ends: int = 3) -> list[tuple[bool, bytes]]:
    """(marker, payload) of a key that is held for so many packets of 20 ms."""
    code = SIGNS.index(sign)
    held = [(n == 0, event(code, 160 * (n + 1))) for n in range(packets)]
    return held + [(False, event(code, 160 * packets, end=True))] * ends


def dial(speech: list[Frame], speaker: Phone, listener: Phone, keys: dict[int, str]) -> list[Frame]:
    """A phone's speech, as talk() makes it, with packets replaced by keys pressed.

    keys: by the place of the packet at which each is pressed.
    """
    frames = list(speech)
    for at, sign in keys.items():
        for place, (marker, payload) in enumerate(press(sign), at):
            kind = EVENT_TYPE | 0x80 * marker
            data = rtp(1000 + place, 70_000 + 160 * at, speaker.ssrc, payload, kind)
            ends = (speaker.address, speaker.rtp_port), (listener.address, listener.rtp_port)
            frames[place] = udp_frame(speech[0].time_ns + place * PACKET_NS, *ends, data)
    return frames
