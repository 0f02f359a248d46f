"""Makes the vectors of what guards recordings: roots, pages, intakes, key files, shares, heads.

One fault each. HPKE and RSA-OAEP are not repeatable: each file is made once, and the product is
held to what it wrote then. To make one anew, delete it: python -m tests.vectors.makekeys
"""

import hashlib
import hmac
import json
import os
import struct
import unicodedata
from collections.abc import Callable
from typing import Any, Final
from unittest import mock

import msgspec
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from spanvault import certificate, logchain, spool, wire
from spanvault.keys import keyfile, protected, shares
from spanvault.logchain import HEAD, Head
from spanvault.messages import Batch, ErasureReceipt
from storaged.format import keypage
from storaged.format.keypage import Name
from storaged.index.binding import beside
from storaged.keys import intakekeys
from tests.support.vault import call_id, make_call, make_media
from tests.vectors.make import HERE, RECORDING, STORE_ID, flipped, write
from tests.vectors.makerows import index_rows

Rows = list[dict[str, Any]]
ROOT_KEY, UNLOCK, TOKEN_SECRET = b"r" * 32, b"u" * 32, b"t" * 32
CURVE_SECRET: Final = b"JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6"
INGEST, MOVE = b"g" * 32, bytes(range(50, 66))
SIGNER: Final = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
PAGE, GENERATION, PAGE_KEY = 1, 2, b"p" * 32
PASSPHRASE: Final = "Grüße, correct horse"
URI: Final = "pkcs11:token=vault;object=unlock?module-path=/usr/lib/softhsm/libsofthsm2.so"


def hmac_of(secret: bytes) -> Callable[[bytes, int, int, bytes], bytes]:
    return lambda store, tier, epoch, share: hmac.digest(secret, share, "sha256")


def root(share: bytes | None = None, *more: bytes) -> bytes:
    """A root sealed to two keys, and more. share: of which a token makes its key."""
    secrets = {Name(keypage.PAGE_KEY, PAGE, GENERATION): PAGE_KEY,
               Name(keypage.INDEX_KEY, 0): b"i" * 32}  # fmt: skip
    key = hmac_of(TOKEN_SECRET)(STORE_ID, 2, 3, share) if share else ROOT_KEY
    recipients = [keyfile.public_of(one) for one in (UNLOCK, b"v" * 32, *more)]
    nonces = [os.urandom(12) for _ in secrets]
    tier = 2 if share else 0
    return keypage.serialize_root(STORE_ID, 3, tier, key, recipients, secrets, nonces, share)


def of_slot(number: int) -> bytes:
    """A root of another way to keep its key."""
    with mock.patch.object(keypage, "TOKEN", number):
        return root(b"h" * 32)


def of_slot_in_file(number: int) -> bytes:
    """The same, with the root key itself in its envelopes."""
    with mock.patch.object(keypage, "FILE", number):
        return root()


def of_kind_to_come() -> bytes:
    """A root with a third envelope, to the first one's key, that is none of ours."""
    data, third = root(None, UNLOCK), 32 + 2 * (36 + 80)
    return again(flipped(third + 80)(flipped(third, 8)(data)))


def again(data: bytes) -> bytes:
    """With its SHA-256 made right: only then the next check is reached."""
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


