"""RED (RFC 2198) with more than one thing in it: voice and keys, mended where packets are lost.

From a capture to an export: each voice is whole, each key is told once, real-time text is no sound.
RED of one codec alone: test_cli_codecs.py. With FEC: test_cli_fec.py.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pytest

from spanvault.messages import Codec
from tests.conformance.recorded import Recorded
from tests.support.callgen import (
    ANSWERED_NS,
    PACKET_NS,
    SECOND,
    START_NS,
    Frame,
    Phone,
    around,
    phones,
    rtp,
    udp_frame,
    write_pcap,
)
from tests.support.digits import EVENT_TYPE, SIGNS, press
from tests.support.spoken import description
from tests.support.voices import PCMA, heard, payloads

RED, TEXT, TEXT_RED = 121, 98, 99
SECONDS: Final = 3.0
PRESSED: Final = {20: "4", 45: "#", 60: "4"}  # by the packet at which the caller presses a key
EVENTS: Final = Codec("telephone-event", 8000)
KEY_PACKETS: Final = 8
# What the fmtp says of RED: voice and events, voice alone, or nothing at all.
NAMED: Final = {"both": f"8/{EVENT_TYPE}", "voice": "8/8", "nothing": ""}


class Block(NamedTuple):
    """What a sender has to say at a time."""

    payload_type: int
    timestamp: int
    payload: bytes


def said(speaker: Phone, keys: dict[int, str]) -> list[tuple[Block, bool]]:
    """A voice, in which keys take the place of some packets; and markers."""
    blocks = [
        (Block(PCMA, 160 * number, payload), False)
        for number, payload in enumerate(payloads(speaker.samples))
    ]
    for at, sign in keys.items():
        blocks[at : at + KEY_PACKETS] = [
            (Block(EVENT_TYPE, 160 * at, payload), marker) for marker, payload in press(sign)
        ]
    return blocks


def redundant(own: Block, before: list[Block]) -> bytes:
    """A packet that repeats what was said before, oldest first; of one event only the last told."""
    last = {one.timestamp: one for one in before if one.timestamp != own.timestamp}
    heads = b"".join(
        struct.pack(
            ">I", 1 << 31 | one.payload_type << 24
            | (own.timestamp - one.timestamp) << 10 | len(one.payload),
        )
        for one in last.values()
    )  # fmt: skip
    copies = b"".join(one.payload for one in last.values())
    return heads + bytes([own.payload_type]) + copies + own.payload


def flow(
    begins_ns: int, speaker: Phone, listener: Phone, keys: dict[int, str], depth: int, lost: int
) -> Iterator[Frame]:
    """RED of so many copies, of which each `lost`th packet is missing."""
    blocks = said(speaker, keys)
    for number, (own, marker) in enumerate(blocks):
        if not lost or number % lost != lost - 1:
            payload = redundant(own, [one for one, _ in blocks[max(0, number - depth) : number]])
            kind = RED | 0x80 * marker
            yield udp_frame(
                begins_ns + number * PACKET_NS,
                (speaker.address, speaker.rtp_port),
                (listener.address, listener.rtp_port),
                rtp(1000 + number, own.timestamp, speaker.ssrc, payload, kind),
            )


def call(number: int, name: str, parameters: str, depth: int, lost: int) -> list[Frame]:
    caller, callee = phones(SECONDS, number)
    start_ns = START_NS + 10 * number * SECOND
    codecs = [(RED, Codec("red", 8000, 1, parameters)), (PCMA, Codec("PCMA", 8000)),
              (EVENT_TYPE, EVENTS)]  # fmt: skip
    media = [
        *flow(start_ns + ANSWERED_NS, caller, callee, PRESSED, depth, lost),
        *flow(start_ns + ANSWERED_NS, callee, caller, {}, depth, lost),
    ]
    bodies = description(caller, *codecs), description(callee, *codecs)
    return around(media, start_ns, caller, callee, name, bodies, SECONDS + 0.2)


CALLS: Final = {
    f"{named}, {depth} copies, 1 of {lost or 'none'} lost": (NAMED[named], depth, lost)
    for named, depth, lost in (
        ("both", 1, 0), ("both", 2, 3), ("both", 1, 2), ("voice", 2, 3), ("nothing", 1, 2),
    )
}  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("red")
    calls = [call(number, name, *how) for number, (name, how) in enumerate(CALLS.items())]
    write_pcap(folder / "calls.pcap", [frame for frames in calls for frame in frames])
    return Recorded(folder / "calls.pcap", folder)


def number_of(name: str) -> int:
    return list(CALLS).index(name)


@pytest.mark.parametrize("name", CALLS)
def test_each_voice_is_whole_but_for_the_keys(recorded: Recorded, name: str):
    (one,) = [each for each in recorded.calls if each["call_ids"] == [name]]
    rate, sound = recorded.sound(one["recording_id"])
    assert rate == 8000
    assert abs(len(sound) / rate - SECONDS) <= 0.021
    # What was lost beside a key may have its only copy in a packet that has the key, too.
    beside = int(CALLS[name][2] > 0)
    sides = sound[:-160].T.copy()
    voices = [heard(one.samples)[: sides.shape[1]] for one in phones(SECONDS, number_of(name))]
    for at in PRESSED:
        for side in (sides[0], voices[0]) if beside else (voices[0],):
            side[160 * (at - beside) : 160 * (at + KEY_PACKETS + beside)] = 0
    for side, voice in zip(sides, voices, strict=True):
        assert np.array_equal(side, voice[: len(side)])
    assert one["flags"] == []
    assert [channel["codec"] for channel in one["channels"]] == ["PCMA", "PCMA"]


@pytest.mark.parametrize("name", CALLS)
def test_each_key_is_told_once(recorded: Recorded, name: str):
    (one,) = [each for each in recorded.calls if each["call_ids"] == [name]]
    told = recorded.shown(one["id"], "--digits")["digits"]
    assert [(key["party"], key["event"], key["code"]) for key in told] == [
        ("caller", sign, SIGNS.index(sign)) for sign in PRESSED.values()
    ]
    assert all(key["ended"] and key["seconds"] == 0.1 for key in told)


def test_real_time_text_is_kept_and_no_sound(tmp_path: Path):
    """T.140 in RED (RFC 4103) on an m= line beside the voice, as phones for the deaf send it."""
    caller, callee = phones(SECONDS)
    begins_ns = START_NS + ANSWERED_NS
    ends = [(phone.address, phone.rtp_port + 40) for phone in (caller, callee)]
    typed = [Block(TEXT, 300 * number, letter.encode()) for number, letter in enumerate("help")]
    text = []
    for number, own in enumerate(typed):
        packet = rtp(number, own.timestamp, caller.ssrc + 7,
                     redundant(own, typed[max(0, number - 2) : number]), TEXT_RED)  # fmt: skip
        text.append(udp_frame(begins_ns + 300_000_000 * number, ends[0], ends[1], packet))
    media = [*flow(begins_ns, caller, callee, {}, 1, 0), *flow(begins_ns, callee, caller, {}, 1, 0)]
    bodies = [
        description(phone, (RED, Codec("red", 8000, 1, "8/8")), (PCMA, Codec("PCMA", 8000)))
        + f"m=text {phone.rtp_port + 40} RTP/AVP {TEXT} {TEXT_RED}\r\na=rtpmap:{TEXT} t140/1000\r\n"
        + f"a=rtpmap:{TEXT_RED} red/1000\r\na=fmtp:{TEXT_RED} {TEXT}/{TEXT}/{TEXT}\r\n"
        for phone in (caller, callee)
    ]
    frames = around([*media, *text], START_NS, caller, callee, "text", (bodies[0], bodies[1]), 3.2)
    write_pcap(tmp_path / "text.pcap", frames)
    recorded = Recorded(tmp_path / "text.pcap", tmp_path)
    (one,) = recorded.calls
    _, sound = recorded.sound(one["recording_id"])
    for side, phone in zip(sound.T, (caller, callee), strict=True):
        assert np.array_equal(side, heard(phone.samples))
    rows = [(each["party"], each["media"], each["codec"], each["packets"], each["decodable"])
            for each in one["channels"]]  # fmt: skip
    assert sorted(rows) == [
        ("callee", "audio", "PCMA", 150, True),
        ("caller", "audio", "PCMA", 150, True),
        ("caller", "text", "t140", 4, False),
    ]
