"""Public captures: callers, callees, outcomes, codecs, packets and seconds equal the truth."""

from pathlib import Path

import pytest

from tests.conformance.compare import differences
from tests.conformance.recorded import SHARED, Recorded
from tests.conformance.truth import Case, public_cases

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(
        not (SHARED / "captures").is_dir(),
        reason="the public captures are not beside the repository",
    ),
]
CASES = public_cases()
# Two-way and one-way, sequence wrap, authentication, B2BUA with and without media of its own,
# another protocol's noise, a rejected m= line.
GOLDEN = ["s01", "s02", "s09", "s10", "s16", "s17", "s26", "s27"]


@pytest.mark.parametrize("name", GOLDEN)
def test_a_capture_gives_its_calls(name: str, tmp_path: Path):
    if name not in CASES:
        pytest.skip(f"capture {name} is not in the manifest")
    case: Case = CASES[name]
    recorded = Recorded(case.capture, tmp_path)
    assert recorded.exit_code == 0, recorded.errors
    assert differences(case, recorded.calls) == []


@pytest.mark.parametrize("name", ["s38", "s48", "s49", "s50", "s51"])
def test_what_holds_no_call_gives_none(name: str, tmp_path: Path):
    recorded = Recorded(CASES[name].capture, tmp_path)
    assert (recorded.exit_code, recorded.calls) == (0, [])
