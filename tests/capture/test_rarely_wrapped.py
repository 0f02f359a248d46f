"""Calls in clothes that few mirrors show give the same calls, the same sound, byte by byte."""

from collections import Counter
from pathlib import Path

import pytest

from tests.capture.test_rewrapped import forged, recorded
from tests.support.rarewrapping import RARE
from tests.support.recorded import Line
from tests.support.wrapping import wrapped


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    return recorded(tmp_path_factory.mktemp("plain"), forged()).lines()


@pytest.mark.parametrize("name", RARE)
def test_wrapped(name: str, plain: list[Line], tmp_path: Path) -> None:
    link_type, wrap = RARE[name]
    recording = recorded(tmp_path, wrapped(forged(), wrap), link_type)
    assert recording.lines() == plain
    assert (recording.duplicates, recording.late) == (0, 0)
    counters = Counter(recording.recorder.counters())
    assert not [name for name in counters if "unread" in name and counters[name]]
