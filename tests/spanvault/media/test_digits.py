"""Keys out of telephone events, as they are sent and as they are lost."""

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault.media.digits import Event, Heard, decode
from tests.support.digits import SIGNS, event, press

RATE = 8000


def packets(text: str, apart: int = 1600, **changes: int) -> list[Heard]:
    """Keys one after the other; apart: units from one's beginning to the next's."""
    return [
        Heard(number * apart % (1 << 32), number * 10**8, marker, payload)
        for number, sign in enumerate(text)
        for marker, payload in press(sign, **changes)
    ]


def keys(heard: list[Heard]) -> str:
    return "".join(one.name for one in decode(heard, RATE))


def test_every_key_once_with_its_time_and_length():
    found = decode(packets("5#"), RATE)
    assert found == [Event(5, 0, 0, 800, True), Event(11, 10**8, 1600, 800, True)]
    assert keys(packets(SIGNS)) == SIGNS


def test_the_same_key_twice_is_two():
    assert keys(packets("0077")) == "0077"


@pytest.mark.parametrize("lost", ["first", "ends", "all but one", "last end only"])
def test_a_key_survives_what_is_lost_of_it(lost):
    keep = {
        "first": lambda part: part[1:],
        "ends": lambda part: part[:-3],
        "all but one": lambda part: part[-1:],
        "last end only": lambda part: part[:-1],
    }[lost]
    heard = [one for sign in range(4) for one in keep(packets("1223")[8 * sign : 8 * sign + 8])]
    assert keys(heard) == "1223"
    assert {one.ended for one in decode(heard, RATE)} == {lost != "ends"}


def test_any_loss_adds_no_key():
    chance = random.Random(1)
    sent = packets("12345678", ends=3)
    for _ in range(200):
        heard = [one for one in sent if chance.random() < 0.5]
        found = keys(heard)
        assert len(found) <= 8
        assert "".join(sorted(found)) == found


def test_a_long_key_in_segments_is_one():
    """RFC 4733 §2.5.1.3: durations of 16 bits run out, the timestamp moves to where they did."""
    first = [Heard(100, 0, n == 1, event(3, 160 * n)) for n in range(1, 410)]
    full = Heard(100, 0, False, event(3, 0xFFFF))
    second = [Heard(100 + 0xFFFF, 0, False, event(3, 160 * n, end=n > 9)) for n in (8, 9, 10, 10)]
    assert decode([*first, full, *second], RATE) == [Event(3, 0, 100, 0xFFFF + 1600, True)]


def test_a_phone_that_moves_the_timestamp_says_one_key():
    sent = [Heard(160 * n, 0, n == 0, event(9, 160 * (min(n, 5) + 1), end=n > 4)) for n in range(8)]
    assert decode(sent, RATE) == [Event(9, 0, 0, 960, True)]


def test_flash_other_events_and_several_in_a_packet():
    heard = [
        Heard(0, 0, True, event(16, 400, end=True)),
        Heard(800, 0, True, event(36, 400, end=True)),
        Heard(2000, 0, True, event(1, 400, end=True) + event(2, 400, end=True)),
        Heard(4000, 0, True, b"\x01\x8a"),
    ]
    assert [one.name for one in decode(heard, RATE)] == ["flash", "event 36", "1", "2"]


def test_timestamps_wrap():
    near = (1 << 32) - 80
    sent = [Heard(near, 0, True, event(4, 160)), Heard(near, 0, False, event(4, 800, end=True))]
    behind = [Heard(1600 - 80, 0, True, event(4, 800, end=True))]
    assert [one.duration for one in decode(sent + behind, RATE)] == [800, 800]


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.booleans(), st.binary(max_size=12))))
def test_any_packets_are_events(heard):
    found = decode([Heard(stamp, 0, marker, data) for stamp, marker, data in heard], RATE)
    assert len(found) <= sum(len(data) // struct.calcsize(">BBH") for _, _, data in heard)
    assert all(one.name and one.duration >= 0 for one in found)
