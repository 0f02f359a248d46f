"""What little of a NAL unit must be read: which parameter set it is, whether pictures recover here.

Only what tells one unit from another; the pictures themselves are FFmpeg's. Sources: ITU-T H.264
§7.3.2.1.1, §7.3.2.2, §7.3.2.3, §9.1, D.1.8; ITU-T H.265 §7.3.2.1–3, §7.3.3, §9.2, D.2.8.
Which units make a picture: nal.py.
"""

from typing import Final

HEAD: Final = 128  # bytes of a unit that are looked at; what is asked for lies at its beginning
RECOVERY_POINT: Final = 6  # payload type of SEI, in both codecs
PROFILE_BITS: Final = 88  # of H.265's general_profile…; a sub-layer's has as many
LEVEL_BITS: Final = 8


class Bits:
    """A unit's bits behind its header, without the bytes that keep start codes out of it."""

    def __init__(self, unit: bytes, header: int) -> None:
        data = unit[header : header + HEAD].replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        """The next bits as a number. Raises ValueError where there are not so many."""
        if count > self._left:
            raise ValueError("a unit is too short")
        self._left -= count
        return self._value >> self._left & ((1 << count) - 1)

    def golomb(self) -> int:
        """ue(v): as many zeros as bits follow the one. Raises ValueError."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 31:
                raise ValueError("a number of more than 32 bits")
        return (1 << zeros) - 1 + self.take(zeros)


def number_h264(kind: int, unit: bytes) -> int:
    """The number by which pictures name this SPS (7) or PPS (8). Raises ValueError."""
    bits = Bits(unit, 1)
    if kind == 7:
        bits.take(24)  # profile, constraints, level
    return bits.golomb()


def number_h265(kind: int, unit: bytes) -> int:
    """The number by which pictures name this VPS (32), SPS (33) or PPS (34). Raises ValueError."""
    bits = Bits(unit, 2)
    if kind == 32:
        return bits.take(4)
    if kind == 33:
        bits.take(4)
        _pass_levels(bits, bits.take(3))
    return bits.golomb()


def _pass_levels(bits: Bits, sub_layers: int) -> None:
    """profile_tier_level, §7.3.3, with the flag before it. sub_layers: less one."""
    bits.take(1 + PROFILE_BITS + LEVEL_BITS)
    if not sub_layers:
        return
    present = [(bits.take(1), bits.take(1)) for _ in range(sub_layers)]
    bits.take(2 * (8 - sub_layers))
    for profile, level in present:
        bits.take(PROFILE_BITS * profile + LEVEL_BITS * level)


def recovers(unit: bytes, header: int) -> bool:
    """Whether an SEI unit says that decoding may begin here: pictures renew bit by bit instead of
    all at once (GDR), as conference systems send them. Raises nothing."""
    bits = Bits(unit, header)
    try:
        while True:
            kind, size = _long(bits), _long(bits)
            if kind == RECOVERY_POINT:
                return True
            bits.take(8 * size)
    except ValueError:
        return False


def _long(bits: Bits) -> int:
    """A number in bytes, each 255 of which is followed by another."""
    total = 0
    while (byte := bits.take(8)) == 255:
        total += 255
    return total + byte
