"""What the tests of storaged share: made-up media, a writer on a store, the daemon with clients.

Parts works on what is within the daemon; Rig runs it as a process, over CURVE on ipc sockets.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from spanvault import messages as m
from spanvault import transport, wire
from spanvault.daemon.config import StoragedConfig
from spanvault.daemon.rules import TIERS
from spanvault.keys import keyfile
from spanvault.media.chunk import CHUNK, FRAME, NO_MEDIA, Media
from storaged.index.environment import Index
from storaged.keys import keyring as keys
from storaged.keys.intakekeys import IntakeKeys
from storaged.keys.keyring import Keyring
from storaged.pools import vaults
from storaged.pools.intake import Intake
from storaged.pools.layout import Store
from storaged.pools.opening import Opener
from storaged.pools.pool import Pool
from storaged.pools.vaults import Vault, Vaults
from storaged.recordings.gathering import Group
from storaged.recordings.writer import Writer

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


def call_id(number: int) -> bytes:
    return hashlib.sha256(f"call {number}".encode()).digest()[:16]


def at(second: int) -> tuple[int, int]:
    """Earliest and latest start of the chunks of a frame that has those of this second alone."""
    return START + second * SECOND, START + second * SECOND


def payload(recording: bytes, stream: int, second: int, size: int) -> bytes:
    """Bytes that only this chunk has."""
    number = stream.to_bytes(1 + (stream > 255))
    seed = hashlib.sha256(recording + number + second.to_bytes(4, "big")).digest()
    return (seed * (size // 32 + 1))[:size]


def make_media(chunks: Sequence[tuple[bytes, int, int]], size: int = 320) -> Media:
    """Media of (recording, stream, second): two frames of size / 2 bytes each."""
    table, frames = np.zeros(len(chunks), CHUNK), np.zeros(2 * len(chunks), FRAME)
    parts = []
    for row, (recording, stream, second) in enumerate(chunks):
        table[row]["recording_id"] = np.void(recording)
        table[row]["stream"], table[row]["ssrc"] = stream, 0x1234 + stream
        table[row]["frames"], table[row]["payload_bytes"] = 2, size
        table[row]["start_ns"] = START + second * SECOND
        two = frames[2 * row : 2 * row + 2]
        two["sequence"] = 65536 + 2 * second, 65537 + 2 * second
        two["arrival_ns"] = START + second * SECOND
        two["length"] = size // 2
        parts.append(payload(recording, stream, second, size))
    return Media(table, frames, memoryview(b"".join(parts)))


def make_call(number: int, **changes: Any) -> m.Call:
    """A call as a capture would send it, answered after 2 s, ended after 62 s."""
    fields: dict[str, Any] = {
        "id": call_id(number),
        "capture": "test",
        "call_ids": [f"call-{number}@example.org"],
        "caller": f"+4930{number:07d}",
        "callee": "+493012345678",
        "started_ns": START + number * SECOND,
        "answered_ns": START + (number + 2) * SECOND,
        "ended_ns": START + (number + 62) * SECOND,
        "outcome": "answered",
        "end_reason": "bye",
        "final": True,
    }
    return m.Call(**{**fields, **changes})


def chunk_keys(media: Media) -> list[tuple[bytes, int, int, bytes]]:
    """(recording, stream, second, payload) of each chunk."""
    return [
        (
            piece.recording_id,
            int(piece.header["stream"]),
            (int(piece.header["start_ns"]) - START) // SECOND,
            bytes(piece.payload),
        )
        for piece in media.chunks()
    ]


class Parts:
    """The writer and what it writes to, without a daemon around."""

    def __init__(self, folder: Path, map_bytes: int = 1 << 30) -> None:
        self.folder = folder
        if not (folder / "keys").exists():
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "unlock.key").exists():
                keyfile.create_private(folder / "unlock.key")
            public = keyfile.public_of(keyfile.load(folder / "unlock.key"))
            keys.create(folder / "keys", os.urandom(16), [public])
        self.keyring = Keyring(folder / "keys", keyfile.load(folder / "unlock.key"))
        self.index = Index(folder / "index", map_bytes)
        (folder / "pools").mkdir(exist_ok=True)
        self.pool = Pool("base", folder / "pools" / "base", 0, 8)
        with self.index.reading() as view:
            self.pool.ledger.recover(view.ledger(0))
        self.writer = Writer(self.index, self.keyring, self.pool, time.time_ns)
        intake = Intake(folder / "intake" / "base")
        self.vaults = Vaults(
            Vault(self.pool, folder / "keys", intake, lambda: self.keyring.ingest_public,
                  self.keyring)
        )  # fmt: skip
        self._sequence = 0

    def commit(
        self, chunks: Sequence[tuple[bytes, int, int]] = (), calls: Sequence[m.Call] = ()
    ) -> Any:
        """One batch as one group."""
        group = Group()
        self._sequence += 1
        media = make_media(chunks) if chunks else NO_MEDIA
        group.add(b"test", m.Batch("test", self._sequence, list(calls)), media)
        return self.writer.commit(group)

    def open_pool(self, name: str) -> Vault:
        """A pool besides base, sealed to the same key. It stays locked where that does not fit."""
        pool = Pool(name, self.folder / "pools" / name, TIERS[name], 8)
        with self.index.reading() as view:
            pool.ledger.recover(view.ledger(TIERS[name]))
        key = keyfile.load(self.folder / "unlock.key")
        vaults.make(Store(self.folder), self.keyring, pool, [keyfile.public_of(key)])
        return vaults.open_vault(Store(self.folder), self.keyring, pool, [key])

    @property
    def opener(self) -> Opener:
        """What opens pools, as the daemon has it."""
        settings = StoragedConfig(store=self.folder, unlock_key=self.folder / "unlock.key")
        intake_keys = IntakeKeys(self.folder / "intake" / "keys", b"secret")
        made = Opener(settings, Store(self.folder), self.index, intake_keys)
        made.vaults = self.vaults
        return made

    def again(self) -> "Parts":
        """As after a crash and a restart: nothing of this process is left but what is on disk."""
        self.close()
        self.__init__(self.folder)  # type: ignore[misc]
        return self

    def close(self) -> None:
        self.index.close()
        self.pool.close()


class Client:
    """One DEALER of the daemon."""

    def __init__(self, rig: "Rig", role: str, endpoint: str) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        certificate = transport.load_certificate(rig.folder / "secret" / f"{role}.key_secret")
        server = transport.load_certificate(rig.folder / "secret" / "storaged.key")
        self.socket = transport.connect(self.context, endpoint, certificate, server)

    def send(self, message: m.Message, media: Media | None = None, *bulk: bytes) -> None:
        frames = wire.encode_media(message, media) if media else wire.encode(message, *bulk)
        self.socket.send_multipart(frames)

    def receive(self, decode: Callable[..., Any], timeout_s: float = 10.0) -> Any:
        """(message, bulk), or None if nothing came."""
        if not self.socket.poll(int(timeout_s * 1000)):
            return None
        return decode(self.socket.recv_multipart())

    def ask(self, message: m.Message, *bulk: bytes, timeout_s: float = 20.0) -> Any:
        """A request's reply and its bulk."""
        self.send(message, None, *bulk)
        answer = self.receive(wire.decode_reply, timeout_s)
        assert answer is not None, f"no reply to {message!r}"
        return answer

    def close(self) -> None:
        self.socket.close()
        self.context.term()


