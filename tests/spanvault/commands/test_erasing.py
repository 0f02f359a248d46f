"""Erasing as an operator does it: asked for, carried out, proved; real processes."""

import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.command import spanvault
from tests.support.folders import SAMPLE

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The command in a folder and a home of its own."""
    folder = tmp_path_factory.mktemp("erasing")
    return partial(spanvault, home=folder, cwd=folder, stdin=subprocess.DEVNULL)


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
