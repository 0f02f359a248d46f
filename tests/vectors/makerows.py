"""Makes index.json: rows of the index and bodies of ledgers that have fixed fields, as storaged
writes them, and each cut. FORMAT.md §7, §7.1. Part of tests.vectors.makekeys.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from spanvault import messages as m
from spanvault.messages.erasing import DayKey, ErasedRecording, Erasure, IngestKey
from storaged.format import keypage, ledger
from storaged.format.ledger import Entry, Place, Placed, Seal, Target
from storaged.index import callrows, erasures, ingestkeys, labels, ledgerheads, toldkeys
from storaged.index import rows as tables
from storaged.index.environment import Index
from storaged.index.ingestkeys import Holder
from storaged.index.labels import DAY_NS, Labels
from storaged.index.rows import KEYS_CHANGED, Reach, State
from storaged.index.view import View
from storaged.index.writing import Writing
from storaged.recordings import sorting
from tests.support.vault import START, call_id, make_call
from tests.vectors.make import INDEX_KEY, KEY_ID, RECORDING, STORE_ID

Kept = dict[str, tuple[bytes, bytes]]  # by table a row
DAY: Final = START // DAY_NS
DIGEST: Final = bytes(range(32))
PAGE: Final = b"core/page-000001.2"
ERASED, MOVED = bytes(range(16)), bytes(range(16, 32))
REACH: Final = Reach(5000, 104, 9, 2, ((1, START), (32769, START - 5)))
INGEST_ID: Final = "0123456789abcdef"
FILE: Final = "20231114-000001.svl"
BEFORE: Final = "20231113-000000.svl"
CALL: Final = make_call(1, expires_ns=-5, streams=[
    m.Stream(1, "caller", "audio", 7, "", "", {}, stored_in=call_id(2), stored_as=3)
])  # fmt: skip
ROOT: Final = keypage.ROOT_MAGIC + bytes(60)
# Those that have a length of their own for the product, too: with one byte less it refuses them.
FIXED: Final = ("state", "open", "time", "day", "entry sealed", "entry placed", "entry day's key")
NO_LONGER: Final = ("meta told",)  # or takes them for none


def _erasure(id_: bytes, call: bytes, moved_to: str) -> Erasure:
    erased = ErasedRecording(call, "base", [KEY_ID], 0, "")
    return Erasure(id_, START, "", "", [erased], moved_to=moved_to,
                   day_keys=[DayKey("core", KEY_ID + 1)],
                   ingest_keys=[IngestKey("core", INGEST_ID)])  # fmt: skip


def _put(writing: Writing) -> None:
    ring: Any = SimpleNamespace(index_key=INDEX_KEY, dek=lambda _: DIGEST)
    state = State(KEY_ID, 1234, DIGEST, -1, 2, 7, 3, 20_000)
    writing.put_state(RECORDING, state._replace(key_id=9))
    writing.put_state(RECORDING, state)
    labels.put_key_ids(writing, DAY, 1, [KEY_ID + 1, KEY_ID])
    other = make_call(1, started_ns=START - DAY_NS)
    callrows.put_record(writing, Labels(1, ring), CALL, b"sealed", other)
    writing.put_committed([(RECORDING, REACH)])
    writing.put_placed(call_id(4), 2, 3)
    writing.take_capture("Zürich")
    ingestkeys.put_holder(writing, Holder.of("Zürich", "capture z"), frozenset({INGEST_ID}))
    sorting._put_followers(writing, [(call_id(2), 2)])
    erasures.begin(writing, _erasure(ERASED, call_id(3), ""))
    erasures.begin(writing, _erasure(MOVED, call_id(2), "core"))
    writing.put_ledger(1, Place(BEFORE, 700))
    writing.put_ledger(1, Place(FILE, 5000))
    writing.set_number(tables.reserved(2), 8192)
    writing.announce(KEYS_CHANGED, PAGE)


def _rows() -> Kept:
    """The last row of each table."""
    with tempfile.TemporaryDirectory() as folder:
        index = Index(Path(folder))
        index.write(_put)
        (Path(folder) / "root").write_bytes(ROOT + hashlib.sha256(ROOT).digest())
        toldkeys.announce(index, Path(folder), ["core/root"])
        ledgerheads.keep(index, f"core/{FILE}", ledger.head(STORE_ID, 1, b"s" * 16))
        with index.reading() as view:
            kept = dict(_last_rows(view))
        index.close()
    return kept


def _last_rows(view: View) -> Iterator[tuple[str, tuple[bytes, bytes]]]:
    for name in SAID:
        table, _, what = name.partition(" ")
        if table != "entry":
            found = [(bytes(key), bytes(value)) for key, value in view.cursor(table.encode())]
            first = {"meta": f"{what or 'reserved'}/", "fed": "kcore/page"}.get(table, "")
            yield name, [row for row in found if row[0].startswith(first.encode())][-1]


def _entries() -> Kept:
    entries = {
        "sealed": Entry(ledger.SEALED, RECORDING, Seal(KEY_ID, 1234, DIGEST).serialize()),
        "target": Entry(ledger.TARGET, bytes(16), Target("Zürich".encode(), b"\x80").serialize()),
        "placed": Entry(ledger.PLACED, call_id(4),
                        Placed(2, (RECORDING, call_id(2))).serialize()),
        "day's key": ledger.DayKey(-3, KEY_ID).entry(),
    }  # fmt: skip
    return {f"entry {kind}": (entry.id, entry.body) for kind, entry in entries.items()}


SAID: Final[dict[str, dict[str, Any]]] = {
    "state": {"call": RECORDING.hex(), "key id": 4103, "size": 1234, "sha256": DIGEST.hex(),
              "revision": -1, "tier": 2, "bits": 7, "capture": 3, "closed": 20_000},
    "open": {"call": RECORDING.hex(), "bytes": 5000, "header": 104, "sequence": 9, "segments": 2,
             "latest": [list(one) for one in REACH.latest]},
    "time": {"started": CALL.started_ns, "call": CALL.id.hex(), "duration": 60_000,
             "outcome": 0, "final": 1},
    "feed": {"position": 3, "kind": "k", "what": b"core/root".hex()},
    "fed": {"kind": "k", "what": PAGE.hex(), "position": 2},
    "label": {"tier": 1, "key id": 4104, "started": CALL.started_ns, "call": CALL.id.hex()},
    "day": {"day": 19_675, "tier": 1, "key ids": [4104, 4103]},
    "strayed": {"call": CALL.id.hex(), "day": 19_674, "tier": 1},
    "due": {"tier": 1, "key id": 4104, "erasure": MOVED.hex()},
    "spooled": {"tier": 1, "key id": INGEST_ID, "erasure": MOVED.hex()},
    "holds": {"daemon": hashlib.sha256(b"capture z").hexdigest()[:32], "capture": "Zürich",
              "known": 1, "keys": INGEST_ID},
    "placed": {"call": call_id(4).hex(), "tier": 2, "capture": 3},
    "shared": {"recording": call_id(2).hex(), "call": CALL.id.hex()},
    "former": {"call": RECORDING.hex(), "key id": 9},
    "follow": {"recording": call_id(2).hex(), "tier": 2},
    "expires": {"expires": -5, "call": CALL.id.hex()},
    "erased": {"call": call_id(3).hex(), "erasure": ERASED.hex()},
    "moved": {"call": call_id(2).hex(), "erasure": MOVED.hex()},
    "unfinished": {"at": int.from_bytes(MOVED[:8])},
    "capture": {"name": "Zürich", "number": 1},
    "meta": {"name": "reserved/2", "number": 8192},
    "meta told": {"name": "told/core/root", "sha256": hashlib.sha256(ROOT + hashlib.sha256(ROOT)
                  .digest()).hexdigest(), "size": 100, "position": 3},
    "meta ledger": {"name": "ledger/1", "bytes": 5000, "file": FILE},
    "meta ledgerhead": {"name": f"ledgerhead/core/{FILE}",
                        "head": ledger.head(STORE_ID, 1, b"s" * 16).hex()},
    "meta ledgersize": {"name": f"ledgersize/core/{BEFORE}", "bytes": 700},
    "entry sealed": {"recording": RECORDING.hex(), "key id": 4103, "size": 1234,
                     "sha256": DIGEST.hex()},
    "entry target": {"name": "Zürich", "row": "80"},
    "entry placed": {"call": call_id(4).hex(), "tier": 2,
                     "recordings": [RECORDING.hex(), call_id(2).hex()]},
    "entry day's key": {"day": -3, "key id": 4103},
}  # fmt: skip


def index_rows() -> list[dict[str, Any]]:
    """The vectors: each row, and what it says; cut, its fault."""
    kept, vectors = _rows() | _entries(), []
    for name, said in SAID.items():
        key, value = kept[name]
        about = {"table": name, "key": key.hex()}
        if name == "label":  # what it is made of: labels.json
            said = said | {"label": key[8:].hex()}
        vectors.append({"name": name, "error": "", **about, "row": value.hex(), "says": said})
        if name in FIXED + NO_LONGER:
            short = value[:-1].hex()
            vectors.append({"name": f"{name}, cut", "error": "length", **about, "row": short})
    return vectors
