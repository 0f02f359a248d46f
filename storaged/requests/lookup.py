"""Calls that are asked for: found by number, time or id; their records and media.

Which calls a search means: storaged.index.search. Media: storaged.recordings.reading.
"""

import logging

import msgspec

from spanvault import messages as m
from spanvault.daemon.rules import POOLS
from spanvault.media.chunk import Media
from storaged.erasing import certifying
from storaged.faults import Fault
from storaged.format import record
from storaged.format.walk import Steps
from storaged.index.environment import Index
from storaged.index.rows import SEALED
from storaged.index.search import MAX_ROWS, STEP_ROWS, search
from storaged.index.view import View
from storaged.pools.vaults import Vaults
from storaged.recordings.reading import Reader
from storaged.requests.subjects import SEVERAL_MAX

log = logging.getLogger(__name__)


class Lookup:
    """Looks calls up. For the thread of requests."""

    def __init__(self, index: Index, vaults: Vaults, reader: Reader) -> None:
        self._index, self._vaults, self._reader = index, vaults, reader

    def searching(self, request: m.Search) -> Steps[m.SearchReply]:
        """A page, some rows of it at a time: a view that is held long would fill the index."""
        calls: list[m.Call] = []
        cursor, left = request.cursor, MAX_ROWS
        while True:
            pools = [vault.labels for vault in self._vaults if not vault.locked]
            more = msgspec.structs.replace(request, cursor=cursor, limit=request.limit - len(calls))
            with self._index.reading() as view:
                # What was erased since it was found is not given out.
                calls = [call for call in calls if view.erased(call.id) is None]
                found, cursor = search(view, more, pools, self._open_call, STEP_ROWS)
            calls += found
            left -= STEP_ROWS
            if cursor is None or len(calls) >= request.limit or left <= 0:
                break
            yield
        found = [_without_keys(call) for call in calls]
        return m.SearchReply(found, cursor, self._vaults.locked)

    def several(self, request: m.Several) -> m.SearchReply:
        """The calls of some ids, those that there are. Raises Fault."""
        if len(request.ids) > SEVERAL_MAX:
            raise Fault("invalid", f"{len(request.ids)} ids", f"Ask for {SEVERAL_MAX} at most.")
        with self._index.reading() as view:
            there = [one for one in request.ids if view.get(b"record", one[:16]) is not None]
            calls = [self._open_call(view, one) for one in there]
        found = [_without_keys(call) for call in calls if call is not None]
        return m.SearchReply(found, None, self._vaults.locked)

    def get(self, request: m.Get) -> m.GetReply:
        """A call, where it lies, and its copies. Raises Fault."""
        with self._index.reading() as view:
            call, state = self._call(view, request.id), view.state(request.id)
            committed, receipts = view.committed(request.id) or 0, view.receipts(request.id)
        assert state is not None
        sealed = bool(state.bits & SEALED)
        size = state.size if sealed else committed
        pool = POOLS[state.tier]
        return m.GetReply(_without_keys(call), sealed, size, pool, receipts)

    def fetching(self, request: m.Fetch) -> Steps[tuple[m.FetchReply, Media | None]]:
        """A page of a recording's media. Raises Fault."""
        with self._index.reading() as view:
            call = self._call(view, request.id)
        page = yield from self._reader.fetching(
            call, request.cursor, digits=request.digits, from_ns=request.from_ns
        )
        keys = [] if request.cursor else call.keys
        return m.FetchReply(page.cursor, page.damaged, keys), page.media

    def _call(self, view: View, call_id: bytes) -> m.Call:
        """A call that must be there. Raises Fault."""
        sealed = view.get(b"record", call_id) if len(call_id) == 16 else None
        state = view.state(call_id) if sealed is not None else None
        if sealed is None or state is None:
            if len(call_id) == 16 and view.erased(call_id):
                raise certifying.explain(certifying.erasure_of(view, call_id))
            tier = view.placed(call_id) if len(call_id) == 16 else None
            if tier is not None:
                self._waiting(tier)
            raise Fault("not_found", "there is no call of this id", "Ids are listed by a search.")
        try:
            dek = self._vaults.of(state.tier).dek(record.parse_head(sealed).key_id)
            return record.open_call(call_id, sealed, dek)
        except ValueError as error:
            raise Fault("corrupt", str(error), "Bring it back: spanvault verify --all") from None

    def _waiting(self, tier: int) -> None:
        """Raise Fault for a call that lies in a pool's intake."""
        vault = self._vaults.of(tier)
        vault.require_open()
        hint = "Try again in a moment." if not vault.fault else vault.fault
        raise Fault("unavailable", f"the call is still being taken into pool {vault.name}", hint)

    def _open_call(self, view: View, call_id: bytes) -> m.Call | None:
        """A call for a search; one that cannot be opened is left out, and said so in the log."""
        try:
            state = view.state(call_id)
            if state is not None and self._vaults.of(state.tier).locked:
                return None
            return self._call(view, call_id)
        except Fault as fault:
            log.error("A call record cannot be opened",
                      extra={"RECORDING_ID": call_id.hex(), "FAULT": fault.error})  # fmt: skip
            return None


def _without_keys(call: m.Call) -> m.Call:
    """What opens the media is given with the media alone."""
    return msgspec.structs.replace(call, keys=[], heard_by="")
