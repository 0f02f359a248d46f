"""Our stream table against the truth that tshark and arithmetic gave for public captures."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from capture.decode import Decoded, Decoder
from capture.media import Media
from capture.model import Attach, NewStream, StreamTotals
from capture.slowpath import SlowPath
from capture.sources.files import blocks
from spanvault import chunk
from spanvault.config import CaptureConfig

SHARED = Path(os.environ.get("SPANVAULT_SHARED", Path(__file__).parents[3] / "shared"))
MANIFEST = SHARED / "captures" / "manifest.json"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not MANIFEST.exists(), reason=f"no public captures at {MANIFEST.parent}"),
]
# tshark takes the headers that an ICMP error quotes for packets of their own, and counts copies.
ICMP_QUOTES = {"s56", "s58", "s60"}
# Where padding is encrypted, tshark finds its count impossible, takes the packet for no RTP, and
# counts it as lost.
ENCRYPTED_PADDING = {"s50"}


def captures() -> list[Any]:
    if not MANIFEST.exists():
        return []
    files = json.loads(MANIFEST.read_text())["files"]
    return [pytest.param(each, id=each["file"].split("/")[1][:3]) for each in files]


def check(parts: list[chunk.Media]) -> None:
    for part in parts:
        part.check()


class Table:
    """Every stream of a capture, all of them claimed at once."""

    def __init__(self, path: Path) -> None:
        self._decoder, self._media, self._slow = Decoder(), Media(CaptureConfig()), SlowPath()
        self._streams: list[NewStream] = []
        self.frames = 0
        for block in blocks(path):
            decoded = self._decoder.decode(block)
            self._take(decoded)
            if (refused := decoded.refused).count:
                self._take(
                    self._decoder.admit(self._slow.receive(block, refused.rows, refused.inner))
                )
            self.frames += len(block.start)
            check(self._media.tick(int(block.time_ns.max())))
        check(self._media.flush())

    def totals(self) -> dict[tuple[str, str, int], StreamTotals]:
        """By source, destination and SSRC."""
        return {
            (str(each.source), str(each.destination), each.ssrc): self._media.totals(each.row)
            for each in self._streams
        }

    def _take(self, decoded: Decoded) -> None:
        for stream in self._media.receive(decoded.packets, decoded.endpoints):
            self._streams.append(stream)
            recording = len(self._streams).to_bytes(16, "big")
            self._media.attach(Attach(stream.row, recording, 0))


def bracketed(endpoint: str) -> str:
    host, _, port = endpoint.rpartition(":")
    return f"[{host}]:{port}" if ":" in host else endpoint


@pytest.mark.parametrize("capture", captures())
def test_stream_table_equals_the_manifest(capture: dict[str, Any]) -> None:
    table = Table(SHARED / "captures" / capture["file"])
    assert table.frames == capture["packets"]
    name = capture["file"].split("/")[1][:3]
    found = table.totals()
    for stream in capture["rtp_streams"]:
        key = bracketed(stream["src"]), bracketed(stream["dst"]), int(stream["ssrc"], 16)
        ours = found[key]
        if name in ENCRYPTED_PADDING:
            assert (ours.packets >= stream["unique"], ours.lost, ours.duplicates) == (True, 0, 0)
            continue
        copies = 0 if name in ICMP_QUOTES else stream["dups"]
        assert (ours.packets, ours.lost, ours.duplicates, ours.late) == (
            stream["unique"], stream["lost"], copies, stream["reordered"],
        ), key  # fmt: skip
        if not copies and name not in ICMP_QUOTES:
            assert {str(kind): count for kind, count in ours.payload_types.items()} == stream[
                "payload_types"
            ]
