"""How a camera was held, by the header extensions of its packets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault.media.chunk import WHOLE
from spanvault.video.orientation import Held, Orientation, extension
from tests.support.chunks import Packet, chunk


def packet(extensions: str, *, csrcs: int = 0) -> bytes:
    """An RTP packet whose header extension is written in hex."""
    return bytes([0x90 | csrcs]) + bytes(11 + 4 * csrcs) + bytes.fromhex(extensions) + b"picture"


@pytest.mark.parametrize(
    ("extensions", "found"),
    [
        ("bede0001 30010000", "01"),
        ("bede0002 10ff0031 02050000", "0205"),
        ("bede0001 00003007", "07"),
        ("bede0001 f0003001", ""),  # 15 ends it: RFC 8285 §4.2
        ("bede0001 200130ff", "ff"),
        ("bede0000", ""),
        ("bede0001 20012001", ""),
        ("10000001 03010200", "02"),
        ("10010002 0500 0003 0006 0000", ""),
        ("10000001 03000000", ""),
        ("abcd0001 30010000", ""),
    ],
)
@pytest.mark.parametrize("csrcs", [0, 2])
def test_an_extension_is_found_by_its_id(extensions: str, found: str, csrcs: int):
    assert extension(packet(extensions, csrcs=csrcs), 3) == bytes.fromhex(found)


@given(st.binary(max_size=60), st.integers(0, 255))
def test_any_bytes_have_one_or_none(data: bytes, wanted: int):
    assert len(extension(data, wanted)) < len(data) + 1


def test_a_stream_was_held_as_it_was_most_of_the_time():
    one = Orientation(3)
    said = ["bede0001 30030000", "bede0001 30030000", "bede0001 30040000", "bede0001 20010000"]
    packets = [Packet(20 * n, n, 0, packet(each), 97, WHOLE) for n, each in enumerate(said)]
    one.receive(chunk([*packets, Packet(90, 9, 0, packet("bede0001 30010000"), 97)]))
    assert (one.held, one.otherwise) == (Held(3), 1)


def test_who_tells_nothing_holds_it_upright():
    assert (Orientation(3).held, Orientation(3).otherwise) == (Held(0, False), 0)
