"""Whatever is done to a vault, in whatever order: it has what it acknowledged, and not what went.

A row of random acts (calls, spools, listeners, erasures, moves, keys, locks, full disks, flipped
bits, retention, an index made anew, kills at any moment) on real daemons with a real replica, held
against a model; then a store restored from the replica. Acts: tests/support/interplayacts.py.

SPANVAULT_ACTS: how many a row (60). SPANVAULT_SECONDS: rows for so long, from a seed of chance;
else one, the same each time but for where a kill strikes. SPANVAULT_SEED: of the first row. A row
that fails says its seed; `python -m tests.support.interplay SEED ACTS --shrink` gives the shortest
one that fails so.
"""

import os
import random
import time

import pytest

from tests.support.interplay import Failed, Step, drawn, run

ACTS = int(os.environ.get("SPANVAULT_ACTS", "60"))
SECONDS = float(os.environ.get("SPANVAULT_SECONDS", "0"))
CHANCE = random.SystemRandom().randrange(10**6) if SECONDS else 7
SEED = int(os.environ.get("SPANVAULT_SEED", str(CHANCE)))
DISKS = os.geteuid() == 0  # small ones are mounted for the pools, to be filled


@pytest.mark.timeout(SECONDS + 300)
def test_any_row_of_acts_leaves_what_was_acknowledged_and_nothing_that_went(tell):
    end, seed = time.monotonic() + SECONDS, SEED
    while seed == SEED or time.monotonic() < end:
        tell(f"SPANVAULT_SEED={seed} SPANVAULT_ACTS={ACTS}")  # also where it fails
        tell(run(drawn(seed, ACTS), disks=DISKS))
        seed += 1


def row(*names: str) -> list[Step]:
    return [Step(name, number) for number, name in enumerate(names)]


@pytest.mark.parametrize(
    ("spoil", "acts", "fault"),
    [
        ("hasty", row("calls_come", "it_is_killed"), "lost|not_found"),
        ("keyless", row("calls_come", "calls_are_erased"), "is there, erased by"),
        ("forgetful", row("calls_come", "calls_are_erased", "the_index_is_made_anew",
                          "all_is_looked_at"), "erased, and"),
    ],
)  # fmt: skip
def test_a_vault_that_is_wrong_is_found_out(spoil, acts, fault):
    with pytest.raises(Failed, match=fault):
        run(acts, disks=False, spoil=spoil)
