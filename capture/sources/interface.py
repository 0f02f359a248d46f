"""What the kernel knows of an interface: is it there, is it up, does it merge or miss frames.

A network card or kernel that merges received frames (GRO, LRO) hides the single packets and their
times. Asking needs no right; switching it off does, so the unit does that.
Sources: netdevice(7); Linux include/uapi/linux/ethtool.h, if_arp.h, Documentation/networking/
statistics.rst. Frames: capture.sources.ring.
"""

import array
import enum
import errno
import fcntl
import socket
import struct
from pathlib import Path
from typing import Final, NamedTuple

SIOCGIFFLAGS, SIOCGIFHWADDR, SIOCETHTOOL = 0x8913, 0x8927, 0x8946
IFF_UP, IFF_RUNNING = 0x1, 0x40
GET_STRINGS, GET_SET_SIZE, GET_FEATURES = 0x1B, 0x37, 0x3A
FEATURES_SET: Final = 4
STRING: Final = 32  # bytes of a feature's name
NAME: Final = 16  # of an interface's
INTERFACES: Final = Path("/sys/class/net")
MISSED: Final = ("rx_missed_errors", "rx_fifo_errors", "rx_over_errors")
MERGING: Final = ("rx-gro", "rx-lro", "rx-gro-hw", "rx-gro-list", "rx-udp-gro-forwarding")


class Link(enum.Enum):
    """How an interface is; the value is for people."""

    UP = "is up"
    NO_CARRIER = "has no carrier: is the cable in, the switch port on?"
    DOWN = "is down: ip link set {} up"
    GONE = "has gone: see to the card and its driver; recording goes on when {} is back"


class Interface(NamedTuple):
    """One that is there. number: the kernel's, never given twice. hardware: ARPHRD_ of if_arp.h."""

    number: int
    hardware: int


class Counted(NamedTuple):
    """Since an interface was there."""

    missed: int  # frames that the card had no room for: no ring ever sees them
    carrier_changes: int  # it came or went


def find(name: str) -> Interface:
    """Look an interface up. Raises OSError that says what to do if it is missing or down."""
    state = link(name)
    if state is Link.GONE:
        known = ", ".join(each for _, each in socket.if_nameindex())
        raise OSError(errno.ENODEV, f"no interface '{name}'. There are: {known}")
    if state is Link.DOWN:
        raise OSError(errno.ENETDOWN, f"interface '{name}' {state.value.format(name)}")
    with _asking() as asked:
        hardware = fcntl.ioctl(asked, SIOCGIFHWADDR, _request(name))
    return Interface(socket.if_nametoindex(name), struct.unpack_from("H", hardware, NAME)[0])


def link(name: str, number: int | None = None) -> Link:
    """How an interface is now. number: of the one that is meant, not another of its name."""
    try:
        with _asking() as asked:
            flags = struct.unpack_from("H", fcntl.ioctl(asked, SIOCGIFFLAGS, _request(name)), NAME)
        if number is not None and socket.if_nametoindex(name) != number:
            return Link.GONE
    except OSError:
        return Link.GONE
    if not flags[0] & IFF_UP:
        return Link.DOWN
    return Link.UP if flags[0] & IFF_RUNNING else Link.NO_CARRIER


def counted(name: str) -> Counted:
    """What is counted of an interface; by files, for an ioctl or netlink may wait for a driver."""
    folder = INTERFACES / name
    missed = sum(_number(folder / "statistics" / counter) for counter in MISSED)
    return Counted(missed, _number(folder / "carrier_changes"))


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # as in a namespace without its own /sys
        return 0


def unmerge(name: str) -> str:
    """The command that switches off what merges frames on an interface; "" if nothing does."""
    try:
        merging = [feature for feature in _features(name) if feature in MERGING]
    except OSError:  # a driver without features merges nothing
        return ""
    return " ".join((f"ethtool -K {name}", *(f"{each} off" for each in merging))) if merging else ""


def _features(name: str) -> list[str]:
    """All that are on. Raises OSError."""
    size = _ethtool(name, struct.pack("IIQI", GET_SET_SIZE, 0, 1 << FEATURES_SET, 0))
    count = struct.unpack_from("I", size, 16)[0]
    strings = struct.pack("3I", GET_STRINGS, FEATURES_SET, count) + bytes(count * STRING)
    names = _ethtool(name, strings)[12:]
    words = (count + 31) // 32
    told = _ethtool(name, struct.pack("2I", GET_FEATURES, words) + bytes(16 * words))
    active = struct.unpack_from(f"{4 * words}I", told, 8)[2::4]
    return [
        names[at * STRING : (at + 1) * STRING].rstrip(b"\0").decode("ascii", "replace")
        for at in range(count)
        if active[at // 32] >> at % 32 & 1
    ]


def _ethtool(name: str, question: bytes) -> bytes:
    """Ask the driver; the answer is as long as the question."""
    answer = array.array("B", question)
    request = name.encode()[: NAME - 1].ljust(NAME, b"\0")
    with _asking() as asked:
        fcntl.ioctl(asked, SIOCETHTOOL, request + struct.pack("P16x", answer.buffer_info()[0]))
    return answer.tobytes()


def _asking() -> socket.socket:
    """Any socket will do."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def _request(name: str) -> bytes:
    return name.encode()[: NAME - 1].ljust(40, b"\0")
