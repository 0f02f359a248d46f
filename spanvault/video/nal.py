"""H.264 and H.265: RTP payloads to the NAL units of a picture, as a byte stream (Annex B).

Both wrap NAL units alike, with other numbers: one a packet, several in one, or one in fragments.
Sources: RFC 6184 §5.2–5.8, ITU-T H.264 §7.3–7.4; RFC 7798 §4.4, ITU-T H.265 §7.3.1. The interleaved
modes (packetization-mode=2, sprop-max-don-diff) are refused; telephones do not offer them.
Which packets make a picture: units.py. What is read within a unit: bits.py.
"""

import base64
import binascii
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from spanvault.video import bits

START_CODE: Final = b"\0\0\0\1"
MAX_UNITS: Final = 2_000  # NAL units of a picture
MAX_SETS: Final = 64  # parameter sets that are known; senders have two or three


class Layout(NamedTuple):
    """What tells the two codecs apart. Numbers are NAL unit types."""

    name: str
    header: int  # bytes of a NAL unit's header
    shift: int  # of the type in its first byte
    mask: int
    slices: range
    keys: frozenset[int]  # pictures that need no other
    before: frozenset[int]  # what may precede a picture: parameter sets, delimiters, information
    parameters: frozenset[int]  # the parameter sets among these
    information: int  # SEI
    number: Callable[[int, bytes], int]  # of a parameter set, by its type
    aggregate: int
    fragment: int
    sprop: tuple[str, ...]  # parameters of SDP that bring parameter sets

    def kind(self, unit: bytes) -> int:
        """The type of a NAL unit."""
        return unit[0] >> self.shift & self.mask


H264: Final = Layout(
    "H264", 1, 0, 31, range(1, 6), frozenset({5}), frozenset({6, 7, 8, 9}), frozenset({7, 8}),
    6, bits.number_h264, aggregate=24, fragment=28, sprop=("sprop-parameter-sets",),
)  # fmt: skip
H265: Final = Layout(
    "H265", 2, 1, 63, range(32), frozenset(range(16, 22)), frozenset({32, 33, 34, 35, 39}),
    frozenset({32, 33, 34}), 39, bits.number_h265, aggregate=48, fragment=49,
    sprop=("sprop-vps", "sprop-sps", "sprop-pps"),
)  # fmt: skip


