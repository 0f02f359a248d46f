"""storaged as a process: opens the store, turns the sockets, drains when told to stop.

Four threads: this one takes batches in, one commits them (storaged.recordings.committer), one
answers requests (storaged.serving), one looks for damage (storaged.scrubbing). Systemd's side:
spanvault.daemon.lifecycle.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import lmdb
import zmq

from spanvault import transport
from spanvault.daemon import memory, rules
from spanvault.daemon.config import StoragedConfig
from spanvault.daemon.lifecycle import Lifecycle
from spanvault.slots import Memories
from storaged import diskfaults
from storaged.erasing.eraser import Eraser
from storaged.erasing.moving import Mover
from storaged.erasing.retention import Retention
from storaged.erasing.retiring import Retirer
from storaged.erasing.terms import Terms
from storaged.faults import Fault
from storaged.index import toldkeys
from storaged.index.binding import Binding
from storaged.index.environment import Index
from storaged.ingest import Ingest
from storaged.integrity import reindexing
from storaged.integrity.mending import Mender
from storaged.integrity.scrub import Scrub
from storaged.keys.intakekeys import IntakeKeys
from storaged.pools import opening, remembered
from storaged.pools.layout import Store
from storaged.pools.opening import Opener
from storaged.pools.vaults import Vault, Vaults
from storaged.recordings.committer import Committer
from storaged.recordings.diskshares import Shares
from storaged.recordings.sorting import Sorter
from storaged.requests import witness
from storaged.requests.accesslog import AccessLog
from storaged.requests.desk import Desk
from storaged.scrubbing import Scrubbing
from storaged.serving import Serving
from storaged.stopwatch import Watched

log = logging.getLogger(__name__)
_REINDEX: Final = "spanvault reindex makes the index anew from the recordings."
_TURN_MS: Final = 500  # the watchdog and the status line want a turn
_DRAIN_S: Final = 20.0
_LATE_S: Final = 1.0  # a commit that takes longer, and longer than a group is gathered, is late
_SETTLE_S: Final = 3600.0  # between two tries to put a root key into its token


class Daemon:
    """Everything that is open while storaged runs. open() makes one."""

    def __init__(
        self, settings: StoragedConfig, life: Lifecycle, store: Store, tables: Index,
        opener: Opener, vaults: Vaults,
    ) -> None:  # fmt: skip
        self._life, self._store, self._index = life, store, tables
        self._vaults = vaults
        self._access = _open_access_log(store, tables)
        self._binding = Binding(tables, settings.closed_days, time.time_ns)
        self._sorter = Sorter(
            tables, self._vaults, time.time_ns,
            lambda call: rules.place(call, settings.rules, settings.default_pool),
            settings.default_pool, self._binding,
        )  # fmt: skip
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        clients = self._clients = transport.Clients(settings.clients)
        self._authenticator = transport.authenticate(self._context, clients)
        certificate = transport.load_certificate(settings.certificate)
        self._socket = transport.listen(self._context, settings.ingest, certificate)
        terms = {str(name): Terms.of(about) for name, about in settings.pools.items()}
        self._eraser = Eraser(store, tables, self._vaults, self._sorter.forget, time.time_ns, terms)
        self._eraser.finish()
        self._converter = self._eraser.converter
        self._converter.late = self._late
        scrub = Scrub(
            tables, self._vaults, settings.scrub_days, settings.scrub_mb_s * 1e6,
            time.time_ns, time.monotonic,
        )  # fmt: skip
        self._scrubbing = Scrubbing(scrub, self._late)
        self._late_s = max(_LATE_S, settings.commit_interval_s)
        self._watched = _watched(tables, vaults, self._late_s)
        self._mender = Mender(
            tables, self._vaults, self._sorter.forget, time.time_ns, time.monotonic
        )
        mover = Mover(tables, self._vaults, self._eraser, self._sorter.forget, time.time_ns)
        mover.clear()
        self._retention = Retention(
            tables, self._vaults, self._eraser, time.time_ns, time.monotonic_ns
        )
        self._retirer = Retirer(
            tables, self._vaults, opener, store.refused,
            None if settings.guest else clients.names("capture"),
            int(settings.ingest_grace_days * 86400e9), time.time_ns, time.monotonic_ns,
        )  # fmt: skip
        desk = Desk(
            store, tables, self._vaults, self._access, self._eraser, self._mender, mover,
            time.time_ns, self.state, opener, self._retention, self._retirer,
        )  # fmt: skip
        requests = transport.listen(self._context, settings.requests, certificate)
        self._serving = Serving(requests, clients, desk)
        self._committer = Committer(self._sorter, self._sorter.drain)
        self._vaults.hurry = self._committer.hurry
        self._memories = Memories(settings.ingest)
        self._custody = desk.custody
        self._settle()
        self._shares = Shares(
            clients.names("capture"), settings.reserve_percent / 100, self._free_part
        )
        self._ingest = Ingest(
            self._socket, clients, self._committer, store, vaults.base, os.urandom(8).hex(),
            int(settings.commit_interval_s * 1e9), self._memories, desk.take_health,
            self._binding, self._shares,
        )  # fmt: skip

    def run(self) -> None:
        """Turn until a stop is asked for; then commit, acknowledge, close. Raises what broke."""
        poller = zmq.Poller()
        poller.register(self._committer.wake_fd, zmq.POLLIN)
        poller.register(self._life.wake_fd, zmq.POLLIN)
        self._serving.start()
        self._scrubbing.start()
        memory.collect_rarely()
        self._life.ready(self.state()[0])
        log.info("The store is open", extra={"STORE": self._store.store_id.hex()})
        while not self._life.stop_requested:
            self._turn(poller)
        self._drain()

    def close(self) -> None:
        """Give everything back; what was not acknowledged comes again."""
        self._scrubbing.close()
        self._serving.close()
        self._socket.close(linger=1000)
        self._memories.close()
        self._authenticator.stop()
        self._context.term()
        self._access.close()
        self._vaults.close()

    def state(self) -> tuple[str, dict[str, Any]]:
        """One line for people, and the fields of a StatusReply. Any thread."""
        with self._index.reading() as view:
            calls, scrub = view.count(b"state"), self._scrubbing.fields(view)
            erasing = self._converter.fields(view)
        since_s = self._committer.committed_s
        age_s = None if since_s is None else round(time.monotonic() - since_s, 1)
        fault = self._committer.fault
        growing = self._sorter.growing
        line = f"recording {growing} calls; {calls:,} stored"
        line += "" if age_s is None else f"; committed {age_s:.1f} s ago"
        if damaged := scrub["damaged"]:
            line += f"; {damaged:,} recordings DAMAGED"
        if hurt := scrub["damaged_keys"]:
            line += f"; {len(hurt)} key files DAMAGED"
        if hurt := scrub["damaged_ledgers"]:
            line += f"; {len(hurt)} ledgers DAMAGED"
        if number := scrub["records_damaged"]:
            line += f"; {number:,} call records DAMAGED"
        if hurt := self._index.hurt.tables:
            line += f"; the index is DAMAGED (tables {', '.join(hurt)}): spanvault reindex"
        if overdue := scrub.get("overdue"):
            line += f"; {overdue}"
        repair = self._mender.fields()
        if hopeless := repair["hopeless"]:
            line += f", {hopeless:,} of them CANNOT BE REPAIRED"
        line += "; the access log was CHANGED" if self._access.fault else ""
        if unfinished := self._eraser.fault:
            line += f"; an erasure is NOT COMPLETE, {unfinished}"
        for slow in self._watched.lines:
            line += f"; {slow}"
        for name in sorted(self._shares.held):
            line += f"; capture {name} floods the disk and is HELD BACK"
        for name, calls in sorted(self._binding.apart.items()):
            line += f"; capture {name} sent of {calls:,} calls that are NOT ITS OWN"
        if overdue := self._retention.fault:
            line += f"; {overdue}"
        if self._converter.fault:
            line += f"; search rows of erased calls CANNOT GO: {self._converter.fault}"
        if waits := self._retirer.words():
            line += f"; {waits}"
        for vault in self._vaults:
            if vault.fault or vault.locked:
                line += f"; pool {vault.name} {vault.fault or 'is locked'}"
        if why := self._vaults.base.why_locked:
            line += f" ({why})"
        fields = {
            "calls": calls, "recording": growing, "committed_s_ago": age_s,
            "pools": {vault.name: _pool_fields(vault, fault) for vault in self._vaults},
            "ingest": dict(self._ingest.counts),
            "strangers": self._clients.strangers,
            "held_back": sorted(self._shares.held), "kept_apart": dict(self._binding.apart),
            "scrub": scrub,
            "repair": repair,
            "retention": self._retention.fields(),
            "erasing": erasing | {"ingest_keys": self._retirer.fields()},
            "feed_position": self._index.position,
            "index_damaged": self._index.hurt.tables,
        }  # fmt: skip
        return (f"not recording: {fault}" if fault else line), fields

    def _free_part(self) -> float:
        """What is free of the fullest disk that recordings go to."""
        return min(vault.pool.free_part() for vault in self._vaults)

    def _late(self) -> bool:
        """Whether recording waits for the disk. Any thread."""
        committer = self._committer
        return bool(committer.fault or committer.under_way_s > self._late_s or self._ingest.full)

    def _turn(self, poller: zmq.Poller) -> None:
        if self._ingest.full:
            with contextlib.suppress(KeyError):
                poller.unregister(self._socket)
        else:
            poller.register(self._socket, zmq.POLLIN)
        ready = dict(poller.poll(self._ingest.wait_ms(time.monotonic_ns(), _TURN_MS)))
        if self._committer.wake_fd in ready:
            os.eventfd_read(self._committer.wake_fd)
        if self._socket in ready:
            self._ingest.receive(time.monotonic_ns())
        self._ingest.tick(time.monotonic_ns())
        for broken in (self._committer.broken, self._serving.broken, self._scrubbing.broken):
            if broken is not None:
                raise broken
        self._life.beat()
        self._tell()

    def _tell(self) -> None:
        """The STATUS line, at most once a second."""
        now_s = time.monotonic()
        if now_s - getattr(self, "_told_s", 0.0) >= 1.0:
            self._told_s = now_s
            self._life.status(self.state()[0])
        if now_s - getattr(self, "_settled_s", -_SETTLE_S) >= _SETTLE_S:
            self._settled_s = now_s
            self._settle()

    def _settle(self) -> None:
        """Root keys into the slot that the settings chose; recording does not wait for a token."""
        try:
            self._custody.settle()
        except (OSError, lmdb.Error, Fault) as error:
            log.error("The root key is not in the token yet", extra={"FAULT": str(error)})

    def _drain(self) -> None:
        """Commit and acknowledge what has come; what cannot be committed stays with its capture."""
        self._life.stopping("committing what was received")
        self._ingest.receive(time.monotonic_ns())
        deadline_s = time.monotonic() + _DRAIN_S
        while not self._ingest.empty and time.monotonic() < deadline_s:
            self._ingest.tick(time.monotonic_ns(), now=True)
            self._life.beat()
            if self._committer.fault or self._committer.broken:
                break
            time.sleep(0.002)
        if not self._committer.close(2.0) or not self._ingest.empty:
            log.warning("Stopped with batches uncommitted, their captures keep them")
        self._ingest.tick(time.monotonic_ns())


def _watched(tables: Index, vaults: Vaults, late_s: float) -> Watched:
    """What commits wait for."""
    watched = Watched(late_s)
    watched.add(tables.folder, tables.stopwatch)
    for vault in vaults:
        watched.add(vault.pool.objects.parent, vault.pool.stopwatch)
        watched.add(vault.intake.folder, vault.intake.stopwatch)
    return watched


def _pool_fields(vault: Vault, fault: str | None) -> dict[str, Any]:
    """What a StatusReply tells of a pool."""
    state = fault or vault.fault or ("locked" if vault.locked else "ok")
    return {
        "path": str(vault.pool.objects.parent), "free_bytes": vault.pool.free_bytes(),
        "state": state, "waiting": len(vault.intake), "waiting_bytes": vault.intake.size,
        **({"why_locked": vault.why_locked} if vault.why_locked else {}),
    }  # fmt: skip


@contextlib.contextmanager
def open_store(settings: StoragedConfig) -> Iterator[tuple[Store, Index, Opener, Vaults]]:
    """Take the store, unlock what can be. Raises Fault or ValueError, with a remedy."""
    store = Store(settings.store)
    remembered.refuse_empty(settings.store)
    elsewhere = [pool.path for pool in settings.pools.values() if pool.path]
    store.open(lambda: opening.recipients_of(settings), elsewhere)
    try:
        secret = transport.load_certificate(settings.certificate).secret or b""
        intake_keys = IntakeKeys(store.intake / "keys", secret)
        ring, why_locked = opening.base_keys(settings, store, intake_keys)
        if ring and store.store_id != ring.store_id:  # killed while it became a replica's store
            store.write_format(ring.store_id)
        remembered.remember(settings.store, store.store_id)
        tables = _open_index(store, elsewhere)
        try:
            if ring:
                toldkeys.announce_at_start(tables, store.keys, ring.names())
            opener = Opener(settings, store, tables, intake_keys)
            yield store, tables, opener, opener.all(ring, why_locked)
        finally:
            tables.close()
    finally:
        store.close()


def run(settings: StoragedConfig, life: Lifecycle) -> None:
    """storaged from start to stop. Raises Fault, ValueError (settings), zmq.ZMQError, OSError."""
    with open_store(settings) as (store, tables, opener, vaults):
        daemon = Daemon(settings, life, store, tables, opener, vaults)
        try:
            daemon.run()
        finally:
            daemon.close()


def _open_index(store: Store, elsewhere: Sequence[Path]) -> Index:
    """Open the index. Raises Fault if it is gone though the store was in use, or unreadable.

    elsewhere: folders of pools that do not lie in the store's.
    """
    data = store.index / "data.mdb"
    try:
        # A filesystem may also keep the name and lose the bytes: LMDB would begin anew in it.
        gone = not data.exists() or not data.stat().st_size
        if gone and (used := store.used(elsewhere)):
            raise Fault(
                "corrupt", f"{data}: the index is missing, and the store was in use ({used})",
                _mounting(elsewhere) + _REINDEX,
            )  # fmt: skip
        reindexing.clear_replaced(store.index)
        return Index(store.index)
    except (lmdb.Error, OSError) as error:
        raise Fault(
            "corrupt",
            f"{store.index}: the index cannot be opened ({error})",
            diskfaults.remedy(error, _REINDEX, store.index),
        ) from None


def _mounting(elsewhere: Sequence[Path]) -> str:
    """What must be there before an index is made anew: it takes in what the pools hold."""
    lost = [str(pool) for pool in elsewhere if not (pool / "objects").is_dir()]
    return f"Mount {', '.join(lost)} first, nothing is there; then: " if lost else ""


def _open_access_log(store: Store, tables: Index) -> AccessLog:
    """Open the access log. Raises Fault if its folder is gone."""
    with tables.reading() as view:
        known = witness.known(view)
    try:
        return AccessLog(store.log / "access.log", known, time.time_ns())
    except OSError as error:
        raise Fault(
            "unavailable",
            f"{error.filename or store.log}: the access log cannot be opened ({error.strerror})",
            diskfaults.remedy(
                error,
                "Put the folder `log` back, with its owner. If it is lost, make it anew "
                "(mkdir -m 700): the log then begins again, which an auditor will ask about.",
            ),
        ) from None