class Rig:
    """A daemon's folder of keys and settings, and the process."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.store = folder, folder / "store"
        secret, clients = folder / "secret", folder / "clients"
        clients.mkdir(parents=True, exist_ok=True)
        transport.make_certificate(secret, "storaged", "storaged")
        for role in ("capture", "operator", "replicator"):
            transport.make_certificate(secret, role, role)  # type: ignore[arg-type]
            (clients / f"{role}.key").write_bytes((secret / f"{role}.key").read_bytes())
        keyfile.create_private(secret / "unlock.key")
        self.ingest, self.requests = f"ipc://{folder}/i", f"ipc://{folder}/r"
        self.config = folder / "storaged.toml"
        self.configure(**settings)
        self.process: subprocess.Popen[bytes] | None = None
        self._clients: list[Client] = []

    def configure(self, **settings: Any) -> None:
        values = {
            "store": self.store, "ingest": self.ingest, "requests": self.requests,
            "certificate": self.folder / "secret/storaged.key_secret",
            "clients": self.folder / "clients",
            "unlock_key": self.folder / "secret/unlock.key",
            "commit_interval_s": 0.2, **settings,
        }  # fmt: skip
        lines = [
            f"{name} = {value if isinstance(value, int | float) else repr(str(value))}"
            for name, value in values.items()
        ]
        self.config.write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        self.process = self.spawn()
        operator = self.client("operator")
        operator.ask(m.Status())

    def spawn(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "storaged", "--config", self.config],
            stderr=(self.folder / "stderr").open("ab"),
        )

    def run_to_end(self) -> tuple[int, str]:
        """Exit code and messages of a daemon that cannot start."""
        done = subprocess.run(
            [sys.executable, "-m", "storaged", "--config", self.config],
            capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr.decode()

    def reindex(self) -> int:
        """Have the index made anew. Gives the exit code."""
        command = [sys.executable, "-m", "storaged", "--config", self.config, "reindex"]
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, give the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.process = None
        return code

    def client(self, role: str, endpoint: str | None = None) -> Client:
        client = Client(self, role, endpoint or self.requests)
        self._clients.append(client)
        return client

    def capture(self) -> Client:
        return self.client("capture", self.ingest)

    @property
    def messages(self) -> str:
        return (self.folder / "stderr").read_text()

    def close(self) -> None:
        for client in self._clients:
            client.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def acknowledged(client: Client, timeout_s: float = 10) -> list[int]:
    """The sequences of the next acknowledgement; none if there is none in time."""
    answer = client.receive(wire.decode_from_ingest, timeout_s)
    if answer is None:
        return []
    assert isinstance(answer[0], m.Acknowledge), answer
    return answer[0].sequences


def fetch(client: Client, call: bytes) -> list[tuple[int, int]]:
    """(stream, second) of all that a call's recording holds; payloads are compared."""
    found, cursor = [], 0
    while cursor is not None:
        reply, bulk = client.ask(m.Fetch(call, cursor))
        assert isinstance(reply, m.FetchReply), reply
        assert not reply.faults
        found += chunk_keys(wire.decode_media(bulk))
        cursor = reply.cursor
    for recording, stream, second, data in found:
        assert data == payload(recording, stream, second, len(data))
    return [(stream, second) for _, stream, second, _ in found]
