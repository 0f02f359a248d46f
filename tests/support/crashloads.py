"""What storaged is killed under: each load goes by other steps of what changes a store.

What a load is: tests/support/loads.py. Who kills: tests/storaged/test_crash_points.py.
"""

import hashlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from spanvault import messages as m
from spanvault import spool, transport
from spanvault.keys import keyfile
from storaged.format.ledger import HEAD_BYTES
from storaged.index import ingestkeys
from storaged.index.environment import Index
from storaged.integrity.checks import MENDING
from storaged.keys.intakekeys import IntakeKeys
from tests.support.crashing import Sender
from tests.support.forked import Forked
from tests.support.loads import Load, Sent
from tests.support.softhsm import LABEL, MODULE, PIN, make_token
from tests.support.vault import call_id, make_call

ONE, TWO, THREE = call_id(1), call_id(2), call_id(3)


def batch(number: int, chunks: list[tuple[bytes, int, int]], *calls: m.Call) -> Sent:
    return Sent(m.Batch("test", number, list(calls)), chunks)


def nothing(rig: Forked) -> None:
    """There is no store yet."""


BEGUN = [
    batch(1, [(ONE, 1, 0), (ONE, 2, 0)], make_call(1, id=ONE, final=False)),
    batch(2, [(TWO, 1, 0)], make_call(2, id=TWO)),
]


def begun(rig: Forked) -> None:
    """A call that goes on, and one that is over; the ingest key is younger than that."""
    spooled(rig)
    secret = transport.load_certificate(rig.folder / "secret/storaged.key_secret").secret or b""
    key = spool.key_id(IntakeKeys(rig.store / "intake/keys", secret).of(0))
    index = Index(rig.store / "index")
    index.write(lambda writing: ingestkeys.put_birth(writing, "base", key, time.time_ns()))
    index.close()


def spooled(rig: Forked) -> None:
    """The same, where something of them may have lain in a spool."""
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


REFUSED = Sent(m.Batch("test", 3), bulk=(TWO + bytes(10), b"", b""))
OTHERWISE_REFUSED = Sent(m.Batch("test", 3), bulk=(THREE + bytes(10), b"", b""))
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
    # What a capture says meanwhile: Load.greets. Roots are made as in "new keys" and "erasure".
    "ingest keys of an erasure": Load(
        spooled, [OTHERWISE_REFUSED, Sent(m.Erase([TWO], "test"))], BEGUN, greets=True,
        own="Retirer|Holding|intake/keys|refused"),
    "new keys": Load(begun, [Sent(m.Rotate("base", "root")), Sent(m.Rotate("base", "ingest"))],
                     BEGUN),
    "locked store": Load(begun, WAITS, BEGUN, locked=True),
    # Its keys are destroyed as an erasure's, its upper copy is made as an intake is emptied.
    "move": Load(begun, [Sent(m.Move([TWO], "core", "test"))], BEGUN, settings="[pools.core]\n",
                 own="intake/|index|pools/base/|answer"),
}  # fmt: skip


def damaged(rig: Forked) -> None:
    """That store, a byte of the call that is over changed."""
    begun(rig)
    path = object_of(rig.store)
    path.write_bytes(flipped(path.read_bytes()))


def known_to_be_damaged(rig: Forked) -> None:
    damaged(rig)
    rig.launch()
    rig.wait_for(rig.requests)
    assert rig.client("operator").ask(m.Verify(TWO))[0].faults
    rig.end()


def object_of(store: Path) -> Path:
    (path,) = store.glob(f"pools/base/objects/*/{TWO.hex()}.svr")
    return path


def flipped(data: bytes) -> bytes:
    return data[:AT] + bytes((data[AT] ^ 1,)) + data[AT + 1 :]


AT = 200  # within the first frame


def returns(rig: Forked, template: Path) -> list[Sent]:
    """What a replicator brings back, in two parts."""
    rig.reset(template)
    rig.launch()
    rig.wait_for(rig.requests)
    asks = m.Feed(0, target="siteb")
    (change,) = rig.client("replicator").ask(asks)[0].wanted
    rig.end()
    data = flipped(object_of(template).read_bytes())
    half = len(data) // 2
    return [
        Sent(asks),
        Sent(m.Return("siteb", change, 0), bulk=(data[:half],)),
        Sent(m.Return("siteb", change, half), [(TWO, 1, 0)], (data[half:],)),
    ]


def receipts(rig: Forked, template: Path) -> list[Sent]:
    """What a replicator says of its copy."""
    data = object_of(template).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    receipt = m.Receipt(TWO, "siteb", len(data), digest, 1)
    return [Sent(m.Feed(0, target="siteb")), Sent(receipt)]


AFTER = {"repair": returns, "receipt": receipts}  # messages known once there is the store


def with_token(rig: Forked) -> Load:
    """Its roots are in a token: an erasure and a new root make and destroy secrets there."""
    make_token(rig.folder)
    pin = rig.folder / "erasure.pin"
    pin.write_text(PIN + "\n")
    settings = f"erasure_token = 'pkcs11:token={LABEL}?module-path={MODULE}'\n"
    sent = [Sent(m.Erase([TWO], "test")), Sent(m.Rotate("base", "root"))]
    return Load(begun, sent, BEGUN, settings=f"{settings}erasure_pin = '{pin}'\n",
                own="token|keys/root|answer")  # fmt: skip


