"""Peel the tunnels off all frames of a block at once, as tunnels.py does it frame by frame.

A mirror that reaches us over a network puts every frame into ERSPAN, VXLAN or MPLS: a loop over
them (11 to 14 µs each) would be all we do. Here the frames advance header by header, those at the
same kind of header together, until each is at its innermost IP header. What follows what is said by
the tables of capture.packets.tunnels; whatever cannot be told here without a loop (TZSP, HEP, a
header that is cut or nonsense) is left to it, from the outermost header on.
Sources: as capture.packets.tunnels. Who asks: capture.packets.network.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.packets import hep
from capture.packets.columns import Bytes, Offsets, fields, rows
from capture.packets.inet import AUTHENTICATION, EXTENSIONS, FRAGMENT
from capture.packets.tunnels import (
    DECAPSULATORS,
    ETHER_TYPES,
    GROUP_POLICY,
    IP_PROTOCOLS,
    MAX_DEPTH,
    PPP_PROTOCOLS,
    SNAP,
    TUNNEL_PORTS,
    UDP,
    Kind,
)
from capture.packets.unread import LEAST_ETHER_TYPE

Codes = NDArray[np.uint8]  # of kinds of header
Flags = NDArray[np.bool_]
Step = tuple[Codes, Offsets, Offsets]  # what follows, and the bytes it may use: [start, end)

LEFT, INNERMOST = 0, 255  # no kinds: not for us, and the last IP header there is
CODES: Final[Mapping[Kind, int]] = {kind: code for code, kind in enumerate(DECAPSULATORS, 1)}
ETHERNET, IP, PPP = CODES["ethernet"], CODES["ip"], CODES["ppp"]
LEVELS: Final = (
    MAX_DEPTH - 5
)  # capture.packets.network has seen an Ethernet header and four tags by then
MAX_LABELS: Final = 8
MAX_EXTENSIONS: Final = 4
WITH_SEQUENCE: Final = 0x1000  # of GRE's flags


def _table(kinds: Mapping[int, Kind], size: int = 1 << 16) -> Codes:
    table = np.full(size, LEFT, np.uint8)
    for number, kind in kinds.items():
        table[number] = CODES[kind]
    return table


BY_ETHER_TYPE: Final = _table(ETHER_TYPES)
BY_PROTOCOL: Final = _table(IP_PROTOCOLS, 256)
BY_PORT: Final = _table(TUNNEL_PORTS)
HEP3: Final = np.frombuffer(hep.MAGIC, np.uint32)[0]  # on any port
BY_PPP: Final = _table(PPP_PROTOCOLS)
# Such an IP packet may be a tunnel's, by its protocol or next header.
MAY_CARRY: Final = (BY_PROTOCOL != LEFT) | (np.arange(256) == UDP)
UNENDED: Final = np.zeros(256, np.bool_)  # next headers that are not the transport's
UNENDED[[*EXTENSIONS, AUTHENTICATION, FRAGMENT]] = True

V4: Final = np.dtype(
    {
        "names": ["version", "total", "fragment", "protocol"],
        "formats": ["u1", ">u2", ">u2", "u1"],
        "offsets": [0, 2, 6, 9],
        "itemsize": 20,
    }
)
V6: Final = np.dtype(
    {"names": ["payload", "next"], "formats": [">u2", "u1"], "offsets": [4, 6], "itemsize": 40}
)
BEGINNING: Final = np.dtype(  # of either
    {
        "names": ["version", "total", "payload"],
        "formats": ["u1", ">u2", ">u2"],
        "offsets": [0, 2, 4],
        "itemsize": 6,
    }
)
VERSION, VERSION_1 = 0xC0, 0x40  # RTP's version bits; of IP and of "HEP3" these are 1
BEGINNINGS: Final = np.zeros(256, np.bool_)  # first bytes of either
BEGINNINGS[[0x45, *range(0x60, 0x70), hep.MAGIC[0]]] = True


def unwrap(
    data: Bytes, kind: Codes, start: Offsets, end: Offsets
) -> tuple[Flags, Offsets, Offsets]:
    """The innermost IP packet of each frame.

    kind: uint8[n], of CODES, the header that each frame is at.  start, end: int64[n], the bytes
    from there on.
    Returns which of them were got to the end of, and where that packet begins and may end.
    """
    kind, start, end = kind.copy(), start.copy(), end.copy()
    for _ in range(LEVELS):
        waiting = (kind != LEFT) & (kind != INNERMOST)
        codes = np.flatnonzero(np.bincount(kind[waiting]))
        if not len(codes):
            break
        groups = [(int(code), np.flatnonzero(kind == code)) for code in codes]
        for code, which in groups:
            following = STEPS[code](data, start[which], end[which])
            kind[which], start[which], end[which] = following
    return kind == INNERMOST, start, end


def _byte(data: Bytes, at: Offsets) -> NDArray[np.uint8]:
    return rows(data, at, 1).view(np.uint8)


def _word(data: Bytes, at: Offsets) -> NDArray[np.uint16]:
    """16 bits, most significant first."""
    return rows(data, at, 2).view(">u2").astype(np.uint16)


def _codes(code: int, start: Offsets) -> Codes:
    return np.full(len(start), code, np.uint8)


def _only(good: Flags, kind: Codes, start: Offsets, end: Offsets) -> Step:
    """The step, for those that are good."""
    kind[~good] = LEFT
    return kind, start, end


def _left(_: Bytes, start: Offsets, end: Offsets) -> Step:
    return _codes(LEFT, start), start, end


def _fixed(size: int, kind: Kind) -> Callable[[Bytes, Offsets, Offsets], Step]:
    """A header of fixed size that is always followed by the same."""

    def step(_: Bytes, start: Offsets, end: Offsets) -> Step:
        return _only(end - start >= size, _codes(CODES[kind], start), start + size, end)

    return step


def _ether_type_at(where: int, size: int) -> Callable[[Bytes, Offsets, Offsets], Step]:
    """A header of fixed size whose EtherType lies at a fixed place."""

    def step(data: Bytes, start: Offsets, end: Offsets) -> Step:
        kind = BY_ETHER_TYPE[_word(data, start + where)]
        return _only(end - start >= size, kind, start + size, end)

    return step


def _ip(data: Bytes, start: Offsets, end: Offsets) -> Step:
    """A tunnel's outer packet, or the innermost one: what is cut up is that, too."""
    version = _byte(data, start) >> 4
    protocol, whole = np.zeros(len(start), np.uint8), np.zeros(len(start), np.bool_)
    behind, stop = start.copy(), end.copy()
    good = np.zeros(len(start), np.bool_)
    for number, read in ((4, _ipv4), (6, _ipv6)):
        which = np.flatnonzero(version == number)
        if len(which):
            columns = read(data, start[which], end[which])
            good[which], protocol[which], whole[which], behind[which], stop[which] = columns
    kind = np.where(whole, BY_PROTOCOL[protocol], np.uint8(LEFT))
    udp = np.flatnonzero(good & whole & (protocol == UDP) & (stop - behind >= 16))
    if len(udp):
        kind[udp] = _in_udp(data, behind[udp], stop[udp])
        behind[udp] += 8
    last = kind == LEFT
    kind[last] = INNERMOST
    return _only(good, kind, np.where(last, start, behind), np.where(last, end, stop))


