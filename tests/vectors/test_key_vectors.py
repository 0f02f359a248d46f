"""What guards recordings: the product and the other reader, held to the same bytes and faults.

Each vector has one fault, and the code that FORMAT.md §14 gives it.
"""

import hashlib
import hmac
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from spanvault import certificate, logchain, spool
from spanvault.keys import keyfile, protected, shares, token
from spanvault.logchain import Head
from storaged import faults
from storaged.format import keypage, ledger, record
from storaged.index import labels
from storaged.index.binding import beside
from storaged.index.rows import MULTIPLE, TABLES, parse_reach, parse_state, parse_time_row
from storaged.keys import intakekeys
from storaged.pools.intake import Intake
from tests.vectors import makebodies, makekeys, makerows
from tests.vectors.make import STORE_ID
from tests.vectors.makekeys import GENERATION, PAGE, PAGE_KEY
from tests.vectors.reader import Fault, bodies, intake, keyfiles, rootfile, rows, signed
from tests.vectors.reader import shares as papers

HERE = Path(__file__).parent
FORMAT = Path(__file__).parents[2] / "storaged/FORMAT.md"


def load(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((HERE / f"{name}.json").read_text())
    return found


def of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", load(name), ids=lambda vector: vector["name"])


# What the product says of each code, where it says no more than that in words.
WORDS: dict[str, dict[str, str]] = {
    "root": {
        "cut": "root file cut", "magic": "wrong magic", "digest": "its SHA-256 is another",
        "other key": "not sealed to this key", "envelope": "root envelope does not open",
        "envelopes": "root envelope cut", "secrets": "names . secrets, and has",
        "secret": "wrapped secret .* does not authenticate", "slot": "is in slot .*not at hand",
        "token": "the token has no such secret",
    },
    "page": {
        "cut": "key page cut", "magic": "wrong magic",
        "other page": "lies where 1.2 belongs", "page": "does not authenticate",
    },
    "intakekeys": {
        "mac": "was changed, or was written under another certificate",
        "magic": "not a list of intake keys", "count": "not a list of intake keys",
    },
    "batch": {
        "removed": "it was removed", "name": "it was removed, or is none",
        "other key": "another key", "sealed": "does not open with this", "frame": "is cut",
    },
    "keyfile": {
        "key": "not a key file", "parameters": "Argon2id parameters are out of bounds",
        "passphrase": "the passphrase is wrong", "token": "token",
    },
    "shares": {
        "letters": "72 letters in 12 groups, 71", "check": "a letter of this share is wrong",
        "version": "of another version", "few": "needs 2 different shares, 1 were",
        "sets": "of several sets", "forged": "do not give the key of set",
    },
    "certificate": {
        "certificate": "not a certificate", "signature": "the signature does not fit",
        "receipt": "the receipt of target 'siteb'",
    },
}  # fmt: skip


def agree(
    vector: dict[str, Any], ours: Callable[[], Any], theirs: Callable[[], Any], file: str = ""
) -> Any:
    """What both read; nothing where both refuse it, the other reader with the vector's code.

    file: whose WORDS the product has to say then.
    """
    if not vector["error"]:
        assert ours() == theirs()
        return theirs()
    with pytest.raises(Fault) as fault:
        theirs()
    assert fault.value.code == vector["error"]
    words = WORDS[file][vector["error"]] if file else None
    with pytest.raises((ValueError, LookupError), match=words):
        ours()
    return None


@of("root")
def test_root(vector):
    data, unlock = bytes.fromhex(vector["root"]), bytes.fromhex(vector["unlock"])
    held = {label: bytes.fromhex(secret) for label, secret in vector.get("token", {}).items()}

    def of_share(store: bytes, tier: int, epoch: int, share: bytes) -> bytes:
        label = f"spanvault {store.hex()} {tier} {epoch}"
        if label not in held:
            raise ValueError("the token has no such secret")
        return hmac.digest(held[label], share, "sha256")

    def ours() -> Any:
        root = keypage.open_root(data, unlock, of_share if "token" in vector else None)
        return root.store_id, {(n.kind, n.generation, n.number): s for n, s in root.secrets.items()}

    is_there = rootfile.token_of(held) if "token" in vector else None
    found = agree(vector, ours, lambda: rootfile.open_root(data, unlock, is_there), "root")
    if found:
        assert found[0] == STORE_ID
        assert found[1][1, GENERATION, PAGE] == PAGE_KEY


@of("page")
def test_page(vector):
    data = bytearray(makekeys.page(*vector.get("sealed_as", (PAGE, GENERATION))))
    assert hashlib.sha256(data).hexdigest() == vector["sha256"]
    if "at" in vector:
        data[vector["at"]] ^= vector["xor"]
    whole, key = bytes(data)[: vector.get("size")], bytes.fromhex(vector["page_key"])

    def ours() -> list[bytes]:
        deks = keypage.open_page(whole, PAGE, GENERATION, STORE_ID, key)
        return [deks[at : at + 32] for at in range(0, len(deks), 32)]

    found = agree(
        vector, ours, lambda: rootfile.open_page(whole, PAGE, GENERATION, STORE_ID, key), "page"
    )
    if found:
        assert found[9] == hashlib.sha256(struct.pack("<I", 9)).digest()
        assert found[7] == bytes(32)


@of("intakekeys")
def test_intake_keys(vector):
    data, secret = bytes.fromhex(vector["keys"]), vector["certificate"].encode()
    agree(
        vector,
        lambda: intakekeys.parse(data, secret),
        lambda: intake.read_keys(data, secret),
        "intakekeys",
    )


@of("batch")
def test_waiting_batch(vector, tmp_path):
    data, private = bytes.fromhex(vector["batch"]), bytes.fromhex(vector["private"])
    key_id = spool.key_id(keyfile.public_of(private))

    def ours() -> list[bytes]:
        """As storaged takes it: a move's counts once it is published."""
        folder = tmp_path / "intake"
        folder.mkdir(exist_ok=True)
        (folder / vector["file"]).write_bytes(data)
        waiting = Intake(folder)
        if vector["file"].endswith(".moving"):
            assert len(waiting) == 0
            waiting.publish_moving(makekeys.MOVE)
        if not len(waiting):
            raise ValueError("it was removed, or is none")
        (path,) = folder.iterdir()
        assert path.suffix == ".sealed"
        if path.name.split(".")[1] != key_id:
            raise ValueError("another key")
        return [bytes(frame) for frame in spool.open_batch(path.read_bytes(), private)[1:]]

    found = agree(vector, ours, lambda: intake.open_batch(vector["file"], data, private), "batch")
    if found:
        assert [frame.hex() for frame in found] == vector["frames"]


@of("keyfile")
def test_key_file(vector, tmp_path, monkeypatch):
    path, phrase = tmp_path / "unlock.key", vector["passphrase"]
    path.write_text(vector["text"])
    key = serialization.load_der_private_key(bytes.fromhex(vector["rsa"]), None)
    assert isinstance(key, rsa.RSAPrivateKey)

    def unwrap(uri: str, wrapped: bytes, _: str = "") -> bytes:
        assert uri == makekeys.URI
        oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)
        try:
            return key.decrypt(wrapped, oaep)
        except ValueError:
            raise Fault("token") from None

    monkeypatch.setattr(token, "unwrap", unwrap)  # SoftHSM itself: test_protected.py
    found = agree(
        vector, lambda: protected.load(path, lambda _: phrase),
        lambda: keyfiles.open_keyfile(vector["text"], phrase, unwrap), "keyfile",
    )  # fmt: skip
    assert found in (None, makekeys.UNLOCK)