def roots() -> Rows:
    data, kept = root(), root(b"h" * 32)
    sealed_at = 32 + 36  # the first envelope's ciphertext
    cases: list[tuple[str, str, bytes, bytes]] = [
        ("whole", "", data, UNLOCK),
        ("opened with the other key", "", data, b"v" * 32),
        ("an envelope of a kind to come", "", again(flipped(32, 8)(data)), b"v" * 32),
        ("an envelope of a kind to come to the same key", "", of_kind_to_come(), UNLOCK),
        ("in a token", "", kept, UNLOCK),
        ("in a token, its secret another", "secret", kept, UNLOCK),
        ("in a token, its secret destroyed", "token", kept, UNLOCK),
        ("in a token that is not at hand", "slot", kept, UNLOCK),
        ("of a slot to come", "slot", of_slot(2), UNLOCK),
        ("of a slot to come, its key in the file", "slot", of_slot_in_file(2), UNLOCK),
        ("shorter than a root", "cut", data[:40], UNLOCK),
        ("another file", "magic", b"SVRROOT9" + data[8:], UNLOCK),
        ("byte changed", "digest", flipped(100)(data), UNLOCK),
        ("not sealed to this key", "other key", data, b"x" * 32),
        ("envelope changed", "envelope", again(flipped(sealed_at + 40)(data)), UNLOCK),
        ("an envelope longer than the file", "envelopes", again(flipped(151, 8)(data)), UNLOCK),
        ("epoch changed", "envelope", again(flipped(24)(data)), UNLOCK),
        ("wrapped secret changed", "secret", again(flipped(len(data) - 40)(data)), UNLOCK),
        ("kind of a secret changed", "secret", again(flipped(len(data) - 100, 4)(data)), UNLOCK),
        ("a secret left out", "secrets", again(data[:-100] + data[-32:]), UNLOCK),
        ("a secret more than counted", "secrets", again(flipped(len(data) - 172, 3)(data)), UNLOCK),
    ]
    tokens = {"in a token": TOKEN_SECRET, "in a token, its secret another": b"z" * 32}
    rows: Rows = [
        {"name": name, "error": code, "unlock": key.hex(), "root": made.hex()}
        for name, code, made, key in cases
    ]
    label = f"spanvault {STORE_ID.hex()} 2 3"
    for row in rows:
        if secret := tokens.get(row["name"]):
            row["token"] = {label: secret.hex()}
        elif row["error"] == "token":
            row["token"] = {}
    return rows


def page(number: int = PAGE, generation: int = GENERATION) -> bytes:
    """DEK n is the SHA-256 of n as u32; that in slot 7 was destroyed."""
    deks = b"".join(hashlib.sha256(struct.pack("<I", n)).digest() for n in range(keypage.SLOTS))
    deks = deks[: 7 * 32] + bytes(32) + deks[8 * 32 :]
    return keypage.seal_page(number, generation, 0, STORE_ID, deks, PAGE_KEY, b"n" * 12)


def pages() -> Rows:
    """Changes of the one page, which is told by its SHA-256: 131,116 bytes, and repeatable."""
    rows: Rows = [
        {"name": "whole", "error": ""},
        {"name": "another file", "error": "magic", "at": 7, "xor": 1},
        {"name": "number changed", "error": "other page", "at": 8, "xor": 1},
        {"name": "generation of before", "error": "other page", "at": 12, "xor": 3},
        {
            "name": "sealed as another page",
            "error": "other page",
            "sealed_as": [PAGE + 1, GENERATION],
        },
        {"name": "sealed as of before", "error": "other page", "sealed_as": [PAGE, GENERATION - 1]},
        {"name": "tier changed", "error": "page", "at": 14, "xor": 1},
        {"name": "nonce changed", "error": "page", "at": 16, "xor": 1},
        {"name": "ciphertext changed", "error": "page", "at": 5000, "xor": 1},
        {"name": "tag changed", "error": "page", "at": keypage.PAGE_BYTES - 1, "xor": 128},
        {"name": "cut", "error": "cut", "size": 5000},
    ]
    about = {"page": PAGE, "generation": GENERATION, "page_key": PAGE_KEY.hex(),
             "nonce": (b"n" * 12).hex(), "sha256": hashlib.sha256(page()).hexdigest()}  # fmt: skip
    made = [row | about for row in rows]
    for row in made:
        if "sealed_as" in row:
            row["sha256"] = hashlib.sha256(page(*row["sealed_as"])).hexdigest()
    return made


