"""The three real daemons as separate processes, to be started, killed and started again.

Settings come from `spanvault init` on a folder of the test's, so what init makes is what runs.
Each daemon has a notify socket, as under systemd: start() returns when it has said READY.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spanvault import init
from spanvault.client import Client
from spanvault.daemon.config import OperatorConfig, load
from spanvault.private import toml

START_S = 30.0
STOP_S = 30.0


class Appliance:
    """storaged, capture and replicator on one folder.

    within: goes before capture's command. capture: settings of its other than usual.
    """

    def __init__(
        self, folder: Path, interface: str = "", within: Sequence[str] = (), **capture: Any
    ) -> None:
        self.folder, self._within = folder, within
        # A unix socket's path holds 107 bytes: the test's folder may be longer.
        self._run = Path(tempfile.mkdtemp(prefix="spanvault-", dir="/tmp"))
        self.etc, self.replica = folder / "etc", folder / "replica"
        self.store, self.logs = folder / "store", folder / "log"
        self.spool = folder / "capture"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.statuses: dict[str, str] = {}
        self.ready_ns: dict[str, list[int]] = {}  # when each was ready, every time
        self._ready: dict[str, threading.Event] = {}
        self._starts = 0
        self._settle({"interface": interface, **capture})

    def __enter__(self) -> "Appliance":
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.processes):
            self.kill(name)
        shutil.rmtree(self._run, ignore_errors=True)

    def start(
        self, name: str, *arguments: str, wait: bool = True, script: Path | None = None
    ) -> None:
        """Start a daemon; what it says is added to its log. Raises OSError if it does not run.

        script: runs in the daemon's place.
        """
        program = [str(script)] if script else ["-m", name]
        command = [sys.executable, *program, "--config", f"{self.etc / name}.toml", *arguments]
        before = self._within if name == "capture" else []
        with (self.logs / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*before, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**_environment(), "NOTIFY_SOCKET": self._listen(name)},
                cwd=self.folder,
            )
        if wait:
            self.until_ready(name)

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

    def finished(self, name: str, seconds: float = 60) -> int:
        """Wait until it has ended by itself. Returns the exit status."""
        return self.processes.pop(name).wait(seconds)

    def log(self, name: str, lines: int = 20) -> str:
        """The last of what a daemon said."""
        text = (self.logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def wait(self, condition: Callable[[], bool], seconds: float = START_S) -> None:
        """Until something has come about. Raises OSError with the logs if it does not."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                logs = "\n".join(self.log(path.stem) for path in self.logs.glob("*.log"))
                raise OSError(f"it did not come about within {seconds:g} s\n{logs}")
            time.sleep(0.1)

    def client(self) -> Client:
        """The operator's connection to the running storaged."""
        return Client.of(load(self.etc / "spanvault.toml", OperatorConfig))

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

    def _settle(self, capture: dict[str, Any]) -> None:
        self.logs.mkdir(parents=True)
        self.replica.mkdir()
        init.initialise(self.etc)
        keys = self.etc / "keys"
        ingest, requests = f"ipc://{self._run / 'ingest'}", f"ipc://{self._run / 'requests'}"
        server = {"storaged_certificate": keys / "storaged.key"}
        self._write("capture", {
            "name": "span", "storaged": ingest, "ring_mb": 32,
            "certificate": keys / "capture.key_secret", **server,
            "state_dir": self.spool, "runtime_dir": self.folder / "runtime", **capture,
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

    def until_ready(self, name: str) -> None:
        """Wait until it said READY. Raises OSError if it does not."""
        end = time.monotonic() + START_S
        while not self._ready[name].wait(0.1):
            if self.processes[name].poll() is not None:
                raise OSError(f"{name} ended: {self.processes[name].returncode}\n{self.log(name)}")
            if time.monotonic() > end:
                raise OSError(f"{name} was not ready within {START_S:g} s\n{self.log(name)}")

    def _listen(self, name: str) -> str:
        """Be the service manager of one start of a daemon. Returns its NOTIFY_SOCKET."""
        self._starts += 1
        path = str(self._run / f"notify-{self._starts}")
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        manager.bind(path)
        self._ready[name] = threading.Event()
        arguments = (name, manager, self._ready[name])
        threading.Thread(target=self._hear, args=arguments, daemon=True).start()
        return path

    def _hear(self, name: str, manager: socket.socket, ready: threading.Event) -> None:
        while True:
            for line in manager.recv(4096).decode().splitlines():
                key, _, value = line.partition("=")
                if key == "STATUS":
                    self.statuses[name] = value
                elif key == "READY":
                    self.ready_ns.setdefault(name, []).append(time.time_ns())
                    ready.set()


def _environment() -> dict[str, str]:
    """Ours, but what journal and service manager told us alone."""
    dropped = {"NOTIFY_SOCKET", "JOURNAL_STREAM", "WATCHDOG_USEC", "WATCHDOG_PID"}
    return {key: value for key, value in os.environ.items() if key not in dropped}
