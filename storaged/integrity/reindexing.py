"""`python -m storaged reindex`: the index made anew from what lies on disk.

With the daemon stopped, a new index is made beside the old one, and takes its place by one rename:
a crash at any moment leaves the old one, or the new one whole. An old index that alone has what
the ledgers should is not replaced. The positions of the feed go on behind all that were given out,
so replicas compare what they have with everything. A store of version 2 is of ours then.
FORMAT.md §7.2. Rows of one pool: storaged.integrity.rebuilding.
"""

import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import lmdb

from spanvault.daemon.config import PoolConfig, StoragedConfig
from spanvault.daemon.rules import POOLS, TIERS
from storaged import files
from storaged.faults import Fault
from storaged.format.keypage import SLOTS
from storaged.index import ledgerheads
from storaged.index.environment import Index
from storaged.index.rows import day_of, reserved
from storaged.index.view import View
from storaged.index.writing import Writing
from storaged.integrity import rebuilding
from storaged.integrity.rebuilding import Rebuilder, Report, Tell
from storaged.keys.intakekeys import IntakeKeys
from storaged.keys.keyring import Keyring
from storaged.pools import ledgerfile, opening
from storaged.pools.layout import LEDGERS, Store
from storaged.pools.opening import Opener
from storaged.pools.vaults import BASE, Vaults

log = logging.getLogger(__name__)
DATA: Final = "data.mdb"
LOCK: Final = "lock.mdb"
REPLACED: Final = "replaced.mdb"  # the old index's second name, until it is overwritten
_PAGE: Final = re.compile(r"page-([0-9]{6,})\.[0-9]+")


def reindex(settings: StoragedConfig, tell: Tell, clock_ns: Callable[[], int]) -> Report:
    """Make a store's index anew. Raises Fault, OSError.

    Fault: in use, no store, its keys do not open, its index alone has what would be lost.
    """
    private_key = opening.unlock_key(settings.unlock_key)
    store = Store(settings.store)
    store.open(lambda: opening.recipients_of(settings), make=False, oldest=LEDGERS)
    try:
        clear_replaced(store.index)
        _check_ledgers(settings, store)
        shutil.rmtree(store.index_aside, ignore_errors=True)
        ring = Keyring(store.keys, private_key, slot=opening.slot_of(settings))
        tables = Index(store.index_aside, synced=False)
        try:
            report = _rebuild(settings, store, ring, tables, tell, clock_ns)
            tables.sync()
        finally:
            tables.close()
        _put_in_place(store)
        store.write_format(ring.store_id)
        return report
    finally:
        store.close()


def clear_replaced(folder: Path) -> None:
    """Destroy an index that was replaced: its free pages tell of calls that were erased."""
    replaced, data = folder / REPLACED, folder / DATA
    if replaced.exists() and data.exists() and replaced.samefile(data):
        replaced.unlink()  # the new one is not in place yet: this is the index
    files.destroy(folder, [REPLACED] if folder.exists() else [])


def _check_ledgers(settings: StoragedConfig, store: Store) -> None:
    """Raises Fault if an index that can be read has what no ledger does: it must stay."""
    folders = [_ledger_folder(settings, store, name) for name in POOLS]
    # LMDB trusts its file: what reads a damaged one may be killed, which says that it is no use.
    if not (child := os.fork()):
        code = 0
        try:
            code = 1 + _lacking(store.index, folders)
        finally:
            os._exit(code)
    lacking = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if lacking > 0:
        raise Fault(
            "invalid",
            f"{folders[lacking - 1]}: the ledger is missing or cut, what it held is in the index "
            "alone and would be lost",
            "Bring the ledger back from a backup, or keep the index as it is. Only if the index "
            f"is of no use move {store.index} away first.",
        )


def _ledger_folder(settings: StoragedConfig, store: Store, name: str) -> Path:
    about = settings.pools.get(name, PoolConfig())  # type: ignore[call-overload]
    return (about.path or store.pool(name)) / "ledger"