@of("shares")
def test_shares(vector):
    found = agree(
        vector, lambda: shares.combine(map(shares.parse, vector["shares"])),
        lambda: papers.join([papers.parse(one) for one in vector["shares"]]), "shares",
    )  # fmt: skip
    assert found in (None, bytes.fromhex(vector["key"]))


@of("loghead")
def test_head_of_the_access_log(vector):
    data, log = bytes.fromhex(vector["head"]), vector["log"].encode()
    signer = bytes.fromhex(vector["signer"])

    def ours() -> dict[str, Any]:
        head = msgspec.msgpack.decode(data, type=Head)
        findings = list(logchain.check(log[: head.size], [head]))
        if findings or head.signer != signer:
            raise ValueError(findings)
        return head.facts()

    agree(vector, ours, lambda: signed.check_head(data, log, signer))


@of("certificate")
def test_certificate(vector):
    text = vector["text"]
    agree(
        vector,
        lambda: certificate.parse(text)[0],
        lambda: signed.check_certificate(text),
        "certificate",
    )


@of("index")
def test_row_of_the_index(vector, tmp_path):
    table, key = vector["table"], bytes.fromhex(vector["key"])
    value = bytes.fromhex(vector["row"])
    if not vector["error"]:
        assert rows.read_row(table, key, value) == vector["says"]
        return
    with pytest.raises(Fault, match=vector["error"]):
        rows.read_row(table, key, value)
    if table in makerows.NO_LONGER:
        return  # tests/storaged/integrity/test_keycheck.py
    with pytest.raises((faults.Fault, ValueError), match=r"cannot be read|of \d+ bytes"):
        OURS[table](key, value)