def _ipv4(data: Bytes, start: Offsets, end: Offsets) -> tuple[NDArray[Any], ...]:
    """Whether it is sound; protocol; whether it is all there; where its payload lies."""
    header = fields(data, start, V4)
    size = (header["version"] & 15).astype(np.int64) * 4
    total = header["total"].astype(np.int64)
    stop = np.where(total == 0, end, np.minimum(end, start + total))
    good = (end - start >= 20) & (size >= 20) & (start + size <= stop)
    return good, header["protocol"], header["fragment"] & 0x3FFF == 0, start + size, stop


def _ipv6(data: Bytes, start: Offsets, end: Offsets) -> tuple[NDArray[Any], ...]:
    """The same. Extension headers are for the loop to walk, so nothing behind them is told."""
    header = fields(data, start, V6)
    payload = header["payload"].astype(np.int64)
    stop = np.where(payload == 0, end, np.minimum(end, start + 40 + payload))
    return end - start >= 40, header["next"], ~UNENDED[header["next"]], start + 40, stop


def _in_udp(data: Bytes, at: Offsets, end: Offsets) -> Codes:
    """The tunnels that these datagrams are, LEFT for none. An RTP stream may use such a port."""
    kind = BY_PORT[_word(data, at + 2)]
    tunnel = np.flatnonzero(kind != LEFT)
    if len(tunnel):
        first = rows(data, at[tunnel] + 8, 4).view(np.uint8).reshape(-1, 4)
        carrier = kind[tunnel]
        for code in np.flatnonzero(np.bincount(carrier)).tolist():
            kind[tunnel[(carrier == code) & ~SIGNS[code](first)]] = LEFT
    left = np.flatnonzero(kind == LEFT)
    if len(left):
        kind[left] = on_any_port(data, at[left] + 8, end[left])
    return kind


