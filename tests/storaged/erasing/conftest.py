"""Stores whose ingest keys go after erasures."""

from collections.abc import Iterator

import pytest

from tests.support.retiring import House
from tests.support.vault import Parts


@pytest.fixture
def house(parts: Parts) -> Iterator[House]:
    made = House(parts, "office")
    yield made
    made.counter.access.close()


@pytest.fixture
def alone(parts: Parts) -> Iterator[House]:
    """Where no capture is left to be waited for."""
    made = House(parts)
    yield made
    made.counter.access.close()
