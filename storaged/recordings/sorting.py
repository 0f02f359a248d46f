"""A group's calls and media to the pools they belong to.

A call's pool is decided once, by the rules, on the first record that comes of it; media without any
record enters the default pool. A pool that is locked, or whose own disk takes nothing, gets its
part through its intake: sealed, synced, acknowledged, and made recordings of as soon as it can.
Committing to one pool: storaged.recordings.writer. Rules: spanvault.daemon.rules.
"""

import errno
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from spanvault.daemon.rules import TIERS
from spanvault.media.chunk import Media
from spanvault.messages import Batch, Call
from storaged.diskfaults import line
from storaged.format import ledger, record
from storaged.format.ledger import Entry, Placed
from storaged.index.binding import Binding
from storaged.index.environment import Index
from storaged.index.view import View
from storaged.index.writing import Writing
from storaged.keys.keyring import Keyring
from storaged.pools import intake
from storaged.pools.vaults import Vault, Vaults
from storaged.recordings.gathering import Gathered, Group
from storaged.recordings.writer import Counts, Writer

log = logging.getLogger(__name__)
_REMEMBERED: Final = 50_000  # calls whose pool is known without looking
_AT_ONCE: Final = 8  # files of an intake between two groups
_Commit = Callable[[Vault, Group, Gathered], Counts]
_NOTHING: Final = Counts(0, 0, 0, 0)


