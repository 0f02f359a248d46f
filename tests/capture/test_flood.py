"""Ten calls in a flood of frames that take the slow path: the calls are whole, it is counted.

One call's signalling comes in IP fragments, one's over TCP: they share that path with the flood.
"""

import gc
import itertools
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from capture.model import Block
from capture.recorder import Heard, Recorder
from spanvault.daemon.config import CaptureConfig
from tests.support.callgen import SECOND, START_NS, Frame, answered, phones, rtp, udp_frame
from tests.support.frames import ethernet, ipv4
from tests.support.rtcpforge import Block as ReportBlock
from tests.support.rtcpforge import sender_report

CALLS, TALK_S = 10, 2.0
FLOOD_S = 4.0  # longer than a call
FLOOD = 200_000  # frames
A_SECOND = 20_000  # of them may pass
BLOCK_NS = SECOND // 10
HOST = "198.51.100.66"


def fragment(number: int) -> bytes:
    """The beginning of a datagram whose end never comes."""
    head = struct.pack("!BBHHHBBH", 0x45, 0, 60, number & 0xFFFF, 0x2000, 64, 17, 0)
    return ethernet(head + bytes([198, 51, 100, 66, 10, 0, number >> 16 & 255, 1]) + bytes(40))


def segment(number: int) -> bytes:
    """Of a download."""
    ports = 443, 1024 + number % 60_000
    tcp = (
        struct.pack("!HHIIBBHHH", *ports, number, 0, 5 << 4, 0x18, 500, 0, 0) + b"\x17\x03\x03" * 9
    )
    return ethernet(ipv4(tcp, HOST, protocol=6))


def beginning(number: int) -> bytes:
    """A SIP request over TCP that never ends, on a connection of its own."""
    tcp = struct.pack("!HHIIBBHHH", number & 0xFFFF, 5060, 1, 0, 5 << 4, 0x18, 500, 0, 0)
    return ethernet(ipv4(tcp + b"INVITE sip:1@x SIP/2.0\r\nX: ", HOST, protocol=6))


def options(number: int) -> bytes:
    """UDP behind IP options, of no use to anyone."""
    udp = struct.pack("!4H", number & 0xFFFF, 9, 28, 0) + bytes(20)
    return ethernet(ipv4(udp, HOST, options=b"\x94\x04\x00\x00"))


FLOODS = {"fragments": fragment, "web": segment, "endless SIP": beginning, "options": options}


def said(number: int, start: str, method: str) -> bytes:
    """A SIP message that nobody ever answers."""
    text = (
        f"{start} SIP/2.0\r\nVia: SIP/2.0/UDP {HOST};branch=z9hG4bK{number}\r\n"
        f"From: <sip:{number}@x>;tag={number}\r\nTo: <sip:b@x>\r\n"
        f"Call-ID: flood-{number}\r\nCSeq: 1 {method}\r\n\r\n"
    )
    return plain(number, 5060, text.encode())


def plain(number: int, port: int, payload: bytes) -> bytes:
    return udp_frame(0, (HOST, 10_000 + number % 50_000), ("10.9.9.9", port), payload).data


# What is plain, and of no call that there is; each of it names something new.
PLAIN = {
    "Call-IDs": lambda n: said(n, "INVITE sip:b@x", "INVITE"),
    "questions": lambda n: said(n, "OPTIONS sip:b@x", "OPTIONS"),
    "registrations": lambda n: said(n, "REGISTER sip:x", "REGISTER"),
    "goodbyes": lambda n: said(n, "BYE sip:b@x", "BYE"),
    "sources": lambda n: plain(n, 4000, rtp(n, 160 * n, 0x77000000 + n, bytes(160))),
    "reports": lambda n: plain(n, 4001, sender_report(0x77000000 + n, [ReportBlock(n)])),
    "fragments": fragment,
    "endless SIP": beginning,
}


