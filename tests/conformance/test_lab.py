"""Calls of real phones: recorded as they were made, and sounding like what was played."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.__main__ import voices_of
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
    voices = list(voices_of(case, recorded))
    found = [*differences(case, recorded.calls), *(one.fault for one in voices if one.fault)]
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