class Sorter:
    """Everything that changes objects, of all pools. For one thread.

    place: gives the name of the pool for a call's first record.
    binding: for spooled batches that waited while base was locked.
    """

    def __init__(
        self, index: Index, vaults: Vaults, clock_ns: Callable[[], int],
        place: Callable[[Call], str], default: str, binding: Binding,
    ) -> None:  # fmt: skip
        self._binding = binding
        self._index, self._vaults, self._clock_ns = index, vaults, clock_ns
        self._place, self._default = place, TIERS[default]
        self._writers: dict[int, tuple[Keyring, Writer]] = {}
        self._tiers: dict[bytes, int] = {}
        self._stand_ins: set[bytes] = set()  # recordings whose call's record has not come yet

    @property
    def growing(self) -> int:
        """Recordings whose media is not sealed yet, as far as this process met them."""
        return sum(writer.growing for _, writer in list(self._writers.values()))

    def commit(self, group: Group) -> Counts:
        """Make a group durable. Raises OSError, lmdb.Error, Fault: then it must come again."""
        self.drain()
        while group.sealed:  # each once, however often the rest must be tried
            self._vaults.base.intake.put_sealed(*group.sealed[0])
            del group.sealed[0]
        chunks = Gathered(group.batches)
        if len(self._vaults) == 1:
            return self._commit(self._vaults.base, group, chunks)
        return self._commit_parts(group, chunks, self._commit)._replace(bytes=group.bytes)

    def _commit_parts(self, group: Group, chunks: Gathered, commit: _Commit) -> Counts:
        """Each pool's part of a group into that pool."""
        counts = _NOTHING
        # Base first: if it fails nothing else was done, so no intake grows with each new try.
        for tier, ids in sorted(self._split(group, chunks).items()):
            part = chunks.only(ids)
            calls = Group.of(
                (group.calls[one] for one in ids if one in group.calls), group.captures
            )  # fmt: skip
            done = commit(self._vaults.of(tier), calls, part)
            counts = Counts(*(a + b for a, b in zip(counts, done, strict=True)))
        self._note_followers(group.calls.values())
        for call in group.calls.values():
            self._stand_ins.discard(call.id)
            if call.final:
                self._tiers.pop(call.id, None)
        return counts

    def drain(self) -> bool:
        """Make recordings of some of what waits for pools that are open. Whether more is left."""
        more = False
        for vault in self._vaults:
            if vault.locked:
                self._writers.pop(vault.tier, None)  # it holds keys
            for _ in range(_AT_ONCE):
                if not self._drain_one(vault):
                    break
            more |= bool(len(vault.intake)) and not vault.locked
        return more

    def forget(self, recording_ids: Sequence[bytes]) -> None:
        """Know nothing of these any more: they were erased. All pools must be held."""
        for one in recording_ids:
            self._tiers.pop(one, None)
        for _, writer in self._writers.values():
            writer.forget(recording_ids)

    def read_next(self) -> bool:
        """Read an object that goes on and was not read yet; between groups. False: all are."""
        for vault in self._vaults:
            with vault.held:
                if not vault.locked and self._writer(vault).read_next():
                    return True
        return False

    # --- which pool ----------------------------------------------------------------------------

    def _split(self, group: Group, chunks: Gathered) -> dict[int, list[bytes]]:
        """Ids of calls and recordings by tier."""
        parts: dict[int, list[bytes]] = {}
        touched = dict.fromkeys((*chunks.rows, *group.calls))
        self._look_up(one for one in touched if one not in self._tiers)
        for one in touched:
            tier = self._tiers.get(one)
            if tier is None and (call := group.calls.get(one)) is not None:
                tier = self._tiers[one] = TIERS[self._place(call)]
            parts.setdefault(self._default if tier is None else tier, []).append(one)
        return parts

    def _look_up(self, unknown: Iterable[bytes]) -> None:
        """Recall what was decided before a restart."""
        if len(self._tiers) > _REMEMBERED:
            self._tiers.clear()
        with self._index.reading() as view:
            for one in unknown:
                state = view.readable_state(one)
                tier = state.tier if state else self._tier_of(view, one)
                if state is not None and state.revision < 0:
                    self._stand_ins.add(one)
                if tier is not None:
                    self._tiers[one] = tier

    def _tier_of(self, view: View, call_id: bytes) -> int | None:
        """Of a call without a row that can be read: where it waits, or its object lies."""
        with view.passing():
            if (tier := view.placed(call_id)) is not None:
                return tier
        if view.get(b"state", call_id) is None:
            return None
        return next((one.tier for one in self._vaults if one.pool.path(call_id).exists()), None)

    def _note_followers(self, calls: Iterable[Call]) -> None:
        """Note what lies lower than it should: storaged.erasing.moving has it follow when it can.

        That is media that came before the record by which its pool is known, and recordings of
        others (orphans, legs heard first) that hold streams of a call in a higher pool.
        """
        wanted: dict[bytes, int] = {}
        for call in calls:
            tier = self._tiers.get(call.id, self._default)
            if call.id in self._stand_ins:
                tier = wanted[call.id] = max(tier, TIERS[self._place(call)])
            for other in record.recordings_of(call):
                wanted[other] = max(tier, wanted.get(other, 0))
        if not wanted:
            return
        with self._index.reading() as view:
            new = [one for one in wanted.items() if _lies_lower(view, *one)]
        if new:
            self._index.write(lambda writing: _put_followers(writing, new))

    # --- into it -------------------------------------------------------------------------------

    def _commit(self, vault: Vault, group: Group, chunks: Gathered) -> Counts:
        # Base first, as whoever holds all: its ledger says what waits for another pool.
        with self._vaults.base.held, vault.held:
            if vault.locked or len(vault.intake):
                return self._set_aside(vault, group, chunks)
            try:
                counts = self._writer(vault).commit(group, chunks)
            except OSError as error:
                same = vault.pool.device == vault.intake.device
                if same and error.errno != errno.EDQUOT:
                    raise  # its intake is no better off; of a quota, it may be
                self._tell(vault, line(error))
                return self._set_aside(vault, group, chunks)
            self._tell(vault, None)
            return counts

    def _set_aside(self, vault: Vault, group: Group, chunks: Gathered) -> Counts:
        """Into the intake, and where these calls are, so that later media finds them."""
        touched = {*chunks.rows, *group.calls}
        with self._index.reading() as view:
            erased = {one for one in touched if view.erased(one)}
            new = [one for one in touched - erased if not _is_placed(view, one)]
        if erased:
            group, chunks = group.without(erased), chunks.without(erased)
        shares = [call for call in group.calls.values() if record.recordings_of(call)]
        if placed := {one: Placed(vault.tier, ()) for one in new} | {
            call.id: Placed(vault.tier, tuple(record.recordings_of(call))) for call in shares
        }:
            self._note_placed({one: group.captures.get(one, 0) for one in new}, placed)
        vault.intake.put(group.calls.values(), chunks.batches(), vault.intake_key)
        return Counts(chunks.count, 0, 0, group.bytes)

    def _note_placed(self, new: dict[bytes, int], placed: dict[bytes, Placed]) -> None:
        """Where calls wait: in base's ledger too, for an index that is made anew.

        new: those that have no row yet, and the capture that each is bound to.

        While base is locked, or its disk takes nothing, in the index alone: what comes must not
        wait for that.
        """
        base = self._vaults.base
        if not base.locked:
            entries = [Entry(ledger.PLACED, one, at.serialize()) for one, at in placed.items()]
            try:
                with base.noting(entries, self._clock_ns()) as place:

                    def put(writing: Writing) -> None:
                        writing.put_ledger(base.tier, place)
                        _put_placed(writing, new, placed)

                    self._index.write(put)
            except OSError as error:
                self._tell(base, line(error))
            else:
                return
        self._index.write(lambda writing: _put_placed(writing, new, placed))

    def _drain_one(self, vault: Vault) -> bool:
        """One file of an intake into its pool. False if there is none, or it cannot be done now."""
        with vault.held:
            if vault.locked or not len(vault.intake):
                return False
            found = vault.intake.open_first(vault.keyring.ingest_key)
            if found is None:
                return False
            path, batch, media = found
            group = Group()
            try:
                self._gather(group, path, batch, media)
            except ValueError as error:
                vault.intake.set_aside(path, error)
                return True
            chunks = Gathered(group.batches)
            try:
                self._take_in(vault, group, chunks)
            except OSError as error:
                self._tell(vault, line(error))
                return False
            ids = {call.id for call in batch.calls} | set(chunks.rows)
            self._index.write(lambda writing: _forget_placed(writing, ids))
            try:
                vault.intake.remove(path)
            except OSError as error:  # what comes again in vain must not hold up the others
                self._tell(vault, line(error))
                return False
            if not len(vault.intake):  # a full disk still takes what is small
                self._tell(vault, None)
            return True

    def _gather(self, group: Group, path: Path, batch: Batch, media: Media) -> None:
        """A batch of an intake, its calls bound as they were when it came. Raises ValueError."""
        if capture := intake.capture_of(path):
            group.add(None, *self._binding.bind(capture, batch, media))
            return
        group.add(None, batch, media)
        with self._index.reading() as view:
            group.captures = {
                one: view.placed_by(one) for one in (*group.calls, *_recordings(media))
            }

    def _take_in(self, vault: Vault, group: Group, chunks: Gathered) -> None:
        """What waited for a pool into it; and of base's intake, others' into theirs.

        A spooled batch that came while base was locked may hold calls of any pool.
        """
        if vault is not self._vaults.base:
            self._writer(vault).commit(group, chunks)
            return

        def commit(to: Vault, calls: Group, part: Gathered) -> Counts:
            if to is vault:
                return self._writer(to).commit(calls, part)
            return self._commit(to, calls, part)

        self._commit_parts(group, chunks, commit)

    def _writer(self, vault: Vault) -> Writer:
        """The writer on a pool's keys as they were opened last."""
        ring = vault.keyring
        known = self._writers.get(vault.tier)
        if known is None or known[0] is not ring:
            known = ring, Writer(self._index, ring, vault.pool, self._clock_ns)
            self._writers[vault.tier] = known
        return known[1]

    def _tell(self, vault: Vault, fault: str | None) -> None:
        if fault:
            fault = f"takes no writes, its calls wait: {fault}"
        if fault and fault != vault.fault:
            log.error("A pool takes no writes, its recordings wait in its intake",
                      extra={"POOL": vault.name, "FAULT": fault})  # fmt: skip
        elif vault.fault and not fault:
            log.info("The pool takes writes again", extra={"POOL": vault.name})
        vault.fault = fault


