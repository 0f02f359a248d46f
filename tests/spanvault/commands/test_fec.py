"""What repairs other packets rides along: kept, told of by name, and neither heard nor in the way.

Formats: RFC 5109 (ulpfec), 8627 (flexfec), 3009 (parityfec); within RED, RFC 2198.
"""

import random
from collections.abc import Iterator
from typing import Final

import pytest

from spanvault.messages import Codec
from tests.support.callgen import (
    ANSWERED_NS,
    SECOND,
    START_NS,
    Frame,
    Phone,
    around,
    phones,
    rtp,
    udp_frame,
)
from tests.support.encoded import CASES
from tests.support.spoken import Heard, description, flow, record

FEC, EVERY = 117, 5  # its payload type; it follows each fifth packet of the voice
NAMES: Final = ("ulpfec", "flexfec-03", "parityfec")
# By how much SSRC and port of the FEC are others than the voice's.
PLACES: Final = {"among the voice": (0, 0), "own SSRC": (99, 0), "own port": (99, 20)}
CALLS: Final = [(name, place) for name in NAMES for place in PLACES]
VOICE: Final = CASES["G.711 A-law"]()


def speak(start_ns: int, caller: Phone, callee: Phone, place: str) -> Iterator[Frame]:
    """The caller's voice, and parity that looks like nothing."""
    ssrc, port = PLACES[place]
    sent, parity = 0, random.Random(place)
    for number, payload in enumerate(VOICE.payloads):
        assert payload is not None
        ends = [(phone.address, phone.rtp_port) for phone in (caller, callee)]
        at_ns, stamp = start_ns + number * SECOND // 50, 7_000 + 160 * number
        yield udp_frame(at_ns, ends[0], ends[1], rtp(sent, stamp, caller.ssrc, payload, 8))
        sent += 1
        if number % EVERY == EVERY - 1:
            ends = [(host, at + port) for host, at in ends]
            mine = sent if place == "among the voice" else number // EVERY
            packet = rtp(mine, stamp, caller.ssrc + ssrc, parity.randbytes(170), FEC)
            yield udp_frame(at_ns + 1_000_000, ends[0], ends[1], packet)
            sent += place == "among the voice"


def repaired(number: int, name: str, place: str) -> list[Frame]:
    """A call in A-law whose SDP names the FEC, on its own m= line where it has its own port."""
    caller, callee = phones(0.1, number)
    start_ns = START_NS + 10 * number * SECOND
    codecs = [(8, VOICE.codec), (FEC, Codec(name, 8000))]
    bodies = [description(phone, *codecs) for phone in (caller, callee)]
    if place == "own port":
        bodies = [
            description(phone, codecs[0])
            + f"m=audio {phone.rtp_port + 20} RTP/AVP {FEC}\r\na=rtpmap:{FEC} {name}/8000\r\n"
            for phone in (caller, callee)
        ]
    media = [
        *speak(start_ns + ANSWERED_NS, caller, callee, place),
        *flow(start_ns + ANSWERED_NS, callee, caller, VOICE),
    ]
    return around(media, start_ns, caller, callee, f"{number}@fec", (bodies[0], bodies[1]), 2.2)


def in_red(number: int) -> list[Frame]:
    """A-law in RED that repeats the packet before. Where one is lost there comes FEC alone instead.

    It has the timestamp of what was lost: that must be heard from the copy all the same.
    """
    red = CASES["RED of A-law, a third lost"]()
    payloads = [one or bytes([FEC]) + bytes(100) for one in red.payloads]
    spoken = red._replace(payloads=payloads, codec=Codec("red", 8000))
    caller, callee = phones(0.1, number)
    start_ns = START_NS + 10 * number * SECOND
    media = [
        *flow(start_ns + ANSWERED_NS, caller, callee, spoken),
        *flow(start_ns + ANSWERED_NS, callee, caller, VOICE),
    ]
    named = [(121, spoken.codec), (8, VOICE.codec), (FEC, Codec("ulpfec", 8000))]
    bodies = description(caller, *named), description(callee, *named)
    return around(media, start_ns, caller, callee, "red@fec", bodies, 2.2)


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Heard]:
    calls = [repaired(number, *which) for number, which in enumerate(CALLS)] + [in_red(len(CALLS))]
    found = record(tmp_path_factory.mktemp("fec"), calls)
    return dict(zip([*CALLS, ("ulpfec", "RED")], found, strict=True))


@pytest.mark.parametrize(("name", "place"), CALLS)
def test_the_voice_is_as_without_it(heard: dict[tuple[str, str], Heard], name: str, place: str):
    one = heard[name, place]
    assert one.like(0) >= VOICE.least
    assert (one.sound[:, 0] == one.sound[:, 1]).all()  # the callee says the same, without FEC
    assert one.line["flags"] == ["fec"]


@pytest.mark.parametrize(("name", "place"), CALLS)
def test_it_is_listed_by_its_name(heard: dict[tuple[str, str], Heard], name: str, place: str):
    rows = {
        (channel["party"], channel["codec"]): (channel["packets"], channel["decodable"])
        for channel in heard[name, place].line["channels"]
    }
    sent = len(VOICE.payloads) // EVERY
    among = place == "among the voice"
    wanted = {("caller", "PCMA"): (100 + among * sent, True), ("callee", "PCMA"): (100, True)}
    if not among:
        wanted["caller", name] = sent, False
    assert rows == wanted
    assert not any(channel["lost"] for channel in heard[name, place].line["channels"])


def test_fec_in_red_does_not_pass_for_what_it_repairs(heard: dict[tuple[str, str], Heard]):
    one = heard["ulpfec", "RED"]
    assert one.like(0) >= 0.98
    assert {channel["codec"] for channel in one.line["channels"]} == {"PCMA"}
