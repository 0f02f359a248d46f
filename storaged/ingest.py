"""The ingest socket: batches into the next group, acknowledgements out once a group is on disk.

Groups are committed one after the other (storaged.recordings.committer); while one syncs, the next
is gathered, up to a bound: beyond it nothing is read, and captures keep what they hear. Protocol:
WIRE.md §5.
"""

import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any, Final

import lmdb
import zmq

from spanvault import spool, wire
from spanvault.media.chunk import Media
from spanvault.messages import Acknowledge, Batch, Health, Hello, Refuse, Sealed, Welcome
from spanvault.slots import Memories
from spanvault.transport import Clients, Identity
from storaged import files
from storaged.faults import Fault
from storaged.index.binding import Binding
from storaged.keys.keyring import Keyring
from storaged.pools.layout import Store
from storaged.pools.vaults import Vault
from storaged.recordings.committer import Committer
from storaged.recordings.diskshares import Shares
from storaged.recordings.gathering import Group
from storaged.requests import policy

log = logging.getLogger(__name__)
IDLE_NS: Final = 50_000_000  # no further batch for so long: commit what there is
GROUP_BYTES: Final = 256 << 20  # gathered while a commit is under way
_AT_ONCE: Final = 32  # messages taken before anything else gets its turn
_REFUSED_KEPT: Final = 256  # files
_REFUSED_HINT: Final = "It was set aside in the store's folder `refused`; report it with that file."


