"""`python -m tests.fuzz [-s SECONDS] [TARGET…]`: coverage-guided fuzzing of parsers, by atheris.

Each target runs in a process of its own, from its seeds and from what lies in corpus/TARGET. Input
that breaks something is left in tests/fuzz/found, to be mended and put into the corpus; the exit
code is 1. Slow is broken, too: more than SLOW_S of CPU time for one input. So is memory that grows.
At the end a line a target: CPU time, runs, slowest input, memory when warm and at the end.
"""

import argparse
import json
import logging
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from tests.fuzz.instrumented import Mother, instrument, one
from tests.fuzz.register import LAYERS
from tests.fuzz.watch import read

HERE: Final = Path(__file__).parent
CORPUS: Final = HERE / "corpus"
FOUND: Final = HERE / "found"
SLOW_S: Final = 0.1
MEMORY_MB: Final = 1024
STUCK_S: Final = 1_200  # of the clock, for a loop in C: watch.Alarm hears the others
KEPT_BYTES: Final = 8_000  # of an input in the repository's corpus, …
KEPT_FILES: Final = 40  # … and how many of a target: every test run reads them
MINIMISED: Final = re.compile(r"[0-9a-f]{12}")  # names of inputs that nobody named
README: Final = HERE / "README.md"
TABLE: Final = "| target | CPU s | runs | broke |\n|---|--:|--:|--:|\n"
SUMMED: Final = ("cpu_s", "runs", "broke")
HEADINGS: Final = ("CPU s", "runs", "slowest ms", "MB warm", "MB end")


def limits(name: str) -> list[str]:
    """What libFuzzer holds inputs to."""
    from tests.fuzz.targets import TARGETS

    return [
        f"-rss_limit_mb={MEMORY_MB}",
        f"-timeout={STUCK_S}",
        f"-max_len={TARGETS[name].longest}",
    ]


def fuzz(mother: Mother, name: str, seconds: int, grown: Path | None) -> dict[str, Any]:
    """Run a target, and account for it. grown: where what reaches something new is kept."""
    from tests.fuzz.targets import TARGETS

    FOUND.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        seeds, notes, said = Path(place, "seeds"), Path(place, "notes"), Path(place, "said")
        seeds.mkdir()
        for number, seed in enumerate(TARGETS[name].seeds()):
            Path(seeds, f"seed-{number}").write_bytes(seed)
        folders = [*([grown / name] if grown else []), seeds, CORPUS / name]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        code, cpu_s = mother.run(name, notes, [
            *map(str, folders), *limits(name), f"-max_total_time={seconds}",
            f"-artifact_prefix={FOUND}/{name}-", "-verbosity=0",
        ], said)  # fmt: skip
        told, words = read(notes), said.read_text(errors="replace")[-6000:]
    slow_s, slow = max(
        ((unhurried(name, data), data) for _, data in told.slowest), default=(0, b"")
    )
    warm = told.settled()
    faults = [f"exit code {code}\n{words}"] if code else []
    faults += [grew] if (grew := told.grown()) else []
    if slow_s > SLOW_S:
        (FOUND / f"{name}-slow").write_bytes(slow)
        faults.append(f"{1000 * slow_s:.0f} ms for the {len(slow)} bytes of {name}-slow")
    return {
        "cpu_s": cpu_s, "runs": told.runs, "slowest_ms": 1000 * slow_s,
        "warm_mb": warm[0].rss_mb if warm else 0, "end_mb": warm[-1].rss_mb if warm else 0,
        "faults": faults,
    }  # fmt: skip


def unhurried(name: str, data: bytes) -> float:
    """CPU seconds that an input takes here, where nothing is instrumented: the best of some."""
    from tests.fuzz.targets import survive

    taken = []
    for _ in range(4):
        begun = time.process_time()
        try:
            survive(name, data)
        except Exception as error:  # told of already, where it was found
            print(f"{name}: {error!r}", file=sys.stderr)
        taken.append(time.process_time() - begun)
    return min(taken)


def add(sums: Path, name: str, told: dict[str, Any]) -> None:
    """Add a run to a file of sums: times and runs add up, of the others the greatest is kept."""
    every = json.loads(sums.read_text()) if sums.exists() else {}
    mine = every.setdefault(name, {"cpu_s": 0, "runs": 0, "broke": 0})
    mine["cpu_s"] = round(mine["cpu_s"] + told["cpu_s"], 1)
    mine["runs"] += told["runs"]
    mine["broke"] += bool(told["faults"])
    for key in ("slowest_ms", "warm_mb", "end_mb"):
        if key in told:
            mine[key] = round(max(mine.get(key, 0), told[key]), 1)
    new = sums.with_suffix(".new")
    new.write_text(json.dumps(every, indent=1))
    new.replace(sums)


