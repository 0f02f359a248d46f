"""Calls in clothes that few mirrors show give the same calls, the same sound, byte by byte."""

from collections import Counter
from pathlib import Path

import pytest

from tests.capture.test_rewrapped import forged, recorded
from tests.support.rarewrapping import RARE
from tests.support.recorded import Line
from tests.support.wrapping import WRAPPINGS, Wrapping, then, wrapped


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


# Link types that are as others are.
ALIKE = {"OpenBSD's RAW": (14, "RAW"), "serial PPP": (50, "PPP"), "IPv4": (228, "RAW")}
LINKS = {
    **{name: each for name, each in (WRAPPINGS | RARE).items() if each.link_type != 1},
    **{name: Wrapping(kind, WRAPPINGS[like].wrap) for name, (kind, like) in ALIKE.items()},
    "PPPoE alone": Wrapping(
        51,
        lambda frame: [
            frame._replace(data=each.data[14:]) for each in WRAPPINGS["PPPoE"].wrap(frame)
        ],
    ),
}


@pytest.mark.parametrize("name", sorted(LINKS.keys() - {"exported PDU"}))
def test_fragments_behind_any_link_header(name: str, plain: list[Line], tmp_path: Path) -> None:
    """Frame by frame, where most link types else are read a block at once."""
    link_type, wrap = LINKS[name]
    frames = wrapped(forged(), then(WRAPPINGS["fragments"].wrap, wrap))
    assert recorded(tmp_path, frames, link_type).lines() == plain
