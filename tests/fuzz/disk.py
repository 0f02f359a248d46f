"""Readers of what lies on a disk, which a thief, a failing medium or another program may change.

Where what is read is sealed, a target seals what the fuzzer made: else nothing but tags would be
tried. Each may raise ValueError or storaged's Fault, which name what is wrong; nothing else.
"""

import atexit
import hashlib
import os
import shutil
import struct
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from replicator import bundle, inventory, layout
from replicator.state import StateFolder
from spanvault import certificate, logchain, spool, wire
from spanvault.keys import keyfile, protected, shares, token, unlock
from spanvault.messages import Batch, Erasure
from storaged.faults import Fault
from storaged.format import keypage, record, seeking, walk
from storaged.format.sealing import DATA, EVENTS, HEADER_BYTES, LAST, ObjectWriter
from storaged.index import erasures, labels
from storaged.index.binding import Binding
from storaged.index.environment import Index
from storaged.index.rows import TABLES, Reach
from storaged.index.writing import Writing
from storaged.pools.layout import Store
from storaged.pools.pool import ObjectFile
from storaged.recordings import resuming
from storaged.recordings.gathering import Group
from storaged.requests import accesslog
from tests.fuzz.choices import cut, joined
from tests.support.vault import START, Parts, at, call_id, make_call, make_media

KEY: Final = bytes(range(32))
STORE: Final = bytes(16)
NAMED: Final = (ValueError, Fault)
PLACE: Final = Path(f"/dev/shm/spanvault-fuzz-disk-{os.getpid()}")


def find_key(key_id: int) -> bytes:
    return KEY


# --- recordings -----------------------------------------------------------------------------------


def read_object(data: bytes) -> None:
    """A recording's file, read in every way there is."""
    PLACE.write_bytes(data)
    descriptor = os.open(PLACE, os.O_RDONLY)
    try:
        file = ObjectFile(descriptor, len(data))
        with suppress(*NAMED):
            found = seeking.contents(file, find_key)
            for offset, from_ns in ((0, None), (200, None), (0, 1_700_000_000 * 10**9)):
                with suppress(*NAMED):
                    list(found.places(file, offset, from_ns))
        walk.walk(file)
        walk.check(file, find_key)
        for committed in (0, len(data)):
            with suppress(*NAMED):
                walk.resume(file, committed, find_key)
        known = Reach(min(HEADER_BYTES, len(data)), 0, 0, 1, ())
        resuming.go_on(file, call_id(1), known, find_key)
    finally:
        os.close(descriptor)
        PLACE.unlink()


def read_sealed(data: bytes) -> None:
    """A recording whose frames are sealed as they must be, with anything in them.

    Each part is a flag and a plaintext.
    """
    writer = ObjectWriter(call_id(1), 1, 0)
    made = writer.begin(KEY, 0, bytes(16))
    for part in cut(data):
        flag = (DATA, LAST, EVENTS)[part[0] % 3] if part else DATA
        offset = writer.size
        frame = bytes(writer._frame(flag, part[1:]))
        if flag == LAST:
            frame += struct.pack("<QQQ8s", 0, offset, writer.sequence - 1, b"SVRLAST\n")
        made += writer._given(frame)
    read_object(made)


def objects() -> list[bytes]:
    """One that is sealed, one that grows."""
    return [whole_object(ended=True), whole_object(ended=False)]


def whole_object(*, ended: bool) -> bytes:
    writer = ObjectWriter(call_id(1), 1, 0)
    made = writer.begin(KEY, 0, bytes(16))
    for second in range(3):
        media = make_media([(call_id(1), 0, second)])
        plain = [media.table.tobytes() + media.frames.tobytes() + bytes(media.payload)]
        made += writer.data(plain, *at(second))
    return made + (writer.last(b"") if ended else b"")


def plaintexts() -> list[bytes]:
    media = make_media([(call_id(1), 0, 0)])
    plain = media.table.tobytes() + media.frames.tobytes() + bytes(media.payload)
    trailer = struct.pack("<IQIQIIqqI", 1, 0, 1, HEADER_BYTES, 0, 0, 0, 0, 0)
    return [joined([b"\0" + plain, b"\1" + trailer]), joined([b"\2" + plain])]


# --- keys -----------------------------------------------------------------------------------------


def read_root(data: bytes) -> None:
    """A root file with a checksum that fits."""
    for each in (data, data + hashlib.sha256(data).digest()):
        with suppress(ValueError):
            keypage.recipients_of(each)
        with suppress(ValueError):
            layout.root_epoch(each)
        with suppress(ValueError, LookupError):
            keypage.open_root(each, KEY)


