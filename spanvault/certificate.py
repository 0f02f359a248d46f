"""Signed documents about erasures: the store's certificate, and a target's receipt.

What is signed is the JSON of the facts with sorted keys and no white space, as UTF-8, behind a line
that says what kind of document it is. Ed25519 (RFC 8032). What a certificate says:
storaged.erasing.certifying. Pure: keys are handed in.
"""

import json
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from spanvault.messages import ErasureReceipt

CERTIFICATE: Final = "spanvault erasure certificate/1"
RECEIPT: Final = "spanvault erasure receipt/1"
OVERWRITTEN: Final = "file overwrite, best effort"  # grade: how surely the old keys are gone
_ALGORITHM: Final = "Ed25519"


def sign(kind: str, facts: dict[str, Any], key: Ed25519PrivateKey) -> tuple[bytes, bytes]:
    """The public key (32 bytes) and the signature (64 bytes) of some facts."""
    return key.public_key().public_bytes_raw(), key.sign(_signed_bytes(kind, facts))


def is_signed(kind: str, facts: dict[str, Any], signer: bytes, signature: bytes) -> bool:
    """Whether these facts were signed with this public key."""
    try:
        key = Ed25519PublicKey.from_public_bytes(signer)
        key.verify(signature, _signed_bytes(kind, facts))
    except (ValueError, InvalidSignature):
        return False
    return True


def receipt_facts(store_id: str, receipt: ErasureReceipt) -> dict[str, Any]:
    """What a target's receipt says."""
    return {
        "store": store_id,
        "erasure": receipt.erasure.hex(),
        "target": receipt.target,
        "confirmed_ns": receipt.at_ns,
        "grade": receipt.grade,
    }


def serialize(facts: dict[str, Any], key: Ed25519PrivateKey) -> str:
    """A certificate as the text that is kept."""
    signer, signature = sign(CERTIFICATE, facts, key)
    document = {
        "certificate": facts,
        "signature": {
            "algorithm": _ALGORITHM, "public_key": signer.hex(), "value": signature.hex(),
        },
    }  # fmt: skip
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def parse(text: str) -> tuple[dict[str, Any], bytes]:
    """What a certificate says, and the public key of who signed it.

    Raises ValueError: not a certificate, changed since it was signed, or a receipt in it was.
    Whose key it is, the caller must know.
    """
    try:
        document = json.loads(text, object_pairs_hook=_once)
        facts, signature = document["certificate"], document["signature"]
        signer, value = bytes.fromhex(signature["public_key"]), bytes.fromhex(signature["value"])
        known = signature["algorithm"] == _ALGORITHM and isinstance(facts, dict)
        known &= document.keys() == {"certificate", "signature"}
    except (ValueError, KeyError, TypeError, RecursionError):
        known = False
    if not known:
        raise ValueError("not a certificate of spanvault")
    if not is_signed(CERTIFICATE, facts, signer, value):
        raise ValueError("the signature does not fit: it was changed, or signed by nobody")
    try:
        for copy in facts.get("copies", []):
            _check_receipt(facts, copy)
    except (KeyError, TypeError, AttributeError):
        raise ValueError("what it says of copies is not what a certificate of ours says") from None
    return facts, signer


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a name that comes twice: people read the first."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name comes twice")
    return dict(pairs)


def _check_receipt(facts: dict[str, Any], copy: dict[str, Any]) -> None:
    """Raise ValueError if a target's own signature does not fit."""
    if not copy.get("signature"):
        return
    said = {name: copy.get(name) for name in ("target", "confirmed_ns", "grade")}
    said |= {name: facts.get(name) for name in ("store", "erasure")}
    signer, signature = bytes.fromhex(copy["public_key"]), bytes.fromhex(copy["signature"])
    if not is_signed(RECEIPT, said, signer, signature):
        raise ValueError(f"the receipt of target {copy.get('target')!r} is not what it signed")


def _signed_bytes(kind: str, facts: dict[str, Any]) -> bytes:
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"{kind}\n{text}".encode()
