"""A store of ten million calls, made as fast as its index can be written: for bench/vault.

Each call has what storaged's own transactions would have left of it, by the same code: its record
sealed under its own DEK, its rows in `state`, `time`, `label` (both numbers, the Call-ID), `feed`,
`fed`, and the receipt of a copy; each day has its key. They are gathered instead of written one by
one, and appended in the order of their keys, so that pages are full; where recording wrote them as
it came they are two thirds full. One call lies three seconds behind the other: a year. Every tenth
goes to one hotline, the others to 20,000 lines; callers are a million numbers. No objects
are there.
"""

import hashlib
import json
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import lmdb
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from spanvault import messages as m
from spanvault.keys import keyfile
from storaged import files
from storaged.format import keypage, record
from storaged.format.keypage import DEK_BYTES, PAGE_KEY, SLOTS, Name
from storaged.index import callrows, labels
from storaged.index.environment import Index
from storaged.index.rows import FINAL, MULTIPLE, OBJECT, SEALED, State, reserved, time_key
from storaged.index.writing import Writing
from storaged.keys import keyring, pagefiles
from tests.support.vault import SECOND, START

OBJECT_BYTES: Final = 64 << 10
APART_NS: Final = 3 * SECOND
HOTLINE: Final = "+4930555000"
TARGET: Final = "copies"
_COMMIT: Final = 16  # key pages of calls a transaction
_MAP_BYTES: Final = 64 << 30
_CODECS: Final = {8: m.Codec("PCMA", 8000), 101: m.Codec("telephone-event", 8000)}
_TOKENS: Final = (
    b"tokens"  # not a table: day and token, time key, of which rows of `label` are made
)
_LATE: Final = {_TOKENS: (20, 24), b"fed": (17, 8)}  # sorted at the end: bytes of key and value


class Rows(Writing):
    """Takes the rows that storaged would write, of calls that nothing is known of yet."""

    def __init__(self, position: int) -> None:
        super().__init__(None, {})
        self.by_table: defaultdict[bytes, list[tuple[bytes, bytes]]] = defaultdict(list)
        self._position = position

    def get(self, _table: bytes, _key: bytes) -> bytes | None:
        return None

    def put(self, table: bytes, key: bytes, value: bytes) -> None:
        self.by_table[table].append((key, value))

    def delete(self, _table: bytes, _key: bytes, _value: bytes = b"") -> None:
        """There is nothing yet that could go."""

    def number(self, _name: bytes) -> int:
        return self._position

    def set_number(self, _name: bytes, number: int) -> None:
        self._position = number


class Tokens:
    """In place of labels.Labels: notes what search rows there are to be."""

    def __init__(self, index_key: bytes) -> None:
        self._index_key = index_key

    def lead(self, rows: Writing, call: m.Call, _: m.Call | None) -> None:
        day = labels.day_of(call.started_ns).to_bytes(4, "big")
        for token in record.tokens(self._index_key, call):
            rows.put(_TOKENS, day + token, time_key(call.started_ns, call.id))


class Page(NamedTuple):
    """A key page whose slots are to be used by calls."""

    number: int
    calls: int
    deks: bytes
    index_key: bytes


def call_of(number: int) -> m.Call:
    """One of the calls. Its id begins with its time, as captures make them."""
    started_ns = START + number * APART_NS
    return m.Call(
        id=started_ns.to_bytes(8) + hashlib.sha256(number.to_bytes(8)).digest()[:8],
        capture="bench", call_ids=[f"{number * 2654435761 % (1 << 32):08x}-{number}@pbx.example"],
        caller=caller_of(number), callee=callee_of(number), started_ns=started_ns,
        answered_ns=started_ns + 2 * SECOND, ended_ns=started_ns + 62 * SECOND,
        outcome="answered", end_reason="bye", final=True, revision=1,
        streams=[_stream(0, "caller", number), _stream(1, "callee", number)],
    )  # fmt: skip


def caller_of(number: int) -> str:
    return f"+49170{number * 7919 % 1_000_000:07d}"


def callee_of(number: int) -> str:
    return HOTLINE if number % 10 == 0 else f"+4930{number * 104729 % 20_000:07d}"


def _stream(number: int, party: m.Party, call: int) -> m.Stream:
    first_ns = START + call * APART_NS
    return m.Stream(
        number, party, "audio", 0x1000 + call + number, f"10.1.0.{call % 250}:40000",
        f"10.2.0.{call % 250}:40002", _CODECS, {8: 3000}, first_ns, first_ns + 60 * SECOND, 3000,
        jitter=12.5,
    )  # fmt: skip


def rows_of(page: Page) -> dict[bytes, Any]:
    """All rows of a page's calls by table; of tables in another order than calls, joined bytes."""
    first = page.number * SLOTS
    rows, nonces = Rows(2 * first), os.urandom(12 * page.calls)
    tokens: Any = Tokens(page.index_key)
    copied = m.Receipt(b"", TARGET, OBJECT_BYTES, bytes(32).hex(), START)
    for slot in range(page.calls):
        call, dek = call_of(first + slot), page.deks[slot * DEK_BYTES : (slot + 1) * DEK_BYTES]
        sealed = record.seal_call(call, first + slot, dek, nonces[12 * slot : 12 * slot + 12])
        callrows.put_record(rows, tokens, call, sealed, None)
        digest = bytes.fromhex(copied.sha256)
        bits = FINAL | OBJECT | SEALED
        rows.put_state(call.id, State(first + slot, OBJECT_BYTES, digest, 1, 0, bits))
        rows.announce(b"o", call.id)
        copied.id = call.id
        rows.put_receipt(copied)
    return {
        table: b"".join(map(b"".join, found)) if table in _LATE else found
        for table, found in rows.by_table.items()
    }


