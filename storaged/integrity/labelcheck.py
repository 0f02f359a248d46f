"""Search rows are held against the records of a day's calls: each must lead where it should.

All rows of a day are read under its keys and told apart into chains; what the records want and no
chain has was lost, or is hidden behind a gap. Nothing can be put back into a chain (FORMAT.md §6),
so the day is noted to come under another key, with rows made from the records
(storaged.erasing.relisting). A key is only given up if it is the day's for sure: the ledger says
so, or rows that were wanted lie under it. So a row of `day` that was changed never costs the key
of a recording. Rows of `time` that belong to no call are removed. When it runs:
storaged.integrity.rowsweep.
"""

import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Final, NamedTuple

from spanvault.daemon.rules import POOLS
from storaged.erasing.relisting import keys_of_day, pairs_of
from storaged.faults import Fault
from storaged.format import ledger
from storaged.format.ledger import DayKey, Place
from storaged.index import erasures, labels, relabelling
from storaged.index.environment import Index
from storaged.index.labels import SLOT_BYTES
from storaged.index.relabelling import MOST, Source
from storaged.index.rows import TIME_KEY_BYTES
from storaged.index.view import View
from storaged.index.writing import Writing
from storaged.integrity.rowcheck import COST
from storaged.pools import ledgerfile
from storaged.pools.vaults import Vault, Vaults

log = logging.getLogger(__name__)
_BLOCK: Final = 16
_A_CALL: Final = 4  # rows that a call is reckoned to have
_ROW: Final = 128  # bytes that reading a search row counts as
_STEP: Final = 1 << 20  # bytes of a ledger that are read before others get their turn


class _Day(NamedTuple):
    """What was found of a day of a pool. real: keys that rows which are wanted lie under."""

    key_ids: tuple[int, ...]
    missing: int
    real: set[int]


