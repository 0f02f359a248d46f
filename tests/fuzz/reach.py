"""What inputs reach of a module, line by line: where a target or a seed is missing.

Source: Python's own tracing; a function is not traced again once all its lines were reached.
"""

import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

from tests.fuzz.register import PARSERS
from tests.fuzz.targets import TARGETS, survive

ROOT: Final = Path(__file__).parents[2]
MOST: Final = 200  # inputs of a folder: traced, each takes long


class Reach:
    """The lines of some modules' functions, and which of them ran."""

    def __init__(self, modules: Iterable[str]) -> None:
        self.files = {
            str(ROOT.joinpath(*module.split(".")).with_suffix(".py")): module for module in modules
        }
        self.lines = {name: set(_lines(Path(name))) for name in self.files}
        self.reached: dict[str, set[int]] = {name: set() for name in self.files}
        self._left: dict[CodeType, set[int]] = {}

    def run(self, target: str, inputs: Iterable[bytes]) -> None:
        """Run a target's inputs, none of which may break it."""
        for data in inputs:
            before = sys.gettrace()
            sys.settrace(self._call)
            try:
                survive(target, data)
            finally:
                sys.settrace(before)

    def missing(self, name: str) -> list[str]:
        """Lines that nothing reached, those next to each other as one: `12`, `20-25`."""
        lines = sorted(self.lines[name])
        left = [line for line in lines if line not in self.reached[name]]
        after = dict(pairwise(lines))
        runs: list[list[int]] = []
        for line in left:
            if runs and after[runs[-1][-1]] == line:
                runs[-1].append(line)
            else:
                runs.append([line])
        return [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]

    def _call(self, frame: FrameType, _: str, __: Any) -> Any:
        code = frame.f_code
        if code.co_filename not in self.files:
            return None
        left = self._left.get(code)
        if left is None:
            left = self._left[code] = set(_of(code))
        return self._line if left else None

    def _line(self, frame: FrameType, _: str, __: Any) -> Any:
        code, line = frame.f_code, frame.f_lineno
        self.reached[code.co_filename].add(line)
        self._left[code].discard(line)
        return self._line


def tell(names: Iterable[str], folders: Iterable[Path]) -> Iterator[str]:
    """A line a module that these targets feed. folders: of inputs, by target, besides the seeds."""
    names, folders = set(names), list(folders)
    reach = Reach(module for module, feeding in PARSERS.items() if names & set(feeding))
    for name in sorted(names):
        kept = [
            each.read_bytes()
            for folder in folders
            for each in sorted((folder / name).glob("*"))[:MOST]
        ]
        reach.run(name, [*TARGETS[name].seeds(), *kept])
    share = {name: len(reach.missing(name)) / len(lines) for name, lines in reach.lines.items()}
    for name in sorted(reach.files, key=share.__getitem__, reverse=True):
        ran, all_ = len(reach.reached[name] & reach.lines[name]), len(reach.lines[name])
        missing = reach.missing(name)
        yield f"{reach.files[name]:32}{ran:4} of {all_:4} lines" + (
            f"; never {', '.join(missing)}" if missing else ""
        )


def _lines(path: Path) -> Iterator[int]:
    """The lines of a file's functions; what an import runs is none of them."""
    yield from _inside(compile(path.read_text(encoding="utf-8"), str(path), "exec"))


def _inside(code: CodeType) -> Iterator[int]:
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _of(each)
            yield from _inside(each)


def _of(code: CodeType) -> Iterator[int]:
    """A function's lines without that of its `def`; of a class none."""
    if code.co_flags & 0x1:  # CO_OPTIMIZED: a function, no body of a class
        yield from {line for *_, line in code.co_lines() if line and line != code.co_firstlineno}