def _lacking(index: Path, ledgers: list[Path]) -> int:
    """The first tier whose ledger lacks what the index says is in it; -1 if there is none.

    Of an index that was just made anew and knows of no ledger any file at all will do.
    """
    try:
        env = lmdb.open(str(index), max_dbs=32, readonly=True, create=False, lock=False)
        with env.begin() as txn:
            tables = {
                name: env.open_db(name, txn, create=False)
                for name in (b"meta", b"state", b"erased")
            }
            view = View(txn, tables)
            places = [view.ledger(tier) for tier in TIERS.values()]
            rows = view.count(b"state") + view.count(b"erased")
            sizes = dict.fromkeys(ledgerheads.known(view), 0) | ledgerheads.sizes(view)
    except (lmdb.Error, ValueError):
        return -1  # missing, or of no use: that is what reindex is for
    if rows and not any(places):
        return -1 if any(list(folder.glob("*" + ledgerfile.SUFFIX)) for folder in ledgers) else 0
    for tier, place in enumerate(places):
        if place is not None and ledgerfile.size(ledgers[tier], place.name) < place.size:
            return tier
    for (pool, _, name), size in ((one.partition("/"), sizes[one]) for one in sizes):
        path = ledgers[TIERS[pool]] / name
        if places[TIERS[pool]] is not None and not (path.exists() and path.stat().st_size >= size):
            return TIERS[pool]
    return -1


def _rebuild(
    settings: StoragedConfig, store: Store, ring: Keyring, tables: Index, tell: Tell,
    clock_ns: Callable[[], int],
) -> Report:  # fmt: skip
    began_s, report = time.monotonic(), Report(day_of(clock_ns()))
    tables.write(lambda writing: _put_numbers(writing, store, clock_ns() // 1000))
    # What storaged keeps of the intakes' keys is bound to its certificate, which is not at hand.
    intake_keys = IntakeKeys(store.index_aside / "intake.keys", b"")
    vaults = Opener(settings, store, tables, intake_keys).all(ring)
    try:
        _rebuild_pools(vaults, tables, report, tell, clock_ns)
    finally:
        vaults.close()
    log.info(
        "The index was made anew",
        extra={
            "CALLS": report.calls, "RECORDINGS": report.recordings, "UNSEALED": report.unsealed,
            "HASHED": report.hashed, "KEYS_DESTROYED": report.destroyed, "FAULTS": report.faults,
            "SECONDS": round(time.monotonic() - began_s, 1),
        },
    )  # fmt: skip
    return report


def _rebuild_pools(
    vaults: Vaults, tables: Index, report: Report, tell: Tell, clock_ns: Callable[[], int]
) -> None:
    """Base first: its ledger says what was erased, of all pools."""
    opened = []
    for vault in vaults:
        if vault.locked:
            log.warning("A locked pool is not indexed", extra={"POOL": vault.name})
            rebuilding.locked(tables, vault, vaults.base.keyring.store_id, report)
        else:
            opened.append(Rebuilder(tables, vault, report, tell, clock_ns))
    for each in opened:
        each.ledger()
    for each in opened:
        each.objects()
    for each in opened:
        each.records()


def _put_numbers(writing: Writing, store: Store, position: int) -> None:
    """Positions and slots of keys go on behind all that were ever given out."""
    writing.set_number(b"position", position)
    for name in POOLS:
        folder = store.keys if name == BASE else store.keys / name
        pages = [
            int(found[1])
            for path in (folder.iterdir() if folder.is_dir() else ())
            if (found := _PAGE.fullmatch(path.name))
        ]
        if pages:
            writing.set_number(reserved(TIERS[name]), (max(pages) + 1) * SLOTS)


def _put_in_place(store: Store) -> None:
    """The new index in place of the old one, which is overwritten."""
    store.index.mkdir(mode=0o700, exist_ok=True)
    data = store.index / DATA
    if data.exists():
        os.link(data, store.index / REPLACED)
    (store.index / LOCK).unlink(missing_ok=True)
    files.sync_folder(store.index)
    (store.index_aside / DATA).rename(data)
    files.sync_folder(store.index)
    files.sync_folder(store.index_aside)
    clear_replaced(store.index)
    shutil.rmtree(store.index_aside, ignore_errors=True)
