"""What a mirror carries that we cannot read, counted by name: nothing is missing in silence.

An administrator whose calls are missing asks what else is on the wire: frames of an EtherType, an
IP protocol or a link type that no table of ours knows are counted under its number. What is on any
network and never carries a call (ARP, spanning tree, routing) is not worth a name.
Sources: IEEE 802 Numbers and Protocol Numbers of IANA, LINKTYPE_ of libpcap. Encryption around
whole packets: capture.packets.opaque. What is said of it: capture.explain.remedies.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

PREFIX: Final = "unread_"
ETHER_TYPE, PROTOCOL, LINK_TYPE, PPP = "ethertype", "protocol", "link_type", "ppp"
SAP, WIFI, DEPTH = "sap", "wifi", "depth"
OTHERS: Final = PREFIX + "others"
MAX_NAMES: Final = 32  # what is sent at random shall not fill the status
LEAST_ETHER_TYPE: Final = 0x600  # below it is a length: IEEE 802.3 §3.2.6
# ARP, wake on LAN, RARP, PPPoE discovery, 802.1X, pause, LACP, MACsec keys, LLDP, MRP, PTP, CFM,
# loopback; what is told otherwise: MACsec.
QUIET_ETHER_TYPES: Final = frozenset(
    {0x0806, 0x0842, 0x8035, 0x8863, 0x888E, 0x8808, 0x8809, 0x88CC, 0x88E3, 0x88E5, 0x88F5,
     0x88F6, 0x88F7, 0x8902, 0x88FB, 0x9000}
)  # fmt: skip
# None, ICMP, IGMP, EGP, IGP, RSVP, ICMPv6, no next header, EIGRP, OSPF, PIM, VRRP; told
# otherwise: ESP.
QUIET_PROTOCOLS: Final = frozenset({0, 1, 2, 8, 9, 46, 50, 58, 59, 88, 89, 103, 112})
# Spanning tree, SNAP of vendors' own protocols (CDP), IS-IS, NetBIOS, global.
QUIET_SAPS: Final = frozenset({0x42, 0xAA, 0xFE, 0xF0, 0xFF})
QUIET_PPP: Final = frozenset(range(0x8000, 0x10000))  # its control protocols
# Of Wi-Fi.
SEVERAL, SEALED = 1, 2
NAMES: Final[Mapping[tuple[str, int], str]] = {
    (ETHER_TYPE, 0x0600): "XNS", (ETHER_TYPE, 0x8137): "IPX", (ETHER_TYPE, 0x809B): "AppleTalk",
    (ETHER_TYPE, 0x22F0): "AVTP", (ETHER_TYPE, 0x4305): "B.A.T.M.A.N.",
    (ETHER_TYPE, 0x883E): "WCCP", (ETHER_TYPE, 0x8892): "PROFINET",
    (ETHER_TYPE, 0x88A4): "EtherCAT", (ETHER_TYPE, 0x8906): "FCoE",
    (PROTOCOL, 33): "DCCP", (PROTOCOL, 55): "minimal encapsulation", (PROTOCOL, 108): "IPComp",
    (PROTOCOL, 132): "SCTP", (PROTOCOL, 136): "UDP-Lite",
    (PPP, 0x3D): "multilink", (PPP, 0x53): "encrypted", (PPP, 0xFD): "compressed",
    (WIFI, SEVERAL): "several in one: A-MSDU", (WIFI, SEALED): "encrypted: WPA",
    (LINK_TYPE, 147): "USER0", (LINK_TYPE, 195): "IEEE 802.15.4", (LINK_TYPE, 249): "USB",
}  # fmt: skip
KINDS: Final = {
    ETHER_TYPE: "EtherType {:#06x}", PROTOCOL: "IP protocol {}", LINK_TYPE: "link type {}",
    PPP: "PPP protocol {:#06x}", SAP: "LLC service {:#04x}", WIFI: "Wi-Fi frames {}",
    DEPTH: "more than {} headers around one packet",
}  # fmt: skip
_QUIET: Final = {
    ETHER_TYPE: QUIET_ETHER_TYPES, PROTOCOL: QUIET_PROTOCOLS, SAP: QUIET_SAPS, PPP: QUIET_PPP
}  # fmt: skip
_NO_NEWS: Final = {ETHER_TYPE: np.zeros(1 << 16, np.bool_), PROTOCOL: np.zeros(256, np.bool_)}
for _kind, _table in _NO_NEWS.items():
    _table[list(_QUIET[_kind])] = True
_NO_NEWS[ETHER_TYPE][:LEAST_ETHER_TYPE] = True  # LLC: spanning tree and its like


class Unread(ValueError):
    """A header names what we do not know. Counted by that name, where it is not on any network."""

    def __init__(self, kind: str, number: int) -> None:
        super().__init__(f"{KINDS[kind].format(number)} carries no IP that we know")
        self.kind, self.number = kind, number

    def count(self, counters: Counter[str]) -> None:
        """Note it."""
        if self.number not in _QUIET.get(self.kind, ()):
            _add(counters, self.kind, self.number, 1)


class Told(NamedTuple):
    """Frames of one kind, in words."""

    what: str
    frames: int


def count_numbers(kind: str, found: NDArray[Any], counters: Counter[str], each: int) -> None:
    """Of frames that nobody can do anything with.

    kind: ETHER_TYPE of what is no IP, PROTOCOL of what is.  found: [n], of that kind.
    each: how many frames one of them stands for.
    """
    loud = found[~_NO_NEWS[kind][found]]
    if not len(loud):  # most often, and sorting even nothing takes its time
        return
    for number, count in zip(*np.unique(loud, return_counts=True), strict=True):
        _add(counters, kind, int(number), int(count) * each)


def told(counters: Mapping[str, int]) -> list[Told]:
    """What was counted, most first; under the slow path's prefix too."""
    found: Counter[str] = Counter()
    for name, frames in counters.items():
        where, prefix, what = name.partition(PREFIX)
        if prefix and where in ("", "slow_"):
            found[what] += frames
    return [Told(_words(what), frames) for what, frames in found.most_common()]


def _words(name: str) -> str:
    kind, _, number = name.rpartition("_")
    if kind not in KINDS:
        return "other kinds"
    named = NAMES.get((kind, int(number)))
    return KINDS[kind].format(int(number)) + (f" ({named})" if named else "")


def _add(counters: Counter[str], kind: str, number: int, count: int) -> None:
    name = f"{PREFIX}{kind}_{number}"
    counters[name if name in counters or _has_room(counters) else OTHERS] += count


def _has_room(counters: Counter[str]) -> bool:
    """Whether one name more may be counted. A flood of random numbers asks for each of them."""
    if OTHERS in counters:
        return False
    return sum(key.startswith(PREFIX) for key in counters) < MAX_NAMES
