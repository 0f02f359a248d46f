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

from spanvault import messages as m
from tests.support.crashing import Forked, Load, Outcome, Sender, Sent, Step, crash, steps_of
from tests.support.vault import call_id, make_call

ONE, TWO, THREE = call_id(1), call_id(2), call_id(3)
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


def batch(number: int, chunks: list[tuple[bytes, int, int]], *calls: m.Call) -> Sent:
    return Sent(m.Batch("test", number, list(calls)), chunks)


def nothing(rig: Forked) -> None:
    """There is no store yet."""


BEGUN = [
    batch(1, [(ONE, 1, 0), (ONE, 2, 0)], make_call(1, id=ONE, final=False)),
    batch(2, [(TWO, 1, 0)], make_call(2, id=TWO)),
]


def begun(rig: Forked) -> None:
    """A call that goes on, and one that is over."""
    rig.launch()
    Sender(rig, BEGUN).send_all()
    rig.end()


def imports(rig: Forked, template: Path) -> list[Sent]:
    """What a replica of that store sends: keys, records, objects, in two parts each."""
    rig.reset(template)
    rig.launch()
    rig.wait_for(rig.requests)
    client = rig.client("operator")
    reply, _ = client.ask(m.Feed(0))
    order = {"keys": 0, "record": 1, "object": 2}
    sent: list[Sent] = []
    for change in sorted(reply.changes, key=lambda one: order[one.kind]):
        half = change.size // 2
        parts = [(0, half), (half, change.size - half)] if change.kind == "object" else [(0, 0)]
        for offset, size in parts:
            data = client.ask(m.ReadObject(change.id, offset, size))[1] if size else []
            whole = [(TWO, 1, 0)] if offset else []
            sent.append(Sent(m.Import(reply.store_id, change, offset), whole, tuple(data)))
    rig.end()
    return sent


WAITS = [
    batch(3, [(ONE, 1, 1), (THREE, 1, 0)]),
    batch(4, [(ONE, 1, 2)], make_call(1, id=ONE, revision=2)),
]


def waiting(rig: Forked) -> None:
    """That store, locked since, and what came for it meanwhile."""
    begun(rig)
    rig.keep_key(apart=True)
    rig.launch()
    Sender(rig, WAITS).send_all()
    rig.end()


GIVEN = {
    "new call": Load(nothing, [batch(1, [(ONE, 1, 0), (TWO, 1, 0)], make_call(1, id=ONE))]),
    "call that goes on": Load(begun, [
        batch(3, [(ONE, 1, 1)]),
        batch(4, [(ONE, 1, 2), (THREE, 1, 0)]),
    ]),
    "call that ends": Load(begun, [
        batch(3, [(ONE, 1, 1)], make_call(1, id=ONE, revision=2)),
        batch(4, [(TWO, 1, 1)]),  # a spool that came late
    ]),
    "erasure": Load(begun, [Sent(m.Erase([TWO], "test"))], BEGUN),
    "new keys": Load(begun, [Sent(m.Rotate("base", "root")), Sent(m.Rotate("base", "ingest"))],
                     BEGUN),
    "locked store": Load(begun, WAITS, BEGUN, locked=True),
    # Its keys are destroyed as an erasure's, its upper copy is made as an intake is emptied.
    "move": Load(begun, [Sent(m.Move([TWO], "core", "test"))], BEGUN, settings="[pools.core]\n",
                 own="intake/|index|pools/base/|answer"),
}  # fmt: skip
LOADS = (*GIVEN, "intake", "import")
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
    "fsync keys", f"unlink {OBJECT}", "syncfs", "index Eraser.complete, done", "answer",
]  # fmt: skip


def prepared(rig: Forked, name: str, folder: Path) -> tuple[Load, Path]:
    """A load, and a copy of the store that it begins with."""
    rig.keep_key(apart=False)
    load = GIVEN.get(name) or Load(begun, [])
    if name == "intake":
        load = Load(waiting, [Sent(rig.unlock)], [*BEGUN, *WAITS], locked=True)
    rig.set(load.settings)
    shutil.rmtree(rig.store, ignore_errors=True)
    load.prepare(rig)
    rig.keep_key(apart=load.locked)
    template = folder / "template"
    if rig.store.exists():
        shutil.copytree(rig.store, template)
    if name == "import":
        return Load(nothing, imports(rig, template)), folder / "none"
    return load, template


@pytest.mark.parametrize("name", LOADS)
def test_killed_at_any_step_loses_nothing_acknowledged(rig, tmp_path, tell, name):
    load, template = prepared(rig, name, tmp_path)
    steps = steps_of(rig, load, template)
    outcomes = [crash(rig, load, template, step) for step in steps]
    tell(f"killed during {name} ({len(load.sent)} messages)\n" + "\n".join(map(line, outcomes)))
    assert [one for one in outcomes if one.faults] == []


def line(outcome: Outcome) -> str:
    verdict = "; ".join(outcome.faults) or "lost: nothing acknowledged"
    return f"  {outcome.step!s:56} acknowledged {outcome.acknowledged:2}  {verdict}"


@pytest.mark.parametrize(("name", "order"), [("new call", ORDER), ("erasure", ERASURE)])
def test_steps_come_in_the_order_that_format_md_gives(rig, tmp_path, name, order):
    load, template = prepared(rig, name, tmp_path)
    names = iter(step.name for step in steps_of(rig, load, template))
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
        ("late", "new keys", Step("rename keys/root"), "root of epoch 1"),
    ],
)  # fmt: skip
def test_a_storaged_that_is_wrong_is_found_out(rig, tmp_path, spoil, name, step, fault):
    load, template = prepared(rig, name, tmp_path)
    outcome = crash(rig, load, template, step, spoil)
    assert any(fault in text for text in outcome.faults), outcome
