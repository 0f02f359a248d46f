"""Search rows: which calls a number or a Call-ID had on a day, under a key of that day and pool.

The calls of a token under a key are a chain, number 0, 1, 2 … without a gap; each has a row of its
own, whose label is AES(key of the day, token + number), and which is never another call's. So rows
tell nobody without the key that two calls share a number, and once an erasure has destroyed the
day's key, a row that lies on in LMDB's free pages is noise, also beside its neighbours. The
construction is Π_bas of Cash et al., "Dynamic Searchable Encryption in Very-Large Databases" (NDSS
2014), with a permutation, so that a day is brought under another key without opening a record.
FORMAT.md §6. When that is done: storaged.erasing.converting.
"""

import contextlib
import hmac
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from spanvault.messages import Call
from storaged.faults import Fault
from storaged.format import record
from storaged.index.rows import damaged, time_key, unpack
from storaged.index.view import View
from storaged.index.writing import Writing
from storaged.keys.keyring import Keyring

DAY_NS: Final = 86_400 * 10**9
SLOT_BYTES: Final = 8  # of a key in the table: tier u8, key id u56
_DAY: Final = struct.Struct(">IB")  # day + 2³¹, tier
_KEY_ID: Final = struct.Struct(">Q")
_EPOCH: Final = 1 << 31
_BLOCK: Final = 16
_RING: Final = 1 << 128  # numbers are added to tokens modulo this
_LONG: Final = 8  # rows of a chain whose end is worth remembering
_ENDS: Final = 50_000  # remembered, some 200 bytes each
_AT_ONCE: Final = 512  # rows of a chain looked for together
_CIPHERS: Final = 8192  # day keys at hand, about 1 KiB each


class _Ciphers(NamedTuple):
    encrypt: Any  # bytes of whole blocks → as many
    decrypt: Any


class Days(NamedTuple):
    """A day of a pool that has calls. key_ids: of its keys, the one for new rows first."""

    day: int  # since 1970-01-01 UTC
    tier: int
    key_ids: tuple[int, ...]


class _Found(NamedTuple):
    """What a token was found to lead to on a day: the pages of a search ask for it again."""

    token: bytes
    key_ids: tuple[int, ...]
    lengths: list[int]  # of the chains under them; they only grow, or lose their last rows for good
    keys: list[bytes]


def day_of(time_ns: int) -> int:
    """The UTC day of a moment, counted from 1970-01-01."""
    return time_ns // DAY_NS


def slot(tier: int, key_id: int) -> bytes:
    """What the rows under a key begin with. SLOT_BYTES bytes."""
    return bytes((tier,)) + key_id.to_bytes(SLOT_BYTES - 1, "big")


def parse_slot(data: bytes) -> tuple[int, int]:
    """Tier and key id."""
    return data[0], int.from_bytes(data[1:SLOT_BYTES], "big")


def parse_day(key: bytes) -> tuple[int, int]:
    """Day and tier of a key of the table. Raises Fault."""
    number, tier = unpack(_DAY, b"day", key)
    return number - _EPOCH, tier


def key_ids(view: View, day: int, tier: int) -> tuple[int, ...]:
    """The keys of a day, the one for new rows first; none if it has no rows."""
    return _parse_ids(view.get(b"day", _day_key(day, tier)) or b"")


def _newest(view: View, day: int, tier: int) -> tuple[int, ...]:
    """The key of a day for new rows, if it has one."""
    return _ids_in(view, view.get(b"day", _day_key(day, tier)) or b"")[:1]


def put_key_ids(writing: Writing, day: int, tier: int, ids: Iterable[int]) -> None:
    """Set the keys of a day."""
    writing.put(b"day", _day_key(day, tier), b"".join(map(_KEY_ID.pack, ids)))


def remove_key_id(writing: Writing, day: int, tier: int, key_id: int) -> None:
    """Take a key from a day, once it is destroyed: until then an erasure has to wait for it."""
    ids = key_ids(writing, day, tier)
    put_key_ids(writing, day, tier, [one for one in ids if one != key_id])


