"""Generated telephone calls, signalling and media, as a capture file with known truth.

Each call is set up (INVITE, 180, 200, ACK), talks G.711 in both directions for the same time and is
hung up (BYE, 200); they begin one after the other within RAMP_S. One stream in 20 is VLAN-tagged.
Written second by second, so a capture of any length takes little memory. Packets: bench/traffic.py.
"""

import ipaddress
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from traffic import EPOCH, RATE, Schedule, endpoints, records

RAMP_S = 10
PACKET_US = 1_000_000 // RATE
RING_US, ANSWER_US = 20_000, 200_000  # behind the INVITE
JITTER_US = 800


class Shape(NamedTuple):
    """So many calls at a time, each talking for so many seconds."""

    calls: int
    talk_s: int

    @property
    def packets(self) -> int:
        """Of RTP, in the whole capture."""
        return 2 * self.calls * self.talk_s * RATE


@dataclass(slots=True)
class Message:
    """A SIP message of a call, as a UDP payload."""

    time_us: int  # since EPOCH
    call: int
    from_caller: bool
    text: bytes


class Pause(NamedTuple):
    """A time in which no media is sent; it goes on behind it with the next number. In us."""

    from_us: int
    until_us: int


NO_PAUSE = Pause(0, 0)


def write(
    path: Path, shape: Shape, seed: int = 1, *, said: Sequence[Message] | None = None,
    pause: Pause = NO_PAUSE,
) -> int:  # fmt: skip
    """Write a nanosecond pcap file; returns the frames in it.

    said: the signalling, instead of what sets these calls up and ends them.
    """
    random = np.random.default_rng(seed)
    begin_us = begins(shape, random)
    streams = np.repeat(begin_us + ANSWER_US, 2) + random.integers(0, PACKET_US, 2 * shape.calls)
    tagged, six = random.random(len(streams)) < 0.05, np.zeros(len(streams), np.bool_)
    talk = dialogs(begin_us, shape.talk_s) if said is None else said
    messages = deque(sorted(talk, key=lambda each: each.time_us))
    frames = len(messages)
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1))
        for second in range(RAMP_S + shape.talk_s + 2):
            until_us = (second + 1) * 1_000_000
            stream, number, time_us = _second(streams, shape.talk_s, second, pause, random)
            frames += len(stream)
            plan = Schedule(stream, number, EPOCH * 10**9 + time_us * 1000, tagged, six)
            heard: list[Message] = []
            while messages and messages[0].time_us < until_us:
                heard.append(messages.popleft())
            for piece in _merged(plan, time_us, heard):
                file.write(piece)
    return frames


def begins(shape: Shape, random: np.random.Generator) -> NDArray[np.int64]:
    """When each call begins, in us."""
    return np.sort(random.integers(0, RAMP_S * 1_000_000, shape.calls))


def _second(
    starts_us: NDArray[np.int64],
    talk_s: int,
    second: int,
    pause: Pause,
    random: np.random.Generator,
) -> tuple[NDArray[np.int64], ...]:
    """Stream, number and time of the packets of one second, in order of arrival."""
    first = -((starts_us - second * 1_000_000) // PACKET_US)  # the first one due in this second
    number = first[:, None] + np.arange(RATE)
    time_us = starts_us[:, None] + number * PACKET_US
    time_us += np.abs(random.normal(0, JITTER_US, time_us.shape)).astype(np.int64)
    np.minimum(time_us, second * 1_000_000 + 999_999, out=time_us)
    heard = (number >= 0) & (number < talk_s * RATE)
    if pause.until_us:
        heard &= (time_us < pause.from_us) | (time_us >= pause.until_us)
        number[time_us >= pause.until_us] -= (pause.until_us - pause.from_us) // PACKET_US
    stream = np.broadcast_to(np.arange(len(starts_us))[:, None], number.shape)[heard]
    number, time_us = number[heard], time_us[heard]
    order = np.argsort(time_us, kind="stable")
    return stream[order], number[order], time_us[order]


def _merged(plan: Schedule, time_us: NDArray[np.int64], said: list[Message]) -> Iterator[bytes]:
    """Capture records of a second's media and signalling."""
    at = 0
    portions = np.arange(2000, len(time_us), 2000).tolist()
    cuts = [(int(np.searchsorted(time_us, each.time_us)), each) for each in said]
    cuts += [(place, None) for place in (*portions, len(time_us))]
    for place, message in sorted(cuts, key=lambda cut: cut[0]):
        if place > at:
            table, present = records(plan, slice(at, place))
            yield table[present].tobytes()
            at = place
        if message is not None:
            yield _record(message)


def _record(message: Message) -> bytes:
    source, destination, _, _ = ends(message.call, message.from_caller)
    udp = struct.pack("!4H", 5060, 5060, 8 + len(message.text), 0) + message.text
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0,
                     source.packed, destination.packed)  # fmt: skip
    frame = bytes(12) + b"\x08\x00" + ip + udp
    seconds, fraction = divmod(message.time_us, 1_000_000)
    head = struct.pack("<4I", EPOCH + seconds, fraction * 1000, len(frame), len(frame))
    return head + frame


