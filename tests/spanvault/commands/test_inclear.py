"""Calls that are encrypted for a while only: what was said in the clear is heard, at its time.

What nobody can open is silence; a re-INVITE, or an agreement on the media's own path, tells when.
"""

import secrets
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.capture.calls.test_handshakes import dtls, zrtp
from tests.conformance.recorded import Recorded
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
    sdp,
    udp_frame,
    write_pcap,
)
from tests.support.srtpsender import Sender, secure_sdp
from tests.support.voices import heard, payloads

SECONDS: Final = 6.0
FINGERPRINT: Final = "a=fingerprint:sha-256 " + ":".join(["AB"] * 32) + "\r\n"
Seal = Callable[[bytes], bytes]
Part = tuple[Seal, Callable[[Phone], str]]  # how it is sent, and what SDP says of it
Sound = NDArray[np.int16]


def in_clear() -> Part:
    return lambda packet: packet, sdp


def under_sdes() -> Part:
    sender = Sender("AES_CM_128_HMAC_SHA1_80")
    return sender.seal, lambda phone: secure_sdp(phone, sender)


def under_unknown_keys() -> Part:
    said = lambda phone: sdp(phone).replace("RTP/AVP", "RTP/SAVP") + FINGERPRINT  # noqa: E731
    return lambda packet: packet[:12] + secrets.token_bytes(len(packet) - 2), said


PARTS: Final[dict[str, list[Callable[[], Part]]]] = {
    "SDES in the middle": [in_clear, under_sdes, in_clear],
    "SDES but in the middle": [under_sdes, in_clear, under_sdes],
    "DTLS in the middle": [in_clear, under_unknown_keys, in_clear],
    "DTLS but in the middle": [under_unknown_keys, in_clear, under_unknown_keys],
}
AGREED: Final = {"ZRTP from the middle on": zrtp("Confirm1"), "DTLS unsaid": dtls(20)}
CHANGES_S: Final = (2, 4)


def call(number: int, name: str, parts: list[Callable[[], Part]], said: bytes = b"") -> list[Frame]:
    """A call of three parts; a re-INVITE before each but the first, or `said` on its path."""
    caller, callee = phones(SECONDS, number)
    start_ns = START_NS + 20 * number * SECOND
    talk_ns = start_ns + ANSWERED_NS
    sides = [[part() for part in parts] for _ in range(2)]
    media = [
        *spoken(talk_ns, caller, callee, [seal for seal, _ in sides[0]]),
        *spoken(talk_ns, callee, caller, [seal for seal, _ in sides[1]]),
    ]
    bodies = [
        (ours[1](caller), theirs[1](callee)) for ours, theirs in zip(*sides, strict=True)
    ]  # fmt: skip
    words, ms = Dialogue(caller, callee, name), SECOND // 1000
    for turn, (at_s, (offer, answer)) in enumerate(zip(CHANGES_S, bodies[1:], strict=True)):
        at_ns = talk_ns + at_s * SECOND
        if said:
            ends = (caller.address, caller.rtp_port), (callee.address, callee.rtp_port)
            media += [udp_frame(at_ns - 5 * ms, *ends, said)]
        else:
            media += [
                words.request(at_ns - 90 * ms, "INVITE", 2 + turn, offer),
                words.response(at_ns - ms, "200 OK", f"{2 + turn} INVITE", answer),
                words.request(at_ns + ms, "ACK", 2 + turn),
            ]
    return around(media, start_ns, caller, callee, name, bodies[0], SECONDS + 0.1)


def spoken(
    begins_ns: int, speaker: Phone, listener: Phone, seals: list[Seal]
) -> Iterator[Frame]:  # fmt: skip
    for number, payload in enumerate(payloads(speaker.samples)):
        at_ns = number * PACKET_NS
        seal = seals[sum(at_ns >= at_s * SECOND for at_s in CHANGES_S)]
        packet = seal(rtp(65_500 + number, 160 * number, speaker.ssrc, payload))
        ends = (speaker.address, speaker.rtp_port), (listener.address, listener.rtp_port)
        yield udp_frame(begins_ns + at_ns, *ends, packet)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("inclear")
    calls = [call(number, *named) for number, named in enumerate(PARTS.items())]
    for number, (name, said) in enumerate(AGREED.items(), len(calls)):
        calls.append(call(number, name, [in_clear, under_unknown_keys, under_unknown_keys], said))
    write_pcap(folder / "calls.pcap", [frame for frames in calls for frame in frames])
    return Recorded(folder / "calls.pcap", folder)


def sides(recorded: Recorded, name: str) -> Iterator[tuple[Sound, Sound]]:
    """What is heard of each side, and what it said, over the same time."""
    (one,) = [call for call in recorded.calls if call["call_ids"] == [name]]
    rate, sound = recorded.sound(one["recording_id"])
    assert rate == 8000
    assert len(sound) == pytest.approx(SECONDS * 8000, abs=160)
    for side, phone in enumerate(phones(SECONDS, [*PARTS, *AGREED].index(name))):
        yield sound[:, side], heard(phone.samples)[: len(sound)]


def as_said(sound: Sound, said: Sound, from_s: float, to_s: float) -> bool:
    part = slice(round(from_s * 8000), round(to_s * 8000))
    return bool(np.array_equal(sound[part], said[part]))


@pytest.mark.parametrize("name", ["SDES in the middle", "SDES but in the middle"])
def test_of_a_call_whose_keys_are_known_all_is_heard(recorded: Recorded, name: str):
    for sound, said in sides(recorded, name):
        assert as_said(sound, said, 0, 6)


def test_what_was_said_before_and_after_keys_that_are_unknown(recorded: Recorded):
    for sound, said in sides(recorded, "DTLS in the middle"):
        assert as_said(sound, said, 0, 1.98)
        assert not sound[2 * 8000 : 4 * 8000].any()
        assert as_said(sound, said, 5.02, 6)


def test_what_was_said_between_keys_that_are_unknown(recorded: Recorded):
    for sound, said in sides(recorded, "DTLS but in the middle"):
        assert not sound[: 2 * 8000].any()
        assert as_said(sound, said, 3.02, 3.98)
        assert not sound[4 * 8000 :].any()


@pytest.mark.parametrize("name", AGREED)
def test_what_was_said_before_media_agreed_upon_keys_by_itself(recorded: Recorded, name: str):
    for sound, said in sides(recorded, name):
        assert as_said(sound, said, 0, 1.98)
        assert not sound[2 * 8000 :].any()