def intakes() -> Rows:
    """The list of intake keys."""
    keys = {0: keyfile.public_of(INGEST), 2: keyfile.public_of(b"e" * 32)}
    data = intakekeys.serialize(STORE_ID, keys, CURVE_SECRET)

    def signed(body: bytes) -> bytes:
        key = hmac.digest(CURVE_SECRET, b"spanvault intake keys/1", "sha256")
        return body + hmac.digest(key, body, "sha256")

    cases = [
        ("whole", "", data), ("empty", "", intakekeys.serialize(STORE_ID, {}, CURVE_SECRET)),
        ("key changed", "mac", flipped(30)(data)),
        ("MAC changed", "mac", flipped(len(data) - 1)(data)),
        ("of another host", "mac", intakekeys.serialize(STORE_ID, keys, b"another" * 6)),
        ("cut", "mac", data[:20]),
        ("another file", "magic", signed(b"SVRINTK9" + data[8:-32])),
        ("a key left out", "count", signed(data[:-65])),
    ]  # fmt: skip
    return [
        {"name": name, "error": code, "certificate": CURVE_SECRET.decode(), "keys": made.hex()}
        for name, code, made in cases
    ]


def batches() -> Rows:
    """Waiting files: of an intake, of a move, and of a spool that came while base was locked."""
    public = keyfile.public_of(INGEST)
    key = spool.key_id(public)
    frames: list[Any] = wire.encode_media(
        Batch("intake", 1, [make_call(1)]), make_media([(call_id(1), 1, 0)], 32)
    )
    data = spool.seal_batch(frames, public)
    torn = spool.SUITE.encrypt(
        b"\x10\0\0\0short", X25519PublicKey.from_public_bytes(public), spool.INFO
    )
    name, moving = f"000000000001.{key}.sealed", f"{MOVE.hex()}.000000.{key}.moving"
    spooled = f"000000000001.{key}.{b'site b'.hex()}.sealed"
    cases = [
        ("waits", "", name, data), ("is being moved", "", moving, data),
        ("of a capture's spool", "", spooled, data),
        ("its removal was cut off", "removed", name, bytes(32) + data[32:]),
        ("of another ingest key", "other key", f"000000000001.{'0' * 16}.sealed", data),
        ("byte changed", "sealed", name, flipped(60)(data)),
        ("cut", "sealed", name, data[:-1]),
        ("a frame is cut", "frame", name, torn),
        ("a name of nothing", "name", "000000000001.sealed", data),
    ]  # fmt: skip
    about = [chunk_.hex() for chunk_ in map(bytes, frames[1:])]
    return [
        {"name": what, "error": code, "file": file, "private": INGEST.hex(), "batch": made.hex()}
        | ({} if code else {"frames": about})
        for what, code, file, made in cases
    ]


# Memory, iterations and lanes, one of them just out of bounds.
BOUNDS: Final = {
    "more memory than is allowed": ("4194305", "1", "1"), "too little memory": ("7", "1", "1"),
    "too little memory for its lanes": ("31", "1", "4"),
    "no iterations": ("8", "0", "1"), "too many iterations": ("8", "65", "1"),
    "no lanes": ("8", "1", "0"), "too many lanes": ("520", "1", "65"),
}  # fmt: skip


