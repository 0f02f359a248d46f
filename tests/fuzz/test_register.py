"""Every module that reads what comes from outside has a target, and the target reaches it."""

import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.fuzz.register import LAYERS, OURS, OUTSIDE, PARSERS, readers
from tests.fuzz.targets import TARGETS, survive
from tests.support.folders import REPOSITORY

SEEDS = 300


def test_a_module_that_reads_has_a_target_or_says_why_not():
    missing = set(readers(REPOSITORY)) - set(PARSERS) - set(OURS)
    assert not missing, f"give {missing} a target in tests/fuzz/register.py"


def test_the_register_names_nothing_that_there_is_not():
    for module in (*PARSERS, *OURS):
        assert REPOSITORY.joinpath(*module.split(".")).with_suffix(".py").exists(), module
    assert {name for names in PARSERS.values() for name in names} <= set(TARGETS)
    assert not set(PARSERS) & set(OURS)


def test_each_target_is_of_one_layer():
    placed = [name for names in LAYERS.values() for name in names]
    assert sorted(placed) == sorted([*TARGETS, OUTSIDE])


@pytest.mark.parametrize("name", sorted({name for names in PARSERS.values() for name in names}))
def test_a_target_reaches_what_it_is_said_to_feed(name: str) -> None:
    reached = files_called(name, islice(TARGETS[name].seeds(), SEEDS))
    for module, names in PARSERS.items():
        if name in names:
            assert str(REPOSITORY.joinpath(*module.split(".")).with_suffix(".py")) in reached, (
                module
            )


def files_called(name: str, inputs: Iterable[bytes]) -> set[str]:
    """Whose functions are called while a target runs its seeds; what an import runs is no call."""
    called: set[str] = set()

    def told(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            called.add(str(Path(frame.f_code.co_filename)))

    for data in inputs:
        before = sys.getprofile()
        sys.setprofile(told)
        try:
            survive(name, data)
        finally:
            sys.setprofile(before)
    return called


def test_reading_is_known_by_its_syntax(tmp_path: Path) -> None:
    package = tmp_path / "capture"
    package.mkdir()
    for name, text in {
        "reads": "import struct\nx = struct.unpack_from('>H', b'ab')\n",
        "parses": "def parse_it(text): return text\n",
        "decodes": "import msgspec\ny = msgspec.msgpack.decode(b'')\n",
        "matches": "import re\nz = re.compile('a')\n",
        "views": "def first(columns): return columns.view('>u2')\n",
        "does_not": "def told(data): return compile(data.decode().view('u2'), '', '')\n",
    }.items():
        (package / f"{name}.py").write_text(text)
    reading = ("decodes", "matches", "parses", "reads", "views")
    assert list(readers(tmp_path)) == [f"capture.{name}" for name in reading]
