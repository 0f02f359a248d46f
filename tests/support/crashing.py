"""Kill storaged at a named step under a load, start it again, and hold the store against what was
acknowledged.

What must hold, whatever the step: the store opens; nothing acknowledged is missing; every check is
clean; what was not acknowledged is taken when it comes again, once; and no key was used for two
recordings, no salt for two segments, no nonce for two frames. Where storaged can be killed, and how
it is done: tests/support/crashpoints.py.
"""

import functools
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import zmq

from spanvault import keyfile, wire
from spanvault import messages as m
from spanvault.chunk import NO_MEDIA
from storaged.index import Index
from storaged.record import parse_head
from tests.support.vault import Client, Rig, call_id, chunk_keys, make_media

MAGIC = b"\x89SVR\r\n\x1a\n"
Chunks = Sequence[tuple[bytes, int, int]]


class Step(NamedTuple):
    """A place where storaged can be killed."""

    name: str
    nth: int = 1
    within: bool = False

    def __str__(self) -> str:
        number = f" ({self.nth})" if self.nth > 1 else ""
        return f"{'half of' if self.within else 'before'} {self.name}{number}"


class Sent(NamedTuple):
    """One message of a load, and what must be there once it is acknowledged."""

    message: m.Batch | m.Import | m.Erase | m.Rotate | m.Unlock | m.Move
    chunks: Chunks = ()
    bulk: tuple[bytes, ...] = ()


class Load(NamedTuple):
    """What storaged is given while it is killed.

    prepare: makes the store that it starts with.  sent: one after the other, each acknowledged
    before the next.  kept: what the store that it starts with was given.  locked: its unlock key is
    nowhere on the machine; what came meanwhile must be there once it is unlocked.  settings: lines
    of storaged.toml.  own: a pattern of the steps that are tried, each once, where other loads have
    the rest.
    """

    prepare: Callable[["Forked"], None]
    sent: Sequence[Sent]
    kept: Sequence[Sent] = ()
    locked: bool = False
    settings: str = ""
    own: str = ""

    def tries(self, step: Step) -> bool:
        """Whether storaged is killed at this step of it."""
        return not self.own or (step.nth == 1 and re.search(self.own, step.name) is not None)

    @property
    def sorts(self) -> bool:
        """Whether its end is not an answer, but an intake that is empty."""
        return isinstance(self.sent[-1].message, m.Unlock | m.Move)

    @property
    def moved(self) -> dict[bytes, str]:
        """The pools of the calls that it moves."""
        return {one: sent.message.pool for sent in self.sent if isinstance(sent.message, m.Move)
                for one in sent.message.ids}  # fmt: skip

    @property
    def erased(self) -> set[bytes]:
        """The calls that it erases."""
        return {one for sent in self.sent if isinstance(sent.message, m.Erase)
                for one in sent.message.ids}  # fmt: skip


# What comes next, whatever was killed: a call that nobody has heard of yet.
AFTERWARDS = Sent(m.Batch("test", 99), [(call_id(99), 1, 0)])


class Outcome(NamedTuple):
    """What became of a store whose storaged was killed."""

    step: Step
    acknowledged: int  # messages, of those sent
    faults: list[str]


