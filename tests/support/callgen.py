"""Forge a capture of telephone calls: SIP and RTP in Ethernet frames, with voices made by formula.

`python -m tests.support.callgen FILE` writes the sample that lies in tests/data: one call that is
answered and talks for eight seconds, one to a busy line. Voices and A-law: tests.support.voices.
Source: RFC 3261 §24.2 (the flow), RFC 3550 §5.1, draft-ietf-opsawg-pcap.
"""

import socket
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.support.voices import PCMA, payloads, voice

SECOND: Final = 1_000_000_000
START_NS: Final = 1_795_000_000 * SECOND  # 2026-11-18
PACKET_NS: Final = 20_000_000


class Frame(NamedTuple):
    """An Ethernet frame and when it was seen."""

    time_ns: int
    data: bytes


@dataclass(frozen=True)
class Phone:
    """One telephone, and what it says. samples: int16 at 8000 a second."""

    number: str
    address: str
    rtp_port: int
    ssrc: int
    samples: NDArray[np.int16] = field(repr=False)

    @property
    def uri(self) -> str:
        return f"<sip:{self.number}@{self.address}>"


def udp_frame(time_ns: int, source: tuple[str, int], target: tuple[str, int], data: bytes) -> Frame:
    """Ethernet, IPv4, UDP; checksums of IP as they must be, UDP's left out (RFC 768)."""
    udp = struct.pack(">HHHH", source[1], target[1], 8 + len(data), 0) + data
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(target[0])
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, 17, 0)
    total = sum(struct.unpack(">10H", head + addresses))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF)
    return Frame(time_ns, bytes(12) + b"\x08\x00" + head + addresses + udp)


def rtp(
    sequence: int, timestamp: int, ssrc: int, payload: bytes, payload_type: int = PCMA
) -> bytes:
    """An RTP packet. sequence and timestamp may be beyond their 16 and 32 bits."""
    return (
        struct.pack(">BBHII", 0x80, payload_type, sequence & 0xFFFF, timestamp & 0xFFFFFFFF, ssrc)
        + payload
    )


def talk(start_ns: int, speaker: Phone, listener: Phone, lost: Iterable[int] = ()) -> list[Frame]:
    """A phone's voice as RTP, 20 ms a packet. lost: numbers of packets that never arrive."""
    missing = set(lost)
    return [
        udp_frame(
            start_ns + number * PACKET_NS,
            (speaker.address, speaker.rtp_port),
            (listener.address, listener.rtp_port),
            rtp(1000 + number, 70_000 + 160 * number, speaker.ssrc, payload),
        )
        for number, payload in enumerate(payloads(speaker.samples))
        if number not in missing
    ]


def sdp(phone: Phone) -> str:
    """An offer or answer of PCMA."""
    return (
        f"v=0\r\no=- 1 1 IN IP4 {phone.address}\r\ns=-\r\nc=IN IP4 {phone.address}\r\nt=0 0\r\n"
        f"m=audio {phone.rtp_port} RTP/AVP 8\r\na=rtpmap:8 PCMA/8000\r\na=ptime:20\r\n"
    )


class Dialogue:
    """The SIP messages between two phones, with the headers that all of them share."""

    def __init__(self, caller: Phone, callee: Phone, call_id: str) -> None:
        self._caller, self._callee, self._call_id = caller, callee, call_id

    def request(
        self, time_ns: int, method: str, sequence: int = 1, body: str = "", branch: str = ""
    ) -> Frame:
        """From caller to callee. branch: where it is not a transaction of its own."""
        start = f"{method} sip:{self._callee.number}@{self._callee.address} SIP/2.0"
        tag = ";tag=callee" if method in ("ACK", "BYE") or sequence > 1 else ""
        return self._frame(time_ns, True, start, f"{sequence} {method}", tag, body, branch)

    def response(self, time_ns: int, status: str, cseq: str = "1 INVITE", body: str = "") -> Frame:
        """From callee to caller."""
        tag = "" if status.startswith("100") else ";tag=callee"
        return self._frame(time_ns, False, f"SIP/2.0 {status}", cseq, tag, body)

    def _frame(
        self, time_ns: int, ask: bool, start: str, cseq: str, to_tag: str, body: str,
        branch: str = "",
    ) -> Frame:  # fmt: skip
        branch = branch or cseq.replace(" ", "")
        caller, callee = self._caller, self._callee
        head = [
            start,
            f"Via: SIP/2.0/UDP {caller.address}:5060;branch=z9hG4bK{branch}",
            f"From: {caller.uri};tag=caller",
            f"To: {callee.uri}{to_tag}",
            f"Call-ID: {self._call_id}",
            f"CSeq: {cseq}",
            f"Contact: {(caller if ask else callee).uri}",
            "Max-Forwards: 70",
            *(["Content-Type: application/sdp"] if body else []),
            f"Content-Length: {len(body)}",
        ]
        ends = [(caller.address, 5060), (callee.address, 5060)]
        source, target = ends if ask else reversed(ends)
        return udp_frame(time_ns, source, target, ("\r\n".join(head) + "\r\n\r\n" + body).encode())


