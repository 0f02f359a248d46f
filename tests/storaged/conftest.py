"""The stores that storaged's tests work on: tests.support.vault says what they are."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.desk import Counter
from tests.support.vault import Parts, Rig


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    made = Parts(tmp_path / "store")
    yield made
    made.close()


@pytest.fixture
def counter(parts: Parts) -> Iterator[Counter]:
    made = Counter(parts)
    yield made
    made.access.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    # The path of an ipc socket holds 107 bytes at most: a short folder of our own.
    folder = Path(tempfile.mkdtemp(prefix="sv-"))
    made = Rig(folder)
    yield made
    made.close()
    shutil.rmtree(folder)