OURS: dict[str, Callable[[bytes, bytes], object]] = {
    "state": lambda _, value: parse_state(value),
    "open": lambda _, value: parse_reach(value), "time": parse_time_row,
    "day": lambda _, value: labels._parse_ids(value),
    "entry sealed": lambda _, body: ledger.Seal.parse(body),
    "entry placed": lambda _, body: ledger.Placed.parse(body),
    "entry day's key": lambda _, body: ledger.DayKey.parse(body),
}  # fmt: skip


def test_rows_are_what_is_written_today():
    assert makerows.index_rows() == load("index")


def test_rows_of_every_table_have_vectors():
    """Those of MessagePack are in bodies.json, a record in ledger.json."""
    packed = {"record", "receipt", "erasure", "confirmed", "target", "damaged", "damagedkey",
              "damagedledger", "damagedrecord"}  # fmt: skip
    every = {name.decode() for name in (*TABLES, *MULTIPLE)}
    assert {vector["table"].split()[0] for vector in load("index")} - {"entry"} == every - packed


def test_rows_of_before_lack_their_last_field():
    for table, size, without in (("state", 2, {"closed": 0}), ("placed", 2, {"capture": 0})):
        (vector,) = (row for row in load("index") if row["name"] == table)
        key, short = bytes.fromhex(vector["key"]), bytes.fromhex(vector["row"])[:-size]
        assert rows.read_row(table, key, short) == vector["says"] | without


@of("bodies")
def test_body_of_messagepack(vector):
    table, body = vector["table"], bytes.fromhex(vector["body"])

    def ours() -> Any:
        if table == "call":
            return makebodies.said(record.decode_call(body))
        return makebodies.said(msgspec.msgpack.decode(body, type=makebodies.TYPES[table]))

    found = agree(vector, ours, lambda: makebodies.said(bodies.read_body(table, body)))
    assert found == vector.get("says")


def test_bodies_are_what_is_written_today():
    assert makebodies.bodies() == load("bodies")


@of("apart")
def test_id_of_what_is_kept_apart(vector):
    call, capture = bytes.fromhex(vector["call"]), vector["capture"]
    made = agree(vector, lambda: beside(call, capture), lambda: rows.apart(call, capture))
    assert made.hex() == vector["id"]


def sections() -> dict[str, str]:
    """Number and text of each section of FORMAT.md."""
    parts = re.split(r"(?m)^#{2,3} (\d+(?:\.\d+)?)\.? .*$", FORMAT.read_text())
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def vectors() -> dict[str, tuple[list[str], set[str]]]:
    """By file of vectors the sections that it is of, and the codes that it has: FORMAT.md §14."""
    told = re.findall(r"(?m)^\| §(.+?) \| `([a-z]+)\.json` \| (.*?) \|$", sections()["14"])
    return {
        name: (re.findall(r"\d+(?:\.\d+)?", places), set(re.findall(r"`([a-z ]+)`", codes)))
        for places, name, codes in told
    }


def test_each_section_with_bytes_names_its_vectors():
    told = {place for places, _ in vectors().values() for place in places}
    bytes_in = {
        number for number, text in sections().items()
        if number != "14" and ("‖" in text or re.search(r"(?m)^\| (offset \| )?type \|", text))
    }  # fmt: skip
    without = set(re.findall(r"§(\d+(?:\.\d+)?)", sections()["14"].partition("No vectors")[2]))
    assert bytes_in - told - without == set()
    assert told & without == set()


def test_each_file_of_vectors_has_the_codes_that_are_told():
    files = {path.stem for path in HERE.glob("*.json")}
    assert files == set(vectors())
    for name, (_, codes) in vectors().items():
        if name not in ("objects", "ledger"):  # §4.5; places
            assert {row["error"] for row in load(name)} - {""} == codes, name


def told(fields: dict[str, Any]) -> str:
    """Names, types and values of a map's fields, as FORMAT.md §7.3 has them."""
    return ", ".join(f"{name} {_type(*kind)}" for name, kind in fields.items())


def _type(kind: str, *without: Any) -> str:
    if without:
        return f"{_type(kind)} = {'empty' if without[0] == b'' else json.dumps(without[0])}"
    closing = {"[": "]", "{": "}", "?": ""}.get(kind[0])
    return kind if closing is None else kind[0] + _type(kind[1:]) + closing


def test_the_specification_names_every_field():
    text = " ".join(FORMAT.read_text().split())
    for name, fields in bodies.FIELDS.items():
        assert f" {name}: {told(fields)}" in text
