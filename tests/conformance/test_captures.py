"""Public captures: calls, parties, outcomes, codecs, packets, loss and seconds are the truth's."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.compare import differences
from tests.conformance.explained import outlived, unexplained
from tests.conformance.recorded import Recorded
from tests.conformance.table import HEADER, lines
from tests.conformance.truth import public_cases
from tests.support.folders import SHARED

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(
        not (SHARED / "captures").is_dir(),
        reason="the public captures are not beside the repository",
    ),
]
CASES = public_cases()


@pytest.mark.parametrize("name", CASES)
def test_a_capture_gives_its_calls(name: str, tmp_path: Path, tell: Callable[[str], None]):
    case = CASES[name]
    recorded = Recorded(case.capture, tmp_path)
    found = differences(case, recorded.calls)
    tell(HEADER)
    tell("\n".join(lines(case, recorded.calls, found)))
    assert recorded.exit_code == 0, recorded.errors
    assert unexplained(name, found) == []
    assert outlived(name, found) == [], "explains nothing any more: strike it from explained.py"