def with_recipient(rig: Forked) -> Load:
    """Another pool is made, and another key opens it."""
    second = rig.folder / "second.key"
    second.unlink(missing_ok=True)
    half = keyfile.create_private(second)
    key = keyfile.load(rig.folder / "secret/unlock.key")
    sent = [Sent(m.Recipients("core", key, add=[half]))]
    return Load(begun, sent, BEGUN, settings="[pools.core]\n", own="core|answer|_announce")


def cut_off(step: str, *sent: Sent, nth: int = 1, within: bool = False) -> Callable[[Forked], None]:
    """That store, and a storaged that died at a step of what it was sent then."""

    def prepare(rig: Forked) -> None:
        begun(rig)
        rig.launch(kill=step, nth=nth, within=within)
        Sender(rig, sent).send_all()
        rig.wait_for_end(5.0)
        assert rig.end() == -signal.SIGKILL

    return prepare


def without_header(rig: Forked) -> None:
    """That store, the beginning of the recording that goes on destroyed."""
    begun(rig)
    (path,) = rig.store.glob(f"pools/base/objects/*/{ONE.hex()}.svr")
    path.write_bytes(bytes(8) + path.read_bytes()[8:])


def with_a_cut_ledger(rig: Forked) -> None:
    """That store with another file of its ledger, and the first one cut to its head."""
    begun(rig)
    rig.launch()
    Sender(rig, [batch(3, [], make_call(3, id=THREE))]).send_all()
    rig.end()
    first, _ = sorted(rig.store.glob("pools/base/ledger/*.svl"))
    os.truncate(first, HEAD_BYTES)


ERASED = Sent(m.Erase([TWO], "test"))
ANEW = batch(3, [], make_call(1, id=ONE, revision=1, final=False))
ENDED = batch(4, [(ONE, 1, 1)], make_call(1, id=ONE, revision=2))
OBJECT = "pools/base/objects/XX/ID.svr"
TO_CORE = "[pools.core]\n[[rules]]\npool = 'core'\nnumber = ['core']\n"
MADE = {
    "intake": lambda rig: Load(waiting, [Sent(rig.unlock)], [*BEGUN, *WAITS], locked=True),
    "import": lambda _: Load(begun, []),
    "repair": lambda _: Load(known_to_be_damaged, [], [BEGUN[0]], own="pools/base|index|answer"),
    "report of a check": lambda _: Load(damaged, [Sent(m.Verify(TWO))], [BEGUN[0]],
                                        own="note|answer"),
    "pool and recipient": with_recipient,
    "token": with_token,
    "start behind an erasure": lambda _: Load(
        cut_off("write keys/root.old", ERASED), [ERASED], BEGUN, own="keys|ledger|objects|index"),
    "start behind a new root": lambda _: Load(
        cut_off("rename keys/root", ERASED), [ERASED], BEGUN, own="keys"),
    "start behind a commit": lambda _: Load(
        cut_off("index Writer.commit", ANEW, ENDED, nth=2), [ENDED], [BEGUN[1]],
        own="ledger|objects|syncfs"),
    "start behind a torn frame": lambda _: Load(
        cut_off(f"write {OBJECT} DATA", ENDED, within=True), [ENDED], [BEGUN[1]], own="objects"),
    "recording without header": lambda _: Load(
        without_header, [batch(3, [(ONE, 1, 1)])], [BEGUN[1]], own="damaged|objects"),
    "ledger made whole": lambda _: Load(
        with_a_cut_ledger, [Sent(m.Check("ledgers")), Sent(m.Check("ledgers", MENDING))], BEGUN,
        own="LedgerMending|pools/base/ledger|answer|_put_progress|_forget"),
    "refused batch": lambda _: Load(begun, [REFUSED, ERASED], BEGUN, own="refused|answer"),
    "receipt": lambda _: Load(begun, [], BEGUN, own="Receipts|answer|ledger"),
    "media before its record": lambda _: Load(begun, [
        batch(3, [(THREE, 1, 0)]), batch(4, [], make_call(3, id=THREE, callee="core")),
    ], BEGUN, settings=TO_CORE, own="Sorter"),
    "reindex": lambda _: Load(begun, [], BEGUN, task="reindex", own="."),
}  # fmt: skip
LOADS = (*GIVEN, *MADE)


def prepared(rig: Forked, name: str, folder: Path) -> tuple[Load, Path]:
    """A load, and a copy of the store that it begins with."""
    rig.keep_key(apart=False)
    shutil.rmtree(rig.store, ignore_errors=True)
    shutil.rmtree(rig.folder / "tokens", ignore_errors=True)
    load = GIVEN[name] if name in GIVEN else MADE[name](rig)
    rig.set(load.settings)
    load.prepare(rig)
    rig.keep_key(apart=load.locked)
    template = folder / "template"
    rig.save(template)
    if name == "import":
        return Load(nothing, imports(rig, template)), folder / "none"
    if name in AFTER:
        return load._replace(sent=AFTER[name](rig, template)), template
    return load, template
