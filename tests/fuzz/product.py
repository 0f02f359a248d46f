"""`python -m tests.fuzz.product [-s SECONDS] [CAPTURE…]`: damaged captures through all of it.

Several at a time are mutated, recorded by `spanvault replay` into a store of their own, and asked
for: calls, show, export, verify. Most of the time is what commands and daemons take to start, so
several cost little more than one. Those by which the target `capture` reached new code are among
them. Whatever the network sends, no command and no daemon may stumble:
an exit code of command.md, no traceback, no "fault of ours". What made one stumble is tried alone,
and left in tests/fuzz/found.
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.fuzz.__main__ import CORPUS, FOUND, add

ROOT: Final = Path(__file__).parents[2]
SPANVAULT: Final = Path(sys.executable).with_name("spanvault")
EXITS: Final = {0, 1}
STUMBLES: Final = (b"Traceback", b"fault of ours", b"ended with status")
TOGETHER: Final = 8  # captures of a store
STUCK_S: Final = 600  # of the clock, for a command: the machine may be busy with others
MOST_BYTES: Final = 400_000  # of a capture: the first ones of longer ones
HEAD: Final = 24
GUIDED: Final = "capture"  # the target whose inputs are captures, too


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A capture with some bytes changed, dropped, repeated or moved; not the file header."""
    mutated = bytearray(data[:MOST_BYTES])
    for _ in range(chance.choice((1, 5, 40, 300))):
        if len(mutated) <= HEAD:
            break  # of the guided inputs some are no longer
        at = chance.randrange(HEAD, len(mutated))
        kind, size = chance.randrange(5), chance.choice((1, 1, 2, 4))
        if kind < 3:  # in place, so that what follows can still be found
            mutated[at : at + size] = chance.randbytes(min(size, len(mutated) - at))
        elif kind == 3 and not chance.randrange(20):
            del mutated[at : at + size]
        else:
            other = chance.randrange(HEAD, len(mutated))
            piece = mutated[other : other + 60]
            mutated[at : at + len(piece)] = piece
    return bytes(mutated)


def stumbles(damaged: list[Path], folder: Path) -> tuple[list[str], int]:
    """What went wrong, and how many calls the damaged captures held."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    store, faults = folder / "store", list[str]()

    def run(*arguments: object) -> bytes:
        done = subprocess.run(
            [SPANVAULT, *map(str, arguments), "--store", str(store)],
            env={**os.environ, "XDG_DATA_HOME": str(folder)}, cwd=ROOT,
            capture_output=True, timeout=STUCK_S, check=False,
        )  # fmt: skip
        if done.returncode not in EXITS or any(each in done.stderr for each in STUMBLES):
            said = done.stderr[-1500:].decode(errors="replace")
            faults.append(f"{arguments[0]}: exit {done.returncode}\n{said}")
        return done.stdout

    run("replay", *damaged)
    calls = [json.loads(line)["id"] for line in run("calls", "--json", "--limit", 200).splitlines()]
    if calls:
        run("verify", "--all")
        run("export", *calls[:3], "-o", folder / "sound")
        run("show", calls[0])
        run("show", calls[-1], "--digits")
    return faults, len(calls)


def at_fault(damaged: list[Path], folder: Path) -> list[Path]:
    """Which of them make a command stumble on their own; all, if it takes them together."""
    return [each for each in damaged if stumbles([each], folder)[0]] or damaged


def captures(named: list[Path]) -> list[Path]:
    """Those that were named; else the public ones and the lab's, if they are there, and ours.

    To ours belongs what the target `capture` keeps since it reached new code: of what runs in other
    processes nothing tells what is reached.
    """
    shared = Path(os.environ.get("SPANVAULT_SHARED", ROOT.parent / "shared"))
    found = [*shared.glob("captures/**/*.pcap*"), *shared.glob("lab/cases/*/*.pcap*")]
    ours = [ROOT / "tests" / "data" / "sample.pcap", *sorted((CORPUS / GUIDED).glob("*"))]
    return named or [*sorted(found), *ours]


def rounds(known: list[Path], chance: random.Random) -> Iterator[list[Path]]:
    """All of them in turn, some at a time, in another order each round: a short run tries many."""
    while True:
        shuffled = chance.sample(known, len(known))
        for at in range(0, len(shuffled), TOGETHER):
            yield shuffled[at : at + TOGETHER]


def cpu_s() -> float:
    """What the commands and their daemons have taken so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.product", description=__doc__)
    parser.add_argument("-s", "--seconds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sums", type=Path, metavar="FILE", help="add this run to those before")
    parser.add_argument("captures", nargs="*", type=Path, metavar="CAPTURE")
    asked = parser.parse_args()
    chance, end_s = random.Random(asked.seed), time.monotonic() + asked.seconds
    told, tried, broke = Counter[str](), set[Path](), 0
    for sources in rounds(captures(asked.captures), chance):
        if time.monotonic() >= end_s:
            break
        with tempfile.TemporaryDirectory(prefix="sv-fuzz-") as place:
            copies = [Path(place, f"{at}-{source.name}") for at, source in enumerate(sources)]
            for copy, source in zip(copies, sources, strict=True):
                copy.write_bytes(damaged(source.read_bytes(), chance))
            faults, calls = stumbles(copies, Path(place, "home"))
            told.update(runs=len(sources), calls=calls)
            tried.update(sources)
            if faults:
                broke += 1
                FOUND.mkdir(exist_ok=True)
                for copy in at_fault(copies, Path(place, "home")):
                    kept = FOUND / f"product-{asked.seed}-{told['runs']}-{copy.name}"
                    shutil.copy(copy, kept)
                    print(f"{kept}:", *faults, sep="\n", flush=True)
    print(
        f"{'BROKE' if broke else 'held'}  product: {told['runs']} damaged copies of {len(tried)} "
        f"captures, {told['calls']} calls in them, {broke} batches stumbled, "
        f"{cpu_s():.0f} s of CPU time"
    )
    if asked.sums:
        add(asked.sums, "product", {"cpu_s": cpu_s(), "runs": told["runs"], "faults": broke})
    return 1 if broke else 0


if __name__ == "__main__":
    sys.exit(main())
