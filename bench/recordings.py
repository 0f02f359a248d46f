"""Recordings of stereo G.711, sealed as a running storaged does it: a frame every two seconds."""

from collections.abc import Iterator

import numpy as np

from spanvault import messages as m
from spanvault.media.chunk import CHUNK, FRAME, Media
from storaged.recordings.gathering import Group
from tests.support.vault import SECOND, START, Parts, make_call, payload

COMMIT_S, PACKETS, PACKET_BYTES = 2, 50, 160


def record(parts: Parts, numbers: range, seconds: int) -> list[m.Call]:
    """Record so many calls side by side, two streams each, to their end."""
    calls = [
        make_call(number, started_ns=START, answered_ns=START, ended_ns=START + seconds * SECOND)
        for number in numbers
    ]
    for second in range(0, seconds, COMMIT_S):
        ended = calls if second + COMMIT_S >= seconds else []
        group = Group()
        group.add(b"", m.Batch("bench", second, list(ended)), _media(calls, second))
        parts.writer.commit(group)
    return calls


def _media(calls: list[m.Call], second: int) -> Media:
    chunks = list(_chunks(calls, second))
    table, frames = np.zeros(len(chunks), CHUNK), np.zeros(len(chunks) * PACKETS, FRAME)
    for row, (call, stream, at) in zip(table, chunks, strict=True):
        row["recording_id"], row["stream"] = np.void(call), stream
        row["ssrc"], row["frames"] = 0x1234 + stream, PACKETS
        row["payload_bytes"], row["start_ns"] = PACKETS * PACKET_BYTES, START + at * SECOND
    ticks = np.arange(PACKETS)
    starts = np.repeat(table["start_ns"], PACKETS)
    frames["sequence"] = 65536 + (starts - START) // SECOND * PACKETS + np.tile(ticks, len(chunks))
    frames["arrival_ns"] = starts + np.tile(ticks * (SECOND // PACKETS), len(chunks))
    frames["length"] = PACKET_BYTES
    sound = b"".join(payload(*chunk, PACKETS * PACKET_BYTES) for chunk in chunks)
    return Media(table, frames, memoryview(sound))


def _chunks(calls: list[m.Call], second: int) -> Iterator[tuple[bytes, int, int]]:
    """(recording, stream, second)"""
    for call in calls:
        for at in range(second, second + COMMIT_S):
            yield from ((call.id, stream, at) for stream in (0, 1))
