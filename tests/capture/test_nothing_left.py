"""Calls come and go for ten minutes of packet time: nothing of them stays in any table.

Whatever the recorder holds is found by walking it, so a table added later is looked at, too.
"""

import gc
import random
from collections import Counter
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np

from capture.calls.calltable import MAX_PAST
from capture.media.leaving import Leaving
from capture.model import Block
from capture.packets.fragments import MAX_DATAGRAMS
from capture.recorder import Heard, Recorder
from capture.signalling.siptls import MAX_SPEAKERS
from spanvault.daemon.config import CaptureConfig
from tests.support.callgen import (
    ANSWERED_NS,
    SECOND,
    START_NS,
    Dialogue,
    Frame,
    Phone,
    around,
    busy,
    rtp,
    sdp,
    udp_frame,
)
from tests.support.frames import block as block_of
from tests.support.frames import ethernet, ipv4

SECONDS, A_SECOND, TALK_S = 600, 4, 20
SETTLED_S = 400  # after the last call: every timer has run out
# What is kept on purpose, and bounded.
KEPT = {
    "calls._table._past": MAX_PAST,
    "calls.sip_tls._speakers": MAX_SPEAKERS,  # a TLS connection to one may come at any time
    "media._spare": 1,
    "media._arena._free": 8,  # memory for the seconds to come
    # They go when the next fragment comes.
    "slow_path._fragments": MAX_DATAGRAMS,
    "slow_path._fragments._partials": MAX_DATAGRAMS,
}


def test_ten_minutes_of_calls_leave_nothing_behind():
    recorder, heard = Recorder(CaptureConfig(silence_s=60, no_media_s=60), ids()), Heard()
    empty = sizes(recorder)
    half: dict[str, int] = {}
    for second, block in enumerate(blocks()):
        heard.add(recorder.receive(block))
        settle(recorder, heard)
        if second == SECONDS // 2:
            half = sizes(recorder)
    full = sizes(recorder)
    assert recorder.calls.active > A_SECOND * TALK_S / 2
    assert {path: full[path] for path in half if full[path] > 2 * half[path] + 200} == {}
    for second in range(SETTLED_S):
        heard.add(recorder.tick(START_NS + (SECONDS + second) * SECOND))
        settle(recorder, heard)
    assert recorder.counters()["streams"] > SECONDS
    assert recorder.calls.active == 0
    left = {
        path: size for path, size in sizes(recorder).items()
        if size > empty.get(path, 0) and size > KEPT.get(path, 0)
    }  # fmt: skip
    assert left == {}
    assert used_streams(recorder) == 0


def test_a_call_leaves_no_cycle_for_the_garbage_collector():
    """The daemon never looks for old ones: see capture.__main__."""
    gc.collect()
    recorder, heard = Recorder(CaptureConfig(), ids()), Heard()
    frames = [frame for number in range(40) for frame in call(number, number // 8)]
    for frame in sorted(frames, key=lambda frame: frame.time_ns):
        heard.add(recorder.receive(as_block([frame])))
        settle(recorder, heard)
    assert gc.collect() == 0
    settle(recorder, recorder.finish())
    assert gc.collect() == 0


def sizes(thing: Any) -> dict[str, int]:
    """The length of every container that is reached from a thing, by the path to it."""
    found: dict[str, int] = {}
    seen: set[int] = set()

    def walk(value: Any, path: str, depth: int) -> None:
        if id(value) in seen or depth > 6 or callable(value) or isinstance(value, Counter):
            return
        seen.add(id(value))
        if isinstance(value, (dict, list, set, bytearray)) or type(value).__name__ == "deque":
            found[path] = len(value)
        elif type(value).__module__.startswith("capture"):
            if isinstance(value, Sized):
                found[path] = len(value)
            names = [*getattr(value, "__dict__", {}), *getattr(value, "__slots__", ())]
            for name in names:
                walk(getattr(value, name, None), f"{path}.{name}".lstrip("."), depth + 1)

    walk(thing, "", 0)
    return found


def used_streams(recorder: Recorder) -> int:
    return int(np.count_nonzero(recorder.media.streams.state))


def settle(recorder: Recorder, heard: Heard) -> None:
    """As if storaged had stored it all."""
    recorder.calls.settled([call.id for call in heard.calls if call.final])
    heard.calls.clear()
    heard.media = Leaving()


def ids() -> Any:
    numbers = iter(range(1, 1 << 30))
    return lambda: next(numbers).to_bytes(16, "big")


def blocks() -> Iterator[Block]:
    """A second each."""
    waiting: list[Frame] = []
    for second in range(SECONDS):
        for number in range(A_SECOND):
            waiting += call(A_SECOND * second + number, second)
        waiting.sort(key=lambda frame: frame.time_ns)
        until = START_NS + (second + 1) * SECOND
        due = [frame for frame in waiting if frame.time_ns < until]
        waiting = waiting[len(due) :]
        yield as_block(due)


def as_block(frames: list[Frame]) -> Block:
    return block_of([frame.data for frame in frames], times=[frame.time_ns for frame in frames])


def call(number: int, second: int) -> list[Frame]:
    """One of the kinds of things that come off a wire, each with addresses of its own."""
    chance = random.Random(number)
    start_ns = START_NS + second * SECOND + chance.randrange(SECOND // 2)
    caller, callee = (
        Phone(f"{side}{number:06}", f"10.{6 + side}.{number // 250 % 250}.{number % 250 + 1}",
              20_000, number * 2 + side, np.zeros(0, np.int16))
        for side in (0, 1)
    )  # fmt: skip
    kind = number % 8
    name = f"{number}@x"
    if kind == 0:
        return busy(start_ns, caller, callee, name)
    if kind == 1:
        return talk(start_ns, caller, callee)  # of a call that nobody signals
    media = talk(start_ns + ANSWERED_NS, caller, callee)
    media += talk(start_ns + ANSWERED_NS, callee, caller)
    bodies = (sdp(caller), sdp(callee))
    frames = around(media, start_ns, caller, callee, name, bodies, chance.uniform(2, TALK_S))
    if kind == 2:
        return frames[:1]  # rings for ever
    if kind == 3:
        return [frame for frame in frames if b"BYE" not in frame.data]
    if kind == 4:
        return frames[4:]  # began before we listened
    if kind == 5:
        refer = Dialogue(caller, callee, name).request(start_ns + ANSWERED_NS, "REFER", 5)
        to = refer.data.replace(b"Max-Forwards: 70", b"Refer-To: <sip:9@x>")
        return [*frames, refer._replace(data=longer(to))]
    if kind == 6:
        return [*frames, unfinished(start_ns, number)]
    return frames


def talk(start_ns: int, speaker: Phone, listener: Phone) -> list[Frame]:
    """A few packets are enough to open a stream."""
    ends = (speaker.address, speaker.rtp_port), (listener.address, listener.rtp_port)
    return [
        udp_frame(start_ns + at * 20_000_000, *ends, rtp(at, 160 * at, speaker.ssrc, bytes(160)))
        for at in range(5)
    ]


def longer(frame: bytes) -> bytes:
    """The frame with its IP and UDP lengths put right."""
    size = len(frame) - 34
    udp = frame[34:38] + size.to_bytes(2, "big") + frame[40:]
    ip = frame[14:16] + (size + 20).to_bytes(2, "big") + frame[18:34]
    return frame[:14] + ip + udp


def unfinished(time_ns: int, number: int) -> Frame:
    """A fragment whose others never come."""
    return Frame(
        time_ns, ethernet(ipv4(bytes(40), "10.99.0.1", f"10.98.{number % 250}.1", fragment=0x20))
    )
