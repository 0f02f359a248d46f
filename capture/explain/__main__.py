"""`python -m capture.explain FILE [CALL-ID]`: one JSON document a line (spanvault.explained)."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import msgspec

from capture.explain.account import Account
from capture.explain.beside import Beside
from capture.explain.remedies import counts
from capture.explain.tshark import Unavailable, View, too_large
from capture.model import Block
from capture.packets.tunnels import layers
from capture.recorder import Heard, Recorder
from capture.sources import files
from spanvault.config import CaptureConfig
from spanvault.explained import Count, Document, Explained, Summary

SAMPLED = 32  # frames of a block whose headers are looked at, for what lies around them
BARE = frozenset({"ethernet", "ip"})


class Explainer:
    """One capture file. tshark: whether to ask it; None: unless the file is large."""

    def __init__(self, path: Path, wanted: str | None, tshark: bool | None) -> None:
        self._path, self._tshark = path, tshark
        # What is kept without signalling is asked about as well: why does no call own it?
        settings, ids = CaptureConfig(name="explain", orphans=0), count(1)
        self._account = Account(settings, wanted)
        self._recorder = Recorder(
            settings, lambda: next(ids).to_bytes(16), slow_frames=None, witness=self._account
        )
        self._account.media = self._recorder.media
        self._around: Counter[str] = Counter()
        self._found = wanted is None
        self._whole = wanted is None

    def documents(self) -> Iterator[Document]:
        """All there is to say of the file; the last is the summary."""
        view, why_not = self._ask()
        beside, frames, faults = Beside(view), 0, list[str]()
        try:
            for block in files.blocks(self._path):
                frames += len(block.start)
                self._look(block)
                yield from self._told(self._recorder.receive(block), beside)
        except ValueError as error:
            faults.append(str(error))
        yield from self._told(self._recorder.finish(), beside)
        self._account.finish()
        yield from self._ready(beside)
        if self._whole:
            yield from beside.rest()
        yield self._summary(frames, view, why_not, faults)

    def _ask(self) -> tuple[View | None, str]:
        """tshark's view, or why there is none."""
        if self._tshark is False:
            return None, ""
        if not self._path.is_file():
            return None, "tshark is not asked: what is no file can be read only once"
        if self._tshark is None and too_large(self._path):
            return (
                None,
                "tshark is not asked: it needs memory for several times the file (--tshark)",
            )
        try:
            view = View(self._path)
        except Unavailable as error:
            return None, str(error)
        return view, ""

    def _look(self, block: Block) -> None:
        """What lies around the packets of some frames of a block."""
        step = max(1, len(block.start) // SAMPLED)
        for row in range(0, len(block.start), step):
            start = int(block.start[row])
            frame = block.data.data[start : start + int(block.length[row])]
            self._around.update(set(layers(frame, block.link_type)) - BARE)

    def _told(self, heard: Heard, beside: Beside) -> Iterator[Document]:
        if self._recorder.now_ns is not None:
            self._account.tick(self._recorder.now_ns)
        for call in heard.calls:
            if call.final:
                self._account.final(call)
        yield from self._ready(beside)

    def _ready(self, beside: Beside) -> Iterator[Document]:
        ready, self._account.ready = self._account.ready, []
        for document in ready:
            beside.mark(document)
            self._found |= isinstance(document, Explained)
            yield document
        for document in ready:
            beside.forget(document)

    def _summary(self, frames: int, view: View | None, why_not: str, faults: list[str]) -> Summary:
        account, counters = self._account, self._recorder.counters()
        return Summary(
            frames, account.calls, account.streams, account.unowned, self._found,
            [Count(name, number) for name, number in self._around.most_common()],
            counts(counters, account.apart, self._recorder.calls.sip_tls),
            view.version if view else "", view.fault if view else why_not, faults,
        )  # fmt: skip


def main() -> int:
    """Print the documents. Gives the exit status: 1 if the file had a fault or lacks the call."""
    parser = argparse.ArgumentParser("capture.explain", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("call_id", nargs="?")
    parser.add_argument("--tshark", action=argparse.BooleanOptionalAction)
    asked = parser.parse_args()
    done = True
    for document in Explainer(asked.file, asked.call_id, asked.tshark).documents():
        sys.stdout.buffer.write(msgspec.json.encode(document) + b"\n")
        if isinstance(document, Summary):
            done = document.found and not document.faults
    sys.stdout.buffer.flush()
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
