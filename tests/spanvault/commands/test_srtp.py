"""SRTP with keys in SDP through the whole product: sealed by the phones, heard by us."""

import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from spanvault.media.sdes import SUITES
from tests.conformance.recorded import Recorded, spanvault
from tests.support.callgen import (
    ANSWERED_NS,
    PACKET_NS,
    SECOND,
    START_NS,
    Dialogue,
    Frame,
    Phone,
    around,
    phones,
    rtp,
    udp_frame,
    write_pcap,
)
from tests.support.rtcpforge import Block, goodbye, sender_report
from tests.support.srtpsender import Sender, secure_sdp
from tests.support.voices import heard, likeness, payloads

SECONDS = 4.0
CHANGE = 100  # the packet that a new key begins with, in a call that changes it
ROLLS_OVER = 65_500  # a sequence number that is near its end


def spoken(
    begins_ns: int, speaker: Phone, listener: Phone, senders: list[Sender], headers: bool = False,
    anew: bool = False,
) -> Iterator[Frame]:  # fmt: skip
    """A voice, 20 ms a packet; the second sender takes over at CHANGE. headers: of all kinds.

    anew: it has an SSRC, sequence numbers and timestamps of its own.
    """
    for number, payload in enumerate(payloads(speaker.samples)):
        turn = min(number // CHANGE, len(senders) - 1)
        sender, other = senders[turn], turn if anew else 0
        packet = rtp(ROLLS_OVER + number + 40 * other, 160 * number + (other << 31),
                     speaker.ssrc + (other << 20), payload)  # fmt: skip
        if headers:
            packet = with_more(packet, number)
        yield udp_frame(
            begins_ns + number * PACKET_NS,
            (speaker.address, speaker.rtp_port),
            (listener.address, listener.rtp_port),
            sender.seal(packet),
        )


def reported(begins_ns: int, speaker: Phone, listener: Phone, sender: Sender) -> Iterator[Frame]:
    """What a phone reports after two seconds: of the other's stream it lost 3. Then it says BYE."""
    if sender.suite.startswith("F8"):
        return
    report = sender_report(speaker.ssrc, [Block(listener.ssrc, fraction=64, lost=3, jitter=16)])
    ends = (speaker.address, speaker.rtp_port + 1), (listener.address, listener.rtp_port + 1)
    for after_s, said in ((2, report), (4, report + goodbye(speaker.ssrc))):
        yield udp_frame(begins_ns + after_s * SECOND, *ends, sender.seal_control(said))


AUDIO_LEVEL = bytes.fromhex("bede0001 10b00000")  # RFC 6464, in RFC 8285's one-byte form
TWO_BYTES = bytes.fromhex("10000002 0101b000") + b"\x02\x02ab"  # its two-byte form
CSRCS = bytes.fromhex("0000000a 0000000b")  # of a conference's speakers


def with_more(packet: bytes, number: int) -> bytes:
    """A packet with CSRCs, an extension, padding, several of them or none, by its number."""
    csrcs = CSRCS if number % 3 == 1 else b""
    extension = [AUDIO_LEVEL, TWO_BYTES, b""][number % 5 % 3]
    # RFC 6904's extensions are encrypted by themselves: to who has the payload's key, any bytes.
    if extension == TWO_BYTES and number % 2:
        extension = extension[:7] + secrets.token_bytes(5)
    padding = b"\0\0\0\x04" if number % 7 == 2 else b""
    first = 0x80 | (0x20 if padding else 0) | (0x10 if extension else 0) | len(csrcs) // 4
    return bytes([first]) + packet[1:12] + csrcs + extension + packet[12:] + padding


def secure_call(number: int, name: str, suites: list[str], more: str = "") -> list[Frame]:
    """A call of two phones, each with keys of its own; a re-INVITE for each suite but the first.

    more: what the packets' headers have, "headers" in the clear, or "cryptex"; session parameters
    in capitals; or how the next key is taken up.
    """
    caller, callee = phones(SECONDS, number)
    start_ns = START_NS + 20 * number * SECOND
    talk_ns = start_ns + ANSWERED_NS
    sides = [(caller, callee), (callee, caller)]
    session = more if more.isupper() else ""
    senders = [followed(suites, session, more) for _ in sides]
    headers = more in ("headers", "cryptex")
    media = [
        frame
        for (speaker, listener), keys in zip(sides, senders, strict=True)
        for frame in spoken(talk_ns, speaker, listener, keys, headers, more == ANOTHER)
    ]
    bodies = [
        (secure_sdp(caller, ours), secure_sdp(callee, theirs))
        for ours, theirs in zip(*senders, strict=True)
    ]
    media += [
        frame
        for (speaker, listener), keys in zip(sides, senders, strict=True)
        for frame in reported(talk_ns, speaker, listener, keys[0])
    ]
    media += reinvite(caller, callee, name, talk_ns + CHANGE * PACKET_NS, bodies[1:])
    return around(media, start_ns, caller, callee, name, bodies[0], SECONDS + 0.1)


def followed(suites: list[str], session: str, more: str) -> list[Sender]:
    """A sender for each suite, the next after the one before."""
    senders: list[Sender] = []
    for number, suite in enumerate(suites, 1):
        identifier = bytes([0, number]) if more == NAMED else b""
        after = senders[-1] if senders and more in (COUNTED, NAMED) else None
        cryptex = more == "cryptex"
        senders.append(
            Sender(suite, cryptex=cryptex, session=session, identifier=identifier, after=after)
        )
    return senders


def reinvite(
    caller: Phone, callee: Phone, name: str, at_ns: int, bodies: Iterable[tuple[str, str]]
) -> Iterator[Frame]:
    words, ms = Dialogue(caller, callee, name), SECOND // 1000
    for offer, answer in bodies:
        yield words.request(at_ns - 300 * ms, "INVITE", 2, offer)
        yield words.response(at_ns - 200 * ms, "200 OK", "2 INVITE", answer)
        yield words.request(at_ns - 190 * ms, "ACK", 2)


COUNTED, ANOTHER, NAMED = "the counter goes on", "another SSRC", "identifiers"
NEXT = (
    ("AES_CM_128_HMAC_SHA1_80", "AES_CM_128_HMAC_SHA1_32"),
    ("AES_256_CM_HMAC_SHA1_80", "AES_256_CM_HMAC_SHA1_80"),
    ("AEAD_AES_256_GCM", "AEAD_AES_128_GCM"),
)
CALLS = {
    **{suite: [suite] for suite in SUITES},
    "a new key": ["AES_CM_128_HMAC_SHA1_80", "AES_CM_128_HMAC_SHA1_80"],
    "another suite": ["AES_256_CM_HMAC_SHA1_32", "AEAD_AES_256_GCM"],
    **{f"{suites[0]} {how}": list(suites) for suites in NEXT for how in (COUNTED, ANOTHER, NAMED)},
    **{f"{suite} headers": [suite] for suite in SUITES},
    **{
        f"{suite} cryptex": [suite]
        for suite in ("AES_CM_128_HMAC_SHA1_80", "F8_128_HMAC_SHA1_80", "AEAD_AES_256_GCM")
    },
    **{
        f"AES_CM_128_HMAC_SHA1_80 {session}": ["AES_CM_128_HMAC_SHA1_80"]
        for session in ("UNENCRYPTED_SRTP", "KDR=5", "KDR=24", "KDR=16 UNENCRYPTED_SRTP WSH=64")
    },
    "F8_128_HMAC_SHA1_80 KDR=6": ["F8_128_HMAC_SHA1_80"],
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("srtp")
    calls = [
        secure_call(n, name, suites, name.partition(" ")[2] if name.split()[0] in SUITES else "")
        for n, (name, suites) in enumerate(CALLS.items())
    ]
    return replayed(folder, calls)


def replayed(folder: Path, calls: list[list[Frame]]) -> Recorded:
    write_pcap(folder / "calls.pcap", [frame for frames in calls for frame in frames])
    return Recorded(folder / "calls.pcap", folder)


def sides(recorded: Recorded, call: dict[str, Any]) -> list[NDArray[np.int16]]:
    rate, sound = recorded.sound(call["recording_id"])
    assert rate == 8000
    return [sound[:, 0], sound[:, 1]]


@pytest.mark.parametrize("name", CALLS)
def test_both_sides_are_heard(recorded: Recorded, name: str):
    (call,) = [one for one in recorded.calls if one["call_ids"] == [name]]
    assert call["flags"] == ["srtp_sdes"]
    for phone, side in zip(
        phones(SECONDS, list(CALLS).index(name)), sides(recorded, call), strict=True
    ):
        alike, later_s = likeness(side, heard(phone.samples))
        assert alike > 0.99
        assert abs(later_s) < 0.01


@pytest.mark.parametrize("suite", [suite for suite in SUITES if not suite.startswith("F8")])
def test_what_the_far_ends_reported_is_opened_when_asked_for(recorded: Recorded, suite: str):
    (call,) = [one for one in recorded.calls if one["call_ids"] == [suite]]
    assert [channel["far_end"] for channel in call["channels"]] == [None, None]
    told = recorded.shown(call["id"], "--far-end")
    said = {"reports": 2, "lost": 3, "worst": 0.25, "jitter_ms": 2.0, "round_trip_ms": None}
    assert [channel["far_end"] for channel in told["channels"]] == [said, said]
    assert [channel["bye_at"] for channel in call["channels"]] == [None, None]
    assert all(call["answered_at"] < one["bye_at"] < call["ended_at"] for one in told["channels"])


def test_a_key_that_is_not_the_phones_gives_silence(tmp_path: Path):
    """The signalling of one call around the media of another: its keys open nothing."""
    frames = secure_call(0, "mine", ["AEAD_AES_128_GCM"])
    others = secure_call(0, "other", ["AEAD_AES_128_GCM"])
    mixed = [
        mine if b"SIP/2.0" in mine.data else other
        for mine, other in zip(frames, others, strict=True)
    ]
    recorded = replayed(tmp_path, [mixed])
    (call,) = recorded.calls
    for side in sides(recorded, call):
        assert len(side) > 3.9 * 8000
        assert not side.any()
    done = spanvault(
        "export", call["id"], "-o", tmp_path / "x.wav", "--store", tmp_path / "store", home=tmp_path
    )
    assert "SRTP packets open with no key that was heard: silence (400)" in done.stderr
