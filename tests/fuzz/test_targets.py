"""Every target survives its seeds, its corpus, and both a little damaged. More: make fuzz."""

import gc
import random
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS, survive

CORPUS = Path(__file__).parent / "corpus"
DAMAGED = 60
DAMAGED_FILMS = 12  # each may cost a process its life


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_corpus(name: str) -> None:
    for data in inputs(name):
        survive(name, data)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_seeds(name: str) -> None:
    chance = random.Random(name)  # always the same: what breaks here breaks for everybody
    whole = inputs(name)
    for _ in range(DAMAGED_FILMS if name == "filmed" else DAMAGED):
        data = bytearray(chance.choice(whole))
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(len(data) + 1)
            data[at : at + chance.choice((0, 1, 1, 1, 9))] = chance.randbytes(
                chance.choice((0, 1, 1, 4))
            )
        survive(name, bytes(data))


@pytest.mark.parametrize("name", ["sip", "calls", "frames", "capture", "edited", "dialogs"])
def test_nothing_is_left_behind(name: str) -> None:
    counts = []
    for _ in range(3):
        for data in inputs(name):
            survive(name, data)
        gc.collect()
        counts.append(len(gc.get_objects()))
    assert counts[2] <= counts[1] + 5


def inputs(name: str) -> list[bytes]:
    kept = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    return [*TARGETS[name].seeds(), *kept, b""]
