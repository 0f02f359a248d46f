"""Two phones and one time line: what both hear at one moment lies at one place of the sound.

Someone claps beside both phones; each hears it by its own clock, and the capture's clock notes when
the packets came. All times are seconds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

from spanvault.audio.order import InTimeOrder, Pages
from spanvault.audio.render import Renderer
from spanvault.client import Page
from spanvault.media.chunk import CHUNK, FRAME, Chunk, Media
from spanvault.messages import Stream
from tests.support.chunks import PCMA, START_NS

SECOND: Final = 1_000_000_000
CLAP, SILENCE = 0x2A, 0xD5
ALIGNED_S: Final = 0.020


@dataclass
class Phone:
    """What a phone sends. ppm: how much slower its clock runs than the capture's."""

    stream: Stream
    claps: Sequence[float]
    begins: float = 0.0
    ends: float = 60.0
    ppm: float = 0.0
    seed: int = 0
    set_at: list[tuple[float, float]] = field(default_factory=list)  # the capture's clock: when, by
    silent: Sequence[tuple[float, float]] = ()  # sends nothing from, to; timestamps go on (DTX)
    held: Sequence[
        tuple[float, float]
    ] = ()  # nothing; timestamps go on `jump` from where they were
    jump: int = 0
    samples: int = 160  # a packet
    ticks: int = 160  # by which its timestamps count a packet

    def chunks(self) -> Iterator[Chunk]:
        """As the capture stores them."""
        pace, packet_s = 1 + self.ppm / 1e6, self.samples / 8000
        count = round((self.ends - self.begins) / packet_s / pace)
        random = np.random.default_rng(self.seed)
        true = self.begins + np.arange(1, count + 1) * packet_s * pace
        noted = np.maximum.accumulate(true + random.exponential(0.003, count))
        arrival = noted + sum(by * (noted >= at) for at, by in self.set_at)
        payload = np.full(count * self.samples, SILENCE, np.uint8)
        for clap in self.claps:
            heard = round((clap - self.begins) / pace * 8000)
            payload[heard : heard + 40] = CLAP
        frames = np.zeros(count, FRAME)
        stamps = self.ticks * np.arange(count)
        frames["arrival_ns"] = START_NS + np.rint(arrival * SECOND).astype(np.int64)
        frames["payload_type"], frames["length"] = 8, self.samples
        sent = np.ones(count, np.bool_)
        for first, last in self.held:
            missing = int(((true >= first) & (true <= last)).sum())
            stamps[true > last] += self.jump - self.ticks * missing
        frames["timestamp"] = stamps & 0xFFFFFFFF
        for first, last in (*self.silent, *self.held):
            sent &= (true < first) | (true > last)
        payload = payload.reshape(-1, self.samples)[sent]
        frames, noted = frames[sent], noted[sent]
        count = len(frames)
        frames["sequence"] = 65536 + np.arange(count)
        self._record(frames)
        for rows in np.split(np.arange(count), np.flatnonzero(np.diff(noted // 1)) + 1):
            yield self._chunk(frames[rows], payload[rows].ravel())

    def _record(self, frames: NDArray[np.void]) -> None:
        self.stream.packets = len(frames)
        self.stream.first_ns = int(frames["arrival_ns"].min())
        self.stream.last_ns = int(frames["arrival_ns"].max())

    def _chunk(self, frames: NDArray[np.void], payload: NDArray[np.uint8]) -> Chunk:
        header = np.zeros((), CHUNK)
        header["stream"], header["frames"] = self.stream.number, len(frames)
        header["payload_bytes"] = len(payload)
        header["start_ns"] = frames["arrival_ns"].min()
        return Chunk(header[()], frames, memoryview(payload.tobytes()))


def phone(number: int, claps: Sequence[float], **more: Any) -> Phone:
    party = ("caller", "callee")[number % 2]
    one = Stream(number, party, "audio", number, f"10.0.0.{number}:4000", "10.0.0.9:4000",  # type: ignore[arg-type]
                 {8: PCMA}, {8: 1})  # fmt: skip
    return Phone(one, claps, seed=number, **more)


def record(*phones: Phone) -> InTimeOrder:
    """Stored as it was heard, a few chunks a page."""
    noted = [
        (when, phone.stream.number, chunk)
        for phone in phones
        for when, chunk in enumerate(phone.chunks(), round(phone.begins))
    ]
    stored = [chunk for _, _, chunk in sorted(noted, key=lambda one: one[:2])]
    pages = [stored[at : at + 7] for at in range(0, len(stored), 7)]

    def fetch(cursor: int) -> Page:
        chunks = pages[cursor]
        media = Media(
            np.array([one.header for one in chunks]),
            np.concatenate([one.frames for one in chunks]),
            memoryview(b"".join(one.payload for one in chunks)),
        )
        return Page(media, cursor + 1 if cursor + 1 < len(pages) else None, [])

    return InTimeOrder(Pages(fetch))


def hear(*phones: Phone) -> tuple[list[list[float]], float]:
    """When claps are heard, left and right, and how long the sound is."""
    chunks = record(*phones)
    renderer = Renderer([one.stream for one in phones], 8000)
    sound = np.concatenate(list(renderer.render(chunks)))
    return [_claps(sound[:, side]) for side in (0, 1)], len(sound) / 8000


def _claps(sound: NDArray[np.int16]) -> list[float]:
    loud = np.flatnonzero(np.abs(sound.astype(int)) > 10_000)
    begins = loud[np.diff(loud, prepend=-8000) > 800]
    return [round(at / 8000, 4) for at in begins.tolist()]


def assert_together(heard: list[list[float]], claps: Sequence[float]) -> None:
    left, right = heard
    assert len(left) == len(right) == len(claps)
    assert max(abs(a - b) for a, b in zip(left, right, strict=True)) <= ALIGNED_S
    assert max(abs(a - b) for a, b in zip(left, claps, strict=True)) <= ALIGNED_S


@pytest.mark.parametrize("pauses", [False, True], ids=["all the time", "DTX"])
@pytest.mark.parametrize("skews", [(100, 0), (100, -100)])
def test_an_hour_with_clocks_that_drift_stays_aligned(skews: tuple[float, float], pauses: bool):
    claps = [2.5 + 37.1 * n for n in range(97)]
    silent: list[list[tuple[float, float]]] = [[], []]
    if pauses:  # one listens for most of each half minute, the other for a quarter of an hour
        silent = [[(clap + 2.0, clap + 35.0) for clap in claps[:-1]], [(900.0, 1900.0)]]
        claps = [clap for clap in claps if not 895 < clap < 1905]
    phones = [
        phone(n, claps, ends=3600.0, ppm=ppm, silent=silent[n]) for n, ppm in enumerate(skews)
    ]
    heard, length = hear(*phones)
    assert_together(heard, claps)
    assert length == pytest.approx(3600, abs=0.1)


@pytest.mark.parametrize(
    ("skews", "ticks", "jump"),
    [
        pytest.param((100, -100), 640, 0, id="timestamps stand still on hold"),
        pytest.param((-100, 100), 1280, 123_456_789, id="twice as fast, and anew after hold"),
    ],
)
def test_an_hour_with_holds_silence_and_another_ssrc_stays_aligned(
    skews: tuple[float, float], ticks: int, jump: int
):
    """Two clocks 200 ppm apart: 0.7 s by the end, were nothing done about it."""
    claps = [2.5 + 37.1 * n for n in range(97)]
    claps = [clap for clap in claps if not (895 < clap < 1905 or 2400 < clap < 2800)]
    pauses = [(clap + 2.0, clap + 35.0) for clap in claps]
    packets = {"samples": 640, "ticks": ticks, "jump": jump, "held": [(2405.0, 2795.0)]}
    caller, callee = skews
    heard, length = hear(
        phone(0, [clap for clap in claps if clap < 2000], ends=2000.0, ppm=caller,
              silent=[pause for pause in pauses if pause[1] < 2000], **packets),
        phone(2, [clap for clap in claps if clap > 2000], begins=2000.0, ends=3600.0, ppm=caller,
              **packets),
        phone(1, claps, ends=3600.0, ppm=callee, silent=[(900.0, 1900.0)], **packets),
    )  # fmt: skip
    assert_together(heard, claps)
    assert length == pytest.approx(3600, abs=0.1)


@pytest.mark.parametrize("by", [-3600.0, -86_400.0, -45.0, -5.5, -1.3, -0.7, -0.2])
def test_a_clock_set_back_in_mid_call_leaves_the_sound_as_it_was(by: float):
    claps = [2.5, 29.2, 31.4, 58.8]
    step = [(30.0, by)]
    heard, length = hear(phone(0, claps, set_at=step), phone(1, claps, set_at=step))
    assert_together(heard, claps)
    assert length == pytest.approx(60, abs=0.1)


def test_a_stream_that_begins_after_the_clock_was_set_back_is_aligned():
    step = [(30.0, -3600.0)]
    heard, length = hear(
        phone(0, [10.5, 50.5], set_at=step),
        phone(1, [10.5], ends=25.0, set_at=step),
        phone(3, [50.5], begins=40.0, set_at=step),
    )
    assert_together(heard, [10.5, 50.5])
    assert length == pytest.approx(60, abs=0.1)


def test_a_clock_set_back_twice():
    claps = [2.5, 25.1, 50.5]
    steps = [(20.0, -3600.0), (40.0, -120.0)]
    heard, length = hear(phone(0, claps, set_at=steps), phone(1, claps, set_at=steps))
    assert_together(heard, claps)
    assert length == pytest.approx(60, abs=0.1)


def test_a_clock_set_forward_by_minutes_looks_like_a_hold_and_both_stay_together():
    step = [(30.0, 600.0)]
    heard, length = hear(
        phone(0, [2.5, 31.4], set_at=step), phone(1, [2.5, 31.4], set_at=step)
    )  # fmt: skip
    assert_together(heard, [2.5, 631.4])
    assert length == pytest.approx(660, abs=0.1)


def test_a_clock_set_forward_by_days_costs_no_silence():
    step = [(30.0, 3 * 86_400.0)]
    heard, length = hear(
        phone(0, [2.5, 31.4], set_at=step), phone(1, [2.5, 31.4], set_at=step)
    )  # fmt: skip
    assert_together(heard, [2.5, 31.4])
    assert length == pytest.approx(60, abs=0.1)