def days(view: View, newest: int = _EPOCH - 1, oldest: int = -_EPOCH) -> Iterator[Days]:
    """The days between two, both included, newest first; of one day the highest tier first."""
    cursor = view.cursor(b"day")
    more = cursor.set_range(_DAY.pack(min(newest, _EPOCH - 2) + 1 + _EPOCH, 0))
    more = cursor.prev() if more else cursor.last()
    while more:
        with view.passing():
            number, tier = parse_day(bytes(cursor.key()))
            if number < oldest:
                return
            yield Days(number, tier, _ids_in(view, bytes(cursor.value())))
        more = cursor.prev()


def days_of(view: View, call_id: bytes, start_ns: int) -> set[int]:
    """The days under whose keys rows of a call lie, or lay before its record said otherwise."""
    cursor = view.cursor(b"strayed")
    strayed = cursor.iternext_dup() if cursor.set_key(call_id) else []
    return {day_of(start_ns), *(unpack(_DAY, b"strayed", each)[0] - _EPOCH for each in strayed)}


class Labels:
    """The search rows of one pool that is open. For one thread."""

    def __init__(self, tier: int, ring: Keyring) -> None:
        self.tier, self.ring = tier, ring
        self._at_hand: OrderedDict[int, _Ciphers] = OrderedDict()
        self._ends: OrderedDict[bytes, int] = OrderedDict()  # by token, of its day of late
        self._found: _Found | None = None

    def token(self, kind: bytes, text: str) -> bytes:
        """What a number or Call-ID is in this pool. kind: record.NUMBER or record.CALL_ID."""
        return record.token(self.ring.index_key, kind, text)

    def missing(self, view: View, calls: Iterable[Call]) -> set[int]:
        """The days of these calls that have no key yet, or none that opens."""
        wanted = {day_of(call.started_ns) for call in calls}
        return {day for day in wanted if not self._opened(_newest(view, day, self.tier))}

    def begin(self, writing: Writing, fresh: Mapping[int, int]) -> None:
        """Give days a key for new rows.

        What their rows say stays behind it also where it is no key ids: an erasure must see that.
        """
        for day, key_id in fresh.items():
            key = _day_key(day, self.tier)
            writing.put(b"day", key, _KEY_ID.pack(key_id) + (writing.get(b"day", key) or b""))

    def lead(self, writing: Writing, call: Call, old: Call | None) -> None:
        """Set the rows that lead to a call, besides those of its old record.

        Those stay, and a search sees by the record that they are not meant: a row that another
        took the place of would tell that the two share a number.
        """
        wanted = record.tokens(self.ring.index_key, call)
        day = day_of(call.started_ns)
        if old is not None and old.started_ns == call.started_ns:
            wanted -= record.tokens(self.ring.index_key, old)
        elif old is not None and day_of(old.started_ns) != day:
            place = _DAY.pack(day_of(old.started_ns) + _EPOCH, self.tier)
            writing.put(b"strayed", call.id, place)
        if not wanted:
            return
        key, (newest,) = time_key(call.started_ns, call.id), _newest(writing, day, self.tier)
        for token in wanted:
            chain = self._chain(writing, newest, token)
            self._note_end(token, chain.append(writing, [key], self._ends.get(token, 0)))

    def find(self, view: View, token: bytes, ids: tuple[int, ...]) -> list[bytes]:
        """The time keys of a token's calls on a day with these keys, oldest first."""
        ids = tuple(self._opened(ids))
        chains, known = [self._chain(view, one, token) for one in ids], self._found
        if known is not None and (known.token, known.key_ids) == (token, ids):
            as_then = zip(chains, known.lengths, strict=True)
            if all(chain.length(length) == length for chain, length in as_then):
                return known.keys
        values = [chain.values() for chain in chains]
        keys = sorted({key for each in values for key in each})
        self._found = _Found(token, ids, [len(each) for each in values], keys)
        return keys

    def forget(self, gone: Iterable[int]) -> None:
        """Keep nothing of keys that were destroyed."""
        self._found = None
        for key_id in gone:
            self._at_hand.pop(key_id, None)

    def ciphers(self, key_id: int) -> _Ciphers:
        """AES under a day's key. Raises Fault."""
        found = self._at_hand.get(key_id)
        if found is None:
            found = self._at_hand[key_id] = ciphers_of(self.ring.dek(key_id))
            if len(self._at_hand) > _CIPHERS:
                self._at_hand.popitem(last=False)
        return found

    def _chain(self, view: View, key_id: int, first: bytes) -> "_Chain":
        return _Chain(view, slot(self.tier, key_id), self.ciphers(key_id).encrypt, first)

    def _opened(self, ids: Iterable[int]) -> list[int]:
        """Those of some keys that open: one key page that is damaged must not stop recording."""
        opened = []
        for one in ids:
            with contextlib.suppress(Fault):  # told of when the key is to go
                self.ciphers(one)
                opened.append(one)
        return opened

    def _note_end(self, token: bytes, length: int) -> None:
        """Remember how long a chain is, if it is long: its end is looked for there first."""
        if length < _LONG:
            return
        self._ends.pop(token, None)
        self._ends[token] = length
        if len(self._ends) > _ENDS:
            self._ends.popitem(last=False)


