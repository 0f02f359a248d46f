"""A daemon for months: days of hostile conversations in compressed time, and nothing that grows.

Each story has Call-IDs, hosts and streams of its own, and time goes on between them. What the core
remembers of the past is bounded by numbers; made small here, so that they are reached at once.
"""

import gc
import random
import sys
from itertools import count
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest

from capture.calls import calltable
from capture.recorder import Recorder
from capture.signalling import siptls
from spanvault.daemon.config import CaptureConfig
from tests.fuzz.dialogs import Story
from tests.support.callgen import SECOND, Frame
from tests.support.frames import block

STORIES, WARM = 120, 50
REMEMBERED = 64


def test_days_of_hostile_calls_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calltable, "MAX_PAST", REMEMBERED)
    monkeypatch.setattr(siptls, "MAX_SPEAKERS", REMEMBERED)
    chance, ids, shift_ns = random.Random(3), count(1), 0
    recorder = Recorder(CaptureConfig(name="soak"), lambda: next(ids).to_bytes(16))
    sizes: list[tuple[int, int]] = []
    for number in range(STORIES):
        frames = told(number, shift_ns, chance)
        for at in range(0, len(frames), 64):
            part = frames[at : at + 64]
            heard = recorder.receive(block([f.data for f in part], times=[f.time_ns for f in part]))
            for call in heard.calls:
                if call.final:
                    recorder.calls.settled(call.id)
        shift_ns += frames[-1].time_ns - frames[0].time_ns + chance.choice((60, 4000)) * SECOND
        for _ in range(3):  # what is over by now leaves
            recorder.tick(frames[-1].time_ns + 3600 * SECOND)
        if number % 10 == 9:
            sizes.append(held(recorder))
    assert shift_ns > 3 * 86_400 * SECOND
    for each in zip(*sizes, strict=True):  # objects, bytes
        warm, late = each[WARM // 10 :][:3], each[-3:]
        assert min(late) < 1.1 * max(warm)


def told(number: int, shift_ns: int, chance: random.Random) -> list[Frame]:
    """A story of its own hosts and Call-IDs; some frames damaged, some cut."""
    frames = []
    for frame in Story(b"\x02" + chance.randbytes(chance.choice((60, 400)))).frames():
        data = bytearray(frame.data.replace(b"call-", b"c%03x-" % number))
        data[27] = data[31] = number  # 10.NUMBER.0.1
        if chance.random() < 0.2:
            data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.02:
            data = data[: chance.randrange(1, len(data))]
        frames.append(Frame(frame.time_ns + shift_ns, bytes(data)))
    return frames


def held(root: object) -> tuple[int, int]:
    """Objects that can be reached from one, and their bytes; code does not count, nor do columns.

    Columns are reserved, and grow with what is there at once: bench/memory.py.
    """
    seen, left, size = {id(root)}, [root], 0
    while left:
        each: Any = left.pop()
        size += 0 if isinstance(each, np.ndarray) else sys.getsizeof(each)
        for other in gc.get_referents(each):
            if id(other) not in seen and not isinstance(other, type | ModuleType | FunctionType):
                seen.add(id(other))
                left.append(other)
    return len(seen), size
