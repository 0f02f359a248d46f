"""Telephone events to the keys that were pressed.

A key is many packets of one timestamp, each longer than the one before, and its last packet comes
several times; any of them may be lost. A long one goes on in segments, each with a timestamp of its
own where the one before ends. Fed with one stream's packets in order of sequence.
Source: RFC 4733 §2.3 (payload), §2.5.1.3 (segments), §2.5.2.2 (lost ends), §3.2 (codes). Tones by
frequency (§4) are no keys. Where the packets are kept: storaged/FORMAT.md §4.3.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

PAYLOAD: Final = struct.Struct(">BBH")  # code; end bit, reserved bit, volume; duration
END: Final = 0x80
KEYS: Final = "0123456789*#ABCD"
FLASH: Final = 16
GAP: Final = 1 / 20  # seconds behind its end at which a segment may still be the same key's
TICKS: Final = 1 << 32
RECENT: Final = 4  # events that a packet may still belong to


class Heard(NamedTuple):
    """A packet of events."""

    timestamp: int
    arrival_ns: int
    marker: bool
    payload: bytes


class Event(msgspec.Struct):
    """A key that was pressed, or another event by its code."""

    code: int
    at_ns: int  # arrival of the first packet heard of it
    timestamp: int  # of the media clock
    duration: int  # media clock units
    ended: bool  # False: its end was lost, it may have been held longer

    @property
    def name(self) -> str:
        """One character for a key; `flash`, or `event 36`."""
        if self.code < len(KEYS):
            return KEYS[self.code]
        return "flash" if self.code == FLASH else f"event {self.code}"


def decode(packets: Iterable[Heard], clock_rate: int) -> list[Event]:
    """The events of one stream, in the order in which they began. Unreadable payloads are left out.

    packets: by rising sequence number; copies among them do no harm.
    """
    keys: list[_Key] = []
    gap = round(GAP * clock_rate)
    for packet in packets:
        for code, ended, duration in _payloads(packet.payload):
            key = _known(keys, packet, code, ended, gap)
            if key is None:
                key = _Key(Event(code, packet.arrival_ns, packet.timestamp, 0, ended=False))
                keys.append(key)
            key.hear(packet.timestamp, duration, ended)
    return [key.event for key in keys]


class _Key:
    """An event while its packets come."""

    def __init__(self, event: Event) -> None:
        self.event = event
        self.stamps = {event.timestamp}  # of its segments
        self._before = self._told = 0  # duration of the segments before; as last told of this one

    def since(self, timestamp: int) -> int:
        """Media clock units from the event's beginning."""
        return (timestamp - self.event.timestamp) % TICKS

    def hear(self, timestamp: int, duration: int, ended: bool) -> None:
        """One more packet of it."""
        # A segment counts anew; a timestamp that merely moves does not.
        if timestamp not in self.stamps and duration < self._told:
            self._before = self.since(timestamp)
        self.stamps.add(timestamp)
        self._told = duration
        self.event.duration = max(self.event.duration, self._before + duration)
        self.event.ended |= ended


def _payloads(payload: bytes) -> Iterator[tuple[int, bool, int]]:
    """Code, end bit and duration of each event of a packet; mostly it is one."""
    for at in range(0, len(payload) - PAYLOAD.size + 1, PAYLOAD.size):
        code, flags, duration = PAYLOAD.unpack_from(payload, at)
        yield code, bool(flags & END), duration


def _known(keys: list[_Key], packet: Heard, code: int, ended: bool, gap: int) -> _Key | None:
    """The event that a packet goes on with; None if it begins one."""
    recent = [key for key in keys[-RECENT:] if key.event.code == code]
    for key in reversed(recent):
        if packet.timestamp in key.stamps:
            return key
    if not recent or packet.marker:
        return None
    last = recent[-1]
    # The next segment of a long one; or a phone that moves the timestamp with each packet, even
    # where it only says once more that the key was let go.
    goes_on = last is keys[-1] and last.since(packet.timestamp) <= last.event.duration + gap
    return last if goes_on and (ended or not last.event.ended) else None
