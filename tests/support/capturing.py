"""What the tests of capture's shells record into: a real storaged, and a life that nobody ends."""

from pathlib import Path

from spanvault import wire
from spanvault.daemon.config import CaptureConfig
from spanvault.messages import Call, Fetch, Search
from tests.support.vault import Rig


class Life:
    """A Lifecycle without systemd or signals."""

    stop_requested = False
    wake_fd: int | None = None

    def __init__(self) -> None:
        self.said: list[str] = []

    def ready(self, text: str) -> None:
        self.said.append(text)

    status = stopping = ready

    def beat(self) -> None: ...


class Vault(Rig):
    """A storaged to record into, and the settings of a capture that may."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.settings = CaptureConfig(
            name="replay", storaged=self.ingest,
            certificate=folder / "secret/capture.key_secret",
            storaged_certificate=folder / "secret/storaged.key",
            state_dir=folder / "capture", runtime_dir=folder / "capture-run",
        )  # fmt: skip
        self.start()

    def calls(self) -> list[Call]:
        """Oldest first."""
        reply, _ = self.client("operator").ask(Search())
        return sorted(reply.calls, key=lambda call: call.started_ns)

    def stored_frames(self, call: Call) -> int:
        """Frames that storaged gives back of a call."""
        operator, frames = self.client("operator"), 0
        cursor: int | None = 0
        while cursor is not None:
            reply, bulk = operator.ask(Fetch(call.id, cursor))
            assert reply.faults == []
            frames += len(wire.decode_media(bulk).frames)
            cursor = reply.cursor
        return frames
