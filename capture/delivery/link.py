"""The capture's socket to storaged: what the outbox holds goes out, acknowledgements come in.

Protocol: spanvault/WIRE.md, "Ingest". What to send and when: capture.delivery.outbox.
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any, Final

import zmq

from capture.delivery.outbox import Outbox
from spanvault import transport, wire
from spanvault.daemon import disks, durable
from spanvault.daemon.config import CaptureConfig
from spanvault.messages import Acknowledge, Health, Hello, Refuse, Welcome
from spanvault.slots import Slots
from spanvault.spool import key_id

HELLO_NS: Final = 2_000_000_000


class Link:
    """One DEALER socket. Never blocks longer than it is told to."""

    def __init__(
        self, settings: CaptureConfig, outbox: Outbox, log: logging.Logger,
        slots: Slots | None = None,
    ) -> None:  # fmt: skip
        certificate = transport.load_certificate(settings.certificate)
        server = transport.load_certificate(settings.storaged_certificate)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = transport.connect(self._context, settings.storaged, certificate, server)
        self._endpoint, self._slots = settings.storaged, slots
        self._name, self._outbox, self._log = settings.name, outbox, log
        self._key_file = settings.state_dir / "ingest.key"
        self._kept_key, self._knows_kept = _read_key(self._key_file)
        self._keeping, self._keep_fault = False, ""
        self._perhaps_kept = set[bytes]()  # keys that a failing disk may have taken all the same
        self._outbox.ingest_key = self._kept_key
        self._instance: str | None = None
        self._hello_ns = 0

    @property
    def connected(self) -> bool:
        """storaged has answered since it was last (re)started."""
        return self._instance is not None

    def pump(self, now_ns: int, wait_ms: int = 0) -> list[bytes]:
        """Send what may leave, take what has come. Returns ids of calls that are settled."""
        if now_ns - self._hello_ns >= HELLO_NS:
            self._send(wire.encode(Hello(self._name)))
            self._hello_ns = now_ns
        self._outbox.tick(now_ns)
        self._send_batches(now_ns)
        return self._receive(now_ns, wait_ms)

    @property
    def sealed_to(self) -> list[str] | None:
        """Ids of the ingest keys that what is, or may yet be, on our disk needs to open.

        After a start without storaged that is sealed to the key that was kept, be it an older one.
        """
        found = self._outbox.sealed_to
        if found is None or not self._knows_kept:
            return None
        kept = {self._kept_key, *self._perhaps_kept}
        return sorted(found | {key_id(key) for key in kept if key is not None})

    def report(self, health: Health) -> None:
        """Tell storaged how we are, for `spanvault status`."""
        self._send(wire.encode(health))

    def close(self) -> None:
        """Leave; what is unacknowledged stays with the outbox."""
        self._socket.close()
        self._context.term()

    def _send(self, frames: list[Any]) -> bool:
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=len(frames) < 3)
        except zmq.Again:
            return False
        return True

    def _send_batches(self, now_ns: int) -> None:
        if self._outbox.handed_over and self._slots and not self._slots.held:
            # storaged has gone. A call's last record, queued by ZeroMQ for its successor, would
            # reach that before the media that has to go again: nothing leaves until it welcomes.
            self._outbox.handed_over, self._instance = False, None
            self._outbox.storaged_gone()
        if not self.connected:
            return
        for sequence, frames in self._outbox.to_send():
            if not self._send(frames):
                return
            self._outbox.sent(sequence, now_ns)

    def _receive(self, now_ns: int, wait_ms: int) -> list[bytes]:
        settled: list[bytes] = []
        while self._socket.poll(wait_ms, zmq.POLLIN):
            wait_ms = 0
            try:
                message, _ = wire.decode_from_ingest(self._socket.recv_multipart())
            except ValueError as error:
                self._log.warning("storaged sent what we cannot read", extra={"FAULT": str(error)})
                continue
            if isinstance(message, Acknowledge):
                settled += self._outbox.acknowledged(message.sequences, now_ns)
            elif isinstance(message, Refuse):
                self._outbox.refused(message.sequence, now_ns)
                self._log.error(
                    "storaged refused a batch",
                    extra={"BATCH": message.sequence, "FAULT": message.error, "HINT": message.hint},
                )
            elif isinstance(message, Welcome):
                self._welcome(message)
        return settled

    def _welcome(self, message: Welcome) -> None:
        if message.instance != self._instance:
            self._instance = message.instance
            self._outbox.storaged_gone()
            self._outbox.send_again()
            self._outbox.handed_over = False
            self._log.info("storaged is there", extra={"STORE": message.store_id})
        if self._slots and not self._outbox.handed_over and not self._outbox.in_doubt:
            self._outbox.handed_over = self._slots.hand_over(self._endpoint, message.user)
            if self._outbox.handed_over:
                self._log.info("storaged takes media out of memory")
        self._outbox.ingest_key = message.ingest_key
        if message.ingest_key != self._kept_key and not self._keeping:
            self._keep_key(message.ingest_key)

    def _keep_key(self, key: bytes) -> None:
        """For a start without storaged. A disk that does not take it stops no recording."""
        self._keeping = True
        self._perhaps_kept.add(key)
        self._outbox.aside.do(partial(_write_key, self._key_file, key), partial(self._kept, key))

    def _kept(self, key: bytes, error: Exception | None) -> None:
        """It lies there, or cannot: then it is tried with the next welcome."""
        self._keeping = False
        if error is None:
            self._kept_key, self._knows_kept, self._keep_fault = key, True, ""
            self._perhaps_kept.clear()
        elif not isinstance(error, OSError):
            raise error
        elif (fault := disks.line(error, self._key_file.parent)) != self._keep_fault:
            self._keep_fault = fault
            self._log.error("the ingest key cannot be kept", extra={"FAULT": fault})


def _write_key(path: Path, key: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Synced: storaged destroys an older key once we say that nothing of ours will be sealed to it.
    durable.replace(path, key)


def _read_key(path: Path) -> tuple[bytes | None, bool]:
    """The public ingest key as storaged last told it, so that we can spool without storaged.

    And whether that is known: a file that cannot be read now may be read by the next start.
    """
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        return None, True
    except OSError:
        return None, False
    return (key if len(key) == 32 else None), True
