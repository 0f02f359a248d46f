"""What is changed by its structure still has one: messages parse, captures can be read."""

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.signalling import sip
from tests.fuzz.capturefiles import captures
from tests.fuzz.choices import cut, joined
from tests.fuzz.mutators import HEADERS, description, message, parts
from tests.fuzz.product import damaged
from tests.fuzz.rewriting import capture, frame, layout, mended, opened
from tests.fuzz.signalling import descriptions, messages
from tests.fuzz.targets import TARGETS
from tests.support.callgen import udp_frame

ROUNDS = 300
OTHERS = random.Random(0)
MUTATED = sorted(name for name, target in TARGETS.items() if target.mutate)


def worse(data: bytes) -> bytes:
    """In libFuzzer's place: a byte more in front, or one behind."""
    return OTHERS.choice((data + b"?", b"?" + data, data + b"!", b"!" + data))


@pytest.mark.parametrize("name", MUTATED)
def test_changes_reach_many_other_inputs(name: str) -> None:
    target = TARGETS[name]
    assert target.mutate is not None
    for data in [*target.seeds(), b"", b"\0", b"\xff" * 99]:
        made = {target.mutate(data, random.Random(seed), worse) for seed in range(30)}
        assert len(made) > 1


@given(st.binary(max_size=400), st.integers(0, 1000))
def test_whatever_the_input_is_there_is_another(data: bytes, seed: int) -> None:
    for name in MUTATED:
        mutate = TARGETS[name].mutate
        assert mutate is not None
        mutate(data, random.Random(seed), worse)


def test_most_changed_messages_are_still_messages():
    chance, parsed = random.Random(1), 0
    for _ in range(ROUNDS):
        try:
            sip.parse(message(messages()[0], chance, worse))
            parsed += 1
        except ValueError:
            pass
    assert parsed > 0.8 * ROUNDS


def test_a_header_comes_that_was_not_there_and_a_length_follows_its_body():
    chance = random.Random(2)
    made = [message(messages()[0], chance, worse) for _ in range(ROUNDS)]
    assert sum(any(header in each for header in HEADERS[-30:]) for each in made) > ROUNDS // 20
    right = sum(
        b"Content-Length: %d\r" % len(each.partition(b"\r\n\r\n")[2]) in each for each in made
    )
    assert right > 0.6 * ROUNDS


def test_an_sdp_keeps_its_line_ends():
    chance, one = random.Random(3), descriptions()[0]
    for _ in range(ROUNDS):
        assert b"\n" not in description(one, chance, worse).replace(b"\r\n", b"")


def test_a_frame_that_grew_says_so():
    grown = mended(udp_frame(0, ("10.0.0.1", 1), ("10.0.0.2", 2), b"ab").data + b"cdef")
    assert grown == udp_frame(0, ("10.0.0.1", 1), ("10.0.0.2", 2), b"abcdef").data


def test_frames_stay_udp_whose_lengths_are_right():
    chance, kept = random.Random(4), 0
    for _ in range(ROUNDS):
        made = frame(udp_frame(0, ("10.0.0.1", 1), ("10.0.0.2", 2), bytes(40)).data, chance, worse)
        found = layout(made)
        kept += bool(found) and struct.unpack_from(">H", made, 16)[0] == len(made) - 14
    assert kept > 0.8 * ROUNDS


@pytest.mark.parametrize("number", range(4))
def test_a_capture_is_taken_apart_and_put_together(number: int) -> None:
    whole = captures()[number]
    file = opened(whole)
    assert file is not None
    assert len(file.records) > 10
    assert file.whole() == whole


@pytest.mark.parametrize("number", range(4))
def test_a_changed_capture_can_be_read_to_its_end(number: int) -> None:
    chance, whole = random.Random(number), 0
    for _ in range(ROUNDS):
        made = capture(captures()[number], chance, worse)
        file = opened(made)
        whole += file is not None and file.whole() == made
    assert whole > 0.8 * ROUNDS


def test_parts_change_one_at_a_time():
    chance, kept = random.Random(5), [b"first", b"second", b"third"]
    for _ in range(ROUNDS):
        made = parts(head=1)(b"x" + joined(kept), chance, worse)
        assert made[:1] in b"x?!"
        assert len(set(cut(made[1:])) ^ set(kept)) <= 2


def test_a_capture_of_any_length_can_be_damaged():
    """What was guided by coverage may be no more than a header, or a part of one."""
    for seed in range(300):
        chance = random.Random(seed)
        damaged(chance.randbytes(chance.choice((0, 3, 24, 25, 60))), chance)
