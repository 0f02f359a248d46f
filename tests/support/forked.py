"""A storaged that is there in no time: forked from a process that has imported it already.

What such a daemon can be told, where to die among it: tests/support/crashpoints.py.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from spanvault import messages as m
from spanvault.keys import keyfile
from tests.support.vault import Rig


class Forked(Rig):
    """A Rig whose daemons are forked from one process that has imported storaged already."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, commit_interval_s=0.05)
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.support.crashpoints"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "SOFTHSM2_CONF": str(folder / "conf")},
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

    def act(self, folder: Path, **plan: Any) -> int:
        """Have one of ACTS run in a folder of its own; gives its exit status."""
        return self._ask({"wait": self._ask({"config": "", "folder": str(folder), **plan})})

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

    def wait_for_end(self, timeout_s: float) -> bool:
        """Until the daemon has died, at most so long; tells whether it has."""
        ended = os.pidfd_open(self.pid)
        died, _, _ = select.select([ended], [], [], timeout_s)
        os.close(ended)
        return bool(died)

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
        for place, kept in self._places(template):
            shutil.rmtree(place, ignore_errors=True)
            if kept.exists():
                shutil.copytree(kept, place)

    def save(self, template: Path) -> None:
        """Keep the store as it is for reset(), and the tokens with it."""
        for place, kept in self._places(template):
            if place.exists():
                shutil.copytree(place, kept)

    def _places(self, template: Path) -> list[tuple[Path, Path]]:
        """The store and SoftHSM's tokens, each with where it is kept."""
        return [
            (self.store, template), (self.folder / "tokens", template.with_suffix(".tokens"))
        ]  # fmt: skip

    def _ask(self, asked: dict[str, Any]) -> int:
        assert self._zygote.stdin
        assert self._zygote.stdout
        self._zygote.stdin.write(json.dumps(asked) + "\n")
        self._zygote.stdin.flush()
        return int(self._zygote.stdout.readline())
