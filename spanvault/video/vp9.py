"""VP9: RTP payloads to frames, the layers of one picture together as a superframe.

Source: RFC 9628 §4.2 (descriptor), §4.3; VP9 bitstream specification §6.2 (frame header), Annex B
(superframes).
"""

from typing import Final

PICTURE_ID, PREDICTED, LAYERS, FLEXIBLE = 0x80, 0x40, 0x20, 0x10
BEGIN, END, SCALABILITY = 0x08, 0x04, 0x02
MAX_BYTES: Final = 4 << 20
MAX_LAYERS: Final = 8  # frames of a superframe


class Vp9Frames:
    """One picture after the other."""

    def __init__(self) -> None:
        self._layers: list[bytes] = []
        self._open: bytearray | None = None  # a frame whose end is still to come

    def starts(self, payload: bytes) -> bool:
        """Whether a picture begins here: with a frame of its lowest layer. Raises nothing."""
        try:
            return bool(payload) and bool(payload[0] & BEGIN) and layer(payload) == 0
        except ValueError:
            return False

    def add(self, payload: bytes) -> None:
        """Take a payload in. Raises ValueError where it is none, or does not fit the one before."""
        body = payload[descriptor(payload) :]
        if payload[0] & BEGIN:
            if self._open is not None:
                raise ValueError("VP9: a frame without its end")
            self._open = bytearray()
        if self._open is None:
            raise ValueError("VP9: a frame without its beginning")
        self._open += body
        if sum(map(len, self._layers)) + len(self._open) > MAX_BYTES:
            raise ValueError(f"VP9: a picture of more than {MAX_BYTES} bytes")
        if payload[0] & END:
            if len(self._layers) >= MAX_LAYERS:
                raise ValueError(f"VP9: more than {MAX_LAYERS} layers in a picture")
            self._layers.append(bytes(self._open))
            self._open = None

    def take(self) -> tuple[bytes, bool] | None:
        """The picture and whether it needs no other; None where there was none.

        Raises ValueError where its last frame has no end.
        """
        if self._open is not None:
            raise ValueError("VP9: a frame without its end")
        layers, self._layers = self._layers, []
        if not layers:
            return None
        return superframe(layers), is_key(layers[0])

    def drop(self) -> None:
        """The picture is damaged."""
        self._layers.clear()
        self._open = None


def descriptor(payload: bytes) -> int:
    """Bytes of the payload descriptor. Raises ValueError where it is cut."""
    try:
        at = _behind_id(payload)
        if payload[0] & LAYERS:
            at += 1 if payload[0] & FLEXIBLE else 2  # and TL0PICIDX
        if payload[0] & FLEXIBLE and payload[0] & PREDICTED:
            while payload[at] & 1:  # a reference, and another
                at += 1
            at += 1
        if payload[0] & SCALABILITY:
            at = _behind_structure(payload, at)
    except IndexError:
        raise ValueError("VP9: the descriptor is cut") from None
    if at >= len(payload):
        raise ValueError("VP9: no frame behind the descriptor")
    return at


def layer(payload: bytes) -> int:
    """The spatial layer that a payload is of. Raises ValueError where the descriptor is cut."""
    descriptor(payload)
    return payload[_behind_id(payload)] >> 1 & 7 if payload[0] & LAYERS else 0


def is_key(frame: bytes) -> bool:
    """Whether a frame's header says that it needs no other."""
    head = frame[0]
    if head >> 6 != 2:  # frame_marker
        return False
    shift = 2 if head & 0x30 == 0x30 else 3  # profile 3 has a bit more
    shown_again = head >> shift & 1
    return not shown_again and not head >> (shift - 1) & 1


def superframe(frames: list[bytes]) -> bytes:
    """Frames of one picture as one, with an index at its end: Annex B."""
    if len(frames) == 1:
        return frames[0]
    width = (max(map(len, frames)).bit_length() + 7) // 8
    marker = bytes([0xC0 | (width - 1) << 3 | len(frames) - 1])
    sizes = b"".join(len(frame).to_bytes(width, "little") for frame in frames)
    return b"".join(frames) + marker + sizes + marker


def _behind_id(payload: bytes) -> int:
    if not payload[0] & PICTURE_ID:
        return 1
    return 3 if payload[1] & 0x80 else 2


def _behind_structure(payload: bytes, at: int) -> int:
    """The scalability structure: sizes of layers, and how pictures hang together."""
    head, at = payload[at], at + 1
    if head & 0x10:
        at += 4 * ((head >> 5) + 1)
    if head & 0x08:
        groups, at = payload[at], at + 1
        for _ in range(groups):
            at += 1 + (payload[at] >> 2 & 3)
    return at
