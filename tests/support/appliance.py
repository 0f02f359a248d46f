"""The three real daemons as separate processes, to be started, killed and started again.

Settings come from `spanvault init` on a folder of the test's, so what init makes is what runs.
Each daemon has a notify socket, as under systemd: start() returns when it has said READY.
"""

import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from spanvault import init
from spanvault.private import toml

REPOSITORY = Path(__file__).parents[2]
START_S = 30.0
STOP_S = 30.0


class Appliance:
    """storaged, capture and replicator on one folder. within: goes before capture's command."""

    def __init__(self, folder: Path, interface: str = "", within: Sequence[str] = ()) -> None:
        self.folder, self._within = folder, within
        # A unix socket's path holds 107 bytes: the test's folder may be longer.
        self._run = Path(tempfile.mkdtemp(prefix="spanvault-", dir="/tmp"))
        self.etc, self.replica = folder / "etc", folder / "replica"
        self.store, self.logs = folder / "store", folder / "log"
        self.spool = folder / "capture"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.statuses: dict[str, str] = {}
        self._notify: dict[str, socket.socket] = {}
        self._settle(interface)

    def __enter__(self) -> "Appliance":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in list(self.processes):
            self.kill(name)
        for socket_ in self._notify.values():
            socket_.close()
        shutil.rmtree(self._run, ignore_errors=True)

    def start(self, name: str, *arguments: str, wait: bool = True) -> None:
        """Start a daemon; what it says is added to its log. Raises OSError if it does not run."""
        command = [sys.executable, "-m", name, "--config", f"{self.etc / name}.toml", *arguments]
        before = self._within if name == "capture" else []
        while self._heard(name, 0):
            pass  # what a killed one still had to say
        with (self.logs / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*before, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**_environment(), "NOTIFY_SOCKET": str(self._run / f"{name}.notify")},
                cwd=self.folder,
            )
        if wait:
            self._until_ready(name)

    def kill(self, name: str) -> None:
        """kill -9."""
        self.processes[name].kill()
        self.processes.pop(name).wait()

    def stop(self, name: str) -> int:
        """SIGTERM, and time to drain. Returns the exit status."""
        process = self.processes.pop(name)
        process.terminate()
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise OSError(f"{name} did not stop within {STOP_S:g} s\n{self.log(name)}") from None

    def log(self, name: str, lines: int = 20) -> str:
        """The last of what a daemon said."""
        text = (self.logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def spanvault(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the operator's command against the running daemons."""
        command = [str(Path(sys.executable).parent / "spanvault"), *arguments]
        return subprocess.run(
            [*command, "--config", str(self.etc / "spanvault.toml")],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=_environment(),
        )

    def _settle(self, interface: str) -> None:
        self.logs.mkdir(parents=True)
        self.replica.mkdir()
        init.initialise(self.etc)
        keys = self.etc / "keys"
        ingest, requests = f"ipc://{self._run / 'ingest'}", f"ipc://{self._run / 'requests'}"
        server = {"storaged_certificate": keys / "storaged.key"}
        self._write("capture", {
            "name": "span", "interface": interface, "storaged": ingest,
            "certificate": keys / "capture.key_secret", **server,
            "state_dir": self.spool, "runtime_dir": self.folder / "runtime", "ring_mb": 32,
        })  # fmt: skip
        self._write("storaged", {
            "store": self.store, "ingest": ingest, "requests": requests,
            "certificate": keys / "storaged.key_secret", "clients": self.etc / "clients",
            "unlock_key": keys / "unlock.key", "recovery_public": keys / "recovery.pub",
        })  # fmt: skip
        self._write("replicator", {
            "storaged": requests, "certificate": keys / "replicator.key_secret", **server,
            "state_dir": self.folder / "replicator", "retry_s": 1.0,
            "targets": [{"name": "siteb", "kind": "directory", "path": self.replica}],
        })  # fmt: skip
        self._write("spanvault", {
            "storaged": requests, "certificate": keys / "operator.key_secret", **server,
        })  # fmt: skip

    def _write(self, name: str, settings: dict[str, Any]) -> None:
        (self.etc / f"{name}.toml").write_text(toml(settings), encoding="utf-8")

    def _until_ready(self, name: str) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if "READY=1" in self._heard(name, 0.1).splitlines():
                return
            if self.processes[name].poll() is not None:
                raise OSError(f"{name} ended: {self.processes[name].returncode}\n{self.log(name)}")
        raise OSError(f"{name} was not ready within {START_S:g} s\n{self.log(name)}")

    def _heard(self, name: str, wait_s: float) -> str:
        """One notification of a daemon, or nothing."""
        if name not in self._notify:
            self._notify[name] = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._notify[name].bind(str(self._run / f"{name}.notify"))
        if not select.select([self._notify[name]], [], [], wait_s)[0]:
            return ""
        text = self._notify[name].recv(4096).decode()
        for line in text.splitlines():
            if line.startswith("STATUS="):
                self.statuses[name] = line.removeprefix("STATUS=")
        return text


def _environment() -> dict[str, str]:
    """Ours, but what journal and service manager told us alone."""
    dropped = {"NOTIFY_SOCKET", "JOURNAL_STREAM", "WATCHDOG_USEC", "WATCHDOG_PID"}
    return {key: value for key, value in os.environ.items() if key not in dropped}
