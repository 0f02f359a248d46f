"""A vault for random acts: storaged that may die at any moment, two captures, people, a replica.

Base, core and sensitive have disks of their own where the test may mount them. Sensitive opens with
a key that storaged does not have. What must be there: tests/support/interplaymodel.py.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import zmq

from spanvault import messages as m
from spanvault import spool, transport, wire
from spanvault.keys import keyfile
from spanvault.media.chunk import NO_MEDIA
from spanvault.private import PrivateStore, toml
from tests.support.command import spanvault
from tests.support.forked import Forked
from tests.support.interplaymodel import POOLS, Model
from tests.support.loads import Chunks
from tests.support.smalldisk import SmallDisk
from tests.support.vault import Client, make_media, payload

CAPTURES: Final = ("capture", "other")
PATIENCE_S: Final = 20.0
_DISK_MB: Final = 24
_SETTINGS: Final = """
[pools.base]
path = '{folder}/base'
{base}
[pools.core]
path = '{folder}/core'
{core}
[pools.sensitive]
path = '{folder}/sensitive'
recipients = ['{folder}/sensitive.pub']
{sensitive}
[[rules]]
pool = 'core'
number = ['core']
[[rules]]
pool = 'sensitive'
number = ['sensitive']
"""


class Died(Exception):
    """storaged was killed before it answered, as an act had planned."""


class Wrong(AssertionError):
    """Something that must hold does not."""


class Waiting(NamedTuple):
    """A batch that a capture keeps until it is acknowledged."""

    calls: list[m.Call]
    chunks: Chunks
    frames: list[Any]
    spooled: bool = False  # it lies on the capture's disk, and is sent when that is read


class Capture:
    """One capture: sends, keeps what is not acknowledged, and sends it again."""

    def __init__(self, house: "House", name: str) -> None:
        self._house, self.name = house, name
        self._client: Client | None = None
        self._sequence = 0
        self.waiting: dict[int, Waiting] = {}
        self.key = b""  # what a spool is sealed to

    def send(
        self, calls: list[m.Call], chunks: Chunks, size: int, *, spooled: bool = False
    ) -> None:
        """Send a batch; or, spooled, keep it sealed until unspool()."""
        self._sequence += 1
        batch = m.Batch(self.name, self._sequence, calls)
        media = make_media(chunks, size) if chunks else NO_MEDIA
        frames = [bytes(one) for one in wire.encode_media(batch, media)]
        said = {chunk: payload(*chunk, size) for chunk in chunks}
        self._house.model.sent(self.name, calls, said)
        if spooled and self.key:
            sealed = spool.seal_batch(frames, self.key)
            envelope = m.Sealed(self.name, self._sequence, spool.key_id(self.key))
            frames = [bytes(one) for one in wire.encode(envelope, sealed)]
        self.waiting[self._sequence] = Waiting(calls, chunks, frames, spooled)
        if not spooled:
            self._put(frames)

    def unspool(self) -> None:
        """Send what lay on disk."""
        for number, one in self.waiting.items():
            if one.spooled:
                self.waiting[number] = one._replace(spooled=False)
                self._put(one.frames)

    def connect(self) -> None:
        """To a storaged that has just started: all that it did not acknowledge goes again."""
        self.close()
        self._client = Client(self._house.rig, self.name, self._house.rig.ingest)  # type: ignore[arg-type]
        self.greet()
        for one in self.waiting.values():
            if not one.spooled:
                self._put(one.frames)

    def greet(self) -> None:
        """Ask which key a spool is sealed to."""
        self._put(list(wire.encode(m.Hello(self.name))))

    def settle(self, seconds: float = PATIENCE_S) -> bool:
        """Take acknowledgements until nothing is due, or for so long. Raises Died."""
        end = time.monotonic() + seconds
        while any(not one.spooled for one in self.waiting.values()):
            assert self._client
            left_s = end - time.monotonic()
            if left_s <= 0:
                return False
            frames = self._house.receive(self._client, left_s)
            if frames is not None:
                self.take(frames)
        return True

    def take_rest(self) -> None:
        """What a storaged that has ended had sent before."""
        while self._client and self._client.socket.poll(30):
            self.take(self._client.socket.recv_multipart())

    def take(self, frames: list[bytes]) -> None:
        answer, _ = wire.decode_from_ingest(frames)
        if isinstance(answer, m.Welcome):
            self.key = answer.ingest_key
        elif isinstance(answer, m.Acknowledge):
            for number in answer.sequences:
                if (one := self.waiting.pop(number, None)) is not None:
                    self._house.model.kept(self.name, one.calls, one.chunks)
        else:
            raise Wrong(f"a batch of {self.name} was refused: {answer}")

    def close(self) -> None:
        if self._client:
            self._client.socket.close(linger=0)
            self._client.context.term()
        self._client = None

    def _put(self, frames: list[Any]) -> None:
        if self._client:
            self._client.socket.send_multipart(frames)


class House:
    """All of it on one folder.

    disks: the pools' own are small ones, which can be filled.  spoil: a storaged that is wrong.
    """

    def __init__(self, folder: Path, model: Model, *, disks: bool, spoil: str = "") -> None:
        self.folder, self.model, self._spoil = folder, model, spoil
        self.rig = Forked(folder)
        secret, clients = folder / "secret", folder / "clients"
        transport.make_certificate(secret, "capture", "other")
        transport.make_certificate(secret, "operator", "auditor", "digits")
        for name in ("other", "auditor"):
            (clients / f"{name}.key").write_bytes((secret / f"{name}.key").read_bytes())
        sensitive = keyfile.create_private(folder / "sensitive.key")
        keyfile.write_public(folder / "sensitive.pub", keyfile.public_of(sensitive))
        unlock = keyfile.load(secret / "unlock.key")
        self.openers = {"base": [unlock], "core": [unlock], "sensitive": [sensitive]}
        self.captures = {name: Capture(self, name) for name in CAPTURES}
        self.people: dict[str, Client] = {}
        self.replicator: subprocess.Popen[bytes] | None = None
        self.replica = folder / "replica"
        self._disks = [SmallDisk(folder / name, _DISK_MB) for name in POOLS] if disks else []
        self.has_disks = disks
        self._meant_to_die = threading.Event()
        self._killers: list[threading.Timer] = []
        self.starts = self.kills = 0
        self.settle_settings()

    # --- storaged --------------------------------------------------------------------------------

    def settle_settings(self, keep: dict[str, int] | None = None, *, key: bool = False) -> None:
        """Write storaged.toml. keep: days by pool.  key: storaged has that of sensitive."""
        lines = dict.fromkeys(POOLS, "")
        for pool, days in (keep or {}).items():
            lines[pool] = f"keep_days = {days}"
        if key:
            place = self.folder / "held.key"
            place.unlink(missing_ok=True)
            keyfile.write_new(place, keyfile.text_of(self.openers["sensitive"][0]))
            lines["sensitive"] += f"\nunlock_key = '{place}'"
        self.rig.set(_SETTINGS.format(folder=self.folder, **lines))

    def start(self, *, apart: bool = False, key: bool = False) -> None:
        """storaged anew, and all that was not acknowledged sent again."""
        self.starts += 1
        self.rig.keep_key(apart=apart)
        self.rig.launch(spoil=self._spoil)
        self.rig.wait_for(self.rig.requests)
        if not Path(self.rig.requests.removeprefix("ipc://")).exists():
            raise Wrong(f"storaged does not start: {self.rig.messages[-500:]}")
        self.model.locked = set(POOLS) if apart else set() if key else {"sensitive"}
        self._close_people()
        self.people = {name: Client(self.rig, name, self.rig.requests)
                       for name in ("operator", "auditor")}  # fmt: skip
        for capture in self.captures.values():
            capture.connect()
        self.ask(m.Status())

    def end(self, number: int = signal.SIGKILL) -> None:
        """Kill it, or ask it to stop; what it had acknowledged by then counts."""
        for killer in self._killers:
            killer.cancel()
            killer.join()
        self._killers.clear()
        died = self._meant_to_die.is_set()
        self._meant_to_die.clear()
        code = self.rig.end(number)
        self.kills += code == -signal.SIGKILL
        wanted = 0 if number == signal.SIGTERM else -number
        if code != wanted and not (died and code == -signal.SIGKILL):
            raise Wrong(f"storaged ended with {code}: {self.rig.messages[-1500:]}")
        for capture in self.captures.values():
            capture.take_rest()

    def kill_in(self, seconds: float) -> None:
        """kill -9 while something goes on."""
        killer = threading.Timer(seconds, self._kill)
        self._killers.append(killer)
        killer.start()

    def _kill(self) -> None:
        self._meant_to_die.set()
        with suppress(ProcessLookupError):
            os.kill(self.rig.pid, signal.SIGKILL)

    def ask(self, request: Any, who: str = "operator", bulk: Sequence[bytes] = ()) -> Any:
        """A reply and its bulk. Raises Died."""
        kind = type(request).__name__.lower()
        client = self.people[who]
        client.send(request, None, *bulk)
        try:
            frames = self.receive(client, 60.0)
        except Died:
            self.model.unanswered[kind] = self.model.unanswered.get(kind, 0) + 1
            raise
        if frames is None:
            raise Wrong(f"no answer to {request}")
        self.model.asked[kind] = self.model.asked.get(kind, 0) + 1
        return wire.decode_reply(frames)

    def receive(self, client: Client, seconds: float) -> list[bytes] | None:
        """The next message; None if none came in time. Raises Died, or Wrong if nobody killed."""
        ended = os.pidfd_open(self.rig.pid)
        try:
            poller = zmq.Poller()
            poller.register(client.socket, zmq.POLLIN)
            poller.register(ended, zmq.POLLIN)
            ready = dict(poller.poll(int(seconds * 1000)))
            if client.socket in ready or (ready and client.socket.poll(30)):
                return client.socket.recv_multipart()
            if not ready:
                return None
        finally:
            os.close(ended)
        if not self._meant_to_die.is_set():
            raise Wrong(f"storaged died by itself: {self.rig.messages[-1500:]}")
        raise Died

    @property
    def is_dying(self) -> bool:
        """Whether a kill was planned and has come about."""
        return self._meant_to_die.is_set()

    def reindex(self) -> int:
        """Make the index anew, storaged being stopped. Gives the exit status."""
        self.rig.launch(task="reindex", spoil=self._spoil)
        if not self.rig.wait_for_end(60.0):
            raise Wrong("reindex does not end")
        return self.rig.end()

    def until(self, due: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> None:
        """Wait until something has come about. Raises Wrong, Died."""
        end = time.monotonic() + seconds
        while not due():
            if time.monotonic() > end:
                raise Wrong(f"not within {seconds:g} s: {what}")
            time.sleep(0.02)

    # --- its replica -----------------------------------------------------------------------------

    def start_replicator(self) -> None:
        self.replica.mkdir(exist_ok=True)
        config = self.folder / "replicator.toml"
        secret = self.folder / "secret"
        config.write_text(toml({
            "storaged": self.rig.requests, "certificate": secret / "replicator.key_secret",
            "storaged_certificate": secret / "storaged.key",
            "state_dir": self.folder / "state", "retry_s": 0.1,
            "targets": [{"name": "siteb", "kind": "directory", "path": self.replica}],
        }))  # fmt: skip
        self.replicator = subprocess.Popen(
            [sys.executable, "-m", "replicator", "--config", config],
            stderr=(self.folder / "replicator.log").open("ab"),
        )

    def stop_replicator(self) -> None:
        if self.replicator is not None:
            self.replicator.terminate()
            code = self.replicator.wait(30)
            self.replicator = None
            if code:
                raise Wrong(f"the replicator ended with {code}")

    def replicated_to(self) -> int:
        """The position up to which the replica has everything."""
        path = self.folder / "state" / "siteb.position"
        return int(json.loads(path.read_text())["position"]) if path.exists() else 0

    def replicator_says(self) -> str:
        """How far it is, and the last of what it said."""
        report = [one["state"] for one in self.ask(m.Status())[0].daemons]
        log = (self.folder / "replicator.log").read_text()[-800:]
        return f"{self.replicated_to()} {report} {log}"

    def restored(self) -> PrivateStore:
        """A store made of the replica, whose storaged is to be started. Raises Wrong."""
        new, keys = self.folder / "new", []
        for pool in ("base", "sensitive"):
            keys.append(self.folder / f"{pool}.restore.key")
            keyfile.write_new(keys[-1], keyfile.text_of(self.openers[pool][0]))
        done = spanvault(
            "restore", "--from", self.replica, "--store", new, "--recovery-key", keys[0],
            "--pool-key", f"sensitive={keys[1]}", home=self.folder,
        )  # fmt: skip
        if done.returncode:
            raise Wrong(f"restore: {done.returncode} {done.stdout[-600:]} {done.stderr[-600:]}")
        return PrivateStore(new, keys[0], {"sensitive": keys[1]})

    # --- its end ---------------------------------------------------------------------------------

    def _close_people(self) -> None:
        for client in self.people.values():
            client.socket.close(linger=0)
            client.context.term()
        self.people = {}

    def close(self) -> None:
        for killer in self._killers:
            killer.cancel()
        if self.replicator is not None:
            self.replicator.kill()
            self.replicator.wait()
        self._close_people()
        for capture in self.captures.values():
            capture.close()
        self.rig.close()
        for disk in self._disks:
            disk.close()
