"""Folders that somebody else may have written to: replicas, intakes, ledgers, a whole store.

What is sealed there is sealed as it must be, or not. Single files of a store: disk.py.
"""

import hashlib
from contextlib import suppress
from functools import cache
from typing import Final

import msgspec

from replicator import bundle, layout
from replicator.inventory import Inventory
from replicator.replica import Replica
from replicator.targets import TargetError
from replicator.targets.directory import DirectoryTarget
from spanvault import messages as m
from spanvault import spool, wire
from spanvault.keys import keyfile
from storaged.format import ledger
from storaged.index.environment import Index
from storaged.integrity.rebuilding import Rebuilder, Report
from storaged.keys import intakekeys
from storaged.pools import ledgerfile
from storaged.pools.intake import Intake
from tests.fuzz.choices import Choices, cut, joined
from tests.fuzz.folders import folder
from tests.support.vault import START, Parts, call_id, make_call, make_media

KEY: Final = bytes(range(32))
HEAD: Final = ledger.head(bytes(16), 0, bytes(16))  # of a ledger's file
ONE: Final = call_id(1)
STORE: Final = "00" * 16  # the id that a replica's label says


def replica(data: bytes) -> None:
    """A target that somebody else wrote to: names of files and what is in them, by turns."""
    place, parts = folder("replica"), cut(data)
    for name, content in zip(parts[::2], parts[1::2], strict=False):
        path = place / name.decode("utf-8", "replace").replace("..", "_").strip("/\0")
        with suppress(OSError, ValueError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    found, known = Replica(DirectoryTarget(place)), Inventory()
    with suppress(TargetError):
        found.label()
    with suppress(TargetError):
        found.claim(STORE, first=len(parts) % 2 == 0)
    with suppress(TargetError):
        for each in found.bundles():
            with suppress(ValueError, TargetError):
                for change in found.load_bundle(each.name):
                    known.add(change)
                    with suppress(ValueError, TargetError):
                        _follow(found, change)
    for place_of in (layout.OBJECTS, layout.RECORDS, "keys"):
        with suppress(TargetError):
            for entry in found.target.list(place_of):
                layout.recording_id(entry.name)


def _follow(target: Replica, change: m.Change) -> None:
    """What a change asks for, beside files that somebody else put there."""
    if change.kind == "erase":
        with suppress(RecursionError):  # as the follower does
            target.erase(msgspec.msgpack.decode(change.data, type=m.Erasure))
    elif change.kind == "keys":
        target.put_keys(change)
    elif change.kind == "object":
        target.put_object(change, lambda: [change.data])
        assert target.target.sha256(layout.object_name(change.id)) == change.sha256


def replicas() -> list[bytes]:
    label = b'{"layout":1,"store_id":"' + STORE.encode() + b'"}'
    name = layout.bundle_name(layout.Positions(1, 9)).encode()
    erasure = m.Erasure(
        bytes(16), 1, "operator/a", "asked", [m.ErasedRecording(ONE, "base", [1], 1, "00" * 32)],
        [m.RekeyedPage("base", 1, 0, 2)],
    )  # fmt: skip
    changes = [
        m.Change(1, "keys", name="root", data=b"SVRROOT1" + bytes(60)),
        m.Change(2, "object", id=ONE, size=1, sha256=hashlib.sha256(b"y").hexdigest(), data=b"y"),
        m.Change(3, "erase", id=bytes(16), data=msgspec.msgpack.encode(erasure)),
        m.Change(
            4,
            "erase",
            id=bytes(16),
            data=msgspec.msgpack.encode(
                m.Erasure(bytes(16), 1, "operator/a", "asked", [], epochs={"base": 1}, moved_to="x")
            ),
        ),
        m.Change(5, "keys", name="../root", data=b"x"),
    ]
    known = layout.bundle_name(layout.Positions(1, 5)).encode()
    return [
        joined([layout.STORE.encode(), label, name, b"x" * 40, b"objects/00/x.svr", b"y"]),
        joined([layout.STORE.encode(), label, known, bundle.serialize(changes), b"keys/root",
                b"SVRROOT1" + bytes(20) + b"\xff" * 40]),
    ]  # fmt: skip


def waiting(data: bytes) -> None:
    """What lies in an intake, sealed as it must be, or not; and the list of the intakes' keys."""
    place = folder("intake")
    public, parts = keyfile.public_of(KEY), cut(data)
    for number, part in enumerate(parts[:6]):
        whole = bool(part[:1] == b"\0")
        sealed = spool.seal_batch([wire.PROTOCOL, *cut(part[1:])], public) if whole else part
        (place / f"{number:012d}.{spool.key_id(public)}.sealed").write_bytes(sealed)
    Intake(place).open_first(lambda name: KEY)
    for part in parts[:1]:
        with suppress(ValueError):
            intakekeys.parse(part, b"secret")


def batches() -> list[bytes]:
    frames = wire.encode_media(m.Batch("fuzz", 1, [make_call(1)]), make_media([(ONE, 0, 0)]))
    return [joined([b"\0" + joined(bytes(memoryview(each)) for each in frames[1:]), b"\1torn"])]


def entries(data: bytes) -> None:
    """A ledger's file behind its head, and its sealed entries."""
    path = folder("ledger") / "20261122-000000.svl"
    for content in (data, HEAD + data):
        path.write_bytes(content)
        list(ledgerfile.walk(path, bytes(16), 0, KEY))
        list(ledgerfile.walk(path, bytes(16), 0, None))


def ledgers() -> list[bytes]:
    parts = _lying()
    return [path.read_bytes()[len(HEAD) :] for path in parts.pool.ledger.files()]


@cache
def _lying() -> Parts:
    """A store with a recording that is sealed, one that grows, and a ledger of both."""
    parts = Parts(folder("lying"))
    parts.commit([(ONE, 1, 0)], [make_call(1)])
    parts.commit([(call_id(2), 1, 0)], [make_call(2, final=False)])
    return parts


def reindex(data: bytes) -> None:
    """Objects and ledger of a store with bytes changed, cut or added, read for a new index."""
    parts, choose = _lying(), Choices(data)
    files = [path for path in sorted(parts.pool.objects.parent.rglob("*.sv?")) if path.is_file()]
    kept = {path: path.read_bytes() for path in files}
    try:
        while choose.left:
            path = choose.of(files)
            content = bytearray(path.read_bytes())
            at = choose.number(1 << 16) % (len(content) + 1)
            content[at : at + choose.number(9)] = choose.bytes(30)
            path.write_bytes(content[:at] if choose.number(8) == 7 else content)
        fresh = Index(folder("index"), 16 << 20)
        try:
            made = Rebuilder(
                fresh, parts.vaults.base, Report(20_000), lambda phase, done: None, lambda: START
            )
            made.ledger(), made.objects(), made.records()
        finally:
            fresh.close()
    finally:
        for path, whole in kept.items():
            path.write_bytes(whole)