class Forked(Rig):
    """A Rig whose daemons are forked from one process that has imported storaged already."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, commit_interval_s=0.05)
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.support.crashpoints"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
        self.pid = 0
        self._settings = self.config.read_text()

    def set(self, settings: str) -> None:
        """Have these lines, and no others, besides those of every rig in storaged.toml."""
        self.config.write_text(self._settings + settings)

    def launch(self, **plan: Any) -> None:
        """Start a daemon; it need not get ready."""
        for endpoint in (self.ingest, self.requests):
            Path(endpoint.removeprefix("ipc://")).unlink(missing_ok=True)
        self.pid = self._ask({"config": str(self.config), "folder": str(self.folder), **plan})

    def end(self, number: int = signal.SIGKILL) -> int:
        """Send the daemon a signal, give its exit status once it is gone."""
        if not self.pid:
            return 0
        os.kill(self.pid, number)
        pid, self.pid = self.pid, 0
        return self._ask({"wait": pid})

    def wait_for(self, endpoint: str) -> None:
        """Until the daemon listens there, or has ended: a connection tried before costs more."""
        ended, path = os.pidfd_open(self.pid), Path(endpoint.removeprefix("ipc://"))
        while not path.exists() and not select.select([ended], [], [], 0.003)[0]:
            pass
        os.close(ended)

    def wait_for_end(self, timeout_s: float) -> None:
        """Until the daemon has died, at most so long."""
        ended = os.pidfd_open(self.pid)
        select.select([ended], [], [], timeout_s)
        os.close(ended)

    def keep_key(self, *, apart: bool) -> None:
        """Put the unlock key where storaged finds it, or where it does not."""
        here, apart_at = self.folder / "secret/unlock.key", self.folder / "safe.key"
        source, place = (here, apart_at) if apart else (apart_at, here)
        if source.exists():
            source.rename(place)

    @property
    def unlock(self) -> m.Unlock:
        """What opens the store."""
        here, apart_at = self.folder / "secret/unlock.key", self.folder / "safe.key"
        return m.Unlock("base", keyfile.load(here if here.exists() else apart_at))

    def close(self) -> None:
        self.end()
        super().close()
        assert self._zygote.stdin
        self._zygote.stdin.close()
        self._zygote.wait(30)

    def reset(self, template: Path) -> None:
        """Put the store back as it was."""
        shutil.rmtree(self.store, ignore_errors=True)
        if template.exists():
            shutil.copytree(template, self.store)

    def _ask(self, asked: dict[str, Any]) -> int:
        assert self._zygote.stdin
        assert self._zygote.stdout
        self._zygote.stdin.write(json.dumps(asked) + "\n")
        self._zygote.stdin.flush()
        return int(self._zygote.stdout.readline())


class Sender:
    """Sends a load's messages, and knows which were acknowledged."""

    def __init__(self, rig: Forked, sent: Sequence[Sent]) -> None:
        self._rig, self._sent = rig, sent
        self.acknowledged: set[int] = set()

    def send_all(self) -> None:
        """Send what is not acknowledged yet, each once the one before is, until storaged ends."""
        imports = any(isinstance(one.message, m.Import) for one in self._sent)
        role, endpoint = (
            ("capture", self._rig.ingest)
            if isinstance(self._sent[0].message, m.Batch)
            else ("operator", self._rig.requests)
        )
        self._rig.wait_for(endpoint)
        client = Client(self._rig, role, endpoint)
        try:
            for number, one in enumerate(self._sent):
                if number in self.acknowledged and not imports:
                    continue  # a restore begins again from the first
                media = make_media(one.chunks) if one.chunks else NO_MEDIA
                client.send(one.message, media if not imports else None, *one.bulk)
                if not self._answered(client, number):
                    return
                self.acknowledged.add(number)
        finally:
            client.socket.close(linger=0)
            client.context.term()

    def _answered(self, client: Client, number: int) -> bool:
        """Whether it was acknowledged before storaged came to its end."""
        ended = os.pidfd_open(self._rig.pid)
        try:
            poller = zmq.Poller()
            poller.register(client.socket, zmq.POLLIN)
            poller.register(ended, zmq.POLLIN)
            while True:
                ready = dict(poller.poll(20_000))
                assert ready, f"no answer to message {number}"
                if client.socket in ready:
                    return self._fits(client.socket.recv_multipart(), number)
                if not client.socket.poll(20):  # what was sent before the end still comes
                    return False
        finally:
            os.close(ended)

    def _fits(self, frames: list[bytes], number: int) -> bool:
        sent = self._sent[number].message
        if not isinstance(sent, m.Batch):
            reply, _ = wire.decode_reply(frames)
            assert isinstance(reply, m.Done | m.EraseReply | m.MoveReply), reply
            return True
        answer, _ = wire.decode_from_ingest(frames)
        assert isinstance(answer, m.Acknowledge), answer
        return sent.sequence in answer.sequences


def steps_of(rig: Forked, load: Load, template: Path) -> list[Step]:
    """Run a load through, and give every step that storaged took for it."""
    rig.reset(template)
    trace = rig.folder / "trace"
    trace.unlink(missing_ok=True)
    rig.launch(trace=str(trace))
    sender = Sender(rig, load.sent)
    sender.send_all()
    assert len(sender.acknowledged) == len(load.sent)
    if load.sorts:
        drained(rig.client("operator"))
    rig.end()
    found: list[Step] = []
    counts: dict[str, int] = {}
    for line in trace.read_text().splitlines():
        name, half = line.split("\t")
        counts[name] = counts.get(name, 0) + 1
        found.append(Step(name, counts[name]))
        if half:
            found.append(Step(name, counts[name], within=True))
    return [step for step in found if load.tries(step)]


