"""Conversations that a fuzzer tells: SIP, SDP, RTP and RTCP of a few parties, in any order.

Every packet says a number that no other has, so what is kept can be held to what was sent.
"""

import random
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Final

from capture.recorder import Heard, Recorder
from spanvault.daemon.config import CaptureConfig
from spanvault.media import chunk
from spanvault.messages import Call
from tests.fuzz.choices import Choices
from tests.support.callgen import START_NS, Frame, rtp, udp_frame
from tests.support.frames import block
from tests.support.rtcpforge import Block, description, goodbye, sender_report

HOSTS: Final = ("10.1.0.1", "10.1.0.2", "10.1.0.3", "192.0.2.9")
PORTS: Final = (4000, 4002, 4004, 30_000)
SSRCS: Final = (0x11, 0x22, 0x33, 0xFFFFFFFF)
TAGS: Final = ("a", "b", "c", "")
METHODS: Final = ("INVITE", "ACK", "BYE", "CANCEL", "UPDATE", "PRACK", "REFER", "INFO", "OPTIONS")
STATUSES: Final = (100, 180, 183, 200, 200, 302, 401, 486, 487, 500, 603)
DIRECTIONS: Final = ("", "a=sendonly\r\n", "a=inactive\r\n", "a=recvonly\r\n")
PAUSES: Final = (0, 0, 1, 20, 20, 20, 1000, 40_000, 400_000)  # ms
RUNS: Final = (1, 2, 3, 5, 8, 13, 30, 60)  # packets of a stream at a time
MAX_STEPS: Final = 300
MARK: Final = b"packet "


class Story:
    """Turns choices into frames, and remembers what was sent."""

    def __init__(self, data: bytes) -> None:
        self._choices, self._now_ns = Choices(data), START_NS
        self._numbers = count(1)
        self.sent: dict[bytes, tuple[int, int]] = {}  # payload → SSRC, sequence number

    def frames(self) -> Iterator[Frame]:
        """All of them, in order of time."""
        for _ in range(MAX_STEPS):
            if not self._choices.left:
                return
            self._now_ns += self._choices.of(PAUSES) * 1_000_000
            yield from self._choices.of((self._talk, self._talk, self._request, self._answer,
                                         self._control))()  # fmt: skip

    def _talk(self) -> Iterator[Frame]:
        """A run of RTP packets of one stream."""
        ends = self._ends(PORTS)
        ssrc, kind = self._choices.of(SSRCS), self._choices.of((0, 8, 96, 101))
        begin, packets = self._choices.number(1 << 16), self._choices.of(RUNS)
        for number in range(begin, begin + packets):
            payload = MARK + next(self._numbers).to_bytes(4) + bytes(kind)
            self.sent[payload] = ssrc, number & 0xFFFF
            self._now_ns += 20_000_000
            data = rtp(number, 160 * number, ssrc, payload, kind)
            yield udp_frame(self._now_ns, *ends, data)

    def _control(self) -> Iterator[Frame]:
        one, other = self._choices.of(SSRCS), self._choices.of(SSRCS)
        said = sender_report(one, [Block(other)]) + description((one, "x"))
        said += goodbye(one) if self._choices.number(2) else b""
        yield udp_frame(self._now_ns, *self._ends([port + 1 for port in PORTS]), said)

    def _request(self) -> Iterator[Frame]:
        method = self._choices.of(METHODS)
        yield self._message(f"{method} sip:{self._choices.of(HOSTS)} SIP/2.0", method)

    def _answer(self) -> Iterator[Frame]:
        yield self._message(
            f"SIP/2.0 {self._choices.of(STATUSES)} So", self._choices.of(METHODS[:5])
        )

    def _message(self, start: str, method: str) -> Frame:
        choose = self._choices
        replaces = f"<sip:x@y?Replaces=call-{choose.number(4)}%3Bto-tag%3Db%3Bfrom-tag%3Da>"
        body = self._description() if choose.number(2) else b""
        head = [
            start,
            f"Via: SIP/2.0/UDP {choose.of(HOSTS)};branch=z9hG4bK{choose.number(4)}",
            f"From: <sip:1@x>;tag={choose.of(TAGS)}",
            f"To: <sip:2@y>;tag={choose.of(TAGS)}",
            f"Call-ID: call-{choose.number(4)}",
            f"CSeq: {choose.number(4)} {method}",
            *([f"Refer-To: {replaces}"] if method == "REFER" else []),
            *([f"Replaces: call-{choose.number(4)};to-tag=b;from-tag=a"] * (choose.number(4) == 3)),
            *(["Content-Type: application/sdp"] if body else []),
        ]
        return udp_frame(
            self._now_ns, *self._ends([5060]), "\r\n".join([*head, "", ""]).encode() + body
        )

    def _description(self) -> bytes:
        choose = self._choices
        lines = f"v=0\r\no=- 1 {choose.number(3)} IN IP4 {choose.of(HOSTS)}\r\ns=-\r\n"
        lines += f"c=IN IP4 {choose.of((*HOSTS, '0.0.0.0'))}\r\nt=0 0\r\n"
        for _ in range(choose.number(3)):
            lines += f"m={choose.of(('audio', 'audio', 'video', 'image'))} "
            lines += f"{choose.of((*PORTS, 0))} RTP/AVP 0 8 96\r\n"
            lines += f"a=rtpmap:96 opus/48000/2\r\n{choose.of(DIRECTIONS)}"
        return lines.encode()

    def _ends(self, ports: Iterable[int]) -> tuple[tuple[str, int], tuple[str, int]]:
        ports = tuple(ports)
        return (
            (self._choices.of(HOSTS), self._choices.of(ports)),
            (self._choices.of(HOSTS), self._choices.of(ports)),
        )


