"""A day's search rows as they should be: made from the records of its calls, under a new key.

Where rows of a day are missing or lead elsewhere (LMDB has no checksums: a medium may change them)
its chains cannot be told any more: a row may be added at the end alone (FORMAT.md §6). So the day
comes under another key, as behind an erasure; but what its rows are is taken from the records,
which authenticate. A share of the tokens of a day with very many rows comes at a time. Who finds
such a day: storaged.integrity.labelcheck. Who carries it out: storaged.erasing.converting.
"""

from collections.abc import Iterator
from typing import Final

from storaged.faults import Fault
from storaged.format import record
from storaged.format.walk import Steps
from storaged.index import labels, relabelling
from storaged.index.environment import Index
from storaged.index.labels import DAY_NS
from storaged.index.relabelling import MOST, Cipher
from storaged.index.rows import time_key
from storaged.index.view import View
from storaged.pools.vaults import Vault

ROWS: Final = 200  # calls looked at in one view
_A_CALL: Final = 4  # rows that a call is reckoned to have
_TIMES: Final = range(-(1 << 63), 1 << 63)


class Relisting:
    """Makes the rows of a pool's calls of a day, as Relabelling. rows: about how many."""

    def __init__(self, index: Index, vault: Vault, day: int) -> None:
        self._index, self._vault, self._day = index, vault, day
        self.rows = 0

    def counting(self) -> Steps[None]:
        """Count the day's calls. Raises lmdb.Error."""
        for some in keys_of_day(self._index, self._day):
            self.rows += _A_CALL * len(some)
            yield

    def writing(self, target: int, encrypt: Cipher, dead: set[bytes]) -> Steps[None]:
        """Write their rows, some calls or rows at a time. Raises Fault, lmdb.Error, OSError.

        target, encrypt: key id, and what encrypts its labels.  dead: ids of calls that have none.
        """
        head, shares = labels.slot(self._vault.tier, target), max(1, -(-self.rows // MOST))
        for share in range(shares):
            found = set[bytes]()
            for some in keys_of_day(self._index, self._day):
                with self._index.reading() as view:
                    for key in some:
                        if key[-16:] not in dead:
                            found |= pairs_of(view, self._vault, key, share, shares)
                yield
            rows = relabelling.listed(found, head, encrypt)
            yield from relabelling.put(self._index, rows)


def pairs_of(
    view: View, vault: Vault, key: bytes, share: int = 0, shares: int = 1
) -> set[bytes]:  # fmt: skip
    """Token and time key of each search row of a call, 40 bytes, of a share of all tokens.

    None if the call is another pool's, its record does not open, or it began at another time.
    Raises Fault: locked.
    """
    call_id, ring = key[-16:], vault.keyring
    try:
        state, sealed = view.state(call_id), view.get(b"record", call_id)
        if state is None or sealed is None or state.tier != vault.tier:
            return set()
        call = record.open_call(call_id, sealed, ring.dek(record.parse_head(sealed).key_id))
    except (ValueError, Fault):
        return set()
    if time_key(call.started_ns, call.id) != key:
        return set()
    return {
        token + key for token in record.tokens(ring.index_key, call)
        if shares == 1 or int.from_bytes(token[:4], "big") * shares >> 32 == share
    }  # fmt: skip


def keys_of_day(index: Index, day: int) -> Iterator[list[bytes]]:
    """The time keys of a day's calls, of all pools, some at a time."""
    first, behind = day * DAY_NS, (day + 1) * DAY_NS
    at = time_key(max(first, _TIMES.start), bytes(16))
    end = time_key(behind, bytes(16)) if behind in _TIMES else b"\xff" * 25
    while at:
        found: list[bytes] = []
        with index.reading() as view:
            cursor = view.cursor(b"time")
            more = cursor.set_range(at)
            while more and len(found) < ROWS and (key := bytes(cursor.key())) < end:
                found.append(key)
                more = cursor.next()
        if found:
            yield found
        at = found[-1] + b"\0" if len(found) == ROWS else b""
