"""The product's reader and one that shares nothing with it, held to the same bytes.

Each vector has one fault, and the code that FORMAT.md §4.5 gives it: both readers must find it. The
product's are what it writes today: a change of format changes objects.json in the same commit.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from spanvault.media import srtp
from spanvault.messages import MediaKey
from storaged.format import ledger, record, walk
from storaged.format.sealing import LAST
from storaged.index.labels import Labels
from storaged.index.writing import Writing
from storaged.keys.keyring import Keyring
from tests.support.vault import Parts, call_id, chunk_keys, make_call, make_media
from tests.vectors import make
from tests.vectors.reader import Fault, ledgers, objects, packets

HERE = Path(__file__).parent
OBJECTS = json.loads((HERE / "objects.json").read_text())
LABELS = json.loads((HERE / "labels.json").read_text())
LEDGERS = json.loads((HERE / "ledger.json").read_text())
# What the product says of each code.
WORDS = {
    "": "",
    "cut": "cut",
    "magic": "wrong magic",
    "version": "version 3",
    "suite": "suite 3 is unknown",
    "reserved": "reserved header bytes",
    "commitment": "key commitment does not match",
    "frame": "does not authenticate",
    "structure": "flag 64 is unknown|is impossible|behind the last frame|reaches beyond the end",
    "locator": "points elsewhere|no locator",
    "segment": "segment 2 at byte",
    "other recording": "belongs to another recording",
    "chunk": "chunk of another recording|digits and sound in one place",
    "trailer": "does not list the frames|tells other times",
}


def product(data: bytes, dek: bytes) -> list[str]:
    """The product's faults."""
    try:
        return walk.check(data, lambda _: dek).faults
    except ValueError as error:
        return [str(error)]


def independent(data: bytes, dek: bytes) -> list[str]:
    """The other reader's faults."""
    try:
        return objects.open_object(data, dek).faults
    except Fault as fault:
        return [fault.code]


@pytest.mark.parametrize("vector", OBJECTS, ids=lambda vector: vector["name"])
def test_both_readers_find_the_one_fault(vector):
    data, dek = bytes.fromhex(vector["object"]), bytes.fromhex(vector["dek"])
    ours, theirs = product(data, dek), independent(data, dek)
    if not vector["error"]:
        assert (ours, theirs) == ([], [])
        return
    assert vector["error"] in theirs
    assert any(word in fault for word in WORDS[vector["error"]].split("|") for fault in ours), ours


@pytest.mark.parametrize("vector", OBJECTS, ids=lambda vector: vector["name"])
def test_both_readers_hear_the_same(vector):
    data, dek = bytes.fromhex(vector["object"]), bytes.fromhex(vector["dek"])
    if vector["error"] in ("cut", "magic", "version", "suite", "reserved", "chunk"):
        return  # nothing is heard
    layout = walk.walk(data)
    opener, ours = walk.Opener(data, layout, lambda _: dek), []
    for place in layout.places:
        if place.flag != LAST:
            try:
                ours += list(walk.chunks_of(opener.open(place), make.RECORDING))
            except ValueError:
                continue
    theirs = objects.open_object(data, dek).chunks
    assert [(int(c.header["stream"]), int(c.header["start_ns"]), bytes(c.payload)) for c in ours] \
        == [(c.stream, c.start_ns, b"".join(c.payloads)) for c in theirs]  # fmt: skip


def test_both_readers_open_packets_that_were_kept_whole():
    (vector,) = (one for one in OBJECTS if "srtp" in one)
    key, dek = bytes.fromhex(vector["srtp"]), bytes.fromhex(vector["dek"])
    opening = srtp.Opening([MediaKey("AES_CM_128_HMAC_SHA1_80", key)])
    (ours,) = opening.open([make.srtp()])
    (theirs,) = objects.open_object(bytes.fromhex(vector["object"]), dek).chunks
    opened = [
        packets.payload_of(packets.unprotect(packet, key, frame[0]))
        for packet, frame in zip(theirs.packets(), theirs.frames, strict=True)
    ]
    assert [frame[4] & objects.WHOLE for frame in theirs.frames] == [0, 4, 4, 4, 4]
    assert opened == [bytes(payload) for payload in ours.payloads()] == make.SAID
    assert b"".join(opened) == bytes.fromhex(vector["carries"])


def test_a_packet_that_is_not_whole_or_not_the_keys_is_refused():
    frames, kept = make.srtp().frames, list(make.srtp().payloads())
    with pytest.raises(Fault, match="packet"):
        packets.unprotect(bytes(kept[1]), bytes(30), int(frames["sequence"][1]))
    cut = bytes.fromhex("b1 08 0001 00000000 cafebabe 00000001 bede 0002")
    with pytest.raises(Fault, match="packet"):
        packets.payload_of(cut)


