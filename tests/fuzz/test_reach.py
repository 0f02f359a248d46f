"""Which lines of a module no input reaches."""

from collections.abc import Iterable
from pathlib import Path

from tests.fuzz.reach import Reach, tell
from tests.fuzz.targets import TARGETS

RED = "spanvault.audio.red"


def lines_left(inputs: Iterable[bytes]) -> list[str]:
    reach = Reach([RED])
    reach.run("red", inputs)
    (name,) = reach.files
    return reach.missing(name)


def test_lines_that_nothing_reached_are_told_and_those_of_imports_are_not():
    text = Path("spanvault/audio/red.py").read_text().splitlines()
    refusal = next(at for at, line in enumerate(text, 1) if '"RED: empty"' in line)
    assert str(refusal) in lines_left([b"plain"])
    assert str(refusal) not in lines_left([b"plain", b""])


def test_more_inputs_reach_more(tmp_path: Path) -> None:
    def reached(*folders: Path) -> int:
        (line,) = (each for each in tell(["red"], folders) if each.startswith(RED))
        return int(line.split()[1])

    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "empty").write_bytes(b"")
    assert reached() < reached(tmp_path)


def test_a_function_that_was_reached_whole_is_traced_no_more():
    reach, inputs = Reach([RED]), list(TARGETS["red"].seeds())
    reach.run("red", inputs)
    before = {name: set(lines) for name, lines in reach.reached.items()}
    reach.run("red", inputs)
    assert reach.reached == before