def rows(sums: list[Path]) -> list[str]:
    """Rows of README.md's table, of several files of sums together: by layer, the least fuzzed
    first; each layer's sum leads."""
    every: Counter[str] = Counter()
    for each in sums:
        for name, told in json.loads(each.read_text()).items():
            every.update({(name, key): told[key] for key in SUMMED})
    told = {name for name, _ in every}
    lines = []
    for layer, targets in LAYERS.items():
        if names := sorted(told & {*targets}, key=lambda name: every[name, SUMMED[0]]):
            cpu_s, *counts = (sum(every[name, key] for name in names) for key in SUMMED)
            lines.append(_row(f"**{layer}**", cpu_s, *counts))
            lines += [_row(name, *(every[name, key] for key in SUMMED)) for name in names]
    return lines


def _row(name: str, cpu_s: float, runs: int, broke: int) -> str:
    return f"| {name} | {cpu_s:,.0f} | {runs:,} | {broke} |\n"


def tell(sums: list[Path], readme: Path = README) -> None:
    """Put files of sums into README.md's table, in the place of what stood there."""
    before, head, rest = readme.read_text().partition(TABLE)
    _, gap, behind = rest.partition("\n\n")
    readme.write_text(before + head + "".join(rows(sums)) + (gap[1:] + behind if gap else ""))


def minimise(name: str, grown: Path) -> None:
    """The fewest, shortest inputs that reach what those in `grown` reach, into the repository.

    Those that were kept so before, and are no more, are dropped; what once broke something, and has
    a name, stays.
    """
    with tempfile.TemporaryDirectory() as place:
        least = Path(place, "least")
        for folder in (least, CORPUS / name):
            folder.mkdir(parents=True, exist_ok=True)
        # libFuzzer starts itself again by argv[0].
        again = Path(place, "again")
        again.write_text(
            f'#!/bin/sh\nexec {sys.executable} -m tests.fuzz --one {name} {place}/notes "$@"\n'
        )
        again.chmod(0o755)
        program = (
            "import sys; sys.argv[0] = sys.argv.pop(1); import tests.fuzz.__main__ as m; m.main()"
        )
        subprocess.run(
            [sys.executable, "-c", program, again, "--one", name, f"{place}/notes", "-merge=1",
             *limits(name), least, grown / name, CORPUS / name],
            cwd=HERE.parents[1], stderr=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        kept = sorted(least.iterdir(), key=lambda each: each.stat().st_size)
        short = [each for each in kept if each.stat().st_size <= KEPT_BYTES]
        short = short[:: -(-len(short) // KEPT_FILES) or 1]  # of all sizes: long ones reach far
        for old in (CORPUS / name).iterdir():
            if MINIMISED.fullmatch(old.name):
                old.unlink()
        for each in short:
            shutil.copy(each, CORPUS / name / each.name[:12])
        print(f"{name}: {len(list((grown / name).iterdir()))} → {len(kept)}, kept {len(short)}")


def show(name: str, told: dict[str, Any]) -> None:
    """The line of a target."""
    state = "BROKE" if told["faults"] else "held"
    print(
        f"{state:6}{name:12}{told['cpu_s']:>11.0f}{told['runs']:>11}{told['slowest_ms']:>11.1f}"
        f"{told['warm_mb']:>11.0f}{told['end_mb']:>11.0f}",
        *told["faults"],
        sep="\n",
        flush=True,
    )


def main() -> int:
    """Read the command line."""
    if sys.argv[1:2] == ["--one"]:
        instrument()
        one(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
        return 0
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("-s", "--seconds", type=int, default=300, help="of all targets together")
    parser.add_argument("--grow", type=Path, metavar="FOLDER", help="keep what reaches new code")
    parser.add_argument("--sums", type=Path, metavar="FILE", help="add this run to those before")
    parser.add_argument("--minimise", action="store_true", help="of --grow, into the repository")
    parser.add_argument("--reach", action="store_true", help="tell which lines no input reaches")
    parser.add_argument(
        "--tell", type=Path, nargs="+", metavar="FILE", help="files of sums, into README.md's table"
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    asked = parser.parse_args()
    names = asked.targets or list(TARGETS)
    logging.disable()  # what damage makes our code say is said here, too
    if asked.tell:
        tell(asked.tell)
        return 0
    if asked.reach:
        from tests.fuzz.reach import tell as reach

        for line in reach(names, [CORPUS, *([asked.grow] if asked.grow else [])]):
            print(line)
        return 0
    if asked.minimise:
        for name in names:
            minimise(name, asked.grow)
        return 0
    print(" " * 18 + "".join(f"{heading:>11}" for heading in HEADINGS), flush=True)
    broke, runs, cpu_s = list[str](), 0, 0.0
    with Mother() as mother:
        for name in names:
            told = fuzz(mother, name, max(1, asked.seconds // len(names)), asked.grow)
            show(name, told)
            runs, cpu_s = runs + told["runs"], cpu_s + told["cpu_s"]
            broke += [name] if told["faults"] else []
            if asked.sums:
                add(asked.sums, name, told)
    print(
        f"{'BROKE' if broke else 'held'}: {len(names)} targets, {runs} runs, {cpu_s:.0f} s of CPU "
        f"time; {len(broke)} broke{': ' if broke else ''}{', '.join(broke)}"
    )
    return 1 if broke else 0


if __name__ == "__main__":
    sys.exit(main())
