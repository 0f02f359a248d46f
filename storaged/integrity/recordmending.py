"""A damaged call record that lies nowhere else in the store comes back from a replica's bundle.

Targets are asked for what the feed said of the call at its last position. What comes counts only if
it opens as this call's, under a key that the index names for it, and is of the revision that the
index names: the tag proves who sealed it, so nobody need be trusted, and an older record, or one of
an erased call, never takes its place. Nobody can tell of a locked pool's. FORMAT.md §9. Which are
damaged: storaged.integrity.recordcheck. Whom it is asked of: storaged.integrity.mending.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Final

from spanvault import messages as m
from spanvault.daemon.rules import POOLS
from storaged.faults import Fault
from storaged.index import damage
from storaged.index.environment import Index
from storaged.index.rows import POSITION, RECORD_CHANGED, unpack
from storaged.index.view import View
from storaged.integrity import recordcheck
from storaged.pools.vaults import Vaults

MOST: Final = 1000  # asked for at a time: they are looked through each second
PREFIX: Final = b"records/"  # and a call's id in hex: stands where recordings have an id


def key_of(call_id: bytes) -> bytes:
    """What a damaged record is known by among all that is asked back."""
    return PREFIX + call_id.hex().encode()


def wanted(view: View, vaults: Vaults) -> Iterator[tuple[bytes, tuple[m.Change, str]]]:
    """Damaged records of open pools as targets are asked for them, and what is wrong with each."""
    for name, found in islice(damage.files(view, damage.RECORDS), MOST):
        call_id = bytes.fromhex(name)
        state, fed = view.readable_state(call_id), view.get(b"fed", RECORD_CHANGED + call_id)
        if state is None or fed is None or _locked(vaults, state.tier):
            continue
        with view.passing():
            position = unpack(POSITION, b"fed", fed)[0]
            change = m.Change(position, "record", call_id, POOLS[state.tier])
            yield key_of(call_id), (change, found.faults[0])


def put_back(index: Index, vaults: Vaults, given: m.Return, sealed: bytes) -> None:
    """Put a replica's record in place. Raises Fault: damaged, another, not wanted; lmdb.Error."""
    call_id = given.change.id
    with index.reading() as view:
        state, row = view.state(call_id), view.get(b"record", call_id)
        if state is None:
            raise Fault("not_found", "the call has gone meanwhile")
        vault = vaults.of(state.tier)
        if vault.locked:
            raise Fault("locked", "its pool is locked", "Unlock it: only its keys can check it.")
        try:
            recordcheck.check(view, vault, call_id, sealed, state)
        except ValueError as error:
            raise Fault("corrupt", f"its copy does not open: {error}") from None
        known = damage.files_known(view, damage.RECORDS, call_id.hex())
    fault = known.faults[0] if known else "it was asked back"
    one = recordcheck.Record(call_id, state, row, fault)
    if not recordcheck.put(index, one, sealed, given.target):
        raise Fault("not_found", "the record has changed meanwhile")


def _locked(vaults: Vaults, tier: int) -> bool:
    try:
        return vaults.of(tier).locked
    except Fault:
        return True  # its pool is not set up here
