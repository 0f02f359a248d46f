"""What the tests of capture share: a storaged, or a ROUTER in its place; a wire to be heard."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from spanvault.slots import SLOT_BYTES, Slots
from tests.support.capturing import Vault
from tests.support.conversation import Wire
from tests.support.routers import Router


@pytest.fixture
def folder() -> Iterator[Path]:
    # The path of an ipc socket holds 107 bytes at most: a short folder of our own.
    made = Path(tempfile.mkdtemp(prefix="sv-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def vault(folder: Path) -> Iterator[Vault]:
    made = Vault(folder)
    yield made
    made.close()


@pytest.fixture
def router(folder: Path) -> Iterator[Router]:
    made = Router(folder)
    yield made
    made.close()


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def slots() -> Iterator[Slots]:
    made = Slots(3 * SLOT_BYTES)
    yield made
    made.close()
