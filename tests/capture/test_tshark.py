"""Our dissection equals tshark's, packet by packet: an independent oracle, through pyshark."""

import shutil
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pyshark
import pytest

from capture.packets.decode import Decoder
from capture.packets.slowpath import SlowPath
from capture.signalling.sip import parse
from capture.sources.files import blocks
from spanvault.media.rtp import header_length, without_padding
from tests.support.callgen import START_NS, answered, phones, udp_frame, write_pcap
from tests.support.folders import SAMPLE, SHARED

pytestmark = pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")


class Rtp(NamedTuple):
    """One RTP packet, as both sides see it."""

    source: str
    destination: str
    ssrc: int
    sequence: int
    timestamp: int
    payload_type: int
    payload: str


class Sip(NamedTuple):
    """One SIP message."""

    call_id: str
    cseq: str
    start: str  # method or status


def seen_by_tshark(path: Path) -> tuple[list[Rtp], list[Sip]]:
    capture = pyshark.FileCapture(str(path), display_filter="rtp or sip", keep_packets=False)
    rtp: list[Rtp] = []
    sip: list[Sip] = []
    try:
        for packet in capture:
            if "rtp" in packet:
                rtp.append(_rtp(packet))
            elif "sip" in packet:
                sip.append(_sip(packet.sip))
    finally:
        capture.close()
        signal.set_wakeup_fd(-1)  # pyshark leaves its loop's behind: signals of other tests fill it
    return rtp, sip


def _rtp(packet: Any) -> Rtp:
    ip = packet.ipv6 if "ipv6" in packet else packet.ip
    udp, rtp = packet.udp, packet.rtp
    host = "[{}]:{}" if "ipv6" in packet else "{}:{}"
    return Rtp(
        host.format(ip.src, udp.srcport),
        host.format(ip.dst, udp.dstport),
        int(rtp.ssrc, 16),
        int(rtp.seq),
        int(rtp.timestamp),
        int(rtp.p_type),
        str(rtp.get_field_value("payload") or "").replace(":", ""),
    )


def _sip(sip: Any) -> Sip:
    fields = sip.get_field_value
    start = fields("method") or fields("status_code")
    return Sip(fields("call_id"), fields("cseq"), start)


def seen_by_us(path: Path) -> tuple[list[Rtp], list[Sip]]:
    decoder, slow_path = Decoder(), SlowPath()
    rtp: list[Rtp] = []
    sip: list[Sip] = []
    for block in blocks(path):
        decoded = decoder.decode(block)
        rtp += _packets(decoded)
        datagrams = list(decoded.signalling)
        if (refused := decoded.refused).count:
            other = decoder.admit(slow_path.receive(block, refused.rows, refused.inner))
            rtp += _packets(other)
            datagrams += other.signalling
        for datagram in sorted(datagrams):
            message = parse(datagram.payload)
            start = message.method if message.is_request else str(message.status)
            sip.append(Sip(message.call_id, f"{message.cseq} {message.method}", start))
    return rtp, sip


def _packets(decoded: Any) -> list[Rtp]:
    packets = decoded.packets
    found = []
    for row in range(len(packets.ssrc)):
        source, destination = decoded.endpoints(row)
        start, size = int(packets.payload_start[row]), int(packets.payload_length[row])
        payload = bytes(packets.data[start : start + size])
        if packets.whole[row]:
            first = payload[0]
            payload = without_padding(payload[header_length(payload) :], first)
        found.append(
            Rtp(
                str(source),
                str(destination),
                int(packets.ssrc[row]),
                int(packets.sequence[row]),
                int(packets.timestamp[row]),
                int(packets.payload_type[row]),
                payload.hex(),
            )
        )
    return found


def assert_equal(path: Path) -> None:
    theirs, ours = seen_by_tshark(path), seen_by_us(path)
    assert ours[0] == theirs[0]
    assert sorted(ours[1]) == sorted(theirs[1])
    assert ours[0]


def test_the_sample() -> None:
    assert_equal(SAMPLE)


def test_headers_that_move_the_payload(tmp_path: Path) -> None:
    caller, callee = phones(0.4)
    frames = answered(START_NS, caller, callee, "x@example")
    ends = (caller.address, caller.rtp_port), (callee.address, callee.rtp_port)
    fixed = (700).to_bytes(2, "big") + (8000).to_bytes(4, "big") + caller.ssrc.to_bytes(4, "big")
    odd = [
        b"\x82\x08" + fixed + bytes(8) + b"\xd5" * 160,  # two CSRCs
        b"\x90\x08" + fixed + b"\xbe\xde\x00\x02" + bytes(8) + b"\xd5" * 160,  # extension
        b"\xa0\x08" + fixed + b"\xd5" * 160 + bytes(3) + b"\x04",  # padding
    ]
    talk = frames[len(frames) // 2].time_ns
    frames += [udp_frame(talk + number, *ends, data) for number, data in enumerate(odd)]
    write_pcap(tmp_path / "odd.pcap", sorted(frames))
    assert_equal(tmp_path / "odd.pcap")


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason=f"no lab cases at {SHARED}")
@pytest.mark.parametrize("case", ["early_media", "ipv6", "span_vlan", "frag_invite", "sip_tcp"])
def test_lab_calls(case: str) -> None:
    assert_equal(SHARED / "lab" / "cases" / case / "call.pcap")
