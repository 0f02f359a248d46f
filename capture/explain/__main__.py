"""`python -m capture.explain FILE…`: one JSON document a line (spanvault.explained)."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Final

import msgspec

from capture.explain.account import Account
from capture.explain.beside import Beside
from capture.explain.remedies import counts
from capture.explain.tshark import Unavailable, View, too_large
from capture.model import Block
from capture.packets.tunnels import layers
from capture.recorder import Heard, Recorder
from capture.sources.files import captures, in_order
from capture.sources.merging import merged
from spanvault.daemon.config import CaptureConfig
from spanvault.explained import Count, Document, Explained, Summary

SAMPLED = 32  # frames of a block whose headers are looked at, for what lies around them
FOLLOWS_NS: Final = 10_000_000_000  # as in a replay, which begins anew with such a file
APART: Final = (
    "The files are of different times: what came later was left out. "
    "Explain it on its own, or set its clock right: editcap -t SECONDS IN OUT."
)
BARE = frozenset({"ethernet", "ip", "typed"})


class Explainer:
    """Capture files of one time. tshark: whether to ask it; None: unless the file is large."""

    def __init__(self, paths: Sequence[Path], wanted: str | None, tshark: bool | None) -> None:
        """paths: files, or folders of them.  wanted: the beginning of a Call-ID; None: all."""
        self._paths, self._tshark = paths, tshark
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
        """All there is to say of the files; the last is the summary."""
        faults: list[str] = []
        paths = self._files(faults)
        view, why_not = self._ask(paths)
        beside, frames = Beside(view), 0
        for block, begins in merged(paths, lambda fault: faults.append(str(fault))):
            if begins and self._is_later(block):
                faults.append(APART)
                break
            frames += len(block.start)
            self._look(block)
            yield from self._told(self._recorder.receive(block), beside)
        yield from self._told(self._recorder.finish(), beside)
        self._account.finish()
        yield from self._ready(beside)
        if self._whole:
            yield from beside.rest()
        yield self._summary(frames, view, why_not, faults)

    def _files(self, faults: list[str]) -> list[Path]:
        """The captures there are, in the order in which they begin."""
        try:
            return in_order(captures(self._paths))
        except (OSError, ValueError) as error:
            faults.append(str(error))
            return []

    def _is_later(self, block: Block) -> bool:
        """Whether a file begins so long behind the others that no call goes on in it."""
        now_ns = self._recorder.now_ns
        return now_ns is not None and abs(int(block.time_ns[0]) - now_ns) > FOLLOWS_NS

    def _ask(self, paths: list[Path]) -> tuple[View | None, str]:
        """tshark's view, or why there is none."""
        if self._tshark is False or not paths:
            return None, ""
        if len(paths) > 1:
            return None, "tshark is not asked: it reads one file (mergecap -w ONE.pcapng FILES…)"
        (path,) = paths
        if not path.is_file():
            return None, "tshark is not asked: what is no file can be read only once"
        if self._tshark is None and too_large(path):
            return (
                None,
                "tshark is not asked: it needs memory for several times the file (--tshark)",
            )
        try:
            view = View(path)
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
            counters.get("sip_messages", 0),
            view.version if view else "", view.fault if view else why_not, faults,
        )  # fmt: skip


def main() -> int:
    """Print the documents. Gives the exit status: 1 if the file had a fault or lacks the call."""
    parser = argparse.ArgumentParser("capture.explain", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--call-id")
    parser.add_argument("--tshark", action=argparse.BooleanOptionalAction)
    asked = parser.parse_args()
    done = True
    for document in Explainer(asked.files, asked.call_id, asked.tshark).documents():
        sys.stdout.buffer.write(msgspec.json.encode(document) + b"\n")
        if isinstance(document, Summary):
            done = document.found and not document.faults
    sys.stdout.buffer.flush()
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
