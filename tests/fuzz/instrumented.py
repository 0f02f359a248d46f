"""`python -m tests.fuzz.instrumented`: our code instrumented once, then a process for each target.

Instrumenting takes some seconds of CPU time: of a run of five minutes over all targets it was the
half. A line of JSON in: target, file for notes, libFuzzer's arguments, file for what it says. One
out when that target has ended: exit code, CPU seconds. Who asks: `Mother`, for __main__.py.
"""

import json
import logging
import operator
import os
import random
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

from tests.fuzz.mutators import Mutator
from tests.fuzz.watch import Alarm, Watch, keep_nothing

OURS: Final = ["capture", "spanvault", "storaged", "replicator", "sipmessage"]
PLAIN: Final = 0.5  # of the changes to an input that has a structure are libFuzzer's own
STUCK_S: Final = 1.0  # instrumented code is some ten times slower


class Mother:
    """The process that forks one for each target; it ends with the `with`."""

    def __enter__(self) -> Self:
        self._said = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.instrumented"], cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._said.close()

    def run(self, name: str, notes: Path, arguments: list[str], said: Path) -> tuple[int, float]:
        """Fuzz a target to its end. Gives its exit code and CPU seconds."""
        jobs, answers = self._process.stdin, self._process.stdout
        assert jobs is not None
        assert answers is not None
        with suppress(BrokenPipeError):
            print(json.dumps([name, str(notes), arguments, str(said)]), file=jobs, flush=True)
        if not (answer := answers.readline()):
            self._said.seek(0)
            raise RuntimeError(f"the instrumented process ended:\n{self._said.read()[-2000:]}")
        code, cpu_s = json.loads(answer)
        return code, cpu_s


def instrument() -> None:
    """Load everything that is fuzzed, instrumented."""
    import gc

    import atheris
    import scapy.layers.all  # noqa: F401 - capture loads it at the first odd link type: 0.7 s

    logging.disable()  # of damage there is much, and nobody reads it
    keep_nothing()
    with atheris.instrument_imports(include=OURS):
        import tests.fuzz.targets  # noqa: F401
    compare_arrays_untraced()
    gc.freeze()


def one(name: str, notes: Path, arguments: list[str]) -> None:
    """Fuzz one target until libFuzzer ends the process."""
    import gc

    import atheris

    from tests.fuzz.targets import TARGETS, survive

    watch, alarm = Watch(notes), Alarm()

    def run(data: bytes) -> None:
        begun = alarm.begin()
        survive(name, data)
        alarm.end()
        if (taken := watch.ran(data, begun)) > STUCK_S:
            raise TimeoutError(f"{taken:.1f} s for {len(data)} bytes")

    survive(name, b"")  # what is imported or compiled at first use is not the input's fault
    gc.freeze()
    if mutate := TARGETS[name].mutate:
        atheris.Setup([sys.argv[0], *arguments], run, custom_mutator=by_structure(mutate))
    else:
        atheris.Setup([sys.argv[0], *arguments], run)
    atheris.Fuzz()


def by_structure(mutate: Mutator) -> Callable[[bytes, int, int], bytes]:
    """What libFuzzer asks for another input: by `mutate` mostly, else by libFuzzer itself."""
    import atheris

    def change(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < PLAIN:
            return atheris.Mutate(data, most)
        return mutate(data, chance, lambda part: atheris.Mutate(part, len(part) + 64))[:most]

    return change


def compare_arrays_untraced() -> None:
    """Keep arrays from atheris' tracing of comparisons, which leaks each array that is the result.

    Its C++ hands a new reference on as a borrowed one (version 3.0.0): 300 KB a story in `dialogs`.
    """
    import atheris.core_with_libfuzzer as core
    import numpy as np

    traced: Any = core._trace_cmp
    plain = (
        operator.lt,
        operator.le,
        operator.eq,
        operator.ne,
        operator.gt,
        operator.ge,
    )  # opcode.h

    def compare(left: Any, right: Any, kind: int, *more: Any) -> Any:
        if type(left) is np.ndarray or type(right) is np.ndarray:
            return plain[kind](left, right)
        return traced(left, right, kind, *more)

    core._trace_cmp = compare


def serve() -> None:
    """Fork a process for each line, and tell how it ended."""
    instrument()
    for line in sys.stdin:
        name, notes, arguments, said = json.loads(line)
        child = os.fork()
        if not child:
            _be_child(name, Path(notes), arguments, Path(said))
        _, status, used = os.wait4(child, 0)
        for left in Path("/dev/shm").glob(f"spanvault-fuzz*{os.getpid()}*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        print(
            json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime]),
            flush=True,
        )


def _be_child(name: str, notes: Path, arguments: list[str], said: Path) -> None:
    """Never returns."""
    try:
        nothing, words = os.open(os.devnull, os.O_RDONLY), os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(nothing, 0), os.dup2(words, 1), os.dup2(words, 2)
        one(name, notes, arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    serve()
