"""Telephone events leave in chunks of their own, so that digits can be kept from who may hear.

They ride on an audio stream and share its sequence numbers, so they are ordered and counted with
it, and set apart when chunks are cut. Which payload types they have, signalling says as it attaches
the stream. What nobody explains is judged by its looks: whoever may hear should rather miss a
packet that no codec could have played than be given a digit.
Sources: RFC 4733 §2.3 (payload), §5 (within RED); RFC 2198 §3 (RED's headers). What events mean:
spanvault.media.digits. Cutting: capture.media.chunks.
"""

from collections.abc import Container, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from capture.media.streams import StreamTable
from spanvault.media import chunk
from spanvault.media.payloadtypes import STATIC, is_event, is_red
from spanvault.messages import Codec

SOUND, EVENT, UNSURE, REDUNDANT = range(4)  # what a payload type may carry
EVENT_BYTES: Final = 4
MAX_BLOCKS: Final = 8  # of one RED packet: RFC 2198's examples have two
MORE, TYPE = 0x80, 0x7F  # of the first byte of a RED block's header
MORE_BYTES: Final = 4  # of a header that another follows

_UNSIGNALLED: Final = bytes(SOUND if number in STATIC else UNSURE for number in range(128))

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


def kinds_of(
    codecs: Mapping[int, Codec], disputed: Container[int] = (), *, secure: bool = False
) -> bytes:
    """What each of the 128 payload types of a stream may carry, a byte each.

    disputed: one side's description calls them events, the other's something else.
    secure: payloads are encrypted, so RED cannot be looked into.
    """
    kinds = bytearray(_UNSIGNALLED)
    for number, codec in codecs.items():
        kinds[number] = EVENT if is_event(codec) else UNSURE if number in disputed else SOUND
    events = {str(number) for number, kind in enumerate(kinds) if kind == EVENT}
    for number in [number for number, codec in codecs.items() if events and is_red(codec)]:
        # What the parameters name is not all that a sender may put into it: RFC 2198 §5.
        within = {one.strip() for one in codecs[number].parameters.split("/")}
        kinds[number] = REDUNDANT if not secure else EVENT if within & events else SOUND
    return bytes(kinds)


def events_among(
    size: NDArray[np.uint16], kind: NDArray[np.uint8], slot: Integers, start: Integers,
    arena: NDArray[np.uint8], streams: StreamTable,
) -> Flags:  # fmt: skip
    """Which frames are events. bool[n].

    size: uint16[n], bytes of payload.  kind: uint8[n], what each one's payload type may carry.
    slot: int64[n], of its stream.  start: int64[n], of its payload in the arena.
    """
    events: Flags = kind == EVENT
    events |= (kind == UNSURE) & (size == EVENT_BYTES)
    red = np.flatnonzero(kind == REDUNDANT)
    if len(red):
        length = size[red].astype(np.int64)
        events[red] = _carries_events(arena, start[red], length, streams.kinds[slot[red]])
    return events


def _carries_events(
    arena: NDArray[np.uint8], start: Integers, length: Integers, kinds: NDArray[np.uint8]
) -> Flags:
    """Whether a block of a RED packet is an event. kinds: uint8[n, 128], of its stream."""
    rows, at = np.arange(len(start)), np.zeros(len(start), np.int64)
    found, unread = np.zeros(len(start), np.bool_), length > 0
    for _ in range(MAX_BLOCKS):
        head = np.where(unread, arena[np.where(unread, start + at, 0)], 0)
        found |= unread & (kinds[rows, head & TYPE] == EVENT)
        at += MORE_BYTES
        unread &= (head & MORE != 0) & (at < length)
    return found | unread  # so many blocks that not all were looked at


def set_apart(
    table: NDArray[np.void], frames: NDArray[np.void], place: Integers, events: Flags,
    slot: Integers, streams: StreamTable,
) -> NDArray[np.void]:  # fmt: skip
    """Move events behind the sound of their chunk, as chunks of their own; returns the new table.

    table: CHUNK[c], which frames: FRAME[n] and place: int64[n] are cut by; both are put in order.
    slot: int64[c], of the stream of each chunk, whose totals of events are brought up to date.
    """
    count = table["frames"].astype(np.int64)
    head = np.cumsum(count) - count
    piece = np.repeat(np.arange(len(table)), count)
    before: Integers = np.cumsum(events) - events
    before -= before[head][piece]  # events before each frame, of its chunk
    number = np.add.reduceat(events.astype(np.int64), head)
    size = np.add.reduceat(np.where(events, frames["length"], 0).astype(np.int64), head)
    dialled = np.flatnonzero(number)
    apart = table[dialled].copy()
    apart["stream"] += chunk.EVENTS
    apart["frames"], apart["payload_bytes"] = number[dialled], size[dialled]
    for name in ("lost", "duplicates", "late", "jitter"):
        apart[name] = 0
    arrival = frames["arrival_ns"]
    for row, at in enumerate(dialled.tolist()):
        mine = slice(int(head[at]), int(head[at] + count[at]))
        heard_ns = arrival[mine][events[mine]] - streams.clock_ns[slot[at]]
        apart["packets"][row] = _count(streams, int(slot[at]), heard_ns)
    target = np.where(
        events, (head + count - number)[piece] + before, np.arange(len(frames)) - before
    )
    for column in (frames, place):
        ordered = np.empty_like(column)
        ordered[target] = column
        column[:] = ordered
    table["frames"] -= number.astype(np.uint32)
    table["payload_bytes"] -= size.astype(np.uint32)
    both = np.concatenate((table, apart))
    turn = np.argsort(np.concatenate((np.arange(len(table)), dialled)), kind="stable")
    both = both[turn]
    return both[both["frames"] > 0]


def _count(streams: StreamTable, slot: int, heard_ns: Integers) -> int:
    """Add to what a stream has had of events; gives their number."""
    first, last = int(heard_ns.min()), int(heard_ns.max())
    if streams.events[slot]:
        first, last = (
            min(first, int(streams.events_first_ns[slot])),
            max(last, int(streams.events_last_ns[slot])),
        )
    streams.events[slot] += len(heard_ns)
    streams.events_first_ns[slot], streams.events_last_ns[slot] = first, last
    return int(streams.events[slot])
