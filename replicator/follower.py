"""Carry out one target's plan, in a thread of its own, until asked to stop.

A thread a target: one that hangs (a dead network mount) holds up nobody else. What to do next is
decided in replicator.plan; this is where sockets, files and the clock are.
"""

import logging
import threading
import time
from collections.abc import Iterator
from typing import Final

import msgspec

from replicator import merging, returning
from replicator.plan import (
    AskFeed,
    AskHead,
    BringBack,
    Claim,
    Copy,
    CopyBundle,
    CopyKeys,
    CopyObject,
    EraseCopies,
    Fault,
    Merge,
    Plan,
    Step,
    Wait,
)
from replicator.replica import Replica
from replicator.report import Progress
from replicator.source import Refused, Source, Stopped, StoreError
from replicator.state import StateFolder
from replicator.targets import Space, Target, TargetError
from spanvault import certificate
from spanvault.daemon import disks
from spanvault.messages import Erasure, ErasureReceipt, Receipt

log = logging.getLogger(__name__)
SECOND: Final = 1_000_000_000
SAVE_S: Final = 0.5


class Follower(threading.Thread):
    """Keeps one target up to date with the store."""

    def __init__(
        self,
        name: str,
        target: Target,
        source: Source,
        state: StateFolder,
        retry_s: float,
        stop: threading.Event,
    ) -> None:
        """Raises ValueError if the target's mark is damaged."""
        super().__init__(name=f"target {name}", daemon=True)
        self._target_name, self._source, self._state, self._ending = name, source, state, stop
        self._replica = Replica(target)
        self._saved = state.load_mark(name)
        self._plan = Plan(self._saved, int(retry_s * SECOND))
        self._copied = self._copied_bytes = 0
        self._space = Space(None, None)
        self._save_due_s = 0.0
        self._moved_ns = time.time_ns()
        self._told = self._progress()  # replaced whole: may be read by other threads

    @property
    def progress(self) -> Progress:
        """How it is now. For any thread."""
        return self._told._replace(moved_ns=self._moved_ns)

    def run(self) -> None:
        """Take steps until the stop. What is under way when it comes stays for the next start."""
        try:
            while not self._ending.is_set():
                self._turn()
        except Stopped:
            pass
        except Exception:
            # The daemon ends as well: systemd starts it again from the marks.
            log.exception("Replication to a target broke off", extra={"TARGET": self._target_name})
        finally:
            self._save()
            self._source.close()

    def _turn(self) -> None:
        """One step, and what became of it told to the plan."""
        step = self._plan.next(time.time_ns())
        before = self._plan.fault
        if not isinstance(step, CopyObject) or time.monotonic() >= self._save_due_s:
            self._save()
        try:
            self._take(step)
        except TargetError as error:
            self._plan.target_failed(str(error), error.hint, time.time_ns())
        except Refused as error:
            self._refused(step, error)
        except StoreError as error:
            self._plan.store_failed(str(error), error.hint, time.time_ns())
        except OSError as error:  # a target's own are TargetError: this is the receipts' file
            self._state_failed(error)
        self._tell(before, self._plan.fault)
        self._told, self._moved_ns = self._progress(), time.time_ns()

    def _take(self, step: Step) -> None:
        match step:
            case Wait(until_ns):
                self._ending.wait(max(0, until_ns - time.time_ns()) / SECOND)
            case AskFeed(position):
                self._ask_feed(position)
            case AskHead(position):
                self._ask_head(position)
            case Merge():
                merging.merge(self._replica)
                self._plan.merged()
            case Claim(store_id, first):
                self._replica.claim(store_id, first)
                self._space = self._replica.target.space()
                self._plan.claimed(time.time_ns())
            case BringBack(change):
                self._plan.brought_back(step)
                returning.bring_back(self._replica, self._source, self._target_name, change)
            case CopyKeys() | CopyBundle() | CopyObject():
                self._copy(step)
            case EraseCopies():
                self._erase(step)

    def _ask_feed(self, position: int) -> None:
        reply = self._source.feed(position, target=self._target_name)
        try:
            self._plan.fed(reply, time.time_ns())
        except ValueError as error:
            raise StoreError(str(error), FOREIGN_STORE) from error

    def _ask_head(self, position: int) -> None:
        try:
            reply = self._source.feed(position, wait_ms=0, limit=1, target=self._target_name)
        except StoreError:
            # What stands still is the target; the store's absence is told in its turn.
            self._plan.head_is(None, time.time_ns())
        else:
            self._plan.asked_back(reply.wanted)
            self._plan.head_is(reply.head, time.time_ns())

    def _copy(self, step: Copy) -> None:
        try:
            match step:
                case CopyKeys(change):
                    self._replica.put_keys(change)
                case CopyBundle(changes):
                    self._replica.put_bundle(changes)
                case CopyObject(change):
                    self._replica.put_object(change, lambda: self._parts(step))
                    self._give_receipt(step)
        except ValueError as error:  # an id or a name that no replica can hold
            raise Refused(str(error), "The feed names it; look at storaged's journal.") from error
        self._plan.copied(step)

    def _erase(self, step: EraseCopies) -> None:
        """Follow an erasure and say so, signed; it is put off while the new root is missing."""
        try:
            erasure = msgspec.msgpack.decode(step.change.data, type=Erasure)
            followed = self._replica.erase(erasure)
        except (
            ValueError,
            RecursionError,
        ) as error:  # no erasure, or an id or a name that no replica can hold
            raise Refused(str(error), "The feed names it; look at storaged's journal.") from error
        if not erasure.moved_to:  # else the aside may be of the copy in the pool it is in now
            self._plan.erased(one.id for one in erasure.recordings)
        if not followed:
            self._plan.put_off(step, "the new root key has not come yet")
            return
        receipt = ErasureReceipt(
            erasure.id, self._target_name, time.time_ns(), self._replica.target.grade,
            position=step.change.position,
        )  # fmt: skip
        facts = certificate.receipt_facts(self._plan.mark.store_id, receipt)
        receipt.signer, receipt.signature = certificate.sign(
            certificate.RECEIPT, facts, self._state.signing_key()
        )
        self._source.erasure_receipt(receipt)
        self._plan.copied(step)

    def _parts(self, step: CopyObject) -> Iterator[bytes]:
        """The recording's bytes; a stop between two parts leaves only a temporary file."""
        for part in self._source.read_object(step.change):
            if self._ending.is_set():
                raise Stopped
            yield part
            self._moved_ns = time.time_ns()

    def _give_receipt(self, step: CopyObject) -> None:
        change = step.change
        receipt = Receipt(change.id, self._target_name, change.size, change.sha256, time.time_ns())
        try:
            self._source.receipt(receipt)
        except Refused as error:
            # The recording may have been erased meanwhile; the copy is there all the same.
            log.warning(
                "The store took no receipt",
                extra={"RECORDING_ID": change.id.hex(), "FAULT": str(error)},
            )
        self._state.append_receipt(receipt)
        self._copied += 1
        self._copied_bytes += change.size

    def _refused(self, step: Step, error: Refused) -> None:
        if not isinstance(step, CopyKeys | CopyBundle | CopyObject | EraseCopies):
            self._plan.store_failed(str(error), error.hint, time.time_ns())
            return
        name = step.change.id.hex() or step.change.name if not isinstance(step, CopyBundle) else ""
        log.error(
            "Set aside: the store cannot give it whole",
            extra={
                "TARGET": self._target_name,
                "RECORDING_ID": name,
                "FAULT": str(error),
                "HINT": error.hint,
            },
        )
        self._plan.refused(step, str(error), time.time_ns())

    def _save(self) -> None:
        """Keep the mark, if it changed. Amid a page only so often: being behind is safe."""
        mark = self._plan.mark
        self._save_due_s = time.monotonic() + SAVE_S
        if mark == self._saved:
            return
        try:
            self._state.save_mark(self._target_name, mark)
            self._saved = mark
        except OSError as error:  # tried again next turn; until then a restart repeats some work
            self._state_failed(error)

    def _state_failed(self, error: OSError) -> None:
        text = f"state_dir: {disks.cause(error, self._state.folder)}"
        self._plan.store_failed(text, disks.remedy(error, self._state.folder), time.time_ns())

    def _tell(self, before: Fault | None, after: Fault | None) -> None:
        """Log a fault when it begins or changes, and its end; not at every try."""
        if after and (before is None or before.text != after.text):
            log.warning(
                "Target stands still",
                extra={"TARGET": self._target_name, "FAULT": after.text, "HINT": after.hint},
            )
        elif before and not after:
            log.info("Target goes on", extra={"TARGET": self._target_name})

    def _progress(self) -> Progress:
        return Progress(
            self._target_name,
            self._plan.mark.position,
            self._plan.lag(),
            self._plan.fault,
            sum(aside.change.kind == "object" for aside in self._plan.mark.aside),
            self._copied,
            self._copied_bytes,
            self._space,
            self._moved_ns,
        )


FOREIGN_STORE: Final = (
    "If this is meant to be another store, give it its own state_dir and places to copy to."
)
