"""Known traffic through the real capture and storaged: every count and every byte is the truth.

SPANVAULT_CALLS: how many calls of half a minute (200). SPANVAULT_SEED: repeats a run.
"""

import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from spanvault.client import Client
from spanvault.keys import keyfile
from spanvault.media.chunk import EVENTS, MARKER, Chunk
from spanvault.messages import Call, Search, Stream
from spanvault.private import PrivateStore
from tests.support import impaired
from tests.support.callgen import write_pcap

CALLS = int(os.environ.get("SPANVAULT_CALLS", "200"))
SEED = int(os.environ.get("SPANVAULT_SEED", str(random.SystemRandom().randrange(10**6))))
TALK_S = 30.0


class Stored(NamedTuple):
    """A frame as storaged gives it back."""

    time_ns: int
    timestamp: int
    payload_type: int
    flags: int
    payload: bytes


Heard = dict[str, tuple[Call, dict[int, dict[int, Stored]]]]  # by Call-ID; stream; number


def test_every_count_and_every_byte_is_the_truth(tmp_path, tell):
    tell(f"{CALLS} calls of {TALK_S:.0f} s, SPANVAULT_SEED={SEED}")
    truth, frames = impaired.calls(CALLS, TALK_S, SEED)
    write_pcap(tmp_path / "impaired.pcap", frames)
    heard = record(tmp_path, tmp_path / "impaired.pcap", len(frames))
    assert list(differences(truth, heard)) == []
    tell(summary(truth))
    spoil_and_compare(truth, heard, random.Random(SEED))


def spoil_and_compare(truth: list[impaired.Call], heard: Heard, chance: random.Random) -> None:
    """Were one byte or one packet another, it would be seen: in this call, and as just that."""
    for change, told in (
        (another_byte, "stored otherwise"),
        (one_more, "counts"),
        (one_less, "counts"),
        (sent_again, "counts"),
    ):
        call = chance.choice(truth)
        stream = chance.choice(call.streams)
        before = list(stream.arrivals)
        change(stream, chance)
        found = list(differences(truth, heard))
        stream.arrivals = before
        assert found, change.__name__
        assert all(fault.startswith(call.call_id) for fault in found)
        assert any(told in fault for fault in found), (change.__name__, found)


def another_byte(stream: impaired.Stream, chance: random.Random) -> None:
    at = next(
        at for at, each in enumerate(stream.arrivals) if each is stream.unique()[_key(stream, each)]
        and each.payload
    )  # fmt: skip
    payload = bytearray(stream.arrivals[at].payload)
    payload[chance.randrange(len(payload))] ^= 1
    stream.arrivals[at] = stream.arrivals[at]._replace(payload=bytes(payload))


def one_more(stream: impaired.Stream, chance: random.Random) -> None:
    last = max(each.number for each in stream.arrivals)
    stream.arrivals.append(stream.arrivals[-1]._replace(number=last + 1))


def one_less(stream: impaired.Stream, chance: random.Random) -> None:
    gone = chance.choice(stream.arrivals)
    stream.arrivals = [each for each in stream.arrivals if each.number != gone.number]


def sent_again(stream: impaired.Stream, chance: random.Random) -> None:
    stream.arrivals.append(chance.choice(stream.arrivals))


def _key(stream: impaired.Stream, packet: impaired.Packet) -> int:
    first = stream.arrivals[0].number
    return 65536 + (first & 0xFFFF) + packet.number - first


def record(folder: Path, capture: Path, frames: int) -> Heard:
    """Replay a capture file into a new store, and read everything back."""
    keyfile.create_private(folder / "unlock.key")
    with PrivateStore(folder / "store", folder / "unlock.key") as running:
        settings = {
            **running.connection("capture"), "name": "truth",
            "state_dir": folder / "state", "runtime_dir": folder / "run",
        }  # fmt: skip
        process = running.daemon(
            "capture", settings, ["--report", str(capture)], stdout=subprocess.PIPE
        )
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, running.said("capture")
        assert json.loads(said.splitlines()[-1]) == {"frames": frames, "unacknowledged": 0}
        calls = running.client.search(Search(limit=1 << 30))
        return {call.call_ids[0]: (call, stored(running.client, call)) for call in calls}