@cache
def calls() -> list[Frame]:
    """The frames of all calls. Two of them have their signalling wrapped."""
    frames = []
    for number in range(CALLS):
        start_ns = START_NS + number * SECOND // 20
        for frame in answered(start_ns, *phones(TALK_S, number), f"call-{number}"):
            wrap = {0: in_fragments, 1: over_tcp}.get(number)
            sip = b"SIP/2.0" in frame.data
            frames += wrap(frame) if wrap and sip else [frame]
    return sorted(frames)


def in_fragments(frame: Frame) -> list[Frame]:
    ip, udp = frame.data[14:34], frame.data[34:]
    identity, cut = hash(udp) & 0xFFFF, len(udp) // 16 * 8
    parts = (udp[:cut], 0x2000), (udp[cut:], cut // 8)
    return [
        frame._replace(
            data=frame.data[:14] + ip[:2] + struct.pack("!HHH", 20 + len(part), identity, place)
            + ip[8:] + part
        )
        for part, place in parts
    ]  # fmt: skip


def over_tcp(frame: Frame) -> list[Frame]:
    """A segment a message; both directions count on from the time."""
    source, target = (".".join(map(str, frame.data[at : at + 4])) for at in (26, 30))
    head = struct.pack(
        "!HHIIBBHHH", 5060, 5060, frame.time_ns // 1000 & 0xFFFFFFFF, 0, 5 << 4, 0x18, 500, 0, 0
    )
    # A SYN before each: the sequence numbers do not follow each other.
    syn = head[:13] + b"\x02" + head[14:]
    return [
        frame._replace(data=ethernet(ipv4(tcp, source, target, protocol=6)))
        for tcp in (syn, head + frame.data[42:])
    ]


def blocks(frames: list[Frame], flood: list[bytes]) -> Iterator[Block]:
    """Frames of the calls, and among them, evenly in time, the flood."""
    each, at = len(flood) // round(FLOOD_S * 10), 0
    for number in range(round(FLOOD_S * 10)):
        begin_ns = START_NS + number * BLOCK_NS
        due = [frame for frame in frames if begin_ns <= frame.time_ns < begin_ns + BLOCK_NS]
        times = (begin_ns + np.arange(each) * (BLOCK_NS // max(1, each))).tolist()
        due += map(Frame, times, flood[at : at + each])
        at += each
        yield as_block(sorted(due, key=lambda frame: frame.time_ns))


def as_block(frames: list[Frame]) -> Block:
    length = np.array([len(frame.data) for frame in frames], np.int64)
    return Block(
        np.frombuffer(b"".join(frame.data for frame in frames), np.uint8),
        np.cumsum(length) - length, length, length,
        np.array([frame.time_ns for frame in frames], np.int64), 1,
    )  # fmt: skip


def ids() -> Callable[[], bytes]:
    numbers = itertools.count(1)
    return lambda: next(numbers).to_bytes(16, "big")


def record(kind: str, count: int, slow_frames: int | None) -> tuple[Recorder, Heard]:
    recorder, heard = Recorder(CaptureConfig(), ids(), slow_frames), Heard()
    for block in blocks(calls(), [FLOODS[kind](number) for number in range(count)]):
        heard.add(recorder.receive(block))
    heard.add(recorder.finish())
    return recorder, heard


def compare(heard: Heard, marked: set[str]) -> None:
    """Every call whole: both voices, every packet. marked: those that might not have been."""
    final = [call for call in heard.calls if call.final]
    ends = {call.call_ids[0]: (call.outcome, call.end_reason) for call in final}
    assert ends == {f"call-{n}": ("answered", "bye") for n in range(CALLS)}
    assert {call.call_ids[0] for call in final if "capture_loss" in call.flags} == marked
    for call in final:
        heard_packets = [(each.packets, each.lost, each.duplicates) for each in call.streams]
        assert heard_packets == [(round(TALK_S * 50), 0, 0)] * 2
    assert sum(len(media.frames) for media in heard.media) == CALLS * 2 * round(TALK_S * 50)


@pytest.mark.parametrize("kind", FLOODS)
def test_live_no_more_than_a_bound_passes_and_the_calls_are_whole(kind):
    recorder, heard = record(kind, FLOOD, A_SECOND)
    compare(heard, set() if kind == "web" else {"call-0", "call-1"})
    told = recorder.counters()
    passed = A_SECOND * (FLOOD_S + 0.25)
    assert told["slow_frames"] <= passed
    passed_by = told["slow_tcp_without_sip"] if kind == "web" else told["slow_flood_dropped"]
    assert passed_by >= FLOOD - passed


def test_a_file_is_read_whole_and_memory_is_bounded():
    recorder, heard = record("fragments", FLOOD, None)
    compare(heard, set())
    told = recorder.counters()
    assert told["slow_frames"] >= FLOOD
    assert "slow_flood_dropped" not in told
    assert told["slow_fragments_evicted"] >= FLOOD - 2048 - 100


@pytest.mark.parametrize("signalling", [True, False], ids=["all of it", "its media"])
def test_a_mirror_that_comes_through_a_tunnel_too_fast_is_no_bad_network(signalling: bool):
    """What was dropped is missing by sequence number: each call says that it was us."""
    recorder, heard = Recorder(CaptureConfig(), ids(), slow_frames=600), Heard()
    plain = answered(START_NS, *phones(TALK_S, CALLS), "plain")
    whole = [frame for n in range(CALLS) for frame in call(n)]
    wrapped = [tzsp(each) if signalling or b"SIP/2.0" not in each.data else each for each in whole]
    for block in blocks(sorted([*wrapped, *plain]), []):
        heard.add(recorder.receive(block))
    heard.add(recorder.finish())
    assert recorder.counters()["slow_flood_dropped"] > 0
    final = [call for call in heard.calls if call.final]
    lost = [call for call in final if sum(stream.lost for stream in call.streams)]
    assert lost
    assert all("capture_loss" in call.flags for call in lost)
    assert ["plain", []] in [[call.call_ids[0], call.flags] for call in final]


def call(number: int) -> list[Frame]:
    start_ns = START_NS + number * SECOND // 20
    return answered(start_ns, *phones(TALK_S, number), f"call-{number}")


def tzsp(frame: Frame) -> Frame:
    """A tunnel that is read frame by frame."""
    inner = b"\1\0\0\1\1" + frame.data
    udp = struct.pack("!4H", 4_000, 37008, 8 + len(inner), 0) + inner
    return frame._replace(data=ethernet(ipv4(udp, "203.0.113.1", "203.0.113.2")))


@pytest.mark.parametrize("kind", PLAIN)
def test_what_names_ever_new_things_leaves_the_calls_whole_and_is_forgotten(kind: str) -> None:
    recorder, counts = Recorder(CaptureConfig(orphans=False), ids()), []
    for _ in range(3):
        heard, begun_ns = Heard(), (recorder.now_ns or START_NS) + 3600 * SECOND
        for block in blocks(calls(), [PLAIN[kind](number) for number in range(1_000)]):
            later = replace(block, time_ns=block.time_ns - START_NS + begun_ns)
            heard.add(recorder.receive(later))
        for minute in range(1, 30):
            heard.add(recorder.tick(begun_ns + 60 * minute * SECOND))
        final = [call for call in heard.calls if call.final]
        recorder.calls.settled([call.id for call in final])
        whole = [call for call in final if call.call_ids[0].startswith("call-")]
        assert [(call.outcome, call.end_reason) for call in whole] == [("answered", "bye")] * CALLS
        packets = [each.packets for call in whole for each in call.streams]
        assert packets == [round(TALK_S * 50)] * 2 * CALLS
        assert recorder.calls.active == 0
        del heard, final, whole, block, later
        gc.collect()
        counts.append(len(gc.get_objects()))
    assert counts[2] <= counts[1] + 50