def on_any_port(data: Bytes, start: Offsets, end: Offsets) -> Codes:
    """The tunnels that these payloads are by what is in them, LEFT for none: FOU, Teredo, HEP 3."""
    kind = _codes(LEFT, start)
    which = worth_asking(_byte(data, start))
    if len(which):
        start, end = start[which], end[which]
        kind[which[fills(data, start, end)]] = IP
        begins = rows(data, start, 4).view(np.uint32)
        kind[which[begins == HEP3]] = CODES["hep"]
    return kind


def worth_asking(first: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Those of all payloads that on_any_port may know, by their first bytes: uint8[n].

    RTP is told apart by what costs next to nothing; SIP does not begin so either.
    """
    found = np.flatnonzero(first & VERSION == VERSION_1)
    chosen: NDArray[np.int64] = found[BEGINNINGS[first[found]]] if len(found) else found
    return chosen


def fills(data: Bytes, start: Offsets, end: Offsets) -> Flags:
    """Which of these are IP packets that end to the byte where the data does."""
    header, size = fields(data, start, BEGINNING), end - start
    first = header["version"]
    found: Flags = (first == 0x45) & (header["total"] == size)
    found |= (first >> 4 == 6) & (header["payload"] == size - 40)
    return found & (size >= 28)


def _is_vxlan(first: Bytes) -> Flags:
    found: Flags = (first[:, 0] == GROUP_POLICY) & (first[:, 1] & 0xB7 == 0)
    found |= first[:, 0] == 0x08
    return found


def _is_geneve(first: Bytes) -> Flags:
    protocol = first[:, 2].astype(np.uint16) << 8 | first[:, 3]
    found: Flags = (first[:, 0] >> 6 == 0) & (BY_ETHER_TYPE[protocol] != LEFT)
    return found


def _is_gtp(first: Bytes) -> Flags:
    found: Flags = (first[:, 0] >> 4 == 3) & (first[:, 1] == 255)
    return found


def _perhaps(first: Bytes) -> Flags:
    """The loop will tell."""
    return np.ones(len(first), np.bool_)


def _gre(data: Bytes, start: Offsets, end: Offsets) -> Step:
    flags, protocol = _word(data, start), _word(data, start + 2)
    options = [(flags & bit != 0).astype(np.int64) for bit in (0x8000, 0x2000, WITH_SEQUENCE)]
    size = 4 + 4 * (options[0] + options[1] + options[2])
    enhanced = flags & 7 == 1  # RFC 2637
    size = np.where(enhanced, 8 + 4 * options[2] + 4 * (flags & 0x80 != 0), size)
    kind = BY_ETHER_TYPE[protocol]
    kind[(protocol == 0x88BE) & (flags & WITH_SEQUENCE == 0)] = ETHERNET  # ERSPAN I
    return _only((end - start >= 4) & (flags & 0x4000 == 0), kind, start + size, end)


def _erspan3(data: Bytes, start: Offsets, end: Offsets) -> Step:
    last = rows(data, start + 10, 2).view(np.uint8).reshape(-1, 2)
    kind = np.where(last[:, 0] >> 2 & 0x1F == 2, np.uint8(IP), np.uint8(ETHERNET))
    size = 12 + 8 * (last[:, 1] & 1).astype(np.int64)
    return _only(end - start >= 12, kind, start + size, end)


def _geneve(data: Bytes, start: Offsets, end: Offsets) -> Step:
    options = (_byte(data, start) & 0x3F).astype(np.int64) * 4
    kind = BY_ETHER_TYPE[_word(data, start + 2)]
    return _only(end - start >= 8, kind, start + 8 + options, end)


def _gtp(data: Bytes, start: Offsets, end: Offsets) -> Step:
    good = end - start >= 12
    flags = _byte(data, start)
    end = np.minimum(end, start + 8 + _word(data, start + 2))
    at = start + np.where(flags & 7 == 0, 8, 12)
    following = np.where(flags & 4 == 0, np.uint8(0), _byte(data, start + 11))
    for _ in range(MAX_EXTENSIONS):
        more = np.flatnonzero(following)
        if not len(more):
            break
        size = _byte(data, at[more]).astype(np.int64) * 4
        good[more] &= (size > 0) & (end[more] - at[more] >= np.maximum(size, 4))
        at[more] += size
        following[more] = _byte(data, at[more] - 1)
    return _only(good & (following == 0), _codes(IP, start), at, end)


def _pppoe(data: Bytes, start: Offsets, end: Offsets) -> Step:
    stop = np.minimum(end, start + 6 + _word(data, start + 4))
    return _only(end - start >= 8, _codes(PPP, start), start + 6, stop)


def _ppp(data: Bytes, start: Offsets, end: Offsets) -> Step:
    at = start + 2 * (_word(data, start) == 0xFF03)  # address and control
    first = _byte(data, at)
    short = first & 1 == 1  # a protocol of one byte
    protocol = np.where(short, first, _word(data, at))
    return _only(end - start >= 4, BY_PPP[protocol], at + 2 - short, end)


def _mpls(data: Bytes, start: Offsets, end: Offsets) -> Step:
    at = start.copy()
    going = np.arange(len(at))
    for _ in range(MAX_LABELS):
        going = going[at[going] < end[going] - 4]
        bottom = _byte(data, at[going] + 2) & 1 == 1
        at[going] += 4
        going = going[~bottom]
        if not len(going):
            break
    good = (at > start) & (_byte(data, at - 2) & 1 == 1)
    kind, at = _behind_labels(data, at, end)
    return _only(good, kind, at, end)


def _behind_labels(data: Bytes, at: Offsets, end: Offsets) -> tuple[Codes, Offsets]:
    """IP, or Ethernet with or without a control word. See capture.packets.tunnels."""
    nibble = _byte(data, at) >> 4
    worded = (nibble == 0) & _is_ethernet(data, at + 4, end)
    plain = ((nibble != 4) & (nibble != 6)) | _is_ethernet(data, at, end)
    kind = np.where(worded | plain, np.uint8(ETHERNET), np.uint8(IP))
    return kind, at + 4 * worded


def _is_ethernet(data: Bytes, at: Offsets, end: Offsets) -> Flags:
    ether_type = _word(data, at + 12)
    found: Flags = BY_ETHER_TYPE[ether_type] != LEFT
    lengths = np.flatnonzero(ether_type < LEAST_ETHER_TYPE)  # of hardly any: LLC lies behind them
    if len(lengths):
        found[lengths] |= _word(data, at[lengths] + 14) == SNAP
    return found & (end - at >= 16)


_COLUMNS: Final[Mapping[Kind, Callable[[Bytes, Offsets, Offsets], Step]]] = {
    "ip": _ip,
    "ethernet": _ether_type_at(12, 14),
    "vlan": _ether_type_at(2, 4),
    "vntag": _ether_type_at(4, 6),
    "pppoe": _pppoe,
    "ppp": _ppp,
    "mpls": _mpls,
    "gre": _gre,
    "erspan2": _fixed(8, "ethernet"),
    "erspan3": _erspan3,
    "vxlan": _fixed(8, "ethernet"),
    "geneve": _geneve,
    "gtp": _gtp,
    "cmd": _ether_type_at(6, 8),
    "itag": _fixed(4, "ethernet"),
    "etherip": _fixed(2, "ethernet"),
    "etag": _ether_type_at(6, 8),
    "hsr": _ether_type_at(4, 6),
    "fabricpath": _fixed(2, "ethernet"),
}
STEPS: Final = {code: _COLUMNS.get(kind, _left) for kind, code in CODES.items()}
_SIGNS: Final = {"vxlan": _is_vxlan, "geneve": _is_geneve, "gtp": _is_gtp}
SIGNS: Final = {CODES[kind]: _SIGNS.get(kind, _perhaps) for kind in TUNNEL_PORTS.values()}