def roots() -> list[bytes]:
    secrets = {keypage.Name(keypage.INDEX_KEY, 0): KEY, keypage.Name(keypage.PAGE_KEY, 1, 2): KEY}
    public = keyfile.public_of(KEY)
    return [keypage.serialize_root(STORE, 1, 0, KEY, [public], secrets, [bytes(12)] * 2)[:-32]]


def read_page(data: bytes) -> None:
    keypage.open_page(data, 1, 0, STORE, KEY)


def pages() -> list[bytes]:
    # Its 4,096 keys would be all that is changed: one of a wrong size shows as much.
    return [keypage.seal_page(1, 0, 0, STORE, bytes(64), KEY, bytes(12))]


def read_key_file(data: bytes) -> None:
    """What operators keep: key files, shares, URIs of tokens."""
    PLACE.write_bytes(data)
    try:
        with suppress(ValueError):
            keyfile.load(PLACE)
        if not _costly(data):
            with suppress(ValueError):
                protected.load(PLACE, ask=lambda question: "secret")
        with suppress(unlock.NoKey):
            unlock.find(PLACE)
    finally:
        PLACE.unlink()
    text = data.decode("utf-8", "replace")
    with suppress(ValueError):
        shares.combine(shares.parse_all(text))
    with suppress(ValueError):
        token.parse_uri(token.canonical(text))


def _costly(data: bytes) -> bool:
    """Argon2id within its bounds takes a second and a token does not answer: as they should."""
    return (b"argon2id" in data and data.count(b" ") > 5) or b"pkcs11:" in data


def key_files() -> list[bytes]:
    some = [shares.write(share).encode() for share in shares.split(KEY, 2, 3)]
    uri = b"pkcs11:token=a;object=b?module-path=/c"
    return [keyfile.text_of(KEY).encode(), b"\n".join(some), uri, b"argon2id 8 1 1 00 00"]


# --- the index, and what leaves it ----------------------------------------------------------------


@cache
def _index() -> Index:
    folder = PLACE.with_name(PLACE.name + "-index")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Index(folder, 16 << 20)


def read_rows(data: bytes) -> None:
    """Each part is the same row of every table, asked for in every way."""
    one, tables = call_id(1), _index()
    for value in cut(data)[:8]:

        def put(writing: Writing, value: bytes = value) -> None:
            for name in TABLES:
                writing.put(name, one, value)
            writing.put(b"day", one[:5], value)
            writing.put(b"meta", b"counter", value)

        if value:
            tables.write(put)
        _ask(tables, one)

        def clear(writing: Writing) -> None:
            for name in TABLES:
                writing.delete(name, one)
            writing.delete(b"day", one[:5])
            writing.delete(b"meta", b"counter")

        tables.write(clear)
    for part in cut(data)[:2]:
        with suppress(*NAMED):
            record.decode_call(part)
        with suppress(*NAMED):
            record.open_call(one, part, KEY)


def _ask(tables: Index, one: bytes) -> None:
    with tables.reading() as view:
        for ask in (
            lambda: view.state(one), lambda: view.placed(one), lambda: view.committed(one),
            lambda: view.reach(one), lambda: view.receipts(one), lambda: view.time_row(one),
            lambda: view.number(b"counter"), lambda: erasures.find(view, one),
            lambda: erasures.unfinished(view), lambda: list(view.changes(0, 5)),
            lambda: list(erasures.newest_first(view, None)), lambda: erasures.targets(view),
            lambda: list(labels.days(view)),
        ):  # fmt: skip
            with suppress(*NAMED):
                ask()


def rows() -> list[bytes]:
    state = struct.pack("<QQ32siBBH", 1, 2, bytes(32), 3, 0, 7, 0)
    reach = struct.pack("<QQIHHHq", 300, 0, 2, 1, 1, 0, 5)
    erasure = msgspec.msgpack.encode(Erasure(bytes(16), 1, "operator/a", "asked", []))
    sealed = record.seal_call(make_call(1), 1, KEY, bytes(12))
    return [joined([state, reach, struct.pack("<Q", 9), erasure, sealed])]


def read_log(data: bytes) -> None:
    """The access log, opened and checked; the store's format beside it."""
    folder = PLACE.with_name(PLACE.name + "-log")
    folder.mkdir(exist_ok=True)
    try:
        list(logchain.check(data))
        (folder / "access.log").write_bytes(data)
        log = accesslog.AccessLog(folder / "access.log")
        log.append({"kind": "status"}, sync=False)
        log.close()
        (folder / "format.json").write_bytes(data)
        with suppress(*NAMED), closing(Store(folder)) as store:
            store.open(list)
    finally:
        shutil.rmtree(folder)


