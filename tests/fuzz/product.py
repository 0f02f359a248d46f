"""`python -m tests.fuzz.product [-s SECONDS] [CAPTURE…]`: damaged captures through all of it.

Each is mutated, recorded by `spanvault replay` into a store of its own, and asked for: calls, show,
export, verify. Whatever the network sends, no command and no daemon may stumble: an exit code of
command.md, no traceback, no "fault of ours". What made one stumble is left in tests/fuzz/found.
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

from tests.fuzz.__main__ import FOUND, add

ROOT: Final = Path(__file__).parents[2]
SPANVAULT: Final = Path(sys.executable).with_name("spanvault")
EXITS: Final = {0, 1}
STUMBLES: Final = (b"Traceback", b"fault of ours", b"ended with status")
MOST_BYTES: Final = 400_000  # of a capture: the first ones of longer ones
HEAD: Final = 24


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A capture with some bytes changed, dropped, repeated or moved; not the file header."""
    mutated = bytearray(data[:MOST_BYTES])
    for _ in range(chance.choice((1, 5, 40, 300))):
        at = chance.randrange(HEAD, max(HEAD + 1, len(mutated)))
        kind, size = chance.randrange(5), chance.choice((1, 1, 2, 4))
        if kind < 3:  # in place, so that what follows can still be found
            mutated[at : at + size] = chance.randbytes(min(size, len(mutated) - at))
        elif kind == 3 and not chance.randrange(20):
            del mutated[at : at + size]
        else:
            other = chance.randrange(HEAD, max(HEAD + 1, len(mutated)))
            piece = mutated[other : other + 60]
            mutated[at : at + len(piece)] = piece
    return bytes(mutated)


def stumbles(capture: Path, folder: Path) -> tuple[list[str], int]:
    """What went wrong, and how many calls the damaged capture held."""
    store, faults = folder / "store", list[str]()

    def run(*arguments: object) -> bytes:
        done = subprocess.run(
            [SPANVAULT, *map(str, arguments), "--store", str(store)],
            env={**os.environ, "XDG_DATA_HOME": str(folder)}, cwd=ROOT,
            capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        if done.returncode not in EXITS or any(each in done.stderr for each in STUMBLES):
            said = done.stderr[-1500:].decode(errors="replace")
            faults.append(f"{arguments[0]}: exit {done.returncode}\n{said}")
        return done.stdout

    run("replay", capture)
    calls = [json.loads(line)["id"] for line in run("calls", "--json", "--limit", 200).splitlines()]
    if calls:
        run("verify", "--all")
        run("export", *calls[:3], "-o", folder / "sound")
        for each in calls[:2]:
            run("show", each)
            run("show", each, "--digits")
    return faults, len(calls)


def captures(named: list[Path]) -> list[Path]:
    """Those that were named; else the public ones and the lab's, if they are there, and ours."""
    shared = Path(os.environ.get("SPANVAULT_SHARED", ROOT.parent / "shared"))
    found = [*shared.glob("captures/**/*.pcap*"), *shared.glob("lab/cases/*/*.pcap*")]
    return named or [*sorted(found), ROOT / "tests" / "data" / "sample.pcap"]


def rounds(known: list[Path], chance: random.Random) -> Iterator[Path]:
    """All of them in turn, in another order each time: a short run tries as many as it can."""
    while True:
        yield from chance.sample(known, len(known))


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
    for source in rounds(captures(asked.captures), chance):
        if time.monotonic() >= end_s:
            break
        folder = Path(tempfile.mkdtemp(prefix="sv-fuzz-"))
        capture = folder / f"damaged{source.suffix}"
        capture.write_bytes(damaged(source.read_bytes(), chance))
        faults, calls = stumbles(capture, folder)
        told.update(runs=1, calls=calls)
        broke += bool(faults)
        tried.add(source)
        if faults:
            FOUND.mkdir(exist_ok=True)
            kept = FOUND / f"product-{asked.seed}-{told['runs']}-{source.name}"
            shutil.copy(capture, kept)
            print(f"{kept}:", *faults, sep="\n", flush=True)
        shutil.rmtree(folder)
    print(
        f"{'BROKE' if broke else 'held'}  product: {told['runs']} damaged copies of {len(tried)} "
        f"captures, {told['calls']} calls in them, {broke} stumbled, {cpu_s():.0f} s of CPU time"
    )
    if asked.sums:
        add(asked.sums, "product", {"cpu_s": cpu_s(), "runs": told["runs"], "faults": broke})
    return 1 if broke else 0


if __name__ == "__main__":
    sys.exit(main())