class NalUnits:
    """The NAL units of one picture after the other. parameters: the codec's fmtp line."""

    def __init__(self, layout: Layout, parameters: str = "") -> None:
        self._layout = layout
        self._units: list[bytes] = []
        self._open: bytearray | None = None  # a unit of which fragments are still to come
        # The newest of each type and number; a key picture that comes without gets them.
        self._sets: dict[tuple[int, int], bytes] = {}
        for unit in signalled(layout, parameters):
            self._learn(unit)

    def starts(self, payload: bytes) -> bool:
        """Whether a picture begins here: nothing of it went before. Raises nothing."""
        try:
            unit = self._first(payload)
        except ValueError:
            return False
        kind = self._layout.kind(unit)
        if kind in self._layout.before:
            return True
        # first_mb_in_slice = 0 is a single set bit; H.265 has a flag for it at the same place.
        return (
            kind in self._layout.slices
            and len(unit) > self._layout.header
            and bool(unit[self._layout.header] & 0x80)
        )

    def add(self, payload: bytes) -> None:
        """Take a payload in. Raises ValueError where it is none, or fragments do not fit."""
        layout = self._layout
        if len(payload) <= layout.header:
            raise ValueError(f"{layout.name}: a payload of {len(payload)} bytes")
        kind = layout.kind(payload)
        if kind == layout.fragment:
            self._fragment(payload)
            return
        if self._open is not None:
            raise ValueError(f"{layout.name}: a fragment without its end")
        if kind == layout.aggregate:
            for unit in aggregated(layout, payload):
                self._put(unit)
        elif kind in layout.slices or kind in layout.before or not self._wraps(kind):
            self._put(payload)
        else:
            raise ValueError(f"{layout.name}: interleaved packets (type {kind})")

    def take(self) -> tuple[bytes, bool] | None:
        """The picture and whether it needs no other; None where there was none yet.

        Raises ValueError where it is not whole, or needs parameter sets that were never heard.
        """
        layout = self._layout
        if self._open is not None:
            raise ValueError(f"{layout.name}: a fragment without its end")
        kinds = [layout.kind(unit) for unit in self._units]
        if not any(kind in layout.slices for kind in kinds):
            return None  # parameter sets on their own wait for their picture
        units, self._units = self._units, []
        key = not layout.keys.isdisjoint(kinds) or any(
            kind == layout.information and bits.recovers(unit, layout.header)
            for kind, unit in zip(kinds, units, strict=True)
        )
        if key:
            if layout.parameters.difference(kind for kind, _ in self._sets):
                raise ValueError(f"{layout.name}: no parameter sets were heard")
            # Which of several it needs, only its slices tell: it gets all that it does not bring.
            here = {self._name(unit) for unit in units if layout.kind(unit) in layout.parameters}
            units = [self._sets[name] for name in sorted(self._sets.keys() - here)] + units
        return b"".join(START_CODE + unit for unit in units), key

    def drop(self) -> None:
        """The picture is damaged. Parameter sets of it stay known."""
        self._units.clear()
        self._open = None

    def _put(self, unit: bytes) -> None:
        if self._layout.kind(unit) in self._layout.parameters:
            self._learn(unit)
        if len(self._units) >= MAX_UNITS:
            raise ValueError(f"{self._layout.name}: more than {MAX_UNITS} units in a picture")
        self._units.append(unit)

    def _learn(self, unit: bytes) -> None:
        """Keep a parameter set."""
        name = self._name(unit)
        if name in self._sets or len(self._sets) < MAX_SETS:
            self._sets[name] = unit

    def _name(self, unit: bytes) -> tuple[int, int]:
        """A parameter set's type and number; a broken one is as good as the first."""
        kind = self._layout.kind(unit)
        try:
            return kind, self._layout.number(kind, unit)
        except ValueError:
            return kind, 0

    def _fragment(self, payload: bytes) -> None:
        """FU-A of H.264, FU of H.265: the header of the unit is spread over the fragment's."""
        layout = self._layout
        flags, body = payload[layout.header], payload[layout.header + 1 :]
        if flags & 0x80:
            if self._open is not None:
                raise ValueError(f"{layout.name}: a fragment without its end")
            self._open = bytearray(_header(layout, payload))
        if self._open is None:
            raise ValueError(f"{layout.name}: a fragment without its beginning")
        self._open += body
        if flags & 0x40:
            unit, self._open = bytes(self._open), None
            self._put(unit)

    def _first(self, payload: bytes) -> bytes:
        """The first NAL unit of a payload, or as much as is there of it. Raises ValueError."""
        layout = self._layout
        if len(payload) <= layout.header:  # a delimiter is no more than a byte longer
            raise ValueError(f"{layout.name}: a payload of {len(payload)} bytes")
        kind = layout.kind(payload)
        if kind == layout.fragment:
            if not payload[layout.header] & 0x80:
                raise ValueError(f"{layout.name}: a later fragment")
            return _header(layout, payload) + payload[layout.header + 1 :]
        if kind == layout.aggregate:
            return aggregated(layout, payload)[0]
        return payload

    def _wraps(self, kind: int) -> bool:
        """Whether a type is one of RTP's own, around NAL units of the codec."""
        return kind >= min(self._layout.aggregate, self._layout.fragment)


def _header(layout: Layout, payload: bytes) -> bytes:
    """The header of a fragmented unit: the packet's, with the type from the fragment's."""
    kind = payload[layout.header] & (0x3F if layout.header == 2 else 0x1F)
    kept = payload[0] & ~(layout.mask << layout.shift) & 0xFF
    return bytes([kept | kind << layout.shift]) + payload[1 : layout.header]


def aggregated(layout: Layout, payload: bytes) -> list[bytes]:
    """The units of STAP-A or AP. Raises ValueError where lengths do not fit."""
    units, at = [], layout.header
    while at + 2 <= len(payload):
        (length,) = struct.unpack_from(">H", payload, at)
        unit = payload[at + 2 : at + 2 + length]
        if len(unit) < max(length, layout.header + 1):
            raise ValueError(f"{layout.name}: a unit is longer than its packet")
        units.append(unit)
        at += 2 + length
    if not units:
        raise ValueError(f"{layout.name}: a packet of no units")
    return units


def signalled(layout: Layout, parameters: str) -> list[bytes]:
    """The parameter sets of an fmtp line; what is no base64 is passed over."""
    units = []
    for part in parameters.split(";"):
        name, _, value = part.partition("=")
        if name.strip().lower() not in layout.sprop:
            continue
        for text in value.split(","):
            try:
                unit = base64.b64decode(text.strip(), validate=True)
            except binascii.Error:
                continue
            if len(unit) > layout.header:
                units.append(unit)
    return units
