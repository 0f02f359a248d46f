"""What is signed: heads of the access log, with the log, and certificates. FORMAT.md §10, §12."""

import hashlib
import json
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from . import Fault
from .msgpack import unpack

HEAD, CERTIFICATE = "spanvault access log head/1", "spanvault erasure certificate/1"
RECEIPT = "spanvault erasure receipt/1"


def check_head(data: bytes, log: bytes, signer: bytes) -> dict[str, Any]:
    """A head, MessagePack, that the store whose key this is signed of a log. Raises Fault."""
    try:
        head = unpack(data)
        facts = {name: head[name] for name in ("store", "at_ns", "size", "sha256")}
        signed = head["signer"], head["signature"]
    except (KeyError, TypeError, ValueError):
        raise Fault("head") from None
    if signed[0] != signer:
        raise Fault("signer")
    _check(HEAD, facts, *signed)
    if len(log) < head["size"]:
        raise Fault("cut short")
    told = log[: head["size"]]
    last = told[:-1].rpartition(b"\n")[2]
    if not told.endswith(b"\n") or hashlib.sha256(last).hexdigest() != head["sha256"]:
        raise Fault("rewritten")
    check_log(told)
    return facts


def check_log(log: bytes) -> None:
    """Raise Fault, with the place, for a line that does not bear the digest of the one before."""
    before, at = "0" * 64, 0
    for line in log.splitlines(keepends=True):
        try:
            prev = json.loads(line)["prev"]
        except (ValueError, KeyError, TypeError):
            prev = None
        if not line.endswith(b"\n") or prev != before:
            raise Fault("changed", at)
        before, at = hashlib.sha256(line[:-1]).hexdigest(), at + len(line)


def check_certificate(text: str) -> dict[str, Any]:
    """What a certificate says, receipts in it checked too. Raises Fault."""
    try:
        document = json.loads(text, object_pairs_hook=_once)
        if document.keys() != {"certificate", "signature"}:
            raise Fault("certificate")
        facts, signature = document["certificate"], document["signature"]
        signer, value = bytes.fromhex(signature["public_key"]), bytes.fromhex(signature["value"])
        algorithm = signature["algorithm"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Fault("certificate") from None
    if algorithm != "Ed25519":
        raise Fault("certificate")
    _check(CERTIFICATE, facts, signer, value)
    for copy in facts["copies"]:
        if copy.get("signature"):
            said = {name: copy[name] for name in ("target", "confirmed_ns", "grade")}
            said |= {name: facts[name] for name in ("store", "erasure")}
            try:
                _check(RECEIPT, said, bytes.fromhex(copy["public_key"]),
                       bytes.fromhex(copy["signature"]))  # fmt: skip
            except Fault:
                raise Fault("receipt") from None
    return dict(facts)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name comes twice")
    return dict(pairs)


def _check(kind: str, facts: dict[str, Any], signer: bytes, signature: bytes) -> None:
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    try:
        Ed25519PublicKey.from_public_bytes(signer).verify(signature, f"{kind}\n{text}".encode())
    except InvalidSignature:
        raise Fault("signature") from None