def crash(rig: Forked, load: Load, template: Path, step: Step, spoil: str = "") -> Outcome:
    """Kill storaged at a step of a load; start it again; say what is wrong with what is there."""
    rig.reset(template)
    sender = Sender(rig, load.sent)
    rig.launch(kill=step.name, nth=step.nth, within=step.within, spoil=spoil)
    sender.send_all()
    acknowledged = set(sender.acknowledged)
    rig.wait_for_end(2.0)
    if (code := rig.end()) != -signal.SIGKILL:
        return Outcome(step, len(acknowledged), [f"storaged ended by itself with code {code}"])
    before = Remains.of(rig.store)
    rig.launch(spoil=spoil)
    rig.wait_for(rig.requests)
    operator = Client(rig, "operator", rig.requests)
    try:
        if load.locked:
            operator.ask(rig.unlock)
        drained(operator)
        halves = [f"{path.name} is left" for path in rig.store.glob("intake/*/*.moving")]
        found = stored(operator, load)
        faults = [f"lost: {what}" for what in lost(load, acknowledged, found)]
        faults += halves
        faults += not_rotated(operator, load, acknowledged)
        faults += untold(operator, rig.store, template)
        if faults:
            return Outcome(step, len(acknowledged), faults)
        sender.send_all()
        drained(operator)
        Sender(rig, [AFTERWARDS]).send_all()
        load = load._replace(sent=[*load.sent, AFTERWARDS])
        found = stored(operator, load)
        everything = set(range(len(load.sent)))
        faults += [f"not taken again: {what}" for what in lost(load, everything, found)]
        faults += not_clean(operator, load, found)
        faults += left_over(rig.store, load)
    finally:
        operator.close()
        rig.end()
    return Outcome(step, len(acknowledged), faults + list(before.reused(Remains.of(rig.store))))


def drained(operator: Client) -> None:
    """Wait until nothing is kept for an open pool elsewhere."""
    end = time.monotonic() + 20
    while any(pool["waiting"] for pool in operator.ask(m.Status())[0].fields["pools"].values()):
        assert time.monotonic() < end, "the intake is not sorted into the store"
        time.sleep(0.005)


Found = dict[bytes, tuple[m.GetReply, list[tuple[bytes, int, int, bytes]]]]


def stored(operator: Client, load: Load) -> Found:
    """Record and chunks of every call of a load that is there."""
    found: Found = {}
    for recording in sorted({one for sent in (*load.kept, *load.sent) for one in _ids(sent)}):
        reply, _ = operator.ask(m.Get(recording))
        if not isinstance(reply, m.GetReply):
            continue
        chunks: list[tuple[bytes, int, int, bytes]] = []
        cursor: int | None = 0
        while cursor is not None and reply.size:
            page, bulk = operator.ask(m.Fetch(recording, cursor))
            if not isinstance(page, m.FetchReply):
                break  # so these chunks are lost
            chunks += chunk_keys(wire.decode_media(bulk))
            cursor = page.cursor
        found[recording] = reply, chunks
    return found


def lost(load: Load, acknowledged: set[int], found: Found) -> Iterator[str]:
    """What was acknowledged, and is not there as it was sent; what was erased, and is there."""
    done = [load.sent[number] for number in sorted(acknowledged)]
    gone = load.erased - found.keys()  # all of such a call, or nothing
    for sent in (*load.kept, *done):
        for chunk in sent.chunks:
            said = chunk_keys(make_media([chunk]))[0]
            if chunk[0] not in gone and (chunk[0] not in found or said not in found[chunk[0]][1]):
                yield f"chunk {chunk[1:]} of {chunk[0].hex()[:8]}"
        for call in sent.message.calls if isinstance(sent.message, m.Batch) else ():
            if call.id not in gone and (
                call.id not in found or found[call.id][0].call.revision < call.revision
            ):
                yield f"record {call.revision} of {call.id.hex()[:8]}"
        if isinstance(sent.message, m.Import):
            change = sent.message.change
            if change.kind == "record" and change.id not in found:
                yield f"record of {change.id.hex()[:8]}"
        if isinstance(sent.message, m.Erase):
            yield from (f"erasure of {one.hex()[:8]}" for one in sent.message.ids if one in found)
        if isinstance(sent.message, m.Move):
            yield from (
                f"move of {one.hex()[:8]}"
                for one in sent.message.ids
                if one not in found or found[one][0].pool != sent.message.pool
            )


def not_rotated(operator: Client, load: Load, acknowledged: set[int]) -> Iterator[str]:
    """Keys that were acknowledged as new, and are not there."""
    done = [load.sent[number].message for number in acknowledged]
    whats = [one.what for one in done if isinstance(one, m.Rotate)]
    if whats:
        keys, _ = operator.ask(m.Keys())
        if keys.pools[0].epoch <= whats.count("root"):
            yield f"root of epoch {keys.pools[0].epoch}"
        if keys.pools[0].ingest_keys <= whats.count("ingest"):
            yield f"{keys.pools[0].ingest_keys} ingest keys"


def untold(operator: Client, store: Path, template: Path) -> Iterator[str]:
    """A new root that a replica which had all there was before would not hear of."""
    before = template / "keys" / "root"
    if not before.exists() or before.read_bytes() == (store / "keys" / "root").read_bytes():
        return
    reply, _ = operator.ask(m.Feed(_position(template)))
    if not any(one.name == "root" for one in reply.changes):
        yield "the feed does not tell of the new root"