class Kept:
    """Everything that a recorder gave."""

    def __init__(self) -> None:
        self.frames: list[tuple[bytes, int, int, bytes]] = []  # recording, SSRC, sequence, payload
        self.records: dict[bytes, Call] = {}

    def take(self, heard: Heard) -> None:
        for media in heard.media:
            for each in media.chunks():  # checks that its counts add up
                if int(each.header["stream"]) & chunk.CONTROL:
                    continue
                ssrc, numbers = int(each.header["ssrc"]), each.frames["sequence"].tolist()
                for number, payload in zip(numbers, each.payloads(), strict=True):
                    self.frames.append((each.recording_id, ssrc, number, bytes(payload)))
        for call in heard.calls:
            before = self.records.get(call.id)
            assert before is None or before.revision < call.revision, "a record came twice"
            assert before is None or not before.final, "a record behind the final one"
            self.records[call.id] = call


def tell(data: bytes) -> None:
    """A story through the whole core, and what must hold of what is kept."""
    story, kept, ids = Story(data), Kept(), count(1)
    recorder = Recorder(CaptureConfig(name="fuzz"), lambda: next(ids).to_bytes(16))
    frames = list(story.frames())
    for at in range(0, len(frames), 64):
        part = frames[at : at + 64]
        kept.take(
            recorder.receive(
                block([each.data for each in part], times=[each.time_ns for each in part])
            )
        )
    kept.take(recorder.finish())
    check(story, kept)
    assert recorder.calls.active == 0, "a call did not end"


def check(story: Story, kept: Kept) -> None:
    """What is kept was sent, once, and belongs to a call that is over."""
    for recording, ssrc, number, payload in kept.frames:
        assert story.sent.get(payload) == (ssrc, number & 0xFFFF), "what was kept was never sent"
        assert recording in kept.records, "media of a recording that nobody knows"
    heard = [payload for *_, payload in kept.frames]
    assert len(heard) == len(set(heard)), "a packet lies in two places"
    for call in kept.records.values():
        assert call.final, "the last record of a call is not final"
        assert call.ended_ns is not None, "a call did not end"


def stories() -> list[bytes]:
    """Beginnings of stories; more are what a fuzzer makes of them."""
    chance = random.Random(5)
    return [chance.randbytes(size) for size in (40, 150, 400)]