def answered(start_ns: int, caller: Phone, callee: Phone, call_id: str) -> list[Frame]:
    """A call that rings for a second, is answered, and ended by the caller as the voices end."""
    seconds = max(len(caller.samples), len(callee.samples)) / 8000
    talk_ns = start_ns + ANSWERED_NS
    media = [*talk(talk_ns, caller, callee), *talk(talk_ns + 7_000_000, callee, caller)]
    bodies = (sdp(caller), sdp(callee))
    return around(media, start_ns, caller, callee, call_id, bodies, seconds)


ANSWERED_NS: Final = 1_050_000_000  # from INVITE to the first packet


def around(
    media: Iterable[Frame], start_ns: int, caller: Phone, callee: Phone, call_id: str,
    bodies: tuple[str, str], seconds: float,
) -> list[Frame]:  # fmt: skip
    """The signalling of an answered call around its media. bodies: of INVITE and 200."""
    words, ms = Dialogue(caller, callee, call_id), SECOND // 1000
    end_ns = start_ns + ANSWERED_NS + round(seconds * SECOND)
    return sorted(
        [
            words.request(start_ns, "INVITE", body=bodies[0]),
            words.response(start_ns + 5 * ms, "100 Trying"),
            words.response(start_ns + 40 * ms, "180 Ringing"),
            words.response(start_ns + 1000 * ms, "200 OK", body=bodies[1]),
            words.request(start_ns + 1010 * ms, "ACK"),
            *media,
            words.request(end_ns, "BYE", 2),
            words.response(end_ns + 5 * ms, "200 OK", "2 BYE"),
        ]
    )


def busy(start_ns: int, caller: Phone, callee: Phone, call_id: str) -> list[Frame]:
    """A call to a line that is taken."""
    words, ms = Dialogue(caller, callee, call_id), SECOND // 1000
    return [
        words.request(start_ns, "INVITE", body=sdp(caller)),
        words.response(start_ns + 5 * ms, "100 Trying"),
        words.response(start_ns + 30 * ms, "486 Busy Here"),
        words.request(start_ns + 40 * ms, "ACK", branch="1INVITE"),  # RFC 3261 §17.1.1.3
    ]


def phones(seconds: float, number: int = 0) -> tuple[Phone, Phone]:
    """Two phones with voices of their own. number: makes each pair another one."""
    return tuple(
        Phone(
            f"{prefix}{number:03}",
            f"10.20.{number // 100}.{10 * (number % 100 % 25 + 1) + side}",
            20_000 + 4 * number + 2 * side,
            0x5A000000 + 16 * number + side,
            voice(seconds, pitch, seed=2 * number + side),
        )
        for side, (prefix, pitch) in enumerate((("4930555", 110.0), ("4989777", 205.0)))
    )  # type: ignore[return-value] # two of them


def write_pcap(path: Path, frames: Iterable[Frame]) -> None:
    """A pcap file of Ethernet frames with nanoseconds."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1))
        for time_ns, data in frames:
            file.write(struct.pack("<IIII", *divmod(time_ns, SECOND), len(data), len(data)) + data)


def sample(seconds: float = 8.0) -> list[Frame]:
    """What tests/data/sample.pcap holds."""
    caller, callee = phones(seconds)
    return [
        *answered(START_NS, caller, callee, "sample-1@spanvault.example"),
        *busy(START_NS + 12 * SECOND, *phones(0.1, 1), "sample-2@spanvault.example"),
    ]


if __name__ == "__main__":
    write_pcap(Path(sys.argv[1]), sample())
