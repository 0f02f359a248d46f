"""What there is of a call that is to go, and whether it may.

Nothing is changed here. How calls go: storaged.erasing.eraser. How long they have to stay:
storaged.erasing.terms.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence, Set
from datetime import UTC, datetime
from typing import NamedTuple

from spanvault.messages import Call, Copy, Erase, ErasedRecording
from storaged.erasing.terms import Terms
from storaged.faults import Fault
from storaged.format import record
from storaged.format.keypage import DEK_BYTES
from storaged.format.sealing import HEADER_BYTES, Header, SegmentKey
from storaged.index.rows import FINAL, SEALED, State
from storaged.index.view import View
from storaged.pools.vaults import Vault, Vaults


class Doomed(NamedTuple):
    """A call that is to go. call: its record, if it opens."""

    state: State
    call: Call | None
    erased: ErasedRecording


def look_at(view: View, vaults: Vaults, call_id: bytes) -> Doomed:
    """What there is of a call. Raises Fault: nothing."""
    state = view.state(call_id)
    if (waits_for := _waits_for(view, vaults, call_id)) is not None:
        _check_taken(waits_for)
    if state is None:
        raise Fault(
            "not_found",
            f"there is no call {call_id.hex()[:32]}",
            "Nothing was erased: name calls that a search lists.",
        )
    vault = vaults.of(state.tier)
    _check_taken(vault)
    sealed = view.get(b"record", call_id)
    key_ids = {state.key_id, *view.former(call_id)}
    call = None
    if sealed is not None:
        with contextlib.suppress(ValueError):  # damaged
            key_id = record.parse_head(sealed).key_id
            call = record.open_call(call_id, sealed, _dek(vault, key_id))
            key_ids.add(key_id)
    of_files = set(_keys_of_files(vault, call_id, key_ids))
    if call is not None and state.key_id != key_id:
        _check_own(view, state, call, key_id, of_files)
    key_ids |= of_files
    for key_id in key_ids:
        _dek(vault, key_id)
    copies = [Copy(one.target, one.verified_ns) for one in view.receipts(call_id)]
    has_object = bool(state.bits & SEALED)
    return Doomed(state, call, ErasedRecording(
        call_id, vault.name, sorted(key_ids), state.size if has_object else 0,
        state.sha256.hex() if has_object else "", copies,
    ))  # fmt: skip


def sharing(view: View, vaults: Vaults, one: Doomed) -> set[bytes]:
    """The other calls, not erased yet, that have media in common with a call."""
    others = set(view.sharing(one.erased.id))
    if one.call is not None:
        others |= record.recordings_of(one.call)
    return {
        other
        for other in others
        if not view.erased(other)
        and (view.readable_state(other) or _waits_for(view, vaults, other))
    }


def check_ended(doomed: Sequence[Doomed], wanted: Erase) -> None:
    """Raise Fault for a call that may go on."""
    going_on = [one for one in doomed if not one.state.bits & FINAL]
    if going_on and not wanted.unfinished:
        raise Fault(
            "invalid",
            f"call {going_on[0].erased.id.hex()} has not ended ({len(going_on)} such)",
            "Nothing was erased. Wait for the end; or, with --unfinished, erase what there is, and "
            "whatever still comes of it is let go.",
        )


def check_terms(doomed: Sequence[Doomed], by_pool: Mapping[str, Terms], now_ns: int) -> None:
    """Raise Fault for a call that its pool has to keep yet, or of which nobody knows that.

    by_pool: how long its calls have to stay; a pool that is not named has none.
    """
    for one in doomed:
        terms = by_pool.get(one.erased.pool, Terms())
        if not terms.at_least_ns:
            continue
        if one.call is None:
            raise Fault(
                "corrupt",
                f"the record of call {one.erased.id.hex()} is damaged: whether pool "
                f"{one.erased.pool} has to keep it yet cannot be told",
                "Nothing was erased. `spanvault repair` may bring its record back.",
            )
        until_ns = terms.protected_ns(one.call.started_ns)
        if now_ns < until_ns:
            raise Fault(
                "denied",
                f"call {one.erased.id.hex()} has to be kept until {_minute(until_ns)}",
                f"Nothing was erased. keep_at_least_days of pool {one.erased.pool} in "
                "storaged.toml says so.",
            )


def check_terms_kept(
    doomed: Sequence[Doomed], upper: str, by_pool: Mapping[str, Terms], now_ns: int
) -> None:
    """Raise Fault for a call that its pool has to keep yet, and the one above need not so long.

    Else who may not erase it would move it up, and erase it there.
    """
    above = by_pool.get(upper, Terms())
    for one in doomed:
        terms = by_pool.get(one.erased.pool, Terms())
        if terms.at_least_ns <= above.at_least_ns:
            continue
        assert one.call is not None  # what does not open is not moved
        if now_ns < (until_ns := terms.protected_ns(one.call.started_ns)):
            raise Fault(
                "denied",
                f"call {one.erased.id.hex()} has to be kept until {_minute(until_ns)}, and pool "
                f"{upper} does not keep it so long",
                f"Nothing was moved. Give pool {upper} the keep_at_least_days of pool "
                f"{one.erased.pool} in storaged.toml.",
            )


def check_shared(view: View, vaults: Vaults, doomed: Sequence[Doomed], ids: set[bytes]) -> None:
    """Raise Fault if a call outside the batch has media in common with one in it.

    The same sound would stay with the other call, or be taken from it: neither must go unsaid.
    """
    for one in doomed:
        left = sharing(view, vaults, one) - ids
        if left:
            raise Fault(
                "invalid",
                f"call {one.erased.id.hex()} has media in common with {min(left).hex()}",
                "Nothing was erased. Such calls can only go together: name both.",
            )


def _minute(time_ns: int) -> str:
    """A moment, for people."""
    return f"{datetime.fromtimestamp(time_ns / 1e9, UTC):%Y-%m-%d %H:%M} UTC"


def _waits_for(view: View, vaults: Vaults, call_id: bytes) -> Vault | None:
    """The pool whose intake holds all that there is of a call."""
    tier = view.placed(call_id)
    vault = vaults.of(tier) if tier is not None else None
    return vault if vault is not None and len(vault.intake) else None


def _check_taken(vault: Vault) -> None:
    """Raise Fault unless all that came for a pool lies in its recordings: what waits has no DEK."""
    vault.require_open()
    if waiting := len(vault.intake):
        raise Fault(
            "unavailable",
            f"{waiting} batches wait for pool {vault.name}, which may hold something of this call",
            "Nothing was erased. Erase again once `spanvault status` says that none waits.",
        )


def _check_own(view: View, state: State, call: Call, key_id: int, of_files: set[int]) -> None:
    """Raise Fault if a call's row may name the key of another, which would be lost with it.

    key_id: what the record opens with.  of_files: the keys of its files.
    """
    if state.key_id in of_files or key_id in view.former(call.id):
        return  # the record got a key of its own, as that of its recording did not open
    raise Fault(
        "corrupt",
        f"the index names key {state.key_id} for call {call.id.hex()}, neither its record nor its "
        "recording does: it may be another call's",
        "Nothing was erased. The rolling check puts such rows right within scrub_days; at once: "
        "stop storaged, `spanvault reindex`.",
    )


def _keys_of_files(vault: Vault, call_id: bytes, known: Set[int]) -> Iterator[int]:
    """The keys of a call's files: one that was set aside may have another than is known."""
    for path in vault.pool.paths(call_id):
        with contextlib.suppress(ValueError, Fault), path.open("rb") as file:
            header = Header.parse(file.read(HEADER_BYTES))
            made_with = [one for one in known if _was_made_with(vault, header, one)]
            if not made_with:
                _dek(vault, header.key_id)  # a damaged header may name one that never was
            yield from made_with or [header.key_id]


def _was_made_with(vault: Vault, header: Header, key_id: int) -> bool:
    """Whether a key is a header's, whichever that names: that may be damaged, too."""
    try:
        SegmentKey.open(header, _dek(vault, key_id))
    except (ValueError, Fault):
        return False
    return True


def _dek(vault: Vault, key_id: int) -> bytes:
    """A key; zeros if it is destroyed already. Raises Fault: nobody could destroy it."""
    try:
        return vault.dek(key_id)
    except Fault as fault:
        if fault.code != "not_found":
            raise
        return bytes(DEK_BYTES)
