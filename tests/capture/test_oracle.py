"""Our stream table against the truth that tshark and arithmetic gave for public captures."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from capture.model import StreamTotals
from tests.support.folders import SHARED
from tests.support.streamtable import Table
from tests.support.tsharkview import Key, Tshark, padding_impossible, quoted

MANIFEST = SHARED / "captures" / "manifest.json"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not MANIFEST.exists(), reason=f"no public captures at {MANIFEST.parent}"),
]


def captures() -> list[Any]:
    if not MANIFEST.exists():
        return []
    files = json.loads(MANIFEST.read_text())["files"]
    return [pytest.param(each, id=each["file"].split("/")[1][:3]) for each in files]


def bracketed(endpoint: str) -> str:
    host, _, port = endpoint.rpartition(":")
    return f"[{host}]:{port}" if ":" in host else endpoint


def explained(path: Path, key: Key, ours: StreamTotals, stream: dict[str, Any]) -> bool:
    """Whether a difference follows from what is in the frames, by one of two rules.

    An ICMP error quotes the header of a packet (RFC 792), which tshark takes for a packet of its
    own: a copy, if it was heard. Where padding is encrypted (RFC 3711 §3.1), tshark finds its
    count impossible (RFC 3550 §5.1), takes the packet for no RTP and counts it as lost.
    """
    quotes = quoted(path)[key]
    refused = [
        each
        for each in Tshark(path).datagrams(key)
        if each.payload_type is None and padding_impossible(each)
    ]
    if not quotes and not refused:
        return False
    return (
        ours.packets == stream["unique"] + len(refused)
        and ours.duplicates == stream["dups"] - quotes
        # Those refused before the first or behind the last that tshark has are not lost to it.
        and 0 <= stream["lost"] - ours.lost <= len(refused)
        and sum(ours.payload_types.values()) == ours.packets
    )


@pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")
@pytest.mark.parametrize("capture", captures())
def test_stream_table_equals_the_manifest(capture: dict[str, Any]) -> None:
    path = SHARED / "captures" / capture["file"]
    table = Table(path)
    assert table.frames == capture["packets"]
    found = table.totals()
    for stream in capture["rtp_streams"]:
        key = bracketed(stream["src"]), bracketed(stream["dst"]), int(stream["ssrc"], 16)
        ours = found[key]
        counted = (ours.packets, ours.lost, ours.duplicates, ours.late)
        kinds = {str(kind): count for kind, count in ours.payload_types.items()}
        truth = stream["unique"], stream["lost"], stream["dups"], stream["reordered"]
        same = counted == truth and (stream["dups"] or kinds == stream["payload_types"])
        assert same or explained(path, key, ours, stream), (key, counted, truth)
