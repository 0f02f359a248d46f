"""What the store can prove of an erasure: to the operator in words, to others as a certificate.

The certificate says what was done, how surely, and who has not followed yet; it names nobody. The
store signs it anew each time it is asked, so that it tells what holds then. FORMAT.md §12.
Signatures and their bytes: spanvault.certificate. Rows: storaged.index.erasures.
"""

from collections.abc import Sequence
from typing import Any, Final

from spanvault import certificate
from spanvault.callline import iso_utc
from spanvault.certificate import OVERWRITTEN
from spanvault.messages import (
    ErasedRecording,
    Erasure,
    Erasures,
    ErasuresReply,
    RekeyedPage,
)
from storaged.faults import Fault
from storaged.format.keypage import SLOTS
from storaged.index import erasures
from storaged.index.rows import damaged
from storaged.index.view import View
from storaged.keys.keyring import Keyring

_LIMIT: Final = 100


def listed(view: View, wanted: Erasures) -> ErasuresReply:
    """A page of erasures. Raises Fault: impossible limit, no such erasure."""
    if wanted.id is not None:
        return ErasuresReply([erasure_of(view, wanted.id)])
    if not 1 <= wanted.limit <= _LIMIT or len(wanted.cursor or bytes(16)) != 16:
        raise Fault("invalid", "limit or cursor out of range", f"Ask for 1 to {_LIMIT} a page.")
    found: list[Erasure] = []
    for erasure in erasures.newest_first(view, wanted.cursor):
        if len(found) == wanted.limit:
            return ErasuresReply(found, found[-1].id)
        found.append(erasure)
    return ErasuresReply(found)


def erasure_of(view: View, call_id: bytes) -> Erasure:
    """The erasure that a call went with. Raises Fault if it was not erased."""
    known = len(call_id) == 16
    erased = (view.erased(call_id) or view.moved(call_id)) if known else None
    found = erasures.find(view, erased) if erased else None
    if erased and found is None:
        table = b"erased" if view.erased(call_id) else b"moved"
        raise damaged(table, "of an erasure that is not there")
    if found is None:
        raise Fault(
            "not_found", "no call of this id was erased or moved", "See: spanvault erasures"
        )
    return found


def explain(erasure: Erasure) -> Fault:
    """The answer to a question about an erased call."""
    pending = f"; pending at {', '.join(erasure.pending)}" if erasure.pending else ""
    text = f"this call was erased at {iso_utc(erasure.at_ns)} by {erasure.who}"
    hint = "spanvault certificate get gives the proof."
    return Fault("erased", f"{text} ({erasure.reason}){pending}", hint)


def certify(view: View, call_id: bytes, keyring: Keyring, now_ns: int) -> str:
    """A call's certificate. Raises Fault: not erased, or not carried out yet."""
    erasure = erasure_of(view, call_id)
    if not erasure.done:
        raise Fault(
            "unavailable", "this erasure was begun and could not be completed",
            "Look at the journal of spanvault-storaged, and restart it when its disk works.",
        )  # fmt: skip
    (one,) = (one for one in erasure.recordings if one.id == call_id)
    facts = {
        "store": keyring.store_id.hex(),
        "recording": one.id.hex(),
        "pool": one.pool,
        "size": one.size,
        "sha256": one.sha256 or None,
        "erasure": erasure.id.hex(),
        "erased_at": iso_utc(erasure.at_ns),
        "erased_by": erasure.who,
        "reason": erasure.reason,
        "keys": _keys(one.key_ids, one.pool, erasure.pages),
        "search_rows": {
            "keys": _keys(
                [key.key_id for key in erasure.day_keys if key.pool == one.pool],
                one.pool,
                erasure.day_pages,
            ),
            "gone_at": iso_utc(erasure.rows_gone_ns or None),
        },
        "ingest_keys": {
            "keys": [{"pool": key.pool, "key": key.key_id} for key in erasure.ingest_keys],
            "gone_at": iso_utc(erasure.spools_gone_ns or None),
        },
        "root_epoch": erasure.epochs.get(one.pool),
        "grade": erasure.grades.get(one.pool, OVERWRITTEN),
        "moved_to": erasure.moved_to or None,
        "copies": _copies(erasure, one),
        "pending": erasure.pending,
        "issued_at": iso_utc(now_ns),
    }
    return certificate.serialize(facts, keyring.signing_key)


def _keys(key_ids: Sequence[int], pool: str, pages: Sequence[RekeyedPage]) -> list[dict[str, Any]]:
    """Keys of a pool, and their pages before and after; null where they are still to go."""
    by_page = {(page.pool, page.page): page for page in pages}
    found = []
    for key_id in key_ids:
        page = by_page[pool, key_id // SLOTS]
        after = page.after if page.after >= 0 else None
        found.append(
            {
                "key": key_id, "page": page.page,
                "generation_before": page.before, "generation_after": after,
            }
        )  # fmt: skip
    return found


def _copies(erasure: Erasure, one: ErasedRecording) -> list[dict[str, Any]]:
    """Every target that had something or had to follow, with what it said."""
    verified = {copy.target: copy.verified_ns for copy in one.copies}
    receipts = {receipt.target: receipt for receipt in erasure.receipts}
    found = []
    for target in sorted({*verified, *receipts, *erasure.pending}):
        entry: dict[str, Any] = {"target": target, "copied_at": iso_utc(verified.get(target))}
        if receipt := receipts.get(target):
            entry |= {
                "confirmed_ns": receipt.at_ns,
                "grade": receipt.grade,
                "public_key": receipt.signer.hex(),
                "signature": receipt.signature.hex(),
            }
        found.append(entry)
    return found
