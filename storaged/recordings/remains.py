"""A call whose row in the index cannot be read, as its record and its object still tell.

What comes of such a call must be recorded like any other's, and its row is written anew with it.
Nothing is guessed: what nobody can tell (its capture, when it had its last word) is not known, and
its object goes on as if it had not been sealed. Who asks: storaged.recordings.growing.
"""

import contextlib

from storaged.faults import Fault
from storaged.format import record
from storaged.format.sealing import HEADER_BYTES, Header
from storaged.index.rows import FINAL, OBJECT, State
from storaged.index.view import View
from storaged.keys.keyring import Keyring
from storaged.pools.pool import Pool


def state_of(view: View, ring: Keyring, pool: Pool, call_id: bytes) -> State | None:
    """A row as far as it can be told; None if there is neither a record nor an object."""
    key_id, revision, bits = _by_object(pool, call_id), -1, 0
    if key_id is not None:
        bits |= OBJECT
    sealed = view.get(b"record", call_id)
    if sealed is not None:
        with contextlib.suppress(ValueError, Fault):
            revision, key_id = record.parse_head(sealed)
            bits |= FINAL if record.open_call(call_id, sealed, ring.dek(key_id)).final else 0
    return None if key_id is None else State(key_id, 0, bytes(32), revision, pool.tier, bits)


def reach_of(pool: Pool, call_id: bytes) -> int:
    """Bytes that count of its object, whatever follows: all that opens is kept."""
    path = pool.path(call_id)
    return min(path.stat().st_size, HEADER_BYTES) if path.exists() else 0


def _by_object(pool: Pool, call_id: bytes) -> int | None:
    """The key that its object names."""
    try:
        with pool.reading(call_id, HEADER_BYTES) as data:
            return Header.parse(data[:HEADER_BYTES]).key_id
    except (OSError, ValueError):
        return None