def ends(
    call: int, from_caller: bool
) -> tuple[ipaddress.IPv4Address, ipaddress.IPv4Address, int, int]:
    """Source and destination of what one side sends, and their RTP ports."""
    source, destination, *ports = (
        int(column[0]) for column in endpoints(np.array([2 * call + (not from_caller)]))
    )
    return ipaddress.IPv4Address(source), ipaddress.IPv4Address(destination), ports[0], ports[1]


def dialogs(begin_us: NDArray[np.int64], talk_s: int) -> Iterator[Message]:
    """What sets calls up, and ends them behind `talk_s` seconds. begin_us: int64[calls]."""
    for call, start_us in enumerate(begin_us.tolist()):
        answer_us = start_us + ANSWER_US - 10_000
        end_us = start_us + ANSWER_US + talk_s * 1_000_000 + 100_000
        phone, gateway, phone_port, gateway_port = ends(call, from_caller=True)
        offer, answer = _sdp(phone, phone_port), _sdp(gateway, gateway_port)
        for time_us, from_caller, line, method, body in (
            (start_us, True, None, "INVITE", offer),
            (start_us + RING_US, False, "180 Ringing", "INVITE", b""),
            (answer_us, False, "200 OK", "INVITE", answer),
            (answer_us + 5_000, True, None, "ACK", b""),
            (end_us, True, None, "BYE", b""),
            (end_us + 5_000, False, "200 OK", "BYE", b""),
        ):
            text = _sip(call, line, method, phone, gateway, body)
            yield Message(time_us, call, from_caller, text)


def _sip(
    call: int, status: str | None, method: str,
    phone: ipaddress.IPv4Address, gateway: ipaddress.IPv4Address, body: bytes,
) -> bytes:  # fmt: skip
    """A request, or with a status the response to it. RFC 3261 §24.2."""
    number, target = f"{10_000 + call}", f"sip:+4930{100_000 + call}@{gateway}"
    begins = method == "INVITE" and not (status and status.startswith("200"))
    answered = "" if begins and status is None else f";tag=b{call}"
    lines = [
        f"SIP/2.0 {status}" if status else f"{method} {target} SIP/2.0",
        f"Via: SIP/2.0/UDP {phone}:5060;rport;branch=z9hG4bK{call}{method.lower()}",
        "Max-Forwards: 70",
        f'From: "{number}" <sip:{number}@{gateway}>;tag=a{call}',
        f"To: <{target}>{answered}",
        f"Call-ID: {call:08x}-bench@{phone}",
        f"CSeq: {2 if method == 'BYE' else 1} {method}",
        f"Contact: <sip:{number}@{gateway if status else phone}:5060>",
        "Allow: INVITE, ACK, CANCEL, BYE, OPTIONS, UPDATE, PRACK, REFER, NOTIFY",
        "User-Agent: bench",
        *(["Content-Type: application/sdp"] if body else []),
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _sdp(address: ipaddress.IPv4Address, port: int) -> bytes:
    """An offer or answer of A-law and DTMF. RFC 8866, RFC 3264."""
    lines = (
        "v=0", f"o=- 1 1 IN IP4 {address}", "s=-", f"c=IN IP4 {address}", "t=0 0",
        f"m=audio {port} RTP/AVP 8 101", "a=rtpmap:8 PCMA/8000",
        "a=rtpmap:101 telephone-event/8000", "a=fmtp:101 0-16", "a=ptime:20", "a=sendrecv", "",
    )  # fmt: skip
    return "\r\n".join(lines).encode()
