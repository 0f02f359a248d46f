"""When did a stream pass from one call to the next, where the BYE between them was not heard?

A phone may send with the same SSRC from call to call. The next call's offer and answer say that its
ends are the same; its packets say from when on: behind a pause, or where a sender began anew.
What goes on through all of the set-up without either is a stream of a call that goes on.
Sources: RFC 3550 §5.1 (a session begins with a random number), §A.1 (what a number may skip).
Which streams are asked about: capture.calls.tenure.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capture.media.held import Held
from capture.media.streams import StreamTable
from capture.model import Close, Contest

PAUSE_NS: Final = 200_000_000
PACKET_NS: Final = 5_000_000  # the shortest that is in use; what was lost between counts as sound
MAX_DROPOUT: Final = 3_000  # RFC 3550 §A.1
MAX_MISORDER: Final = 100


def turnover(
    packets: NDArray[np.void], last: tuple[int, int], contest: Contest
) -> tuple[int | None, bool]:
    """When the newer call's first packet came, or None; and whether that is the last word.

    packets: ROW[n] (capture.media.held), those of the stream that have not left yet, as they came.
    last: arrival and sequence number of what left before; arrival 0: nothing has.
    """
    order = np.argsort(packets["arrival_ns"], kind="stable")
    time_ns, number = packets["arrival_ns"][order], packets["sequence"][order].astype(np.int64)
    if last[0]:
        time_ns = np.concatenate(([last[0]], time_ns))
        number = np.concatenate(([last[1]], number))
    if len(time_ns) < 2:
        return None, False
    skipped = (np.diff(number) + 0x8000 & 0xFFFF) - 0x8000
    until_ns = contest.until_ns + PAUSE_NS
    ends_there = (time_ns[1:] > contest.since_ns) & (time_ns[:-1] < until_ns)
    began = np.flatnonzero(ends_there & (_paused(np.diff(time_ns), skipped) | _anew(skipped)))
    if len(began):
        return int(time_ns[1 + began[0]]), True
    return None, bool(time_ns[-1] >= until_ns)


class Told(NamedTuple):
    """What packets told of contests. done: slots of those that are decided."""

    closes: list[Close]
    done: list[int]


def decide(contests: Mapping[int, Contest], held: Iterable[Held], streams: StreamTable) -> Told:
    """Which contested streams turned out to be a newer call's, by what is held of them.

    contests: by slot. All that is held is looked through.
    """
    wanted = np.array(list(contests), np.int64)
    told: dict[int, tuple[int | None, bool]] = {}
    packets, bounds = _by_stream(wanted, held, streams)
    last = zip(streams.last_ns[wanted].tolist(), streams.highest[wanted].tolist(), strict=True)
    for (slot, contest), before, (start, end) in zip(contests.items(), last, bounds, strict=True):
        told[slot] = turnover(packets[start:end], before, contest)
    disputed = {slot: _disputed(slot, contest, streams) for slot, contest in contests.items()}
    # A call of which one stream went on through goes on; another that was silent is its own.
    going_on = {disputed[slot] for slot, found in told.items() if found == (None, True)}
    closes: list[Close] = []
    done: list[int] = []
    for slot, (began_ns, decided) in told.items():
        goes_on = disputed[slot] in going_on
        if decided or goes_on:
            done.append(slot)
        if began_ns is not None and not goes_on:
            closes.append(Close(contests[slot].row, began_ns - 1))
    return Told(closes, done)


def _by_stream(
    slots: NDArray[np.int64], held: Iterable[Held], streams: StreamTable
) -> tuple[NDArray[np.void], list[tuple[int, int]]]:
    """What is held of some streams, ROW[n], one behind the other, and where each lies in it."""
    flags = np.zeros(streams.capacity, np.bool_)
    flags[slots] = True
    batches = [each.batch() for each in held]
    mine = [batch.take(flags[batch.slot] & (batch.slot >= 0)) for batch in batches]
    slot = np.concatenate([batch.slot for batch in mine])
    packets = np.concatenate([batch.packets for batch in mine])
    by_slot = np.argsort(slot, kind="stable")
    slot = slot[by_slot]
    wanted = slots.astype(slot.dtype)
    first, behind = (np.searchsorted(slot, wanted, side=side) for side in ("left", "right"))
    return packets[by_slot], list(zip(first.tolist(), behind.tolist(), strict=True))


def _disputed(slot: int, contest: Contest, streams: StreamTable) -> tuple[bytes, int, int]:
    """What a stream's contest is about: the call, and when another named its ends."""
    return streams.recording_id[slot].tobytes(), contest.since_ns, contest.until_ns


def _paused(gap_ns: NDArray[np.int64], skipped: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where nothing was sent; the numbers of what was lost on the way would be missing."""
    each_ns = gap_ns // np.maximum(skipped, 1)
    return (gap_ns >= PAUSE_NS) & ((each_ns >= PAUSE_NS) | (each_ns < PACKET_NS))


def _anew(skipped: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where the numbers began somewhere else."""
    return (skipped > MAX_DROPOUT) | (skipped < -MAX_MISORDER)
