"""What replicators say they did: places that are fed, copies made, erasures followed.

A place belongs to the replicator that first asked the feed for it: no other may speak for it, so
one that is taken over cannot let an erasure count as followed where it never was. What a place says
of an erasure must be signed, always with the key that it signed with first. FORMAT.md §7, §12.
"""

import contextlib
from collections.abc import Callable
from typing import Final

import lmdb
import msgspec

from spanvault import certificate
from spanvault.messages import ErasureReceipt, Feed, Receipt
from spanvault.transport import Identity
from storaged.faults import Fault
from storaged.format.ledger import TARGET, Entry, Target
from storaged.index import erasures
from storaged.index.environment import Index
from storaged.index.rows import SEALED, decode
from storaged.index.view import View
from storaged.index.writing import Writing
from storaged.pools.layout import Store
from storaged.pools.vaults import Vault

_encode: Final = msgspec.msgpack.Encoder().encode


class Place(msgspec.Struct, frozen=True):
    """A row of table `target`. owner: identity of its replicator.  signer: Ed25519, once known.

    noted: base's ledger has it, too; it cannot while base is locked.
    """

    owner: str = ""
    signer: bytes = b""
    noted: bool = False


_place: Final = msgspec.msgpack.Decoder(Place)


def place_of(view: View, name: str) -> Place | None:
    """Whose a place is; None if the feed was never asked for it."""
    row = view.get(b"target", name.encode())
    return None if row is None else decode(_place, b"target", row) if row else Place()


class Receipts:
    """Takes note of places and receipts. For the thread of requests."""

    def __init__(
        self, store: Store, index: Index, base: Vault, clock_ns: Callable[[], int]
    ) -> None:
        self._store, self._index, self._base, self._clock_ns = store, index, base, clock_ns
        self._met: set[tuple[str, str]] = set()

    def meet(self, who: Identity, request: Feed) -> None:
        """Remember each place that the feed is copied to: what it holds must be erased there.

        Raises Fault: the place is another replicator's.
        """
        name, owner = request.target or str(who), str(who)
        if who.role != "replicator" or (name, owner) in self._met:
            return
        _check_name(name)
        with self._index.reading() as view:
            place = place_of(view, name)
        if place is not None:
            _check_owner(who, name, place)
        if place is None or not place.owner or not (place.noted or self._base.locked):
            signer = place.signer if place else b""
            with contextlib.suppress(OSError, lmdb.Error):  # tried again with its next question
                self._put(name, Place(owner, signer))
        if self._base.locked:
            return  # until it is noted
        self._met.add((name, owner))

    def check(self, who: Identity, name: str) -> None:
        """Raise Fault unless this client may speak for a place."""
        _check_name(name)
        with self._index.reading() as view:
            _check_owner(who, name, place_of(view, name))

    def copied(self, who: Identity, receipt: Receipt) -> None:
        """A copy was made. Raises Fault: of nothing, of something else, or by somebody else."""
        _check_name(receipt.target)
        with self._index.reading() as view:
            state, place = view.state(receipt.id), place_of(view, receipt.target)
        if state is None or not state.bits & SEALED:
            raise Fault("not_found", "there is no sealed recording of this id")
        _check_owner(who, receipt.target, place)
        if (receipt.size, receipt.sha256) != (state.size, state.sha256.hex()):
            raise Fault("invalid", "the copy is not of the recording as it is now", "Copy it anew.")
        self._index.write(lambda writing: writing.put_receipt(receipt))

    def erased(self, who: Identity, receipt: ErasureReceipt) -> None:
        """A place followed an erasure. Raises Fault: as copied(), or its signature is not its."""
        _check_name(receipt.target)
        with self._index.reading() as view:
            if len(receipt.erasure) != 16 or erasures.find(view, receipt.erasure) is None:
                raise Fault("not_found", "there was no such erasure")
            place = place_of(view, receipt.target)
        owned = _check_owner(who, receipt.target, place)
        facts = certificate.receipt_facts(self._store.store_id.hex(), receipt)
        if not certificate.is_signed(
            certificate.RECEIPT, facts, receipt.signer, receipt.signature
        ) or owned.signer not in (b"", receipt.signer):
            raise Fault(
                "denied",
                f"the receipt is not signed with the key of target {receipt.target}",
                "Its replicator lost its state_dir? Put the signing key back, or give the target "
                "a new name.",
            )

        if not owned.signer:
            self._put(receipt.target, Place(owned.owner, receipt.signer))
        self._index.write(lambda writing: erasures.confirm(writing, receipt))

    def _put(self, name: str, place: Place) -> None:
        """Set a place's row, here and in base's ledger, if that is open. Raises OSError."""
        if self._base.locked:
            self._index.write(lambda writing: _put_place(writing, name, place))
            return
        place = msgspec.structs.replace(place, noted=True)
        target = Target(name.encode(), _encode(place))
        entry = Entry(TARGET, bytes(16), target.serialize())
        with self._base.noting([entry], self._clock_ns()) as reach:

            def put(writing: Writing) -> None:
                writing.put_ledger(self._base.tier, reach)
                _put_place(writing, name, place)

            self._index.write(put)


def _put_place(writing: Writing, name: str, place: Place) -> None:
    writing.put(b"target", name.encode(), _encode(place))


def _check_owner(who: Identity, name: str, place: Place | None) -> Place:
    """The place, if this client may speak for it. Raises Fault."""
    if place is None:
        raise Fault("not_found", f"the feed was never asked for a target {name}", "Ask it first.")
    if place.owner not in ("", str(who)):
        raise Fault(
            "denied",
            f"target {name} is {place.owner}'s",
            "Each replicator's targets need names of their own; a replicator that is set up anew "
            "needs a certificate of the same name.",
        )
    return place


def _check_name(name: str) -> None:
    if not name or len(name.encode()) > erasures.TARGET_BYTES:
        raise Fault("invalid", "a target's name has 1 to 200 bytes", "Use a shorter one.")
