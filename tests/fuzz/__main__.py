"""`python -m tests.fuzz [-s SECONDS] [TARGET…]`: coverage-guided fuzzing of parsers, by atheris.

Each target runs in a process of its own, from its seeds and from what lies in corpus/TARGET. Input
that breaks something is left in tests/fuzz/found, to be mended and put into the corpus; the exit
code is 1. Slow is broken, too: more than SLOW_S for one input, or more than MEMORY_MB.
"""

import argparse
import gc
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
CORPUS: Final = HERE / "corpus"
FOUND: Final = HERE / "found"
# Instrumented code is some ten times slower: 100 ms a message without.
SLOW_S: Final = 1.0
MEMORY_MB: Final = 1024
RUNS_TO_COLLECT: Final = 25
LONGEST: Final = {
    "capture": 20_000,
    "explain": 20_000,
    "frames": 8_000,
    "calls": 8_000,
    "media": 8_000,
}


def one(name: str, arguments: list[str]) -> None:
    """Fuzz one target until libFuzzer ends the process."""
    import atheris
    import scapy.layers.all  # noqa: F401 - capture loads it at the first odd link type: 0.7 s

    with atheris.instrument_imports(
        include=["capture", "spanvault", "storaged", "replicator", "sipmessage"]
    ):
        from tests.fuzz.targets import survive

    runs = itertools.count(1)

    def run(data: bytes) -> None:
        if next(runs) % RUNS_TO_COLLECT == 0:
            gc.collect()  # recorders are few objects with large buffers: too few to start it
        begun = time.process_time()
        survive(name, data)
        taken = time.process_time() - begun
        if taken > SLOW_S:
            raise TimeoutError(f"{taken:.1f} s for {len(data)} bytes")

    survive(name, b"")  # what is imported or compiled at first use is not the input's fault
    gc.freeze()
    atheris.Setup([sys.argv[0], *arguments], run)
    atheris.Fuzz()


def fuzz(name: str, seconds: int) -> bool:
    """Run a target in a process of its own. Whether it held."""
    from tests.fuzz.targets import TARGETS

    FOUND.mkdir(exist_ok=True)
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(TARGETS[name].seeds()):
            Path(folder, f"seed-{number}").write_bytes(seed)
        done = subprocess.run(
            [
                sys.executable, "-m", "tests.fuzz", "--one", name, folder, CORPUS / name,
                f"-max_total_time={seconds}", f"-rss_limit_mb={MEMORY_MB}", "-timeout=20",
                f"-max_len={LONGEST.get(name, 4_000)}", f"-artifact_prefix={FOUND}/{name}-",
                "-print_final_stats=1", "-verbosity=1",
            ],
            cwd=HERE.parents[1],
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )  # fmt: skip
    stats = [line for line in done.stderr.splitlines() if line.startswith("stat::number_of")]
    print(f"{'BROKE' if done.returncode else 'held':6}{name:12}{' '.join(stats)}", flush=True)
    if done.returncode:
        print(done.stderr[-6000:], flush=True)
    return done.returncode == 0


def main() -> int:
    """Read the command line."""
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], sys.argv[3:])
        return 0
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("-s", "--seconds", type=int, default=300, help="of all targets together")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    asked = parser.parse_args()
    names = asked.targets or list(TARGETS)
    held = [fuzz(name, max(1, asked.seconds // len(names))) for name in names]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
