"""Tells the replicas how far the access log is, signed, so that nobody can write it anew unseen.

Whoever has root here can change the log and sign it again; he cannot change what lies at the
targets. A head is told of at most so often, and only if something was heard, searched or erased,
or keys were changed since. The check: spanvault.logchain. The feed: storaged.index.
"""

import logging
from collections.abc import Callable
from typing import Final

import lmdb
import msgspec

from spanvault import certificate, logchain
from spanvault.logchain import Head
from storaged.faults import Fault
from storaged.index import rows as tables
from storaged.index.environment import Index
from storaged.index.view import View
from storaged.index.writing import Writing
from storaged.keys.keyring import Keyring
from storaged.pools.layout import Store
from storaged.pools.vaults import Vault
from storaged.requests.accesslog import AccessLog

log = logging.getLogger(__name__)
EVERY_NS: Final = 60_000_000_000
NAME: Final = b"access"  # of the row in `meta`, and in the feed
_encode: Final = msgspec.msgpack.Encoder().encode
_head: Final = msgspec.msgpack.Decoder(Head)


def known(view: View) -> Head | None:
    """The head that was told of last; None in a store that told of none, or cannot read it."""
    row = view.get(b"meta", NAME)
    with view.passing():
        return None if row is None else tables.decode(_head, b"meta", row)
    return None


class Witness:
    """Signs heads and puts them into the feed. For the thread of requests."""

    def __init__(
        self, access: AccessLog, index: Index, store: Store, base: Vault,
        clock_ns: Callable[[], int],
    ) -> None:  # fmt: skip
        self._access, self._index, self._store, self._base = access, index, store, base
        self._clock_ns, self._told_ns = clock_ns, 0

    def tick(self, *, now: bool = False) -> None:
        """Tell of the log's head if it is time. While base is locked nobody can sign: later."""
        at_ns = self._clock_ns()
        due = now or not 0 <= at_ns - self._told_ns < EVERY_NS
        if not due or not self._access.untold:
            return
        try:
            self._tell(at_ns, self._base.keyring)
        except Fault:
            return
        except (OSError, lmdb.Error) as error:
            log.error("Replicas cannot be told of the access log", extra={"FAULT": str(error)})
        self._told_ns = at_ns

    def _tell(self, at_ns: int, ring: Keyring) -> None:
        self._access.sync()
        head = Head(self._store.store_id.hex(), at_ns, *self._access.head)
        signer, signature = certificate.sign(logchain.HEAD, head.facts(), ring.signing_key)
        signed = msgspec.structs.replace(head, signer=signer, signature=signature)

        def tell(writing: Writing) -> None:
            writing.put(b"meta", NAME, _encode(signed))
            writing.announce(tables.LOG_HEAD, NAME)

        self._index.write(tell)
        self._access.untold = False