class LabelCheck:
    """Checks days of all pools that are open. For one thread.

    clock_ns: since 1970.  mended: days since the start.
    """

    def __init__(self, index: Index, vaults: Vaults, clock_ns: Callable[[], int]) -> None:
        self._index, self._vaults, self._clock_ns = index, vaults, clock_ns
        self._named: dict[int, dict[int, list[int]]] = {}  # by tier and day, as ledgers say
        self.mended = 0

    def forget(self) -> None:
        """Of ledgers nothing is known any more."""
        self._named = {}

    def checking(self, day: int) -> Iterator[int]:
        """Check a day; gives what it cost, in bytes read. Raises OSError, lmdb.Error."""
        for vault in self._vaults:
            try:
                yield from self._checking(vault, day)
            except Fault as fault:
                if not vault.locked:
                    log.error("The search rows of a day cannot be checked",
                              extra={"POOL": vault.name, "FAULT": fault.error})  # fmt: skip

    def _checking(self, vault: Vault, day: int) -> Iterator[int]:
        found = yield from self._look(vault, day)
        if found is None or not found.missing:
            return
        # What came while it was looked at may be among them.
        found = yield from self._look(vault, day)
        if found is None or not found.missing:
            return
        named = yield from self._named_keys(vault, day)
        self._mend(vault, day, found, named)

    def _look(self, vault: Vault, day: int) -> Generator[int, None, _Day | None]:
        """How many rows of a day are missing; None if nobody can tell now."""
        if vault.locked:
            return None
        before = self._keys(vault, day)
        if before is None:
            return None
        shares, share, missing, real = 1, 0, 0, set[int]()
        while share < shares:
            count, wanted = 0, set[bytes]()
            for some in keys_of_day(self._index, day):
                count += len(some)
                with self._index.reading() as view:
                    for key in some:
                        wanted |= pairs_of(view, vault, key, share, shares)
                yield COST * len(some)
                if shares == 1 and count * _A_CALL > MOST:
                    shares = -1
                    break
            if shares < 0:
                shares = yield from self._shares(day)
                continue
            for key_id in before:
                there = yield from self._pairs(vault, key_id, share, shares)
                if wanted & there:
                    real.add(key_id)
                    wanted -= there
            missing, share = missing + len(wanted), share + 1
        return _Day(before, missing, real) if self._keys(vault, day) == before else None

    def _shares(self, day: int) -> Generator[int, None, int]:
        """In how many parts a day with very many calls is looked at."""
        count = 0
        for some in keys_of_day(self._index, day):
            count += len(some)
            yield _ROW * len(some)
        return max(2, -(-count * _A_CALL // MOST))

    def _keys(self, vault: Vault, day: int) -> tuple[int, ...] | None:
        """The keys of a day; None while its rows are being brought under another."""
        with self._index.reading() as view:
            try:
                ids = labels.key_ids(view, day, vault.tier)
            except Fault:
                return ()
            due = erasures.due(view).keys() | erasures.spent(view)
        return None if any((vault.tier, one) in due for one in ids) else ids

    def _pairs(
        self, vault: Vault, key_id: int, share: int, shares: int
    ) -> Generator[int, None, set[bytes]]:
        """Token and time key of the rows under a key; of one that does not open there are none."""
        try:
            decrypt = labels.ciphers_of(vault.dek(key_id)).decrypt
        except Fault:
            vault.require_open()
            return set()
        blocks, values = [], []
        for rows in relabelling.rows_under(self._index, vault.tier, key_id):
            whole = [row for row in rows if _is_whole(*row)]
            plain = decrypt(b"".join(key[SLOT_BYTES:] for key, _ in whole))
            for number, (_, value) in enumerate(whole):
                block = plain[_BLOCK * number : _BLOCK * (number + 1)]
                if shares == 1 or int.from_bytes(block[:4], "big") * shares >> 32 == share:
                    blocks.append(block)
                    values.append(value)
            yield _ROW * len(rows)
        return relabelling.pairs(Source(b"".join(blocks), b"".join(values)))

    # --- what is done ----------------------------------------------------------------------------

    def _mend(self, vault: Vault, day: int, found: _Day, named: list[int]) -> None:
        """Note that a day's rows must be made anew; first its keys, if they are not its."""
        with vault.held:
            if self._keys(vault, day) != found.key_ids:
                return
            real = [one for one in found.key_ids if one in found.real or one in named]
            if named and named[-1] not in real and _opens(vault, named[-1]):
                real.insert(0, named[-1])  # `day` had lost it
            entries = []
            if not real:
                real = [vault.take_key(self._index)]
                entries = [DayKey(day, real[0]).entry()]

            def put(writing: Writing, place: Place | None) -> None:
                writing.put_ledger(vault.tier, place)
                labels.put_key_ids(writing, day, vault.tier, real)
                for one in real:
                    erasures.put_anew(writing, vault.tier, one)

            if entries:
                with vault.noting(entries, self._clock_ns()) as place:
                    self._index.write(lambda writing: put(writing, place))
            else:
                self._index.write(lambda writing: put(writing, None))
        self.mended += 1
        log.warning(
            "Search rows of a day were not what its calls' records say: they are made anew",
            extra={"POOL": vault.name, "DAY": day, "MISSING": found.missing},
        )

    def _named_keys(self, vault: Vault, day: int) -> Generator[int, None, list[int]]:
        """The keys of a day that the pool's ledger has named, the last one last."""
        if vault.tier not in self._named:
            found = dict[int, list[int]]()
            ring = vault.keyring
            for path in vault.pool.ledger.files():
                taken = 0
                for each in ledgerfile.walk(path, ring.store_id, vault.tier, ring.ledger_key):
                    if each.entry is not None and each.entry.kind == ledger.DAY_KEY:
                        given = DayKey.parse(each.entry.body)
                        found.setdefault(given.day, []).append(given.key_id)
                    if each.offset - taken >= _STEP:
                        yield each.offset - taken
                        taken = each.offset
            self._named[vault.tier] = found
        return self._named[vault.tier].get(day, [])

    # --- days that have no calls, and keys that no day has ---------------------------------------

    def strays(self) -> Iterator[int]:
        """Take keys from days that are none of theirs: without rows, or another day's.

        Raises OSError, lmdb.Error.
        """
        with self._index.reading() as view:
            listed = _listed(view)
            due = erasures.due(view).keys() | erasures.spent(view)
            days = Counter(one for key, value in listed for one in _keys_in(key, value))
            doubtful = [
                (key, key_id) for key, value in listed for tier, key_id in _keys_in(key, value)
                if (tier, key_id) not in due
                and (days[tier, key_id] > 1 or not relabelling.has_rows(view, tier, key_id))
            ]  # fmt: skip
        self.forget()  # a day that began since has its key in the ledger before it is in `day`
        yield _ROW * len(listed)
        for key, key_id in doubtful:
            yield from self._stray(key, key_id)

    def _stray(self, row: bytes, key_id: int) -> Iterator[int]:
        """Take a key from a day, unless the pool's ledger says that it is the day's."""
        day, tier = labels.parse_day(row)
        if tier < len(POOLS) and self._vaults.has(POOLS[tier]):
            vault = self._vaults.of(tier)
            if vault.locked:
                return
            if key_id in (yield from self._named_keys(vault, day)):
                return
            with vault.held:
                self._index.write(partial(_take, row=row, key_id=key_id))
        else:  # nobody writes under it
            self._index.write(partial(_take, row=row, key_id=key_id))
        log.warning("A key that is none of its was taken from a day", extra={"DAY": day})

    def orphans(self) -> Iterator[int]:
        """Give rows back to the day whose key they lie under; remove those under no day's key.

        A row under a key that no day has would outlive every erasure. Raises OSError, lmdb.Error.
        """
        at = b""
        while True:
            with self._index.reading() as view:
                cursor = view.cursor(b"label")
                if not cursor.set_range(at):
                    return
                slot = bytes(cursor.key())[:SLOT_BYTES]
                tier, key_id = labels.parse_slot(slot.ljust(SLOT_BYTES, b"\0"))
                known = (tier, key_id) in _of_days(view)
            yield _ROW
            if not known:
                yield from self._orphan(tier, key_id)
            if not (at := _behind(slot)):
                return

    def _orphan(self, tier: int, key_id: int) -> Iterator[int]:
        if tier >= len(POOLS) or not self._vaults.has(POOLS[tier]):
            yield from self._remove(tier, key_id)  # whoever sets the pool up has them made anew
            return
        vault = self._vaults.of(tier)
        if vault.locked:
            return
        yield from self._named_keys(vault, 0)
        days = [day for day, ids in self._named[tier].items() if key_id in ids]
        with vault.held:
            if days and _opens(vault, key_id):
                self._index.write(partial(_give_back, day=days[-1], tier=tier, key_id=key_id))
                log.warning("A day has the key of its search rows again",
                            extra={"POOL": vault.name, "DAY": days[-1]})  # fmt: skip
                return
        yield from self._remove(tier, key_id)

    def _remove(self, tier: int, key_id: int) -> Iterator[int]:
        with self._index.reading() as view:
            if (tier, key_id) in _of_days(view):
                return
        log.warning("Search rows under the key of no day were removed", extra={"TIER": tier})
        for _ in relabelling.removing(self._index, tier, key_id):
            yield COST


def _give_back(writing: Writing, day: int, tier: int, key_id: int) -> None:
    """The key of a day that `day` had lost: as one more; its rows are made anew."""
    if (tier, key_id) in _of_days(writing):
        return
    try:
        ids = labels.key_ids(writing, day, tier)
    except Fault:
        ids = ()
    if any((tier, one) in erasures.spent(writing) for one in ids):
        return  # the day is being brought under another: the next round sees to it
    labels.put_key_ids(writing, day, tier, [*ids, key_id])
    for one in (*ids, key_id):  # else what is made anew would be there twice
        erasures.put_anew(writing, tier, one)


def _take(writing: Writing, row: bytes, key_id: int) -> None:
    value = writing.get(b"day", row) or b""
    left = [one for _, one in _keys_in(row, value) if one != key_id]
    if left:
        labels.put_key_ids(writing, *labels.parse_day(row), left)
    else:
        writing.delete(b"day", row)


def _listed(view: View) -> list[tuple[bytes, bytes]]:
    """The rows of `day`; what is none of a day is told of, and passed over."""
    found = []
    for key, value in view.cursor(b"day"):
        with view.passing():
            labels.parse_day(bytes(key))
            found.append((bytes(key), bytes(value)))
    return found


def _of_days(view: View) -> set[tuple[int, int]]:
    """Tier and id of all keys that days have."""
    rows = ((bytes(key), bytes(value)) for key, value in view.cursor(b"day"))
    return {one for key, value in rows for one in _keys_in(key, value)}


def _keys_in(key: bytes, value: bytes) -> list[tuple[int, int]]:
    """Tier and id of the keys in a row of `day`, which may have any length."""
    return [
        (key[-1], int.from_bytes(value[at : at + 8], "big")) for at in range(0, len(value) - 7, 8)
    ]


def _opens(vault: Vault, key_id: int) -> bool:
    try:
        vault.dek(key_id)
    except Fault:
        return False
    return True


def _is_whole(key: bytes, value: bytes) -> bool:
    return len(key) == SLOT_BYTES + _BLOCK and len(value) == TIME_KEY_BYTES


def _behind(slot: bytes) -> bytes:
    """Where the rows of the next key may begin; nothing if there is none."""
    number = int.from_bytes(slot, "big") + 1
    return number.to_bytes(len(slot), "big") if number < 1 << 8 * len(slot) else b""