class Made(NamedTuple):
    """What there is. seconds: that making it took."""

    calls: int
    seconds: float


def make(store: Path, unlock_key: Path, calls: int) -> Made:
    """Fill a new store with calls, unless it is there with as many."""
    note = store.parent / "made.json"
    if note.exists() and (made := Made(*json.loads(note.read_text()))).calls == calls:
        return made
    begun = time.monotonic()
    private = keyfile.load(unlock_key)
    index_key = keyring.Keyring(store / "keys", private).index_key
    Index(store / "index").close()
    env = lmdb.open(str(store / "index"), map_size=_MAP_BYTES, max_dbs=32, sync=False, mode=0o600)
    _fill(env, _make_pages(store, private, calls, index_key), calls)
    env.sync(True)
    env.close()
    made = Made(calls, time.monotonic() - begun)
    note.write_text(json.dumps(made))
    return made


def _make_pages(store: Path, private: bytes, calls: int, index_key: bytes) -> Iterator[Page]:
    """Key pages, sealed under keys of their own; at the end the root that names them all."""
    root = keypage.open_root((store / "keys" / "root").read_bytes(), private)
    secrets = dict(root.secrets)
    for page in range(-(-calls // SLOTS) + 1):  # the last one is the days'
        key = secrets[Name(PAGE_KEY, page)] = os.urandom(32)
        deks = os.urandom(SLOTS * DEK_BYTES)
        data = keypage.seal_page(page, 0, 0, root.store_id, deks, key, os.urandom(12))
        (store / "keys" / pagefiles.page_name(page, 0)).write_bytes(data)
        yield Page(page, max(0, min(SLOTS, calls - page * SLOTS)), deks, index_key)
    nonces = [os.urandom(12) for _ in secrets]
    data = keypage.serialize_root(
        root.store_id, 1, 0, os.urandom(32), root.recipients, secrets, nonces
    )
    files.replace(store / "keys" / "root", data)


def _fill(env: Any, pages: Iterator[Page], calls: int) -> None:
    """Append all rows, on as many processors as there are."""
    last = b""  # the DEKs of the last page, for days
    late: dict[bytes, list[bytes]] = {table: [] for table in _LATE}
    with multiprocessing.Pool() as pool:
        some = list(islice(pages, _COMMIT))
        ahead = pool.map_async(rows_of, some)
        while group := ahead.get():
            last, some = some[-1].deks, list(islice(pages, _COMMIT))
            ahead = pool.map_async(rows_of, some)
            with env.begin(write=True) as txn:
                for table, rows in (item for each in group for item in each.items()):
                    if table in late:
                        late[table].append(rows)
                    else:
                        _append(env, txn, table, rows)
    pages_of_calls = -(-calls // SLOTS)
    _put_days(env, b"".join(late.pop(_TOKENS)), last, pages_of_calls * SLOTS)
    for table, parts in late.items():
        for rows in _sorted(b"".join(parts), *_LATE[table]):
            with env.begin(write=True) as txn:
                _append(env, txn, table, rows)
    with env.begin(write=True) as txn:
        reach = (pages_of_calls + 1) * SLOTS
        for name, number in ((b"position", 2 * calls), (reserved(0), reach)):
            txn.put(name, number.to_bytes(8, "little"), db=env.open_db(b"meta", txn))


def _put_days(env: Any, tokens: bytes, deks: bytes, first: int) -> None:
    """Search rows of all days. deks: of the slots from `first` on, one a day."""
    rows = (row for some in _sorted(tokens, *_LATE[_TOKENS]) for row in some)
    for number, (day, its) in enumerate(groupby(rows, lambda row: row[0][:4])):
        cipher = Cipher(algorithms.AES(labels.label_key(deks[32 * number :][:32])), modes.ECB())
        blocks, values = [], []
        for token, chain in groupby(its, lambda row: row[0][4:]):
            for at, (_, value) in enumerate(chain):
                block = (int.from_bytes(token, "big") + at) % (1 << 128)
                blocks.append(block.to_bytes(16, "big"))
                values.append(value)
        made, head = cipher.encryptor().update(b"".join(blocks)), labels.slot(0, first + number)
        found = [(head + made[16 * at : 16 * at + 16], value) for at, value in enumerate(values)]
        with env.begin(write=True) as txn:
            _append(env, txn, b"label", sorted(found))
            key = (int.from_bytes(day, "big") + (1 << 31)).to_bytes(4, "big") + b"\0"
            txn.put(key, (first + number).to_bytes(8, "big"), db=env.open_db(b"day", txn))


def _append(env: Any, txn: Any, table: bytes, rows: list[tuple[bytes, bytes]]) -> None:
    many = table in MULTIPLE
    opened = env.open_db(table, txn, dupsort=many, dupfixed=many)
    txn.cursor(db=opened).putmulti(rows, append=True)


def _sorted(data: bytes, key: int, value: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """Rows in the order of their keys, and of their values by time, some at a time."""
    rows = np.frombuffer(data, np.uint8).reshape(-1, key + value)
    order = np.lexsort(_columns(rows, key)[::-1])
    for at in range(0, len(order), 1 << 19):
        part = rows[order[at : at + (1 << 19)]].tobytes()
        yield [
            (part[row : row + key], part[row + key : row + key + value])
            for row in range(0, len(part), key + value)
        ]


def _columns(rows: NDArray[np.uint8], key: int) -> list[NDArray[np.uint64]]:
    """Keys as 64-bit numbers, the most significant first."""
    padded = np.zeros((len(rows), -(-key // 8) * 8), np.uint8)
    padded[:, :key] = rows[:, :key]
    return [padded.view(">u8")[:, at].astype(np.uint64) for at in range(padded.shape[1] // 8)]