def stored(client: Client, call: Call) -> dict[int, dict[int, Stored]]:
    """All frames of a call by stream and extended number, what was dialled with the sound."""
    found: dict[int, dict[int, Stored]] = {}
    for chunk in (*fetched(client, call, digits=False), *fetched(client, call, digits=True)):
        frames = found.setdefault(int(chunk.header["stream"]) & ~EVENTS, {})
        for row, payload in zip(chunk.frames.tolist(), chunk.payloads(), strict=True):
            number, timestamp, time_ns, kind, flags, _ = row
            assert number not in frames, "stored twice"
            frames[number] = Stored(time_ns, timestamp, kind, flags, bytes(payload))
    return found


def fetched(client: Client, call: Call, *, digits: bool) -> Iterator[Chunk]:
    cursor: int | None = 0
    while cursor is not None:
        page = client.fetch(call.id, cursor, digits=digits)
        assert page.faults == []
        yield from page.media.chunks()
        cursor = page.next


def differences(truth: list[impaired.Call], heard: Heard) -> Iterator[str]:
    """What is not as it was sent."""
    strangers = heard.keys() - {call.call_id for call in truth}
    yield from (f"{call_id} was never made" for call_id in strangers)
    for call in truth:
        if call.call_id not in heard:
            yield f"{call.call_id} is missing"
            continue
        record, media = heard[call.call_id]
        if (record.outcome, record.end_reason, record.final) != ("answered", "bye", True):
            yield f"{call.call_id}: {record.outcome}, {record.end_reason}"
        if "capture_loss" in record.flags:
            yield f"{call.call_id}: {record.flags}"
        for fault in _differences(call, record, media):
            yield f"{call.call_id}: {fault}"


def _differences(
    call: impaired.Call, record: Call, media: dict[int, dict[int, Stored]]
) -> Iterator[str]:
    known = {(each.source, each.destination, each.ssrc): each for each in record.streams}
    if len(known) != len(record.streams) or known.keys() != {each.key for each in call.streams}:
        yield f"streams {sorted(known)}, not {sorted(each.key for each in call.streams)}"
        return
    for stream in call.streams:
        found = known[stream.key]
        counted = found.packets, found.lost, found.duplicates, found.late
        if counted != stream.counts() or found.payload_types != stream.payload_types():
            yield f"{_name(found)}: counts {counted}, not {stream.counts()}"
        sent = {number: _stored(packet) for number, packet in stream.unique().items()}
        kept = media.get(found.number, {})
        if kept.keys() != sent.keys():
            yield f"{_name(found)}: numbers {sorted(kept.keys() ^ sent.keys())[:5]} differ"
        other = [number for number in kept.keys() & sent.keys() if kept[number] != sent[number]]
        if other:
            yield f"{_name(found)}: {len(other)} stored otherwise, from {min(other)}"


def _stored(packet: impaired.Packet) -> Stored:
    flags = MARKER if packet.marker else 0
    return Stored(packet.time_ns, packet.timestamp, packet.payload_type, flags, packet.payload)


def _name(stream: Stream) -> str:
    return f"{stream.source} to {stream.destination} {stream.ssrc:#010x}"


def summary(truth: list[impaired.Call]) -> str:
    """How hard it was."""
    counts = [stream.counts() for call in truth for stream in call.streams]
    packets, lost, twice, late = (sum(column) for column in zip(*counts, strict=True))
    return (
        f"{len(counts)} streams: {packets:,} packets, {lost:,} lost, {twice:,} sent twice, "
        f"{late:,} late; all as they were sent"
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_seed_gives_the_same_traffic(seed):
    assert impaired.calls(2, 1.0, seed) == impaired.calls(2, 1.0, seed)
