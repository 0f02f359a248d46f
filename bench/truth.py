"""What must be stored of the injector's frames, and what is not as it must be.

The injector only says how many frames it made; everything else follows (bench/injector.py).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from injector import numbers, payloads
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))

from spanvault.client import Client
from spanvault.messages import Call


class Truth:
    """What every stream was sent, from how many frames were made."""

    def __init__(self, frames: int, streams: int, impaired: bool) -> None:
        self._count = frames // streams + (np.arange(streams) < frames % streams)
        self._sent = {int(n): numbers(int(n), impaired) for n in np.unique(self._count)}

    def packets(self, stream: int) -> NDArray[np.int64]:
        """The sequence numbers of a stream that must be stored, in order."""
        return np.unique(self._sent[int(self._count[stream])])

    def counts(self, stream: int) -> tuple[int, int, int]:
        """Packets, lost, duplicates of a stream."""
        sent, unique = self._sent[int(self._count[stream])], self.packets(stream)
        if not len(sent):
            return 0, 0, 0
        return len(unique), int(unique[-1]) + 1 - len(unique), len(sent) - len(unique)


def false_counts(calls: Sequence[Call], truth: Truth, streams: int) -> int:
    """Streams whose call record does not say what is true, or that no call has."""
    wrong, seen = 0, set()
    for call in calls:
        for stream in call.streams:
            number = stream.ssrc - 1
            seen.add(number)
            found = (stream.packets, stream.lost, stream.duplicates)
            wrong += found != truth.counts(number) or bool(call.flags)
    return wrong + streams - len(seen)


def false_frames(client: Client, call: Call, truth: Truth) -> tuple[int, int]:
    """(frames stored of a call, how many of them or of those that lack are not as sent)."""
    stored = {stream.number: stream.ssrc - 1 for stream in call.streams}
    found: dict[int, list[NDArray[np.int64]]] = {}
    frames = wrong = 0
    cursor: int | None = 0
    while cursor is not None:
        page = client.fetch(call.id, cursor)
        table, media = page.media.table, page.media
        stream = np.repeat([stored[int(n)] for n in table["stream"]], table["frames"])
        number = media.frames["sequence"].astype(np.int64) - 65536
        payload = np.frombuffer(media.payload, np.uint8).reshape(len(stream), -1)
        wrong += len(page.faults)
        if len(stream):
            wrong += int((payload != payloads(stream, number)).any(axis=1).sum())
        for each in np.unique(stream).tolist():
            found.setdefault(each, []).append(number[stream == each])
        frames += len(stream)
        cursor = page.next
    for each in stored.values():
        heard = np.concatenate(found.get(each, [np.zeros(0, np.int64)]))
        wrong += len(np.setxor1d(heard, truth.packets(each))) + len(heard) - len(np.unique(heard))
    return frames, wrong
