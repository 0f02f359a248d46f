"""kill -9 at every step by which storaged changes a store: nothing acknowledged is lost.

The steps are those of a traced run, so that one that is added is tried as well. Each is tried under
each load, what is written whole and torn. What must hold afterwards: tests/support/crashing.py.
Prints the table: `pytest tests/storaged/test_crash_points.py`.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.crashacts import ACTS
from tests.support.crashing import (
    TIMED,
    Outcome,
    Traced,
    crash,
    crash_act,
    steps_of,
    trace_act,
)
from tests.support.crashloads import LOADS, prepared
from tests.support.forked import Forked
from tests.support.loads import Load, Step
from tests.support.writers import Writers

OBJECT = "pools/base/objects/XX/ID.svr"
MEMORY = Path("/dev/shm")  # a killed process takes no page cache with it: no disk is needed


@pytest.fixture(scope="module")
def rig() -> Iterator[Forked]:
    # An ipc path has 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="sv-", dir=MEMORY if MEMORY.is_dir() else None))
    made = Forked(folder)
    yield made
    made.close()
    shutil.rmtree(folder)


# FORMAT.md §5.3 and §8: what must be in this order, whatever is done between.
ORDER = [
    "index Index.reserve_keys, done",
    "fsync keys/page", "rename keys/page", "fsync keys",
    "fsync keys/root", "rename keys/root", "fsync keys",
    f"write {OBJECT} header", f"write {OBJECT} DATA", f"write {OBJECT} LAST",
    "syncfs", "index Writer.commit", "index Writer.commit, done", "acknowledge",
]  # fmt: skip

# FORMAT.md §5.3 and §12.
ERASURE = [
    "index Eraser._erase, done",
    "write keys/page", "syncfs", "rename keys/page", "fsync keys",
    "write keys/root", "fsync keys/root", "rename keys/root", "fsync keys",
    "write keys/page", "write keys/root.old", "syncfs", "unlink keys/page", "unlink keys/root.old",
    "fsync keys", f"unlink {OBJECT}", "syncfs", "index Eraser._carry_out, done", "answer",
]  # fmt: skip


# FILE:NAME of what changes a disk, and why no row goes through it.
LOG = "test_accesslog.py cuts and changes it at every byte, test_power_loss.py tears it"
ROWS = "one transaction: damaged before it, whole behind it"
PAGES = "a copy of a page goes by files.replace(), as pages do: test_keymending.py"
EXEMPT = {
    "capture/delivery/link.py:_write_key": "a public key: not taken unless whole, and told anew",
    "capture/delivery/spool.py:probe": "an empty file that the next start removes",
    "replicator/targets/directory.py:_forget": "of a put that failed: prepare() does it, too",
    "storaged/requests/accesslog.py:_cut_back": LOG,
    "storaged/requests/accesslog.py:_open": LOG,
    "storaged/requests/accesslog.py:append": LOG,
    "storaged/requests/accesslog.py:close": LOG,
    "storaged/requests/accesslog.py:make_room": LOG,
    "storaged/requests/accesslog.py:sync": LOG,
    "storaged/diskfaults.py:_probe": "zeros in a file that nobody reads, and the next one empties",
    "storaged/index/damage.py:clear_file": PAGES,
    "storaged/index/ledgerheads.py:keep_size": "one transaction, in a store of before alone",
    "storaged/integrity/keycheck.py:_write_anew": PAGES,
    "storaged/integrity/labelcheck.py:_mend": "one transaction, perhaps with a ledger's entry",
    "storaged/integrity/labelcheck.py:_orphan": ROWS,
    "storaged/integrity/labelcheck.py:_stray": ROWS,
    "storaged/integrity/rowcheck.py:checking": ROWS,
    "storaged/integrity/rowsweep.py:_keep_counting": ROWS,
    "storaged/integrity/rowsweep.py:_table": ROWS,
    "storaged/integrity/statemending.py:_mending": ROWS,
    "storaged/integrity/keymending.py:_put_root_back": "by rootfile.put(), as any new root",
    "storaged/integrity/keymending.py:put_back": PAGES,
    "storaged/keys/pagefiles.py:_destroy_aside": PAGES,
    "storaged/keys/pagefiles.py:put_back": PAGES,
    "storaged/keys/rootfile.py:rewrite": PAGES,
    "storaged/pools/intake.py:set_aside": "a rename: either name is left out of what counts",
    "storaged/pools/layout.py:_take_lock": "a pid, for people",
    "storaged/pools/ledgerfile.py:_remove": "of a first commit that failed: recover() does it",
    "storaged/pools/ledgerfile.py:clear": "of an import's first message, before anything counts",
    "storaged/pools/ledgerfile.py:write_anew": "damaged before and after: the next check mends it",
    "storaged/integrity/mending.py:_check_still": "removes a copy that is not wanted any more",
    "storaged/erasing/retiring.py:_note_replaced": "one transaction: when a grace began",
    "storaged/integrity/rebuilding.py:locked": "into an index that does not count yet",
    "storaged/requests/receipts.py:erased": "one transaction, as receipts of copies",
    "storaged/integrity/recordcheck.py:put": "one transaction: damaged before it, whole behind it",
    "storaged/integrity/restoring.py:_check_object": "removes a copy that is not what was sent",
    "storaged/integrity/restoring.py:_erasure": "one transaction and a ledger's entry, as records",
}


class Tracing:
    """Each load and act traced once, by whichever test comes first."""

    def __init__(self, rig: Forked, folder: Path) -> None:
        self._rig, self._folder = rig, folder
        self._loads: dict[str, tuple[Load, Path, Traced]] = {}
        self._acts: dict[str, Traced] = {}

    def load(self, name: str) -> tuple[Load, Path, Traced]:
        """The load, the store that it begins with, and its steps."""
        if name not in self._loads:
            folder = self._folder / name.replace(" ", "-")
            folder.mkdir()
            load, template = prepared(self._rig, name, folder)
            self._loads[name] = load, template, steps_of(self._rig, load, template)
        load, template, traced = self._loads[name]
        self._rig.set(load.settings)
        self._rig.keep_key(apart=load.locked)
        return load, template, traced

    def act(self, name: str) -> Traced:
        if name not in self._acts:
            self._acts[name] = trace_act(self._rig, name, self._folder / name.replace(" ", "-"))
        return self._acts[name]

    def functions(self) -> set[str]:
        """All that take a step in any of them."""
        traced = [self.load(name)[2] for name in LOADS] + [self.act(name) for name in ACTS]
        return {one for each in traced for one in each.functions}


@pytest.fixture(scope="module")
def tracing(rig: Forked) -> Tracing:
    folder = rig.folder / "traced"
    folder.mkdir()
    return Tracing(rig, folder)


@pytest.mark.parametrize("name", LOADS)
def test_killed_at_any_step_loses_nothing_acknowledged(rig, tracing, tell, name):
    load, template, traced = tracing.load(name)
    assert traced.steps
    outcomes = [crash(rig, load, template, step) for step in traced.steps]
    messages = f"{len(load.sent)} messages" if load.sent else load.task
    tell(f"killed during {name} ({messages})\n" + "\n".join(map(line, outcomes)))
    assert [one for one in outcomes if one.faults] == []


@pytest.mark.parametrize("name", ACTS)
def test_killed_beside_storaged_at_any_step_loses_nothing_that_counted(
    rig, tracing, tell, tmp_path, name
):
    outcomes = [
        crash_act(rig, name, tmp_path / str(number), step)
        for number, step in enumerate(tracing.act(name).steps)
    ]
    assert outcomes
    tell(f"killed during {name}\n" + "\n".join(map(line, outcomes)))
    assert [one for one in outcomes if one.faults] == []


def test_no_function_changes_a_disk_that_no_row_goes_through(tracing):
    """Who adds one adds a load, or says here why it needs none."""
    writers, traced = Writers.of_product(), tracing.functions()
    left = sorted(writers.functions - traced - EXEMPT.keys() - TIMED.keys())
    assert left == [], left
    assert sorted(EXEMPT.keys() - writers.functions) == []
    assert sorted(EXEMPT.keys() & traced) == []


def line(outcome: Outcome) -> str:
    verdict = "; ".join(outcome.faults) or "lost: nothing acknowledged"
    return f"  {outcome.step!s:56} acknowledged {outcome.acknowledged:2}  {verdict}"


@pytest.mark.parametrize(("name", "order"), [("new call", ORDER), ("erasure", ERASURE)])
def test_steps_come_in_the_order_that_format_md_gives(tracing, name, order):
    names = iter(step.name for step in tracing.load(name)[2].steps)
    assert [wanted for wanted in order if wanted not in names] == []


@pytest.mark.parametrize(
    ("spoil", "name", "step", "fault"),
    [
        ("hasty", "call that goes on", Step("syncfs"), "lost: chunk (1, 1)"),
        ("unreserved", "new call", Step("acknowledge"), "was given to 2 recordings"),
        ("unsalted", "call that goes on", Step("acknowledge"), "a salt was used twice"),
        ("unsalted", "call that goes on", Step(f"write {OBJECT} DATA", within=True),
         "sealed again under its nonce"),
        ("hasty", "locked store", Step("rename intake/base/BATCH"), "lost: chunk (1, 1)"),
        ("shredded", "intake", Step("index Writer.commit"), "lost: chunk (1, 0)"),
        ("unpublished", "move", Step("index Mover._change_over, done"), "lost: chunk (1, 0)"),
        ("undropped", "move", Step("index Mover._change_over"), "moving is left"),
        ("unfinished", "erasure", Step("write keys/page"), "is left"),
        ("kept", "erasure", Step("answer"), "key files are left"),
        ("uncut", "start behind a torn frame", Step("acknowledge"), "frame flag"),
        ("late", "new keys", Step("rename keys/root"), "root of epoch 1"),
    ],
)  # fmt: skip
def test_a_storaged_that_is_wrong_is_found_out(rig, tracing, spoil, name, step, fault):
    load, template, _ = tracing.load(name)
    outcome = crash(rig, load, template, step, spoil)
    assert any(fault in text for text in outcome.faults), outcome
