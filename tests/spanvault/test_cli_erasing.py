"""Erasing as an operator does it: asked for, carried out, proved; real processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.folders import SAMPLE

SPANVAULT = Path(sys.executable).with_name("spanvault")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The command in a folder and a home of its own."""
    folder = tmp_path_factory.mktemp("erasing")

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [SPANVAULT, *map(str, arguments)],
            env={**os.environ, "XDG_DATA_HOME": str(folder), "COLUMNS": "160"},
            capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
            cwd=folder,
        )  # fmt: skip

    return run


def test_a_call_is_erased_and_that_is_proved(run: Run, tmp_path: Path) -> None:
    store = ("--store", "store")
    replayed = run("replay", SAMPLE, "--json", *store)
    gone, kept = (json.loads(line)["id"] for line in replayed.stdout.splitlines())
    refused = run("erase", gone, "--reason", "asked for", *store)
    assert (refused.returncode, "--yes" in refused.stderr) == (2, True)
    done = run("erase", gone, "--reason", "asked for", "--yes", "--json", *store)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["erased"] == 1
    left = [json.loads(line)["id"] for line in run("calls", "--json", *store).stdout.splitlines()]
    assert left == [kept]
    shown = run("show", gone, *store)
    assert (shown.returncode, "erased at" in shown.stderr) == (1, True)
    (listed,) = run("erasures", "--json", *store).stdout.splitlines()
    assert (json.loads(listed)["ids"], json.loads(listed)["pending"]) == ([gone], [])
    proof = tmp_path / "proof.json"
    assert run("certificate", "get", gone, "-o", proof, *store).returncode == 0
    checked = run("certificate", "verify", proof, "--json")
    assert (checked.returncode, json.loads(checked.stdout)["recording"]) == (0, gone)
    other = run("certificate", "verify", proof, "--key", "00" * 32)
    assert (other.returncode, "another key" in other.stderr) == (1, True)
    proof.write_text(proof.read_text().replace("asked for", "a whim"))
    assert run("certificate", "verify", proof).returncode == 1
