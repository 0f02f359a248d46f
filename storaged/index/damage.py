"""Which recordings, key files, ledgers and records are known to be damaged: a row each, told once.

Nothing else is changed by it: what still opens of a damaged recording is given out as before.
FORMAT.md §7. Who finds damage: storaged.integrity.scrub, storaged.integrity.keycheck,
storaged.integrity.ledgercheck, storaged.integrity.recordcheck. Who finds that it is gone: a Verify
as well.
"""

import logging
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from storaged.index.environment import Index
from storaged.index.rows import State, damaged, decode
from storaged.index.view import View
from storaged.index.writing import Writing

log = logging.getLogger(__name__)
TOLD: Final = 20  # ids in a status
_FAULTS_KEPT: Final = 5
REMEDY: Final = "it is restored from a replica if one has it: see spanvault repair"


class Files(NamedTuple):
    """A kind of thing with a name that may be damaged.

    form: of its names.  field: of the journal, for its name.
    """

    table: bytes
    form: re.Pattern[str]
    field: str
    damaged: str
    whole: str
    remedy: str


KEYS: Final = Files(
    b"damagedkey",
    re.compile(r"([a-z]+/)?(root|page-[0-9]{6,}\.[0-9]+)"),
    "KEY_FILE",
    "A key file is damaged",
    "A damaged key file is whole again, or gone",
    "it is restored from a replica if one has it: see spanvault repair --all. If none has the root "
    "of a locked pool: put it there from a backup of keys, if nothing was erased since, or restore "
    "the store",
)
LEDGERS: Final = Files(
    b"damagedledger",
    re.compile(r"[a-z]+/[0-9]{8}-[0-9]{6}\.svl"),
    "LEDGER",
    "A ledger is damaged",
    "A damaged ledger is whole again, or gone",
    "nothing is missing while the index is there: keep it, and do not run spanvault reindex. What "
    "the file held is written anew by itself, or at once: spanvault verify --all. Look after the "
    "disk",
)
RECORDS: Final = Files(  # a record's name is its call's id in hex
    b"damagedrecord",
    re.compile(r"[0-9a-f]{32}"),
    "RECORDING_ID",
    "A call record is damaged",
    "A damaged call record is whole again, or gone",
    "neither its recording nor the ledger has it; it comes back from a replica if one has it: see "
    "spanvault repair. Look after this store's medium",
)


class Damage(msgspec.Struct, frozen=True):
    """What was found first of a damaged recording."""

    found_ns: int
    faults: list[str]


_damage: Final = msgspec.msgpack.Decoder(Damage)
_UNKNOWN: Final = "it was found damaged; what was found cannot be read any more"


def note(
    index: Index, recording_id: bytes, state: State, faults: list[str], now_ns: int
) -> bool:  # fmt: skip
    """Remember that a recording is damaged; say so in the journal if that is new.

    state: its row when it was read. False, and nothing is noted, if it has changed or gone since.
    Raises lmdb.Error, OSError.
    """

    def put(writing: Writing) -> tuple[bool, bool]:
        if writing.state(recording_id) != state:
            return False, False
        if writing.get(b"damaged", recording_id) is not None:
            return True, False
        found = Damage(now_ns, faults[:_FAULTS_KEPT])
        writing.put(b"damaged", recording_id, msgspec.msgpack.encode(found))
        return True, True

    with index.reading() as view:  # a write costs a sync: not for what is known already
        if view.state(recording_id) == state and known(view, recording_id):
            return True
    is_so, is_new = index.write(put)
    if is_new:
        log.error(
            "A recording is damaged",
            extra={"RECORDING_ID": recording_id.hex(), "FAULT": faults[0], "REMEDY": REMEDY},
        )
    return is_so


def clear(index: Index, recording_id: bytes) -> None:
    """A recording was found whole. Raises lmdb.Error, OSError."""
    with index.reading() as view:
        if not known(view, recording_id):
            return
    index.write(lambda writing: writing.delete(b"damaged", recording_id))
    log.info("A damaged recording is whole again", extra={"RECORDING_ID": recording_id.hex()})


def known(view: View, recording_id: bytes) -> bool:
    """Whether it is known to be damaged."""
    return view.get(b"damaged", recording_id) is not None


def told(view: View) -> list[str]:
    """Ids of damaged recordings, the oldest calls first, TOLD at most."""
    ids = []
    for key in view.cursor(b"damaged").iternext(values=False):
        ids.append(bytes(key).hex())
        if len(ids) == TOLD:
            break
    return ids


def note_file(
    index: Index, kind: Files, name: str, fault: str, now_ns: int,
    stands: Callable[[View], bool] = lambda _: True,
) -> None:  # fmt: skip
    """Remember that a file is damaged, by its name; say so if that is new.

    stands: whether it still is what was read. Raises lmdb.Error, OSError.
    """
    with index.reading() as view:
        if files_known(view, kind, name) is not None:
            return
    found = msgspec.msgpack.encode(Damage(now_ns, [fault]))

    def put(writing: Writing) -> bool:
        if so := stands(writing):
            writing.put(kind.table, name.encode(), found)
        return so

    if index.write(put):
        log.error(kind.damaged, extra={kind.field: name, "FAULT": fault, "REMEDY": kind.remedy})


def clear_file(
    index: Index, kind: Files, name: str, announced: tuple[bytes, bytes] | None = None,
    stands: Callable[[View], bool] = lambda _: True,
) -> None:  # fmt: skip
    """A file was found whole, or is needed no more. Raises lmdb.Error, OSError.

    announced: the change (kind, what) that replicas were not fed while it was damaged: they are
    told of it again in the same transaction. stands: whether it still is what was read.
    """
    with index.reading() as view:
        if files_known(view, kind, name) is None:
            return

    def remove(writing: Writing) -> bool:
        if files_known(writing, kind, name) is None or not stands(writing):
            return False
        writing.delete(kind.table, name.encode())
        if announced is not None:
            writing.announce(*announced)
        return True

    if index.write(remove):
        log.info(kind.whole, extra={kind.field: name})


def files_known(view: View, kind: Files, name: str) -> Damage | None:
    """What was found of a file; None if it is not known to be damaged."""
    value = view.get(kind.table, name.encode())
    return None if value is None else found_in(view, kind.table, value)


def found_in(view: View, table: bytes, value: bytes) -> Damage:
    """What a row of such a table says; of one that cannot be read, that something is damaged."""
    with view.passing():
        return decode(_damage, table, value)
    return Damage(0, [_UNKNOWN])


def files(view: View, kind: Files) -> Iterator[tuple[str, Damage]]:
    """Files of a kind that are known to be damaged, by name."""
    for name, value in view.cursor(kind.table):
        with view.passing():
            yield name_of(kind, kind.table, bytes(name)), found_in(view, kind.table, value)


def name_of(kind: Files, table: bytes, name: bytes) -> str:
    """The name of such a thing as a row of a table has it. Raises DamagedRow: it is none."""
    text = name.decode("latin-1")
    if not kind.form.fullmatch(text):
        raise damaged(table, "no name of such a thing")
    return text


def told_files(view: View, kind: Files, most: int | None = None) -> list[str]:
    """Their names, or so many of them."""
    return [name for name, _ in islice(files(view, kind), most)]
