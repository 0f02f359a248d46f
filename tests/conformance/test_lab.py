"""Calls of real phones: recorded as they were made, and sounding like what was played."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.__main__ import voices_of
from tests.conformance.arrivals import arrivals, missing, with_losses
from tests.conformance.compare import differences
from tests.conformance.recorded import Recorded
from tests.conformance.table import HEADER, TOLERANCES, heard, lines
from tests.conformance.truth import lab_cases
from tests.support.folders import SHARED

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(
        not (SHARED / "lab").is_dir(), reason="the lab is not beside the repository"
    ),
    pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed"),
]
CASES = lab_cases()


@pytest.mark.parametrize("name", CASES)
def test_a_call_is_recorded_and_heard(name: str, tmp_path: Path, tell: Callable[[str], None]):
    case = CASES[name]
    recorded = Recorded(case.capture, tmp_path)
    assert recorded.exit_code == 0, recorded.errors
    came = arrivals(case.capture) if case.streams else {}
    voices = list(voices_of(case, recorded, came))
    differs = differences(with_losses(case, came), recorded.calls)
    found = [*differs, *(one.fault for one in voices if one.fault)]
    tell(TOLERANCES)
    tell(HEADER)
    tell("\n".join([*lines(case, recorded.calls, found), *heard(voices)]))
    assert found == []


@pytest.mark.parametrize("name", ["srtp_dtls"])
def test_an_encrypted_call_is_silence_and_never_noise(name: str, tmp_path: Path):
    if name not in CASES:
        pytest.skip(f"case {name} is not in the lab")
    recorded = Recorded(CASES[name].capture, tmp_path)
    (call,) = recorded.calls
    rate, sound = recorded.sound(call["recording_id"])
    assert not any(channel["decodable"] for channel in call["channels"])
    assert len(sound) / rate > 9
    assert not sound.any()


@pytest.mark.parametrize(
    ("sequence", "lost"),
    [
        ([1, 2, 3], 0),
        ([1, 2, 4, 5], 1),
        ([1, 2, 4, 3, 5], 0),  # late
        ([1, 2, 2, 1, 3], 0),  # mirrored twice
        ([65534, 65535, 1], 1),
        ([100, 101, 40000, 40002], 1),  # began anew
        ([7], 0),
    ],
)
def test_what_never_came_is_counted_by_the_numbers_on_the_wire(sequence: list[int], lost: int):
    assert missing(sequence) == lost