def logs() -> list[bytes]:
    lines = b'{"at_ns":1,"kind":"status","prev":"' + b"0" * 64 + b'"}\n'
    text = b'{"format":"spanvault store","version":2,"store_id":"' + b"00" * 16 + b'"}\n'
    return [lines * 2, text]


# --- what a capture sends -------------------------------------------------------------------------


@cache
def _parts() -> Parts:
    folder = PLACE.with_name(PLACE.name + "-store")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Parts(folder)


def store(data: bytes) -> None:
    """A batch as a capture that was taken over may send it, spooled or not, to the disk."""
    frames: list[bytes | memoryview] = [wire.PROTOCOL, *cut(data)]
    sealed = spool.seal_batch(frames, keyfile.public_of(KEY))
    assert [bytes(each) for each in spool.open_batch(sealed, KEY)] == frames
    message, bulk = wire.decode_to_ingest(frames)
    if not isinstance(message, Batch):
        return
    group, parts = Group(), _parts()
    bound = Binding(parts.index, 14, lambda: START).bind("fuzz", message, wire.decode_media(bulk))
    group.add(b"fuzz", *bound)
    parts.writer.commit(group)
    for call in bound.batch.calls[:4]:
        with parts.index.reading() as view:
            kept = view.get(b"record", call.id)
        if kept is not None:
            dek = parts.keyring.dek(record.parse_head(kept).key_id)
            assert record.open_call(call.id, kept, dek).revision >= call.revision


def batches() -> list[bytes]:
    media = make_media([(call_id(1), 0, 0), (call_id(1), 0x8000, 0)])
    calls = [make_call(1), make_call(2, final=False, revision=2)]
    frames = wire.encode_media(Batch("fuzz", 1, calls), media)
    return [joined([bytes(memoryview(each)) for each in frames[1:]])]


# --- replicas -------------------------------------------------------------------------------------


def read_bundle(data: bytes) -> None:
    """A bundle with a checksum that fits, and what a restore makes of it."""
    with suppress(ValueError):
        bundle.parse(data)
    found = bundle.parse(data + hashlib.sha256(data).digest())
    known = inventory.Inventory()
    places = [(layout.Positions(0, 9), "one"), (layout.Positions(5, 9), "other")]
    for change in inventory.in_order(places, lambda name: sorted(found, key=lambda c: c.position)):
        known.add(change)
        known.old_page(change.name)
        with suppress(ValueError):
            known.present(change.id, change.size)
        with suppress(ValueError):
            layout.keys_name(change.name)
        with suppress(ValueError):
            layout.object_name(change.id)


def bundles() -> list[bytes]:
    from spanvault.messages import Change

    erasure = msgspec.msgpack.encode(Erasure(bytes(16), 1, "operator/a", "asked", []))
    changes = [
        Change(1, "keys", name="page-000001.0", data=b"x"),
        Change(2, "record", id=call_id(1), data=b"record"),
        Change(3, "object", id=call_id(1), size=9, sha256="00" * 32, pool="base"),
        Change(4, "erase", id=bytes(16), data=erasure),
    ]
    return [bundle.serialize(changes)[:-32]]


def read_notes(data: bytes) -> None:
    """What the replicator keeps for itself, names at a target, certificates."""
    folder = PLACE.with_name(PLACE.name + "-state")
    folder.mkdir(exist_ok=True)
    try:
        (folder / "a.position").write_bytes(data)
        (folder / "receipts.jsonl").write_bytes(data)
        (folder / "signing.key").write_bytes(data)
        state = StateFolder(folder)
        with suppress(ValueError):
            state.load_mark("a")
        with suppress(OSError):
            state.signing_key()
        os.close(state._lock)
    finally:
        shutil.rmtree(folder)
    text = data.decode("utf-8", "replace")
    layout.recording_id(text), layout.bundle_positions(text)
    with suppress(ValueError):
        certificate.parse(text)
    with suppress(ValueError, RecursionError):  # ours, to sign them
        facts = msgspec.json.decode(data)
        if isinstance(facts, dict):  # signed by whoever wrote it
            certificate.parse(
                certificate.serialize(facts, Ed25519PrivateKey.from_private_bytes(KEY))
            )


def notes() -> list[bytes]:
    copy = b'{"copies":[{"signature":"00","public_key":"00","target":"a"}],"store":"s"}'
    return [b'{"position":1}', copy, b"objects/00/" + b"00" * 16 + b".svr"]
