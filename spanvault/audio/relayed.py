"""One voice on two hops of one call: what a relay hands on is heard once.

A media relay beside a SIP proxy (rtpengine, RTPproxy) changes addresses and nothing else: where
both its sides are mirrored, a call has each packet twice, as two streams of one SSRC between other
ends. Both are kept as heard; rendered is the fuller one, and of the other only what that lacks.
Nothing is taken for a copy but a packet of the same SSRC, timestamp and payload, so that phones
that play one file, or a relay that transcodes, lose nothing. Packets of one hop are put among those
of another only once many have proved to be the same: gateways that all have SSRC 0 begin alike.
Source: RFC 3550 §7.1 (translators leave SSRC, sequence number and timestamp as they are). Copies
within one stream: docs/decisions/0006. Relays that make two calls of one: capture.calls.forwarded.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Final

import numpy as np

from spanvault.audio import codecs
from spanvault.media.chunk import Chunk
from spanvault.messages import Stream

SECOND: Final = 1_000_000_000
HELD_NS: Final = 2 * SECOND  # the same second of another hop has come by then
KNOWN_NS: Final = 5 * SECOND

PROOF: Final = 25  # packets that are the same, none like the one before: half a second of speech

Key = tuple[int, bytes]  # RTP timestamp, payload


@dataclass(slots=True)
class Lead:
    """By how much the first hop's numbers are ahead of another's, and what bears that out."""

    by: int = 0
    seen: int = 0
    last: bytes = b""

    def note(self, by: int, payload: bytes) -> None:
        """One packet that both have."""
        if by != self.by:
            self.by, self.seen = by, 0
        self.seen += payload != self.last  # silence, or a tone, bears out nothing
        self.last = payload


@dataclass(slots=True)
class Voice:
    """One party's sound on several hops, the fullest first."""

    hops: list[Stream]
    said: dict[Key, tuple[int, int]] = field(default_factory=dict)  # hop and number
    leads: defaultdict[int, Lead] = field(default_factory=lambda: defaultdict(Lead))  # by hop

    def hear(self, rank: int, keys: list[Key], sequence: list[int]) -> None:
        """Note what a hop says. rank: its place among them."""
        for key, number in zip(keys, sequence, strict=True):
            before = self.said.setdefault(key, (rank, number))
            if before[0] == 0 < rank:
                self.leads[rank].note(before[1] - number, key[1])
            elif rank == 0 < before[0]:
                self.leads[before[0]].note(number - before[1], key[1])
            if rank < before[0]:
                self.said[key] = rank, number

    def left(self, rank: int, chunk: Chunk) -> Chunk | None:
        """What no better hop has said, in the place where the first one lacks it if that is known.

        A decoder with a memory would take it for what comes next: it has its own, then.
        """
        fresh = [
            row for row, key in enumerate(_keys(chunk)) if self.said.get(key, (rank,))[0] == rank
        ]
        if not fresh:
            return None
        payloads = list(chunk.payloads())
        header, frames = chunk.header.copy(), chunk.frames[np.array(fresh)]
        kinds = set(frames["payload_type"].tolist())
        lead = self.leads[rank]
        if lead.seen >= PROOF and all(map(partial(self._may_join, rank), kinds)):
            header["stream"] = self.hops[0].number
            frames["sequence"] += np.array(lead.by).astype(np.uint32)
        return Chunk(header, frames, memoryview(b"".join(payloads[row] for row in fresh)))

    def _may_join(self, rank: int, payload_type: int) -> bool:
        ours = self.hops[rank].codecs.get(payload_type)
        if ours is None or ours != self.hops[0].codecs.get(payload_type):
            return False
        return not codecs.refusal(ours) and not codecs.is_foreign(ours)


class Relayed:
    """Fed with a call's chunks in time order; gives them back, less what was heard on another hop.

    Of calls without such streams it holds nothing and costs nothing.
    """

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._voices: dict[int, tuple[Voice, int]] = {}  # by number of stream, with its rank
        self._said: deque[tuple[int, Voice, list[Key]]] = deque()
        self._held: deque[Chunk] = deque()
        for voice in _on_hops(streams):
            for rank, stream in enumerate(voice.hops):
                self._voices[stream.number] = voice, rank

    def receive(self, chunk: Chunk) -> Iterator[Chunk]:
        """Take a chunk; give those that nothing can be a copy of any more."""
        if not self._voices:
            yield chunk
            return
        self._hear(chunk)
        self._held.append(chunk)
        # abs: behind a clock that was set back, time begins anew.
        while abs(_start_ns(chunk) - _start_ns(self._held[0])) >= HELD_NS:
            yield from self._next()
        while self._said and abs(_start_ns(chunk) - self._said[0][0]) >= KNOWN_NS:
            _, voice, keys = self._said.popleft()
            for key in keys:
                voice.said.pop(key, None)

    def finish(self) -> Iterator[Chunk]:
        """The rest."""
        while self._held:
            yield from self._next()

    def _hear(self, chunk: Chunk) -> None:
        known = self._voices.get(int(chunk.header["stream"]))
        if known is not None:
            voice, rank = known
            keys = _keys(chunk)
            voice.hear(rank, keys, chunk.frames["sequence"].tolist())
            self._said.append((_start_ns(chunk), voice, keys))

    def _next(self) -> Iterator[Chunk]:
        chunk = self._held.popleft()
        voice, rank = self._voices.get(int(chunk.header["stream"]), (None, 0))
        left = voice.left(rank, chunk) if voice is not None and rank else chunk
        if left is not None:
            yield left


def _on_hops(streams: Sequence[Stream]) -> Iterator[Voice]:
    """Streams of one party and SSRC between several ends at one time."""
    voices: defaultdict[tuple[str, int], list[Stream]] = defaultdict(list)
    for stream in streams:
        if stream.media == "audio" and stream.packets:
            voices[stream.party, stream.ssrc].append(stream)
    for hops in voices.values():
        if any(_beside(one, other) for one, other in combinations(hops, 2)):
            yield Voice(sorted(hops, key=lambda one: (-one.packets, one.first_ns)))


def _beside(one: Stream, other: Stream) -> bool:
    together = one.first_ns <= other.last_ns and other.first_ns <= one.last_ns
    there, back = (other.source, other.destination), (other.destination, other.source)
    return together and (one.source, one.destination) not in (there, back)


def _keys(chunk: Chunk) -> list[Key]:
    stamps = chunk.frames["timestamp"].tolist()
    return [(stamp, bytes(one)) for stamp, one in zip(stamps, chunk.payloads(), strict=True)]


def _start_ns(chunk: Chunk) -> int:
    return int(chunk.header["start_ns"])
