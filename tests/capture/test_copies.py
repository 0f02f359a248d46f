"""Copies of packets count once, whatever was changed on them on the way; what was sent twice does.

Both callers are silent, so that every payload is the same. Copies of every packet, by one way each:
tests.capture.test_rewrapped.
"""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.capture.test_rewrapped import almost, recorded
from tests.support.callgen import START_NS, Frame, Phone, answered, talk
from tests.support.recorded import Line
from tests.support.wrapping import HEAD, WRAPPINGS, routed

SILENCE = np.zeros(8_000, np.int16)
CALLER = Phone("4930555000", "10.20.0.10", 20_000, 7, SILENCE)
CALLEE = Phone("4989777000", "10.20.0.11", 20_002, 8, SILENCE)


def rewritten(at: int, value: int) -> Callable[[bytes], bytes]:
    """Two bytes of the IP packet are others."""
    place = HEAD + at
    return lambda frame: frame[:place] + struct.pack(">H", value) + frame[place + 2 :]


def dressed(name: str) -> Callable[[bytes], bytes]:
    return lambda frame: WRAPPINGS[name].wrap(Frame(0, frame))[0].data


CHANGES = {
    "nothing": lambda frame: frame,
    "DSCP": rewritten(0, 0x45B8),
    "identification": rewritten(4, 0xBEEF),
    "may be fragmented": rewritten(6, 0),
    "checksum left to the card": rewritten(10, 0xDEAD),
    "UDP checksum": rewritten(26, 0x1234),
    "next hop": routed,
    **{name: dressed(name) for name in ("VLAN", "QinQ", "MPLS", "PPPoE", "GRE", "VXLAN",
                                        "ERSPAN III", "pseudowire")},
}  # fmt: skip


def silent() -> list[Frame]:
    return answered(START_NS, CALLER, CALLEE, "silence@spanvault.example")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    lines = almost(recorded(tmp_path_factory.mktemp("plain"), silent()).lines())
    assert [(each.packets, each.lost) for each in lines[0].sounds] == [(50, 0), (50, 0)]
    return lines


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    copies=st.lists(
        st.tuples(
            st.integers(0, len(silent()) - 1), st.sampled_from(sorted(CHANGES)),
            st.integers(0, 80_000_000),
        ),
        max_size=60,
    )
)  # fmt: skip
def test_any_packets_heard_again_change_nothing(
    copies: list[tuple[int, str, int]], plain: list[Line], tmp_path: Path
) -> None:
    frames = silent()
    again = [
        Frame(frames[row].time_ns + late_ns, CHANGES[change](frames[row].data))
        for row, change, late_ns in copies
    ]
    recording = recorded(tmp_path, sorted([*frames, *again]))
    (line,) = almost(recording.lines())
    assert line._replace(flags=()) == plain[0]
    assert recording.duplicates == sum(b"SIP/2.0" not in each.data for each in again)


def test_what_a_sender_says_again_is_said_twice(tmp_path: Path) -> None:
    """The same silence with the next numbers; and the same number with another time."""
    frames = silent()
    more = talk(frames[-1].time_ns - 1_020_000_000, CALLER, CALLEE)
    renumbered = [
        Frame(frame.time_ns, frame.data[: HEAD + 32] + b"\0\x09\0\0" + frame.data[HEAD + 36 :])
        for frame in more
    ]
    recording = recorded(tmp_path, sorted([*frames, *renumbered]))
    assert recording.duplicates == 0
    assert sorted(each.packets for each in recording.lines()[0].sounds) == [50, 100]


def test_behind_a_nat_it_is_another_stream_and_no_copy(tmp_path: Path) -> None:
    frames = silent()
    outside = [
        Frame(frame.time_ns + 200_000, rewritten(20, 61_000)(rewritten(14, 0x0909)(frame.data)))
        for frame in talk(START_NS + 1_050_000_000, CALLER, CALLEE)
    ]
    recording = recorded(tmp_path, sorted([*frames, *outside]))
    assert recording.duplicates == 0
    assert [each.packets for each in recording.lines()[0].sounds] == [50, 50, 50]
