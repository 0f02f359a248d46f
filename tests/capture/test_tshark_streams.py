"""Our table of RTP streams equals tshark's, on every public capture and every lab case.

Every SSRC between every two ends: packets, lost, payload types. Where the two differ, one of the
rules below must explain it from what is in the frames, whatever the file.
"""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from capture.model import StreamTotals
from tests.support.recorded import Recording
from tests.support.streamtable import Table
from tests.support.tsharkview import Datagram, Key, Theirs, Tshark, padding_impossible

SHARED = Path(os.environ.get("SPANVAULT_SHARED", Path(__file__).parents[3] / "shared"))
SAMPLE = Path(__file__).parents[1] / "data" / "sample.pcap"
pytestmark = pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")


def of_another_protocol(datagrams: list[Datagram]) -> bool:
    """Rule 1: tshark knows these by their port for DNS, NetBIOS and the like.

    Such bytes can look like RTP for a packet or two. We remember them in case signalling asks for
    them, and it never does.
    """
    return all(each.protocol not in ("rtp", "data") for each in datagrams)


def explained(key: Key, ours: StreamTotals, tshark: Tshark, held: set[Key]) -> bool:
    """Whether a difference follows one of the rules."""
    datagrams = tshark.datagrams(key)
    theirs = tshark.streams.get(key)
    if theirs is None:
        return key not in held and of_another_protocol(datagrams)
    refused = [each for each in datagrams if each.payload_type is None]
    return (
        ours.packets + ours.duplicates == theirs.packets + len(refused)
        and ours.lost <= theirs.lost
        and all(map(padding_impossible, refused))
    )


def equal(ours: StreamTotals, theirs: Theirs, kinds: Counter[int]) -> bool:
    """Packets, lost and payload types; tshark counts copies among them."""
    copies = sum((kinds - Counter(ours.payload_types)).values())
    return (
        theirs == (ours.packets + ours.duplicates, ours.lost - ours.duplicates)
        and copies == ours.duplicates
        and kinds.keys() == ours.payload_types.keys()
    )


def unexplained(path: Path) -> list[str]:
    tshark = Tshark(path)
    ours = Table(path).totals()
    differing = [f"{key}: only tshark has it" for key in tshark.streams.keys() - ours.keys()]
    held: set[Key] | None = None
    for key, totals in ours.items():
        kinds = Counter(
            each.payload_type for each in tshark.datagrams(key) if each.payload_type is not None
        )
        if key in tshark.streams and equal(totals, tshark.streams[key], kinds):
            continue
        held = _held(path) if held is None else held
        if not explained(key, totals, tshark, held):
            differing.append(f"{key}: {totals}, tshark {tshark.streams.get(key)} {kinds}")
    return differing


def _held(path: Path) -> set[Key]:
    """The streams that our calls hold."""
    return {
        (stream.source, stream.destination, stream.ssrc)
        for call in Recording(path).calls
        for stream in call.streams
    }


def captures() -> list[Path]:
    return [
        *sorted((SHARED / "captures" / "pcap").glob("*")),
        *sorted((SHARED / "lab" / "cases").glob("*/call.pcap")),
    ]


def test_the_sample() -> None:
    assert len(Tshark(SAMPLE).streams) == 2
    assert unexplained(SAMPLE) == []


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason=f"no public captures at {SHARED}")
@pytest.mark.parametrize("path", captures(), ids=lambda path: path.parent.name + "/" + path.stem)
def test_every_stream_is_tsharks_too(path: Path) -> None:
    assert unexplained(path) == []
