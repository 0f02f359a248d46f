"""A capture recorded the way an operator would: the `spanvault` command, and that only."""

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.command import spanvault


class Recorded:
    """One capture in a store of its own. calls: the documents that replay printed."""

    def __init__(self, capture: Path, folder: Path) -> None:
        self._folder = folder
        self._store = folder / "store"
        done = spanvault("replay", capture, "--store", self._store, "--json", home=folder)
        self.calls: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
        self.exit_code, self.errors = done.returncode, done.stderr
        self._sounds: Path | None = None

    def shown(self, call_id: str, *options: str) -> dict[str, Any]:
        """What `spanvault show` tells of one call."""
        done = spanvault(
            "show", call_id, "--json", *options, "--store", self._store, home=self._folder
        )
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def sound(self, recording_id: str) -> tuple[int, NDArray[np.int16]]:
        """Sample rate and int16[n, 2] of one call's export; all are exported at the first."""
        if self._sounds is None:
            self._sounds = self._folder / "sounds"
            self._sounds.mkdir()
            ids = [call["recording_id"] for call in self.calls if call["recording_id"]]
            spanvault(
                "export", *ids, "-o", self._sounds, "--format", "wav", "--store", self._store,
                home=self._folder,
            )  # fmt: skip
        with wave.open(str(self._sounds / f"{recording_id}.wav")) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
            return file.getframerate(), samples.reshape(-1, 2)
