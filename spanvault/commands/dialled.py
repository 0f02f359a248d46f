"""What was dialled within a call, for who may know: `spanvault show --digits`.

Fetched apart from the sound, under a right of its own (WIRE.md §2). Keys that were sent within RED
are in its blocks, and again in those of later packets (RFC 4733 §5, RFC 2198 §3). What the packets
mean: spanvault.media.digits.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from spanvault.audio import red
from spanvault.callline import iso_utc
from spanvault.client import Client
from spanvault.media import inclear, rtp
from spanvault.media.chunk import EVENTS, MARKER, Chunk
from spanvault.media.digits import TICKS, Event, Heard, decode
from spanvault.media.payloadtypes import is_event, is_red
from spanvault.media.srtp import Opening
from spanvault.messages import Call, Codec, MediaKey, Stream

CLOCK_RATE = 8000
SECOND = 1_000_000_000


class Dialled:
    """The events of one call by stream, oldest first. Raises client.RequestFailed.

    faults: what could not be read.
    """

    def __init__(self, client: Client, call: Call) -> None:
        self.faults: list[str] = []
        self._call, self._client, self._keys = call, client, list[MediaKey]()
        chunks = sorted(self._fetched(), key=lambda one: int(one.header["start_ns"]))
        if "srtp_sdes" in call.flags:
            opening = Opening(self._keys, inclear.perhaps(call))
            chunks = list(opening.open(iter(chunks)))
            self.faults += [f"{text} ({times})" for text, times in opening.warnings.items()]
        packets: dict[int, list[tuple[int, int, Heard]]] = {}
        streams = {stream.number: stream for stream in call.streams}
        for chunk in rtp.payloads(chunks):
            number = int(chunk.header["stream"]) - EVENTS
            codecs = streams[number].codecs if number in streams else {}
            packets.setdefault(number, []).extend(_packets(chunk, codecs))
        self.events = sorted(
            (
                (streams[number].party if number in streams else "unknown", event, rate)
                for number, heard in packets.items()
                for rate in [_clock_rate(streams.get(number), {kind for _, kind, _ in heard})]
                for event in decode([one for _, _, one in sorted(heard, key=_sequence)], rate)
            ),
            key=lambda one: one[1].at_ns,
        )

    def documents(self) -> list[dict[str, Any]]:
        """As `--json` prints them."""
        return [
            {
                "party": party,
                "at": iso_utc(event.at_ns),
                "event": event.name,
                "code": event.code,
                "seconds": round(event.duration / rate, 3),
                "ended": event.ended,
            }
            for party, event, rate in self.events
        ]

    def rows(self) -> list[tuple[str, str]]:
        """A line for each party that pressed a key."""
        said: dict[str, list[Event]] = {}
        for party, event, _ in self.events:
            said.setdefault(party, []).append(event)
        return [(f"digits of {party}", _line(events)) for party, events in said.items()]

    def _fetched(self) -> Iterator[Chunk]:
        cursor: int | None = 0
        while cursor is not None:
            page = self._client.fetch(self._call.id, cursor, digits=True)
            self.faults += page.faults
            self._keys += page.keys
            yield from page.media.chunks()
            cursor = page.next


def _packets(chunk: Chunk, codecs: Mapping[int, Codec]) -> Iterator[tuple[int, int, Heard]]:
    """Sequence number, payload type and content of each."""
    columns = (chunk.frames[name].tolist() for name in (
        "sequence", "payload_type", "timestamp", "arrival_ns", "flags",
    ))  # fmt: skip
    for (sequence, kind, stamp, arrival_ns, flags), payload in zip(
        zip(*columns, strict=True), chunk.payloads(), strict=True
    ):
        heard = Heard(stamp, arrival_ns, bool(flags & MARKER), bytes(payload))
        if kind in codecs and is_red(codecs[kind]):
            for number, one in _blocks(heard, codecs, codecs[kind].clock_rate or CLOCK_RATE):
                yield sequence, number, one
        else:
            yield sequence, kind, heard


def _blocks(packet: Heard, codecs: Mapping[int, Codec], rate: int) -> Iterator[tuple[int, Heard]]:
    """The events within a RED packet, oldest first, each as if it had come by itself, in time."""
    try:
        pieces = red.parse(packet.payload)
    except ValueError:
        return
    for piece in pieces:
        if piece.payload_type in codecs and is_event(codecs[piece.payload_type]):
            stamp = (packet.timestamp - piece.age) % TICKS
            at_ns = packet.arrival_ns - piece.age * SECOND // rate
            begins = packet.marker and not piece.age
            yield piece.payload_type, Heard(stamp, at_ns, begins, piece.payload)


def _sequence(heard: tuple[int, int, Heard]) -> int:
    return heard[0]


def _clock_rate(stream: Stream | None, kinds: set[int]) -> int:
    codecs = stream.codecs if stream else {}
    return next(
        (codecs[kind].clock_rate for kind in kinds if kind in codecs and is_event(codecs[kind])),
        CLOCK_RATE,
    )


def _line(events: list[Event]) -> str:
    """Keys one behind the other, other events set off by spaces."""
    names = [one.name if len(one.name) == 1 else f" {one.name} " for one in events]
    return " ".join("".join(names).split())
