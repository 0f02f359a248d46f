"""VP8: RTP payloads to frames. Source: RFC 7741 §4.2 (descriptor), §4.3, RFC 6386 §9.1."""

from typing import Final

EXTENDED, START, PARTITION = 0x80, 0x10, 0x07
PICTURE_ID, LEVEL, LAYER_OR_KEY = 0x80, 0x40, 0x30
MAX_BYTES: Final = 4 << 20


class Vp8Frames:
    """One frame after the other."""

    def __init__(self) -> None:
        self._frame = bytearray()

    def starts(self, payload: bytes) -> bool:
        """Whether a frame begins here. Raises nothing."""
        return bool(payload) and bool(payload[0] & START) and not payload[0] & PARTITION

    def add(self, payload: bytes) -> None:
        """Take a payload in. Raises ValueError where it is none."""
        self._frame += payload[descriptor(payload) :]
        if len(self._frame) > MAX_BYTES:
            raise ValueError(f"VP8: a frame of more than {MAX_BYTES} bytes")

    def take(self) -> tuple[bytes, bool] | None:
        """The frame and whether it needs no other; None where there was none."""
        frame = bytes(self._frame)
        self._frame.clear()
        return (frame, not frame[0] & 1) if frame else None

    def drop(self) -> None:
        """The frame is damaged."""
        self._frame.clear()


def descriptor(payload: bytes) -> int:
    """Bytes of the payload descriptor. Raises ValueError where it is cut."""
    try:
        at = 1
        if payload[0] & EXTENDED:
            extension, at = payload[1], 2
            if extension & PICTURE_ID:
                at += 2 if payload[at] & 0x80 else 1
            at += bool(extension & LEVEL) + bool(extension & LAYER_OR_KEY)
    except IndexError:
        raise ValueError("VP8: the descriptor is cut") from None
    if at >= len(payload):
        raise ValueError("VP8: no frame behind the descriptor")
    return at