class _Chain:
    """A token's rows under one key of a day. head: what they begin with; first: the token."""

    def __init__(
        self, view: View, head: bytes, encrypt: Callable[[bytes], bytes], first: bytes
    ) -> None:
        self._view, self._head, self._encrypt, self.first = view, head, encrypt, first
        self._first = int.from_bytes(first, "big")

    def append(self, writing: Writing, values: Sequence[bytes], perhaps: int = 0) -> int:
        """Add rows. perhaps: how many there are. Gives how many there are then."""
        if not values:
            return 0
        behind = self.length(perhaps)
        there = range(behind, behind + len(values))
        for key, value in zip(self._keys(there), values, strict=True):
            writing.put(b"label", key, value)
        return there.stop

    def values(self) -> list[bytes]:
        """Those of all rows: looked for one, then 8, then 64 … at a time."""
        values, size = list[bytes](), 1
        while True:
            wanted = range(len(values), len(values) + size)
            for key in self._keys(wanted):
                if (value := self._view.get(b"label", key)) is None:
                    return values
                values.append(value)
            size = min(8 * size, _AT_ONCE)

    def length(self, perhaps: int = 0) -> int:
        """How many rows there are: looked for in steps that double, then halve."""
        if perhaps and self._has(perhaps - 1) and not self._has(perhaps):
            return perhaps
        behind = 1
        while self._has(behind - 1):
            behind *= 2
        there = behind // 2  # so many there are, and fewer than `behind`
        while there + 1 < behind:
            middle = (there + behind) // 2
            if self._has(middle - 1):
                there = middle
            else:
                behind = middle
        return there

    def _has(self, number: int) -> bool:
        (key,) = self._keys(range(number, number + 1))
        return self._view.get(b"label", key) is not None

    def _keys(self, numbers: range) -> list[bytes]:
        blocks = b"".join(
            ((self._first + number) % _RING).to_bytes(_BLOCK, "big") for number in numbers
        )
        labels = self._encrypt(blocks)
        return [self._head + labels[at : at + _BLOCK] for at in range(0, len(labels), _BLOCK)]


def label_key(dek: bytes) -> bytes:
    """The AES-256 key of a day: HKDF-Expand (RFC 5869) of what is in its slot."""
    return hmac.digest(dek, b"spanvault label/1\x01", "sha256")


def started_ns(key: bytes) -> int:
    """The start of the call that a time key is of."""
    return int.from_bytes(key[:8], "big") - (1 << 63)


def day_in(key: bytes) -> int:
    """The day of a time key."""
    return day_of(started_ns(key))


def ciphers_of(dek: bytes) -> _Ciphers:
    """AES under the key of a day; for one thread. dek: what is in its slot."""
    # Single blocks that never repeat: a permutation of 128 bits, not a mode for text.
    cipher = Cipher(algorithms.AES(label_key(dek)), modes.ECB())  # noqa: S305
    return _Ciphers(cipher.encryptor().update, cipher.decryptor().update)


def _day_key(day: int, tier: int) -> bytes:
    return _DAY.pack(day + _EPOCH, tier)


def _ids_in(view: View, value: bytes) -> tuple[int, ...]:
    """Those of a day's row that can be read: enough to find rows by, or to put new ones under."""
    with view.passing():
        return _parse_ids(value)
    return _parse_ids(value[: len(value) // _KEY_ID.size * _KEY_ID.size])


def _parse_ids(value: bytes) -> tuple[int, ...]:
    if len(value) % _KEY_ID.size:
        raise damaged(b"day", f"{len(value)} bytes of keys")
    return tuple(one for (one,) in _KEY_ID.iter_unpack(value))