def _recordings(media: Media) -> set[bytes]:
    return {bytes(one) for one in media.table["recording_id"]}


def _is_placed(view: View, call_id: bytes) -> bool:
    return any(view.get(table, call_id) is not None for table in (b"placed", b"state"))


def _put_placed(writing: Writing, new: Mapping[bytes, int], placed: Mapping[bytes, Placed]) -> None:
    """placed: also of calls with media in others' recordings, which an erasure must know."""
    for one, capture in new.items():
        writing.put_placed(one, placed[one].tier, capture)
    for call_id, each in placed.items():
        for recording_id in each.recordings:
            writing.put(b"shared", recording_id, call_id)


def _lies_lower(view: View, recording_id: bytes, tier: int) -> bool:
    """Whether a recording is in a lower pool than this, and that is not noted yet."""
    state = view.readable_state(recording_id)
    return (
        state is not None
        and state.tier < tier
        and view.get(b"follow", recording_id) != bytes((tier,))
    )


def _put_followers(writing: Writing, followers: Iterable[tuple[bytes, int]]) -> None:
    for one, tier in followers:
        writing.put(b"follow", one, bytes((tier,)))


def _forget_placed(writing: Writing, ids: Iterable[bytes]) -> None:
    for one in ids:
        writing.delete(b"placed", one)
