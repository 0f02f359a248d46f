"""Calls in tunnels in tunnels, cut up, copied and out of order: the same calls, the same sound.

Each wrapping alone, and real calls in them: tests.capture.test_rewrapped.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.capture.test_rewrapped import almost, forged, recorded, twice
from tests.support import rarewrapping
from tests.support.callgen import Frame
from tests.support.recorded import Line
from tests.support.wrapping import COPIES, HEAD, WRAPPINGS, wrapped

MOST = 3  # tunnels: of some a frame has five headers, and sixteen are peeled
# What takes a whole frame, and what takes the IP packet in it, so that the frame must hold one.
OF_FRAMES = [
    "VLAN", "QinQ", "QinQ of old", "VN-Tag", "pseudowire", "pseudowire from 46:…",
    "pseudowire with control word", "Cisco MetaData", "Cisco MetaData behind a tag", "MAC in MAC",
    "NSH", "GRE of Ethernet", "ERSPAN I", "ERSPAN II", "ERSPAN III", "ERSPAN III with subheader",
    "VXLAN", "VXLAN with group policy", "GENEVE", "VXLAN-GPE", "EtherIP", "L2TPv3",
    "L2TPv3 with cookie and sublayer", "CAPWAP", "TZSP", "ERF", "ERF, extended",
]  # fmt: skip
OF_IPV4 = ["IPv4 options", "authentication header", "fragments", "fragments, last one first",
           "fragments behind an authentication header", "CAPWAP, cut up",
           "CAPWAP, cut up, last one first"]  # fmt: skip
OF_FRAMES += [name for name in rarewrapping.OF_FRAMES if name != "ISL"]  # others move its address
OF_IP = [
    name
    for name in WRAPPINGS
    if name not in (*OF_FRAMES, *OF_IPV4, "HEP2", "five tags", "fragments, each twice")
    and not name.startswith("HEP3") and "fragments of" not in name and " in VXLAN" not in name
]  # fmt: skip
OF_IP += rarewrapping.OF_IP
ALL = WRAPPINGS | rarewrapping.RARE
# A tunnel in another adds to the depth, and parts are no frames to be wrapped on their own.
COPIES_OF_FRAMES = ["both directions", "in another VLAN", "behind a router"]


def fitting(frames: Sequence[Frame]) -> list[str]:
    """The wrappings that such frames go into."""
    names = list(OF_FRAMES)
    if all(frame.data[12:14] in (b"\x08\0", b"\x86\xdd") for frame in frames):
        names += OF_IP
    if all(frame.data[12:15] == b"\x08\0\x45" and not is_fragment(frame) for frame in frames):
        names += OF_IPV4
    return names


def is_fragment(frame: Frame) -> bool:
    return frame.data[HEAD + 6] & 0x3F != 0 or frame.data[HEAD + 7] != 0


def nested(draw: st.DataObject, frames: list[Frame]) -> tuple[list[Frame], int]:
    """Frames in one wrapping after the other, and the link type they have then."""
    link_type = 1
    for _ in range(draw.draw(st.integers(0, MOST), "wrappings")):
        if link_type == 1:
            link_type, wrap = ALL[draw.draw(st.sampled_from(fitting(frames)), "around it")]
            frames = wrapped(frames, wrap)
    return frames, link_type


def shuffled(frames: list[Frame], within_ms: int, seed: int) -> list[Frame]:
    chance = random.Random(seed)
    late = [chance.randrange(within_ms * 1_000_000 + 1) for _ in frames]
    return sorted(
        Frame(frame.time_ns + by_ns, frame.data) for frame, by_ns in zip(frames, late, strict=True)
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    return almost(recorded(tmp_path_factory.mktemp("plain"), forged()).lines())


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    draw=st.data(), copies=st.sampled_from([None, *COPIES_OF_FRAMES]),
    within_ms=st.integers(0, 50), seed=st.integers(0, 9999),
)  # fmt: skip
def test_any_nest(
    draw: st.DataObject, copies: str | None, within_ms: int, seed: int,
    plain: list[Line], tmp_path: Path,
) -> None:  # fmt: skip
    frames = forged() if copies is None else wrapped(forged(), COPIES[copies].wrap)
    frames, link_type = nested(draw, shuffled(frames, within_ms, seed))
    recording = recorded(tmp_path, frames, link_type)
    assert almost(recording.lines()) == (plain if copies is None else twice(plain))


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(draw=st.data(), within_ms=st.integers(0, 50), seed=st.integers(0, 9999))
def test_what_a_tunnel_mixes_up(
    draw: st.DataObject, within_ms: int, seed: int, plain: list[Line], tmp_path: Path
) -> None:
    """The tunnel's own packets overtake each other, fragments of several datagrams among them."""
    frames, link_type = nested(draw, forged())
    recording = recorded(tmp_path, shuffled(frames, within_ms, seed), link_type)
    assert almost(recording.lines()) == plain


@pytest.mark.parametrize("by_ms", [-900, -150, -15, 15, 150])
def test_each_way_is_tapped_by_a_clock_of_its_own(
    by_ms: int, plain: list[Line], tmp_path: Path
) -> None:
    """What the callee says is heard so much later than what the caller says."""
    frames = [
        Frame(frame.time_ns + (by_ms * 1_000_000 if from_callee(frame) else 0), frame.data)
        for frame in forged()
    ]
    assert almost(recorded(tmp_path, sorted(frames)).lines()) == plain


def from_callee(frame: Frame) -> bool:
    return frame.data[HEAD + 12 : HEAD + 16] > frame.data[HEAD + 16 : HEAD + 20]