def keyfiles() -> Rows:
    """Key files; a token's RSA key is given so that anybody can be the token."""
    token = rsa.generate_private_key(65537, 2048)
    der = token.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )  # fmt: skip
    oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)
    wrapped = token.public_key().encrypt(UNLOCK, oaep)
    words = protected.with_passphrase(UNLOCK, PASSPHRASE).splitlines()[-1].split()
    changed = " ".join([*words[:-1], flipped(0)(bytes.fromhex(words[-1])).hex()])
    cases = [
        ("plain", "", keyfile.text_of(UNLOCK)),
        ("lines for people", "", f"\n# one\n{UNLOCK.hex().upper()}\n# two\n"),
        ("of an editor that marks its files", "", f"\ufeff# one\n{UNLOCK.hex()}"),
        ("passphrase", "", " ".join(words)), ("token", "", f"{URI} {wrapped.hex()}"),
        ("empty", "key", "# nothing\n"), ("too short", "key", UNLOCK.hex()[2:]),
        ("two keys", "key", f"{UNLOCK.hex()}\n{UNLOCK.hex()}\n"),
        ("no hex", "key", "g" * 64), ("a word left out", "key", " ".join(words[:-1])),
        ("wrong passphrase", "passphrase", changed),
        ("salt changed", "passphrase",
         " ".join([*words[:4], flipped(0)(bytes.fromhex(words[4])).hex(), *words[5:]])),
        ("all memory there is", "parameters", " ".join([words[0], "99999999", *words[2:]])),
        *((name, "parameters", " ".join(["argon2id", *three, *words[4:]]))
          for name, three in BOUNDS.items()),
        ("sealed to another token's key", "token", f"{URI} {flipped(9)(wrapped).hex()}"),
    ]  # fmt: skip
    rows: Rows = [
        {"name": name, "error": code, "text": text, "passphrase": PASSPHRASE, "rsa": der.hex()}
        for name, code, text in cases
    ]
    typed = unicodedata.normalize("NFD", PASSPHRASE)  # letters and accents apart
    return [*rows, rows[3] | {"name": "passphrase of another keyboard", "passphrase": typed}]


def papers() -> Rows:
    """Shares, three of which two are needed."""
    key = bytes(range(32))
    one, two, _ = [shares.write(share) for share in shares.split(key, 2, 3)]
    other = shares.write(shares.split(UNLOCK, 2, 3)[1])
    third = shares.parse(two)
    forged = shares.write(third._replace(share=flipped(5)(third.share)))
    typed = two.lower().replace("0", "o").replace("1", "l").replace("  ", "-")
    capitals = two.replace("0", "O").replace("1", "I")
    number = two.splitlines()[1][:1]
    cases = [
        ("any two", "", [one, two]), ("as somebody types", "", [one, typed]),
        ("as somebody else types", "", [one, capitals]),
        ("one letter wrong", "check", [one, two.replace(number, "Z" if number != "Z" else "Y", 2)]),
        ("a letter left out", "letters", [one, two.rstrip()[:-1]]),
        ("one alone", "few", [one]), ("the same twice", "few", [one, one]),
        ("of another key", "sets", [one, other]), ("one was forged", "forged", [one, forged]),
        ("of a version to come", "version", [one, _of_version(2, two)]),
    ]  # fmt: skip
    return [{"name": n, "error": code, "key": key.hex(), "shares": s} for n, code, s in cases]


def _of_version(version: int, text: str) -> str:
    letters = "".join("".join(text.splitlines()[1:]).split())
    alphabet, number = "0123456789ABCDEFGHJKMNPQRSTVWXYZ", 0
    for letter in letters:
        number = number << 5 | alphabet.index(letter)
    data = bytes((version,)) + number.to_bytes(45, "big")[1:40]
    data += hashlib.sha256(b"spanvault share" + data).digest()[:5]
    value = int.from_bytes(data, "big")
    return "".join(alphabet[value >> shift & 31] for shift in range(355, -1, -5))


def heads() -> Rows:
    """An access log and a signed head of it."""
    lines, last = b"", logchain.FIRST
    for at, kind in enumerate(("search", "fetch", "erase")):
        entry = {"at_ns": at, "who": "operator/Zoë", "kind": kind, "result": "ok", "prev": last}
        line = json.dumps(entry).encode()
        lines, last = lines + line + b"\n", logchain.digest(line)

    def head(**changes: Any) -> bytes:
        made = msgspec.structs.replace(Head(STORE_ID.hex(), 1 << 60, len(lines), last), **changes)
        made = msgspec.structs.replace(
            made, **dict(zip(("signer", "signature"), certificate.sign(HEAD, made.facts(), SIGNER),
                             strict=True))
        )  # fmt: skip
        return msgspec.msgpack.encode(made)

    good = head()
    changed = lines.replace(b"fetch", b"fetsh")
    cases = [
        ("whole", "", good, lines), ("more was written since", "", good, lines + b"more\n"),
        ("lines gone", "cut short", good, lines[: lines.index(b"\n") + 1]),
        ("the last line another", "rewritten", good, lines.replace(b"erase", b"spare")),
        ("a line within another", "changed", good, changed),
        ("size changed", "signature", good.replace(struct.pack(">H", len(lines)),
                                                   struct.pack(">H", len(lines) - 1)), lines),
        ("signature changed", "signature", flipped(len(good) - 1)(good), lines),
        ("no head", "head", good[:-1], lines),
    ]  # fmt: skip
    rows: Rows = [
        {"name": name, "error": code, "head": made.hex(), "log": log.decode(),
         "signer": SIGNER.public_key().public_bytes_raw().hex()}
        for name, code, made, log in cases
    ]  # fmt: skip
    other = Ed25519PrivateKey.from_private_bytes(b"o" * 32).public_key().public_bytes_raw()
    return [*rows, rows[0] | {"name": "of another store", "error": "signer", "signer": other.hex()}]


