"""Daemons of one's own for a store that nothing is running on: what `--store DIR` does.

Settings, certificates and sockets live in a private folder under /tmp and are gone afterwards; the
daemons are the real ones, told apart by nothing. storaged itself refuses a store that is in use.
The key that unlocks the store: spanvault.keys.keyfile. Running daemons: spanvault.client.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from spanvault.client import Client, RequestFailed
from spanvault.daemon.config import OperatorConfig
from spanvault.daemonlog import Said, parse_all
from spanvault.transport import RIGHTS, Role, make_certificate

START_S: Final = 120.0  # a large index is read before the first answer
STOP_S: Final = 60.0
ROLES: Final[tuple[Role, ...]] = ("storaged", "operator", "capture", "replicator")
SERVICE_VARIABLES: Final = (
    "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "JOURNAL_STREAM", "STATE_DIRECTORY",
)  # fmt: skip


class StoreUnavailable(Exception):
    """The private storaged did not come up. hint: what to do."""

    def __init__(self, error: str, hint: str = "") -> None:
        super().__init__(error)
        self.error, self.hint = error, hint


class PrivateStore:
    """storaged on one store, for as long as the context lasts. Raises StoreUnavailable.

    pool_keys: files of private keys for pools that unlock_key does not open.
    """

    def __init__(
        self, store: Path, unlock_key: Path, pool_keys: Mapping[str, Path] | None = None
    ) -> None:
        self._store, self._unlock_key = store.absolute(), unlock_key.absolute()
        self._pools = {
            name: {"unlock_key": path.absolute()} for name, path in (pool_keys or {}).items()
        }
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "PrivateStore":
        self._folder = tempfile.TemporaryDirectory(prefix="spanvault-", dir=_short_temp())
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self._stop()

    @property
    def folder(self) -> Path:
        """Where settings, certificates, sockets and the daemons' messages are."""
        assert self._folder is not None
        return Path(self._folder.name)

    def daemon(
        self, name: str, settings: Mapping[str, Any], arguments: Sequence[str] = (), **pipes: Any
    ) -> subprocess.Popen[bytes]:
        """Start a daemon with its settings; what it says goes to a file (`said`)."""
        config = self.folder / f"{name}.toml"
        config.write_text(toml(settings), encoding="utf-8")
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", name, *_options(name, config), *arguments],
                stderr=log,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for us; we end them in order
                preexec_fn=_die_with_parent,
                **{"stdin": subprocess.DEVNULL, **pipes},
            )
        self._running.append(process)
        return process

    def said(self, name: str) -> list[Said]:
        """What a daemon has said so far on stderr, info apart."""
        text = (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return [one for one in parse_all(text.splitlines()) if one.level not in ("debug", "info")]

    def connection(self, role: Role) -> dict[str, Any]:
        """Settings that let a daemon reach storaged's requests or ingest."""
        socket = "ingest" if role == "capture" else "requests"
        return {
            "storaged": f"ipc://{self.folder / socket}",
            "certificate": self.folder / f"{role}.key_secret",
            "storaged_certificate": self.folder / "storaged.key",
        }

    def _start(self) -> None:
        clients = self.folder / "clients"
        clients.mkdir()
        for role in ROLES:
            # Who has the unlock key can open all of the store anyway.
            make_certificate(self.folder, role, role, *(RIGHTS if role == "operator" else ()))
            if role != "storaged":
                (clients / f"{role}.key").write_bytes((self.folder / f"{role}.key").read_bytes())
        storaged = self.daemon("storaged", self._settings(clients), stdout=subprocess.DEVNULL)
        self.client = Client.of(OperatorConfig(**self.connection("operator")))
        self._wait(storaged)

    def _settings(self, clients: Path) -> dict[str, Any]:
        return {
            "store": self._store,
            "ingest": f"ipc://{self.folder / 'ingest'}",
            "requests": f"ipc://{self.folder / 'requests'}",
            "certificate": self.folder / "storaged.key_secret",
            "clients": clients,
            "unlock_key": self._unlock_key,
            "pools": self._pools,
            "guest": True,
            "commit_interval_s": 0.4,  # half of what a replay leaves unacknowledged
        }

    def _wait(self, storaged: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if storaged.poll() is not None:
                raise _last_words(self.said("storaged"), storaged.returncode)
            try:
                self.client.status(timeout_s=1.0)
            except RequestFailed:
                time.sleep(0.02)
            else:
                return
        raise StoreUnavailable(f"storaged did not answer within {START_S:g} s on {self._store}")

    def _stop(self) -> None:
        """Last started, first stopped: storaged commits what a capture still sent."""
        for process in reversed(self._running):
            stop(process)
        if self._folder is not None:
            self._folder.cleanup()


def stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM and time to drain, then SIGKILL."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def toml(settings: Mapping[str, Any]) -> str:
    """Settings as TOML: strings, paths, numbers, tables, and lists of tables."""
    tables = {key: value for key, value in settings.items() if isinstance(value, list)}
    lines = [f"{key} = {_value(value)}" for key, value in settings.items() if key not in tables]
    for key, rows in tables.items():
        for row in rows:
            lines += ["", f"[[{key}]]", toml(row)]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False)


def _options(name: str, config: Path) -> Iterable[str]:
    restore = ["restore"] if name == "replicator" else []
    return [*restore, "--config", str(config)]


def _last_words(said: list[Said], code: int) -> StoreUnavailable:
    """Why storaged ended. code: as Popen's, below 0 for a signal."""
    if code < 0:
        return StoreUnavailable(
            f"storaged was ended by {signal.Signals(-code).name}",
            "If it happens again, the store's index is damaged: restore it from a replica.",
        )
    if not said:
        return StoreUnavailable("storaged ended without a word")
    return StoreUnavailable(said[-1].sentence, said[-1].fields.get("HINT", ""))


def _environment() -> dict[str, str]:
    """Ours, without what a service manager meant for us alone."""
    return {key: value for key, value in os.environ.items() if key not in SERVICE_VARIABLES}


def _short_temp() -> str | None:
    """A unix socket's path holds 107 bytes: a long TMPDIR leaves no room for the name."""
    return "/tmp" if len(tempfile.gettempdir()) > 60 else None  # noqa: S108 - mkdtemp is private


_LIBC: Final = ctypes.CDLL(None)
_PR_SET_PDEATHSIG: Final = 1


def _die_with_parent() -> None:
    # If we are killed, nobody else would end a daemon that holds the store's lock.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
