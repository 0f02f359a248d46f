"""storaged's ingest socket as a test wants it: it answers what it is told to, and nothing else."""

import threading
from pathlib import Path
from typing import Any

import zmq

from spanvault import transport, wire
from spanvault.daemon.config import CaptureConfig
from spanvault.messages import Acknowledge, Batch, Hello, Refuse, Welcome


class Router:
    """A ROUTER with CURVE that takes whoever comes. For one capture."""

    def __init__(self, folder: Path, ingest_key: bytes = bytes(32)) -> None:
        for role in ("storaged", "capture"):
            transport.make_certificate(folder, role, role)  # type: ignore[arg-type]
        self.settings = CaptureConfig(
            name="port1",
            storaged=f"ipc://{folder}/i",
            certificate=folder / "capture.key_secret",
            storaged_certificate=folder / "storaged.key",
            state_dir=folder / "state",
            runtime_dir=folder / "run",
        )
        self._key = ingest_key
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = transport.listen(
            self._context,
            self.settings.storaged,
            transport.load_certificate(folder / "storaged.key_secret"),
        )
        self._route = b""

    def receive(self, timeout_ms: int = 5000) -> Any:
        """The next message, or None if none comes."""
        if not self._socket.poll(timeout_ms):
            return None
        self._route, *frames = self._socket.recv_multipart()
        return wire.decode_to_ingest(frames)[0]

    def receive_batches(self, count: int) -> list[Any]:
        """So many batches; greetings between them are left out."""
        found: list[Any] = []
        while len(found) < count:
            message = self.receive()
            assert message is not None, f"{len(found)} batches came, not {count}"
            found += [message] if not isinstance(message, Hello) else []
        return found

    def send(self, *frames: bytes) -> None:
        """Raw frames to whoever was heard last."""
        self._socket.send_multipart([self._route, *frames])

    def welcome(self, instance: str = "first", user: int = -1, key: bytes | None = None) -> None:
        self.send(*wire.encode(Welcome("store", "key", key or self._key, instance, user)))

    def acknowledge(self, *sequences: int) -> None:
        self.send(*wire.encode(Acknowledge(list(sequences))))

    def refuse(self, sequence: int) -> None:
        self.send(*wire.encode(Refuse(sequence, "it is nonsense", "Report it.")))

    def close(self) -> None:
        self._socket.close(linger=0)
        self._context.term()


class Answering:
    """A Router on a thread that welcomes, and does with each batch what it was made for."""

    def __init__(self, router: Router, answer: str) -> None:
        """answer: `acknowledge`, `refuse` or `` (say nothing)."""
        self._router, self._answer = router, answer
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.batches = 0

    def __enter__(self) -> "Answering":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.is_set():
            message = self._router.receive(20)
            if isinstance(message, Hello):
                self._router.welcome()
            elif isinstance(message, Batch):
                self.batches += 1
                if self._answer == "acknowledge":
                    self._router.acknowledge(message.sequence)
                elif self._answer == "refuse":
                    self._router.refuse(message.sequence)
