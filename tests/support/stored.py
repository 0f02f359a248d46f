"""What storaged gives back of a call, held against what the lab's phones said.

SIPp numbers a voice's packets from 0 and sends one every 20 ms, so a missing frame has a time at
which it was on the wire: where the others lie says when.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from spanvault.client import Client, Page
from spanvault.messages import Call

PACKET_NS = 20_000_000


class Store(Protocol):
    """Where frames are read: a client of storaged, or what a test puts in its place."""

    def fetch(self, call_id: bytes, cursor: int) -> Page:
        """A page of a recording."""


class Frame(NamedTuple):
    """One stored RTP packet. number: as the phone counted."""

    number: int
    arrival_ns: int
    payload: bytes


def frames_of(client: Client, call: Call) -> dict[str, list[Frame]]:
    """All stored frames of a call by party, in order. Raises ValueError if some are unreadable."""
    parties = {stream.number: stream.party for stream in call.streams}
    found: dict[str, list[Frame]] = {}
    for number, frames in streams_of(client, call.id).items():
        found.setdefault(parties.get(number, "unknown"), []).extend(frames)
    return {party: sorted(frames) for party, frames in found.items()}


def streams_of(store: Store, call_id: bytes) -> dict[int, list[Frame]]:
    """All stored frames of a call by stream. Raises ValueError if some are unreadable."""
    found: dict[int, list[Frame]] = {}
    cursor: int | None = 0
    while cursor is not None:
        page = store.fetch(call_id, cursor)
        if page.faults:
            raise ValueError(f"call {call_id.hex()}: {'; '.join(page.faults)}")
        for chunk in page.media.chunks():
            found.setdefault(int(chunk.header["stream"]), []).extend(
                Frame(int(frame["sequence"]) & 0xFFFF, int(frame["arrival_ns"]), bytes(payload))
                for frame, payload in zip(chunk.frames, chunk.payloads(), strict=True)
            )
        cursor = page.next
    return found


def changed(frames: Sequence[Frame], said: Sequence[bytes]) -> list[int]:
    """Numbers of frames whose payload is not what the phone sent."""
    return [frame.number for frame in frames if frame.payload != said[frame.number]]


def repeated(frames: Sequence[Frame]) -> list[int]:
    """Numbers of frames that are stored more than once."""
    numbers = [frame.number for frame in frames]
    return sorted({number for number in numbers if numbers.count(number) > 1})


def missing(frames: Sequence[Frame], count: int) -> dict[int, int]:
    """The packets of `count` that are not stored, and when each was on the wire (ns)."""
    numbers = np.array([frame.number for frame in frames])
    arrivals = np.array([frame.arrival_ns for frame in frames])
    start_ns = int(np.median(arrivals - numbers * PACKET_NS))
    lacking = sorted(set(range(count)) - set(numbers.tolist()))
    return {number: start_ns + number * PACKET_NS for number in lacking}