def certificates() -> Rows:
    """A certificate with the receipt of a target."""
    target = Ed25519PrivateKey.from_private_bytes(b"q" * 32)
    receipt = ErasureReceipt(MOVE, "siteb", 1 << 60, certificate.OVERWRITTEN)
    said = certificate.receipt_facts(STORE_ID.hex(), receipt)
    signer, signature = certificate.sign(certificate.RECEIPT, said, target)
    facts: dict[str, Any] = {
        "store": STORE_ID.hex(), "recording": call_id(1).hex(), "erasure": MOVE.hex(),
        "reason": "asked for by Zoë", "grade": certificate.OVERWRITTEN,
        "copies": [{**{k: said[k] for k in ("target", "confirmed_ns", "grade")},
                    "public_key": signer.hex(), "signature": signature.hex()}],
        "pending": [],
    }  # fmt: skip
    text = certificate.serialize(facts, SIGNER)
    forged = {**facts, "copies": [facts["copies"][0] | {"confirmed_ns": 5}]}
    cases = [
        ("whole", "", text), ("white space and order are free", "", json.dumps(json.loads(text))),
        ("reason changed", "signature", text.replace("asked", "ached")),
        ("signature changed", "signature", _resigned(text, "value")),
        ("a receipt changed", "receipt", certificate.serialize(forged, SIGNER)),
        ("of another algorithm", "certificate", text.replace("Ed25519", "none")),
        ("no certificate", "certificate", '{"certificate": {}}'),
        ("a name twice", "certificate", text.replace('"reason"', '"reason": "none", "reason"')),
        ("more than was signed", "certificate", text.replace("{", '{"note": "hsm", ', 1)),
    ]  # fmt: skip
    return [{"name": name, "error": code, "text": made} for name, code, made in cases]


def _resigned(text: str, field: str) -> str:
    document = json.loads(text)
    value = bytes.fromhex(document["signature"][field])
    document["signature"][field] = flipped(0)(value).hex()
    return json.dumps(document)


def kept_apart() -> Rows:
    """Ids of what a capture sends of another's call, and of what it sends of that in its turn."""
    rows: Rows = []
    for call, capture in ((RECORDING, "site b"), (call_id(2), "Zürich"), (call_id(3), "")):
        for name in ("once", "again"):
            other = beside(call, capture)
            rows.append({"name": f"{capture} {name}", "error": "", "call": call.hex(),
                         "capture": capture, "id": other.hex()})  # fmt: skip
            call = other
    return rows


FILES: Final[dict[str, Callable[[], Rows]]] = {
    "root": roots, "page": pages, "intakekeys": intakes, "batch": batches, "keyfile": keyfiles,
    "shares": papers, "loghead": heads, "certificate": certificates,
    "index": index_rows, "apart": kept_apart,
}  # fmt: skip


def main() -> None:
    """Write those that are not there."""
    for name, rows in FILES.items():
        if not (HERE / f"{name}.json").exists():
            write(HERE / f"{name}.json", rows())


if __name__ == "__main__":
    main()
