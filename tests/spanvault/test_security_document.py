"""docs/security.md names the test that shows each line: every one of them exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text()


def test_every_test_that_the_document_names_exists():
    path, named = "", 0
    for file, test in re.findall(r"`(tests/[\w/.]+)?(?:::(\w+))?`", TEXT):
        path = file or path
        if not path or not (file or test):
            continue
        assert (ROOT / path).exists(), path
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(), f"{path}::{test}"
        named += 1
    assert named >= 25