@functools.cache
def _position(store: Path) -> int:
    """The last position that a store's feed gave out."""
    tables = Index(store / "index")
    tables.close()
    return tables.position


def left_over(store: Path, load: Load) -> Iterator[str]:
    """Files that a crash left: keys that should be destroyed, objects of erased calls."""
    names = sorted(path.name for path in (store / "keys").iterdir() if path.is_file())
    pages = [name.split(".")[0] for name in names if name != "root"]
    if len(set(pages)) != len(pages) or any(not name.startswith("page-") for name in pages):
        yield f"key files are left: {names}"
    yield from (f"{path.name} is left" for path in store.glob("intake/*/*.*"))
    for one in load.erased:
        yield from (f"{path.name} is left" for path in store.rglob(f"{one.hex()}*"))
    for one, pool in load.moved.items():
        there = {path.parents[2].name for path in store.rglob(f"{one.hex()}*")}
        if there != {pool}:
            yield f"{one.hex()[:8]} lies in {sorted(there)}"


def not_clean(operator: Client, load: Load, found: Found) -> Iterator[str]:
    """Faults that a check finds, chunks that are there twice, recordings that should be sealed."""
    final = {
        call.id for sent in (*load.kept, *load.sent) if isinstance(sent.message, m.Batch)
        for call in sent.message.calls if call.final
    }  # fmt: skip
    for recording, (_, chunks) in found.items():
        name = recording.hex()[:8]
        if len(set(chunks)) != len(chunks):
            yield f"{name}: chunks twice"
        report, _ = operator.ask(m.Verify(recording))
        if chunks and not isinstance(report, m.VerifyReply):
            yield f"{name}: {report}"
        elif chunks:
            yield from (f"{name}: {fault}" for fault in report.faults)
            if recording in final and not report.sealed:
                yield f"{name}: not sealed"


def _ids(sent: Sent) -> set[bytes]:
    found = {chunk[0] for chunk in sent.chunks}
    if isinstance(sent.message, m.Batch):
        found |= {call.id for call in sent.message.calls}
    elif isinstance(sent.message, m.Erase):
        found |= set(sent.message.ids)
    elif isinstance(sent.message, m.Import) and sent.message.change.kind != "keys":
        found.add(sent.message.change.id)
    return found


class Remains(NamedTuple):
    """What a store uses of keys: segments by salt, and whose each key is."""

    segments: list[tuple[bytes, bytes]]  # salt; all bytes of the segment, header and locator too
    owners: dict[tuple[int, int], set[bytes]]  # pool, key id: the recordings it seals

    @classmethod
    def of(cls, store: Path) -> "Remains":
        """Read it off the files, without a key."""
        segments: list[tuple[bytes, bytes]] = []
        owners: dict[tuple[int, int], set[bytes]] = {}
        for path in store.glob("pools/*/objects/*/*.svr*"):
            for part in path.read_bytes().split(MAGIC)[1:]:
                segment = MAGIC + part
                segments.append((segment[56:72], segment))
                if len(segment) >= 40:
                    key = segment[12], int.from_bytes(segment[32:40], "little")
                    owners.setdefault(key, set()).add(segment[16:32])
        for recording, key in _record_keys(store):
            owners.setdefault(key, set()).add(recording)
        return cls(segments, owners)

    def reused(self, after: "Remains") -> Iterator[str]:
        """Keys, salts and nonces that were used twice, before and after a crash together."""
        salts = [salt for salt, _ in after.segments if len(salt) == 16]
        if len(set(salts)) != len(salts):
            yield "a salt was used twice"
        kept = dict(after.segments)
        for salt, segment in self.segments:
            there = kept.get(salt, b"")
            if not (there.startswith(segment) or segment.startswith(there)):
                yield "a frame was sealed again under its nonce"
        for key_id in self.owners.keys() | after.owners.keys():
            whose = self.owners.get(key_id, set()) | after.owners.get(key_id, set())
            if len(whose) > 1:
                yield f"key {key_id[1]} was given to {len(whose)} recordings"


def _record_keys(store: Path) -> list[tuple[bytes, tuple[int, int]]]:
    """Pools and key ids of the sealed records; none if the store was not even made."""
    if not (store / "index" / "data.mdb").exists():
        return []
    tables = Index(store / "index")
    try:
        with tables.reading() as view:
            rows = [(bytes(key), parse_head(value).key_id) for key, value in view.cursor(b"record")]
            states = {call_id: view.state(call_id) for call_id, _ in rows}
    finally:
        tables.close()
    return [(one, (state.tier, key)) for one, key in rows if (state := states[one])]
