"""What else is killed at every step: what a capture, a replicator and the commands put on disk.

Each act works in a folder as the product does, and notes what counts from now on; it is run in a
process that dies at a step (tests/support/crashpoints.py). Its check then goes by the notes: what
they name is there, whole, and goes on.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from capture.callstate import CallState
from capture.delivery.spool import Spool
from replicator.plan import Mark
from replicator.state import StateFolder
from replicator.targets.directory import DirectoryTarget
from spanvault import init, spool, transport, wire
from spanvault import messages as m
from spanvault.keys import keyfile, unlock
from tests.support.vault import call_id, make_media

Note = Callable[[str], None]


class Act(NamedTuple):
    """prepare: before the process.  run: in it.  check: from its notes, what is wrong then."""

    prepare: Callable[[Path], None]
    run: Callable[[Path, Note], None]
    check: Callable[[Path, list[str]], Iterator[str]]


def nothing(folder: Path) -> None:
    """Begins in an empty folder."""


def frames(number: int) -> list[bytes]:
    media = make_media([(call_id(number), 1, 0)])
    return [bytes(one) for one in wire.encode_media(m.Batch("test", number), media)]


# --- a capture's spool ---------------------------------------------------------------------------


def make_ingest_key(folder: Path) -> None:
    """And what an earlier life was removing, and writing, when it was killed."""
    keyfile.create_private(folder / "ingest.key")
    (folder / "spool").mkdir()
    (folder / "spool" / f"{9:020d}.{9:016x}.sealed").write_bytes(bytes(64))
    (folder / "spool" / f"{8:020d}.{8:016x}.part").write_bytes(b"torn" * 16)


def run_spool(folder: Path, note: Note) -> None:
    key = keyfile.public_of(keyfile.load(folder / "ingest.key"))
    lying = Spool(folder / "spool")
    for number in (1, 2, 3):
        lying.put(number, lying.seal(number, frames(number), key))
        note(f"sealed {number}")
    note("taken 1")  # storaged has it
    lying.delete(lying.forget(1))
    lying.sync()


def check_spool(folder: Path, notes: list[str]) -> Iterator[str]:
    lying, key = Spool(folder / "spool"), keyfile.load(folder / "ingest.key")
    there = {}
    for number in lying.sequences():
        there[number] = spool.open_batch(lying.read(lying.file(number))[1], key)
    for number in (1, 2, 3):
        if f"sealed {number}" in notes and f"taken {number}" not in notes and number not in there:
            yield f"batch {number}"
    for number, found in there.items():
        if [bytes(one) for one in found] != frames(number):
            yield f"batch {number} is another"
    yield from (f"{path.name} is left" for path in (folder / "spool").glob("*.part"))


# --- its call table ------------------------------------------------------------------------------


def run_calls(folder: Path, note: Note) -> None:
    state = CallState(folder / "run")
    for number in (1, 2, 3):
        state.save(b"table %d" % number)
        note(str(number))


def check_calls(folder: Path, notes: list[str]) -> Iterator[str]:
    found = CallState(folder / "run").load()
    least = int(notes[-1]) if notes else 0
    if (int(found.split()[1]) if found else 0) < least:
        yield f"table {least}"
    CallState(folder / "run").save(b"table 9")
    if CallState(folder / "run").load() != b"table 9":
        yield "no table can be saved any more"


# --- a replicator's marks, receipts and key ------------------------------------------------------


def run_marks(folder: Path, note: Note) -> None:
    state = StateFolder(folder / "state")
    for number in (1, 2):
        state.save_mark("siteb", Mark("store", number, claimed=True))
        note(f"mark {number}")
        state.append_receipt(m.Receipt(call_id(number), "siteb", 1, "00", number))
        note(f"receipt {call_id(number).hex()}")
    note(f"key {_public(state.signing_key())}")


def _public(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def check_marks(folder: Path, notes: list[str]) -> Iterator[str]:
    state = StateFolder(folder / "state")
    lines = []
    if (path := folder / "state" / "receipts.jsonl").exists():
        for text in path.read_text().splitlines():
            try:
                lines.append(json.loads(text)["id"])
            except ValueError:
                continue  # torn: a reader skips it
    position = state.load_mark("siteb").position
    for kind, value in (note.split() for note in notes):
        if kind == "mark" and position < int(value):
            yield f"mark {value}"
        if kind == "receipt" and value not in lines:
            yield f"receipt {value[:8]}"
        if kind == "key" and _public(state.signing_key()) != value:
            yield "signing key"
    state.append_receipt(m.Receipt(call_id(9), "siteb", 1, "00", 9))
    state.save_mark("siteb", Mark("store", 9))
    os.close(state._lock)


# --- its copies ----------------------------------------------------------------------------------


def leave_copies(folder: Path) -> None:
    """What a killed replicator leaves: a copy on its way, a root that was supplanted."""
    on_its_way = folder / "replica" / ".part"
    on_its_way.mkdir(parents=True)
    (folder / "replica" / "keys").mkdir()
    for name in ("objects,aa,two", "keys,root.old"):
        (on_its_way / name).write_bytes(b"left")


def run_copies(folder: Path, note: Note) -> None:
    target = DirectoryTarget(folder / "replica")
    target.prepare(create=True)  # clears away what an earlier life left
    target.put("records/none", [b"x"])
    target.remove("records/none")
    target.put("objects/aa/one", [b"one"])
    note("objects/aa/one one")
    target.put("keys/root", [b"first"])
    note("keys/root first")
    target.supplant("keys/root", [b"other"])
    note("keys/root other")
    target.destroy("objects/aa/one")
    note("objects/aa/one ")


def check_copies(folder: Path, notes: list[str]) -> Iterator[str]:
    target = DirectoryTarget(folder / "replica")
    target.prepare(create=True)
    wanted = dict(note.split(" ") for note in notes)
    for name, value in wanted.items():
        found = b"".join(target.read(name)).decode("latin-1") if target.exists(name) else ""
        later = {"first": "other", "one": ""}.get(value, value)
        # What is destroyed is overwritten before its name goes: until then it counts as damaged.
        if found not in (value, later) and not (name.startswith("objects") and len(found) == 3):
            yield f"{name}: {found!r}, not {value!r}"
    if any((folder / "replica" / ".part").iterdir()):
        yield "files on their way are left"


# --- what the commands make ----------------------------------------------------------------------


def run_init(folder: Path, note: Note) -> None:
    init.initialise(folder / "etc", folder / "replica")


def check_init(folder: Path, notes: list[str]) -> Iterator[str]:
    keys = folder / "etc" / "keys"
    before = {path: path.read_bytes() for path in keys.glob("*.key*")} if keys.exists() else {}
    init.initialise(folder / "etc", folder / "replica")
    for name in init.KEEP:
        half = keyfile.public_of(keyfile.load(keys / f"{name}.key"))
        if keyfile.load_public(keys / f"{name}.pub") != half:
            yield f"{name}.pub is another key's"
    for role in init.CERTIFICATES:
        secret = transport.load_certificate(keys / f"{role}.key_secret")
        public = transport.load_certificate(keys / f"{role}.key")
        if secret.public != public.public:
            yield f"{role}: two halves of two certificates"
    for path, data in before.items():
        if path.name in ("unlock.key", "recovery.key") and path.read_bytes() != data:
            yield f"{path.name} was replaced"
    yield from (f"{path.name} is left" for path in keys.glob(".*.new"))


def run_unlock(folder: Path, note: Note) -> None:
    os.environ["XDG_DATA_HOME"] = str(folder)
    note(unlock.choose(folder / "none", None).path.name)


def check_unlock(folder: Path, notes: list[str]) -> Iterator[str]:
    for name in notes:
        key = keyfile.load(folder / "spanvault" / "unlock" / name)
        if spool.key_id(keyfile.public_of(key)) != name.removesuffix(".key"):
            yield f"{name} is another key"


ACTS = {
    "spool of a capture": Act(make_ingest_key, run_spool, check_spool),
    "call table of a capture": Act(nothing, run_calls, check_calls),
    "marks of a replicator": Act(nothing, run_marks, check_marks),
    "copies of a replicator": Act(leave_copies, run_copies, check_copies),
    "spanvault init": Act(nothing, run_init, check_init),
    "unlock key of a private store": Act(nothing, run_unlock, check_unlock),
}
