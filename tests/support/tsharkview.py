"""A capture as tshark sees it: its RTP streams, and the datagrams they came in."""

import re
import subprocess
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

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


def padding_impossible(datagram: Datagram) -> bool:
    """Rule 2: where the padding's count is encrypted, tshark takes a packet for no RTP; we keep it.

    RFC 3550 §5.1: the last byte counts the padding, itself included.
    """
    payload = datagram.payload
    begins = 12 + 4 * (payload[0] & 15)
    if payload[0] & EXTENSION:
        begins += 4 + 4 * int.from_bytes(payload[begins + 2 : begins + 4], "big")
    return bool(payload[0] & PADDING) and not 0 < payload[-1] <= len(payload) - begins


def quoted(path: Path) -> Counter[Key]:
    """RTP headers that ICMP errors quote (RFC 792), by stream: tshark counts them as packets."""
    fields = ["ip.src", "ip.dst", "ipv6.src", "ipv6.dst", "udp.srcport", "udp.dstport", "rtp.ssrc"]
    words = [word for name in fields for word in ("-e", name)]
    done = subprocess.run(
        ["tshark", "-n", "-r", path, "--enable-heuristic", "rtp_udp", "-Y",
         "(icmp || icmpv6) && rtp", "-T", "fields", "-E", "occurrence=l", *words],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    found: Counter[Key] = Counter()
    for line in done.stdout.splitlines():
        source4, target4, source6, target6, source, target, ssrc = line.split("\t")
        ends = _end(source6 or source4, source), _end(target6 or target4, target)
        found[(*ends, int(ssrc, 16))] += 1
    return found
