"""Our table of RTP streams equals tshark's, on every public capture and every lab case.

Every SSRC between every two ends: packets, lost, payload types. Where the two differ, one of the
rules below must explain it from what is in the frames, whatever the file.
"""

import os
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

from capture.model import StreamTotals
from tests.capture.test_oracle import Table
from tests.support.recorded import Recording

SHARED = Path(os.environ.get("SPANVAULT_SHARED", Path(__file__).parents[3] / "shared"))
SAMPLE = Path(__file__).parents[1] / "data" / "sample.pcap"
pytestmark = pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")
FIELDS = [
    "ip.src", "ip.dst", "ipv6.src", "ipv6.dst", "udp.srcport", "udp.dstport", "frame.protocols",
    "rtp.ssrc", "rtp.p_type", "udp.payload",
]  # fmt: skip
# Times, ends, SSRC, codecs, packets, lost: a line of `-z rtp,streams`.
STREAM = re.compile(
    r"\s*[\d.]+\s+[\d.]+\s+(\S+)\s+(\d+)\s+(\S+)\s+(\d+)\s+0x([0-9A-F]{8})\s.*?\s(\d+)\s+(-?\d+) \("
)
PADDING, EXTENSION = 0x20, 0x10

Key = tuple[str, str, int]  # source, destination, SSRC


class Theirs(NamedTuple):
    """A stream as tshark counts it: a packet heard twice counts as two, and as one lost less."""

    packets: int
    lost: int


class Datagram(NamedTuple):
    """A UDP datagram that no ICMP error quotes. protocol: the last one that tshark names."""

    protocol: str
    payload: bytes
    payload_type: int | None


class Tshark:
    """What one run says of a capture."""

    def __init__(self, path: Path) -> None:
        fields = [word for name in FIELDS for word in ("-e", name)]
        command = ["tshark", "-r", path, "--enable-heuristic", "rtp_udp", "-z", "rtp,streams"]
        done = subprocess.run(
            [*command, "-Y", "udp && !icmp && !icmpv6", "-T", "fields", "-E", "occurrence=l",
             *fields],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        self.streams: dict[Key, Theirs] = {}
        self._between: dict[tuple[str, str], list[Datagram]] = defaultdict(list)
        for line in done.stdout.splitlines():
            if line.count("\t") == len(FIELDS) - 1:
                self._datagram(*line.split("\t"))
            elif found := STREAM.match(line):
                key = _end(found[1], found[2]), _end(found[3], found[4]), int(found[5], 16)
                assert key not in self.streams
                self.streams[key] = Theirs(int(found[6]), int(found[7]))

    def datagrams(self, key: Key) -> list[Datagram]:
        """Those between these ends that could be RTP with this SSRC."""
        ssrc = key[2].to_bytes(4, "big")
        found = [each for each in self._between[key[:2]] if each.payload[8:12] == ssrc]
        return [each for each in found if each.payload[0] >> 6 == 2]

    def _datagram(
        self, source4: str, target4: str, source6: str, target6: str, source_port: str,
        target_port: str, protocols: str, ssrc: str, payload_type: str, payload: str,
    ) -> None:  # fmt: skip
        ends = _end(source6 or source4, source_port), _end(target6 or target4, target_port)
        kind = int(payload_type) if ssrc else None
        protocol = "rtp" if ssrc else protocols.split(":")[-1]
        self._between[ends].append(Datagram(protocol, bytes.fromhex(payload), kind))


def _end(host: str, port: str) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def of_another_protocol(datagrams: list[Datagram]) -> bool:
    """Rule 1: tshark knows these by their port for DNS, NetBIOS and the like.

    Such bytes can look like RTP for a packet or two. We remember them in case signalling asks for
    them, and it never does.
    """
    return all(each.protocol not in ("rtp", "data") for each in datagrams)


def padding_impossible(datagram: Datagram) -> bool:
    """Rule 2: where the padding's count is encrypted, tshark takes a packet for no RTP; we keep it.

    RFC 3550 §5.1: the last byte counts the padding, itself included.
    """
    payload = datagram.payload
    begins = 12 + 4 * (payload[0] & 15)
    if payload[0] & EXTENSION:
        begins += 4 + 4 * int.from_bytes(payload[begins + 2 : begins + 4], "big")
    return bool(payload[0] & PADDING) and not 0 < payload[-1] <= len(payload) - begins


def explained(key: Key, ours: StreamTotals, tshark: Tshark, held: set[Key]) -> bool:
    """Whether a difference follows one of the rules."""
    datagrams = tshark.datagrams(key)
    theirs = tshark.streams.get(key)
    if theirs is None:
        return key not in held and of_another_protocol(datagrams)
    refused = [each for each in datagrams if each.payload_type is None]
    return (
        ours.packets + ours.duplicates == theirs.packets + len(refused)
        and ours.lost <= theirs.lost
        and all(map(padding_impossible, refused))
    )


def equal(ours: StreamTotals, theirs: Theirs, kinds: Counter[int]) -> bool:
    """Packets, lost and payload types; tshark counts copies among them."""
    copies = sum((kinds - Counter(ours.payload_types)).values())
    return (
        theirs == (ours.packets + ours.duplicates, ours.lost - ours.duplicates)
        and copies == ours.duplicates
        and kinds.keys() == ours.payload_types.keys()
    )


def unexplained(path: Path) -> list[str]:
    tshark = Tshark(path)
    ours = Table(path).totals()
    differing = [f"{key}: only tshark has it" for key in tshark.streams.keys() - ours.keys()]
    held: set[Key] | None = None
    for key, totals in ours.items():
        kinds = Counter(
            each.payload_type for each in tshark.datagrams(key) if each.payload_type is not None
        )
        if key in tshark.streams and equal(totals, tshark.streams[key], kinds):
            continue
        held = _held(path) if held is None else held
        if not explained(key, totals, tshark, held):
            differing.append(f"{key}: {totals}, tshark {tshark.streams.get(key)} {kinds}")
    return differing


def _held(path: Path) -> set[Key]:
    """The streams that our calls hold."""
    return {
        (stream.source, stream.destination, stream.ssrc)
        for call in Recording(path).calls
        for stream in call.streams
    }


def captures() -> list[Path]:
    return [
        *sorted((SHARED / "captures" / "pcap").glob("*")),
        *sorted((SHARED / "lab" / "cases").glob("*/call.pcap")),
    ]


def test_the_sample() -> None:
    assert len(Tshark(SAMPLE).streams) == 2
    assert unexplained(SAMPLE) == []


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason=f"no public captures at {SHARED}")
@pytest.mark.parametrize("path", captures(), ids=lambda path: path.parent.name + "/" + path.stem)
def test_every_stream_is_tsharks_too(path: Path) -> None:
    assert unexplained(path) == []
