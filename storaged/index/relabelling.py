"""A day's search rows brought under another key: written in the order of their labels.

Labels are noise: chain by chain, nearly every row would touch a page of the index of its own, and
each transaction write most of a day's pages. So the rows of the old keys are read, put together
again into chains in memory, numbered anew without the erased calls, and written in order; the old
ones are removed in order, once all are there. Of a day with very many rows a share of the tokens
comes at a time. Until all rows are written the chains under the new key have gaps: nobody may read
them as chains, nor add to them (storaged.erasing.converting). What rows are: storaged.index.labels.
FORMAT.md §6, §12.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storaged.format.walk import Steps
from storaged.index import labels
from storaged.index.environment import Index
from storaged.index.labels import SLOT_BYTES
from storaged.index.rows import TIME_KEY_BYTES, damaged
from storaged.index.view import View
from storaged.index.writing import Writing

ROWS: Final = 1 << 15  # of a transaction; some 16 ms
MOST: Final = 1 << 18  # rows at a time in memory, about 200 bytes each
ROW_BYTES: Final = (
    192  # of the medium at most: pages half full, and again what a transaction copies
)
_BLOCK: Final = 16

Cipher = Callable[[bytes], bytes]
U64s = NDArray[np.uint64]


class Source(NamedTuple):
    """Rows under one key. blocks: of each token + number.  values: of each a time key."""

    blocks: bytes
    values: bytes


class _Sorted(NamedTuple):
    """Rows as they are to lie in the table. Joined: keys and values have 24 bytes each."""

    keys: bytes
    values: bytes

    def parts(self, most: int) -> Iterator[list[tuple[bytes, bytes]]]:
        """Rows, some at a time."""
        places = range(0, len(self.keys), TIME_KEY_BYTES)
        for first in range(0, len(places), most):
            yield [
                (self.keys[at : at + TIME_KEY_BYTES], self.values[at : at + TIME_KEY_BYTES])
                for at in places[first : first + most]
            ]


class Relabelling:
    """Brings all rows of some keys under another that has none.

    sources: by key id, what decrypts their labels.  rows: how many there are, once counted.
    """

    def __init__(self, index: Index, tier: int, sources: Mapping[int, Cipher]) -> None:
        self._index, self._tier, self._sources = index, tier, sources
        self.rows = 0

    def counting(self) -> Steps[None]:
        """Read all rows once: what cannot be read is known before anything is begun.

        Raises Fault, lmdb.Error.
        """
        for key_id in self._sources:
            for rows in self._rows(key_id):
                self.rows += len(rows)
                yield

    def writing(self, target: int, encrypt: Cipher, dead: set[bytes]) -> Steps[None]:
        """Write them, a transaction at a time. Raises Fault, lmdb.Error, OSError.

        target, encrypt: key id, and what encrypts its labels.  dead: ids of calls whose rows are
        left out. Nobody may write under any of these keys meanwhile.
        """
        shares = max(1, -(-self.rows // MOST))
        for share in range(shares):
            found = []
            for key_id in self._sources:
                found.append((yield from self._gathering(key_id, share, shares)))
            made = relabelled(found, dead, labels.slot(self._tier, target), encrypt)
            yield
            yield from put(self._index, made)

    def _gathering(self, key_id: int, share: int, shares: int) -> Steps[Source]:
        """The rows of a key whose tokens are of a share of all."""
        blocks, values = [], []
        for rows in self._rows(key_id):
            some = self._sources[key_id](b"".join([key[SLOT_BYTES:] for key, _ in rows]))
            its = b"".join([value for _, value in rows])
            if shares > 1:  # a chain over the border of two is not to be expected: 2⁻⁹⁰
                first = np.frombuffer(some, ">u4")[:: _BLOCK // 4].astype(np.uint64)
                mine = (first * np.uint64(shares)) >> np.uint64(32) == share
                some, its = _rows_of(some, _BLOCK)[mine].tobytes(), _of_values(its)[mine].tobytes()
            blocks.append(some)
            values.append(its)
            yield
        return Source(b"".join(blocks), b"".join(values))

    def _rows(self, key_id: int) -> Iterator[list[tuple[bytes, bytes]]]:
        """The rows under a key, each part in a transaction of its own. Raises Fault."""
        for rows in rows_under(self._index, self._tier, key_id):
            if any(len(key) != SLOT_BYTES + _BLOCK or len(value) != TIME_KEY_BYTES
                   for key, value in rows):  # fmt: skip
                raise damaged(b"label", "a row is not as long as all are")
            yield rows


def removing(index: Index, tier: int, key_id: int) -> Steps[None]:
    """Remove all rows under a key, a transaction at a time. Raises lmdb.Error, OSError."""
    prefix = labels.slot(tier, key_id)
    while index.write(partial(_remove, prefix=prefix)):
        yield


def has_rows(view: View, tier: int, key_id: int) -> bool:
    """Whether there are rows under a key."""
    prefix = labels.slot(tier, key_id)
    return bool(_rows_from(view, prefix, prefix, 1))


def pairs(source: Source) -> set[bytes]:
    """Token and time key, 40 bytes, of each row under a key."""
    if not source.blocks:
        return set()
    its = _chains(source.blocks)
    tokens = its.tokens.astype(">u8").tobytes()
    values = _of_values(source.values)[its.order].tobytes()
    return {
        tokens[_BLOCK * row : _BLOCK * (row + 1)]
        + values[TIME_KEY_BYTES * row : TIME_KEY_BYTES * (row + 1)]
        for row in range(len(its.order))
    }


def listed(found: Iterable[bytes], head: bytes, encrypt: Cipher) -> _Sorted:
    """The rows that lead from tokens to time keys (40 bytes each pair), by time, in order."""
    joined = b"".join(sorted(found))
    if not joined:
        return _Sorted(b"", b"")
    rows = _rows_of(joined, _BLOCK + TIME_KEY_BYTES)
    tokens = _pairs(rows[:, :_BLOCK].tobytes())
    return _in_order(tokens, rows[:, _BLOCK:], head, encrypt)


def rows_under(index: Index, tier: int, key_id: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """The rows under a key, each part in a transaction of its own."""
    prefix = at = labels.slot(tier, key_id)
    while True:
        with index.reading() as view:
            rows = _rows_from(view, prefix, at, ROWS)
        if not rows:
            return
        yield rows
        at = rows[-1][0] + b"\0"


def put(index: Index, rows: "_Sorted") -> Steps[None]:
    """Write rows, a transaction at a time. Raises lmdb.Error, OSError."""
    for some in rows.parts(ROWS):
        index.write(partial(_put, rows=some))
        yield


def relabelled(
    sources: Sequence[Source], dead: set[bytes], head: bytes, encrypt: Cipher
) -> _Sorted:
    """The rows of some keys under one, in order: the chains of a token one behind the other.

    head: what the rows begin with. Chains are numbered anew, without rows of dead calls.
    """
    chains = [_chains(one.blocks) for one in sources if one.blocks]
    if not chains:
        return _Sorted(b"", b"")
    values = np.concatenate([
        _of_values(one.values)[its.order]
        for one, its in zip([one for one in sources if one.blocks], chains, strict=True)
    ])  # fmt: skip
    tokens = np.concatenate([its.tokens for its in chains])
    if dead:
        ids = np.ascontiguousarray(values[:, -16:]).view("S16")[:, 0]
        alive = np.flatnonzero(~np.isin(ids, np.array(sorted(dead), "S16")))
        values, tokens = values[alive], tokens[alive]
    # Stable: what came in order of its source and number stays so within its token.
    order = np.lexsort((tokens[:, 1], tokens[:, 0]))
    return _in_order(tokens[order], values[order], head, encrypt)


def _in_order(tokens: U64s, values: NDArray[np.uint8], head: bytes, encrypt: Cipher) -> _Sorted:
    """Rows of chains, which are side by side, as they are to lie in the table."""
    blocks = _sum(tokens, _numbers_within(tokens))
    made = encrypt(blocks.astype(">u8").tobytes())
    order = np.lexsort(_pairs(made).T[::-1])
    keys = np.empty((len(order), SLOT_BYTES + _BLOCK), np.uint8)
    keys[:, :SLOT_BYTES] = np.frombuffer(head, np.uint8)
    keys[:, SLOT_BYTES:] = _rows_of(made, _BLOCK)[order]
    return _Sorted(keys.tobytes(), values[order].tobytes())


class _Chains(NamedTuple):
    """Rows of one key, chain by chain. order: where each row was.  tokens: u64[n, 2]."""

    order: NDArray[np.intp]
    tokens: U64s


def _chains(blocks: bytes) -> _Chains:
    """Tell chains apart: token + number of the rows of one are consecutive, of two never."""
    pairs = _pairs(blocks)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs = pairs[order]
    follows = (pairs[1:] == _sum(pairs[:-1], np.ones(len(pairs) - 1, np.uint64))).all(axis=1)
    first = np.flatnonzero(np.concatenate(([True], ~follows)))
    lengths = np.diff(np.append(first, len(pairs)))
    return _Chains(order, np.repeat(pairs[first], lengths, axis=0))


def _numbers_within(tokens: U64s) -> U64s:
    """0, 1, 2 … within each run of equal tokens."""
    at = np.arange(len(tokens))
    first = np.concatenate(([True], (tokens[1:] != tokens[:-1]).any(axis=1)))[: len(tokens)]
    return (at - np.maximum.accumulate(np.where(first, at, 0))).astype(np.uint64)


def _sum(pairs: U64s, numbers: U64s) -> U64s:
    """128-bit numbers, high half first, and small ones, modulo 2¹²⁸."""
    low = pairs[:, 1] + numbers
    return np.stack([pairs[:, 0] + (low < pairs[:, 1]), low], axis=1)


def _pairs(blocks: bytes) -> U64s:
    return np.frombuffer(blocks, ">u8").reshape(-1, 2).astype(np.uint64)


def _rows_of(data: bytes, width: int) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8).reshape(-1, width)


def _of_values(data: bytes) -> NDArray[np.uint8]:
    return _rows_of(data, TIME_KEY_BYTES)


def _rows_from(view: View, prefix: bytes, at: bytes, most: int) -> list[tuple[bytes, bytes]]:
    cursor = view.cursor(b"label")
    if not cursor.set_range(at):
        return []
    rows = [(bytes(key), bytes(value)) for key, value in islice(cursor.iternext(), most)]
    while rows and not rows[-1][0].startswith(prefix):
        rows.pop()
    return rows


def _put(writing: Writing, rows: list[tuple[bytes, bytes]]) -> None:
    cursor = writing.cursor(b"label")
    # Behind all others pages become full; else they are split in the middle.
    behind = not cursor.last() or bytes(cursor.key()) < rows[0][0]
    cursor.putmulti(rows, append=behind)


def _remove(writing: Writing, prefix: bytes) -> bool:
    """Remove some rows; whether there may be more."""
    cursor = writing.cursor(b"label")
    if not cursor.set_range(prefix):
        return False
    for _ in range(ROWS):
        if not bytes(cursor.key()).startswith(prefix):
            return False
        cursor.delete()
    return True