def test_vectors_are_what_the_product_writes_today():
    made = {name: data for name, (_, data) in make.faults().items()} | make.objects()
    assert {vector["name"]: bytes.fromhex(vector["object"]) for vector in OBJECTS} == made
    kept = {name: data for name, (data, _) in make.ledgers().items()}
    assert {vector["name"]: bytes.fromhex(vector["ledger"]) for vector in LEDGERS} == kept
    assert {vector["error"] for vector in OBJECTS} == set(WORDS)


@pytest.mark.parametrize("vector", LEDGERS, ids=lambda vector: vector["name"])
def test_both_readers_find_the_entries_of_a_ledger_and_its_faults(vector):
    data, tier = bytes.fromhex(vector["ledger"]), vector["tier"]
    index_key = bytes.fromhex(vector["index_key"])
    if vector["faults"] == [0]:
        with pytest.raises(Fault):
            ledgers.read_ledger(data, make.STORE_ID, tier, index_key)
        with pytest.raises(ValueError, match="ledger"):
            ledger.check_head(data, make.STORE_ID, tier)
        return
    entries, faults = ledgers.read_ledger(data, make.STORE_ID, tier, index_key)
    head = ledger.check_head(data, make.STORE_ID, tier)
    ours = list(ledger.walk(data, head, ledger.key_of(index_key)))
    assert faults == [one.offset for one in ours if one.entry is None] == vector["faults"]
    assert entries == [tuple(one.entry) for one in ours if one.entry]


@pytest.mark.parametrize("vector", LABELS, ids=lambda one: f"{one['kind']} {one['number']}")
def test_both_readers_find_a_search_row(vector, tmp_path, monkeypatch):
    """Ours by asking for it: a row that is put there under the vector's key is found."""
    index_key, dek = bytes.fromhex(vector["index_key"]), bytes.fromhex(vector["dek"])
    parts = Parts(tmp_path / "store")
    place, text = (vector["tier"], vector["key_id"]), (vector["kind"], vector["text"])
    numbers = range(vector["number"] + 1)
    keys = [ledgers.search_row(index_key, dek, place, text, number) for number in numbers]
    assert keys[-1].hex() == vector["key"]
    monkeypatch.setattr(Keyring, "index_key", index_key)
    monkeypatch.setattr(parts.keyring, "dek", {vector["key_id"]: dek}.__getitem__)
    ours = Labels(vector["tier"], parts.keyring)
    values = [b"%024d" % number for number in numbers]
    token = ours.token(vector["kind"].encode(), vector["text"])

    def put(writing: Writing) -> list[bytes]:
        for key, value in zip(keys, values, strict=True):
            writing.put(b"label", key, value)
        return ours.find(writing, token, (vector["key_id"],))

    assert parts.index.write(put) == values


def test_both_readers_open_the_record_of_a_ledger():
    vector = LEDGERS[0]
    data, dek = bytes.fromhex(vector["ledger"]), bytes.fromhex(vector["dek"])
    index_key = bytes.fromhex(vector["index_key"])
    (_, call, sealed), *_ = ledgers.read_ledger(data, make.STORE_ID, 1, index_key)[0]
    plain = ledgers.open_record(call, sealed, dek)
    assert record.decode_call(plain) == record.open_call(call, sealed, dek) == make_call(1)
    with pytest.raises(Fault, match="record"):
        ledgers.open_record(call, sealed, bytes(32))


def test_a_store_that_was_recorded_opens_with_its_unlock_key_alone(tmp_path):
    """The script by itself, as somebody would run it who has the files and no spanvault."""
    parts, one = Parts(tmp_path / "store"), call_id(1)
    parts.commit([(one, 1, 0), (one, 2, 0)])
    parts.commit([(one, 1, 1)], [make_call(1)])
    parts.close()
    command = [sys.executable, "-I", HERE / "reader", parts.pool.path(one),
               "--keys", parts.folder / "keys", "--unlock",
               parts.folder / "unlock.key"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    assert (about["sealed"], about["faults"]) == (True, [])
    truth = chunk_keys(make_media([(one, 1, 0), (one, 2, 0), (one, 1, 1)]))
    assert [(c["stream"], c["bytes"]) for c in about["chunks"]] == [
        (stream, len(payload)) for _, stream, _, payload in truth
    ]


def test_the_reader_imports_nothing_of_ours():
    allowed = {*sys.stdlib_module_names, "cryptography", "reader"}
    for path in (HERE / "reader").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert (node.module or "").split(".")[0] in allowed, path
            elif isinstance(node, ast.Import):
                assert {name.name.split(".")[0] for name in node.names} <= allowed, path