class Ingest:
    """Owns what was received and not acknowledged yet. For the main thread."""

    def __init__(
        self, socket: "zmq.Socket[bytes]", clients: Clients, committer: Committer, store: Store,
        base: Vault, instance: str, interval_ns: int, memories: Memories,
        take_health: Callable[[Identity, Health], None], binding: Binding, shares: Shares,
    ) -> None:  # fmt: skip
        self._binding, self._shares = binding, shares
        self._socket, self._clients, self._committer = socket, clients, committer
        self._store, self._base, self._instance = store, base, instance
        self._interval_ns, self._take_health = interval_ns, take_health
        self._memories = memories
        self._group = Group()
        self._begun_ns = self._came_ns = 0  # monotonic
        self.counts = {
            "batches": 0, "chunks": 0, "duplicates": 0, "bytes": 0, "sealed": 0,
            "refused": 0, "unreadable": 0, "held_back": 0,
        }  # fmt: skip

    @property
    def full(self) -> bool:
        """Whether more should be left to the captures for now."""
        return self._group.bytes >= GROUP_BYTES

    def receive(self, now_ns: int) -> None:
        """Take what has come, some messages at most. now_ns: monotonic."""
        for _ in range(_AT_ONCE):
            if self.full:
                return
            try:
                route, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._take(bytes(route.buffer), frames, now_ns)

    def tick(self, now_ns: int, *, now: bool = False) -> None:
        """Acknowledge what was committed; commit what is due, or, if asked, whatever there is."""
        while self._committer.done:
            self._acknowledge(*self._committer.done.popleft())
        if self._group and self._committer.idle and (now or self._due(now_ns)):
            self._committer.submit(self._group)
            self._group = Group()

    def wait_ms(self, now_ns: int, longest_ms: int) -> int:
        """How long the poll may sleep before a commit is due."""
        if not self._group or not self._committer.idle:
            return longest_ms
        due_ns = min(self._came_ns + IDLE_NS, self._begun_ns + self._interval_ns)
        return max(0, min(longest_ms, (due_ns - now_ns) // 1_000_000 + 1))

    @property
    def empty(self) -> bool:
        """Nothing is waiting for a commit or an acknowledgement."""
        return not self._group and self._committer.idle and not self._committer.done

    def _due(self, now_ns: int) -> bool:
        idle = now_ns - self._came_ns >= IDLE_NS
        return idle or self.full or now_ns - self._begun_ns >= self._interval_ns

    def _take(self, route: bytes, frames: list[zmq.Frame], now_ns: int) -> None:
        buffers: list[Any] = [frame.buffer for frame in frames]
        try:
            who = self._clients.identity_of(frames[0])
            if not policy.may_ingest(who.role):
                raise ValueError(f"role {who.role} may not send media")
            message, bulk = wire.decode_to_ingest(buffers)
            if isinstance(message, Health):
                self._take_health(who, message)
                return
        except (ValueError, IndexError) as error:
            self.counts["unreadable"] += 1
            log.warning("An ingest message was left out", extra={"FAULT": str(error)})
            return
        if isinstance(message, Hello):
            self._meet(who.name)
            self._send(route, Welcome(
                self._store.store_id.hex(), spool.key_id(self._base.intake_key),
                self._base.intake_key, self._instance, os.getuid(),
            ))  # fmt: skip
            self._memories.refresh()
        elif not self._shares.may(who.name, now_ns):
            self.counts["held_back"] += 1  # unanswered: its capture keeps it
        elif isinstance(message, Batch) and message.slot is not None:
            media = self._memories.take(message.slot)
            if media is None:
                self.counts["unreadable"] += 1
                return  # unanswered: it comes again, with its media behind it
            message.slot = None
            self._take_batch(route, who, message, wire.encode(message, *media), media, now_ns)
        else:
            self._take_batch(route, who, message, buffers, bulk, now_ns)

    def _meet(self, capture: str) -> None:
        """Before it has a key to seal to: an erasure has to wait for whoever may hold something."""
        try:
            self._binding.meet(capture)
        except (
            lmdb.Error,
            OSError,
            Fault,
        ) as error:  # it greets again, and must have a key to record
            log.error("A capture could not be noted down", extra={"FAULT": str(error)})

    def _take_batch(
        self, route: bytes, who: Identity, message: Batch | Sealed, frames: list[Any],
        bulk: list[Any], now_ns: int,
    ) -> None:  # fmt: skip
        if not self._group:
            self._begun_ns = now_ns
        try:
            self._add(route, who.name, message, bulk)
        except ValueError as error:
            self._refuse(route, message, frames, str(error))
            return
        except (
            lmdb.Error,
            OSError,
            Fault,
        ) as error:
            # Nobody knows whose the calls are: it comes again.
            log.error("A batch was left unanswered", extra={"FAULT": str(error)})
            return
        self._came_ns = now_ns
        self.counts["batches"] += 1
        self._shares.took(who.name, sum(memoryview(frame).nbytes for frame in frames))

    def _add(self, route: bytes, capture: str, message: Batch | Sealed, bulk: list[Any]) -> None:
        """Into the group; a spooled batch that cannot be opened now as it is. ValueError."""
        if isinstance(message, Batch):
            bound = self._binding.bind(capture, message, wire.decode_media(bulk))
            self._group.add(route, *bound)
            return
        try:
            ring = self._base.keyring
        except Fault:  # locked
            self._group.add_sealed(route, message, bulk, capture)
        else:
            self._group.add(route, *self._binding.bind(capture, *self._open(message, bulk, ring)))

    def _open(self, message: Sealed, bulk: list[Any], ring: Keyring) -> tuple[Batch, Media]:
        """A spooled batch and its media, checked. Raises ValueError."""
        if len(bulk) != 1:
            raise ValueError(f"a sealed batch takes 1 frame, {len(bulk)} came")
        inner, media = wire.decode_to_ingest(
            spool.open_batch(bulk[0], ring.ingest_key(message.key_id))
        )
        if not isinstance(inner, Batch) or inner.sequence != message.sequence:
            raise ValueError("the sealed batch is not the one its envelope names")
        return inner, wire.decode_media(media)

    def _refuse(self, route: bytes, message: Batch | Sealed, frames: list[Any], fault: str) -> None:
        """Set a batch aside, sealed as a spooled one is, and tell its capture to let it go."""
        self.counts["refused"] += 1
        log.error("A batch was refused", extra={"BATCH": message.sequence, "FAULT": fault})
        name = f"{message.sequence}-{os.urandom(4).hex()}.sealed"
        try:
            if sum(1 for _ in self._store.refused.iterdir()) < _REFUSED_KEPT:
                sealed = spool.seal_batch(frames, self._base.intake_key)
                files.replace(self._store.refused / name, sealed)
        except OSError as error:
            self._store.clear_refused()
            log.error("A refused batch could not be set aside", extra={"FAULT": str(error)})
            return  # unanswered: it comes again
        self._send(route, Refuse(message.sequence, fault, _REFUSED_HINT))

    def _acknowledge(self, group: Group, counts: Any) -> None:
        for route, sequences in group.origins.items():
            self._send(route, Acknowledge(sequences))
        for name in ("chunks", "duplicates", "bytes", "sealed"):
            self.counts[name] += getattr(counts, name)

    def _send(self, route: bytes, message: Any) -> None:
        # A capture that is gone, or takes nothing, sends again what it hears nothing of.
        with contextlib.suppress(zmq.ZMQError):
            self._socket.send_multipart([route, *wire.encode(message)], zmq.NOBLOCK)
