"""A port of which much cannot be read is told of, and what that is; one with a little is not."""

from collections import Counter

import pytest

from capture.beyond import Beyond
from capture.packets.decode import Decoder
from tests.support.frames import block, ethernet, ipv4, rtp, udp

VOICE = ethernet(ipv4(udp(rtp())))
SEALED = bytes.fromhex("c0ffee01 00000001") + bytes(80)


def line(*frames: bytes, each: int = 1) -> str:
    """What is said of a port on which these frames come 200 times a look."""
    decoder, beyond = Decoder(), Beyond()
    heard = block(frames * 200)
    heard.unread_each = each
    for now_s in range(5):
        beyond.look(float(now_s), decoder.counters)
        decoder.decode(heard)
    return beyond.line


@pytest.mark.parametrize(
    ("what", "frame"),
    [
        ("IPsec", ethernet(ipv4(SEALED, protocol=50))),
        ("MACsec", ethernet(b"\x2c\0" + SEALED, 0x88E5)),
        ("WireGuard", ethernet(ipv4(udp(b"\4\0\0\0" + SEALED, 51820, 51820)))),
        ("EtherType 0x4305 (B.A.T.M.A.N.)", ethernet(SEALED, 0x4305)),
        ("IP protocol 132 (SCTP)", ethernet(ipv4(SEALED, protocol=132))),
    ],
)
def test_much_of_it_is_named(what: str, frame: bytes) -> None:
    assert line(VOICE, frame) == f"50% of all frames CANNOT BE READ, most are {what}"


def test_what_there_is_most_of_is_named() -> None:
    sctp, sealed = ethernet(ipv4(SEALED, protocol=132)), ethernet(ipv4(SEALED, protocol=50))
    told = line(VOICE, sctp, sealed, sealed)
    assert told == "75% of all frames CANNOT BE READ, most are IPsec"


def test_of_little_nothing_is_said() -> None:
    assert line(*[VOICE] * 9, ethernet(SEALED, 0x4305)) == ""
    assert line(VOICE, ethernet(bytes(46), 0x0806)) == ""


def test_what_the_filter_samples_counts_as_much_as_it_stands_for() -> None:
    assert line(*[VOICE] * 64, ethernet(SEALED, 0x4305), each=64).startswith("50% ")


def test_it_is_over_a_minute_after_it_was() -> None:
    beyond, counted = Beyond(), Counter(frames=0, opaque_ipsec=0)
    said = []
    for now_s in range(0, 200, 20):
        beyond.look(float(now_s), counted)
        said.append(bool(beyond.line))
        counted["frames"] += 1000
        counted["opaque_ipsec"] += 500 if now_s < 60 else 0
    assert said == [False, *[True] * 4, *[False] * 5]
