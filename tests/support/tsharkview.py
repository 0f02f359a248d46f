"""A capture as tshark sees it: RTP streams, RTCP's reports, digits, and all their datagrams."""

import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FIELDS = [
    "ip.src", "ip.dst", "ipv6.src", "ipv6.dst", "udp.srcport", "udp.dstport", "frame.protocols",
    "frame.time_epoch", "rtp.ssrc", "rtp.p_type", "rtp.timestamp", "udp.payload",
    "rtpevent.event_id", "rtcp.ssrc.identifier", "rtcp.ssrc.fraction", "rtcp.ssrc.cum_nr",
    "rtcp.ssrc.jitter",
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


class Said(NamedTuple):
    """What a report says of one sender, as RTCP counts: fraction of 256, jitter in clock units."""

    ssrc: int
    fraction: int
    lost: int
    jitter: int


class Datagram(NamedTuple):
    """A UDP datagram that no ICMP error quotes. protocol: the last one that tshark names."""

    time_ns: int
    source: str
    destination: str
    protocol: str
    payload: bytes
    payload_type: int | None
    reports: tuple[Said, ...]
    key: tuple[int, int] | None  # RTP timestamp and code of a telephone event


class Tshark:
    """What one run says of a capture."""

    def __init__(self, path: Path) -> None:
        fields = [word for name in FIELDS for word in ("-e", name)]
        heuristics = ["--enable-heuristic", "rtp_udp", "--enable-heuristic", "rtcp_udp"]
        command = ["tshark", "-r", path, *heuristics, "-z", "rtp,streams"]
        done = subprocess.run(
            [*command, "-Y", "udp && !icmp && !icmpv6", "-T", "fields", "-E", "occurrence=a",
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

    def all(self) -> Iterator[Datagram]:
        """Every datagram, by the ends it went between."""
        for between in self._between.values():
            yield from between

    def _datagram(self, *columns: str) -> None:
        field = dict(zip(FIELDS, columns, strict=True))
        last = {name: words.rpartition(",")[2] for name, words in field.items()}  # of a tunnel
        ends = tuple(
            _end(last[f"ipv6.{end}"] or last[f"ip.{end}"], last[f"udp.{end}port"])
            for end in ("src", "dst")
        )
        is_rtp = bool(last["rtp.ssrc"])
        event = last["rtpevent.event_id"]
        self._between[ends[0], ends[1]].append(
            Datagram(
                int(last["frame.time_epoch"].replace(".", "")),
                *ends,
                "rtp" if is_rtp else last["frame.protocols"].split(":")[-1],
                bytes.fromhex(last["udp.payload"]),
                int(last["rtp.p_type"]) if is_rtp else None,
                _reports(field),
                (int(last["rtp.timestamp"]), int(event)) if event else None,
            )
        )


def _reports(field: dict[str, str]) -> tuple[Said, ...]:
    """RTCP's report blocks; SSRCs of other packets follow theirs."""
    names = ("identifier", "fraction", "cum_nr", "jitter")
    ssrc, *numbers = (field[f"rtcp.ssrc.{name}"].split(",") for name in names)
    if numbers == [[""]] * 3:
        return ()
    return tuple(
        Said(int(who, 16), *map(int, said))
        for who, said in zip(ssrc, zip(*numbers, strict=True), strict=False)
    )


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
