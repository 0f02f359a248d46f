"""What a store holds after its daemons were killed, held against what was on the wire.

What may be missing is only what no recorder could have: what came while the capture was dead, and
what it held in memory, unacknowledged, when it was killed. Nothing may be altered, repeated or
made up. tcpdump at the same mirror says which signalling there was; the phones' voices say what
every frame must hold. Killing: tests/e2e/test_kill.py. That this can fail: test_kill_control.py.
"""

import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from spanvault.client import Client, RequestFailed
from spanvault.messages import Call, Search
from tests.support.appliance import Appliance
from tests.support.phones import SSRC
from tests.support.stored import Frame, Store, changed, missing, repeated, streams_of

SECOND = 1_000_000_000
# From the wire to storaged's disk: a second's flush, ring and commit, a reconnection (≤ 2 s).
UNSAFE_NS = 6 * SECOND
# From the wire to the saved table of calls.
UNSAVED_NS = 2 * SECOND
SETUP = 4  # messages: INVITE, 180, 200, ACK
RINGING = 2  # of them: a call of which no more was heard rings for three minutes yet

Spans = Sequence[tuple[int, int]]


class Kill(NamedTuple):
    """What was killed, when it was dead, and when it was back at work."""

    name: str
    at_ns: int
    back_ns: int


class Report:
    """What was held against what, and what did not fit. said: payloads by phone."""

    def __init__(
        self,
        kills: Sequence[Kill],
        signalling: Mapping[str, Sequence[int]],
        said: Mapping[str, Sequence[bytes]],
    ) -> None:
        self.kills = list(kills)
        self.signalling = {name: sorted(times) for name, times in signalling.items()}
        self._said = {SSRC[phone]: payloads for phone, payloads in said.items()}
        self.excused = list(unsafe(kills, UNSAFE_NS))
        self.deaf = [(k.at_ns - UNSAVED_NS, k.back_ns) for k in kills if k.name == "capture"]
        self.faults: list[str] = []
        self.frames = self.lacking = self.checked = 0

    @property
    def strict_kills(self) -> int:
        """storaged's kills around which every frame must be there."""
        around = (k.at_ns - SECOND for k in self.kills if k.name == "storaged")
        return sum(not within(time_ns, self.excused) for time_ns in around)

    @property
    def whole(self) -> set[str]:
        """Call-IDs whose set-up was heard: of these, every frame is due."""
        return {name for name, times in self.signalling.items() if self._all_heard(times[:SETUP])}

    @property
    def unended(self) -> set[str]:
        """Call-IDs of which nothing was heard behind the ringing: neither 200 nor BYE.

        The capture must have been dead for both, 20 s apart, or these would be lost calls.
        """
        return {
            name
            for name, times in self.signalling.items()
            if len(times) > SETUP and all(within(time, self.deaf) for time in times[RINGING:])
        }

    def compare(self, store: Store, calls: Sequence[Call]) -> None:
        """Every call once, its frames as they were said, and all of them that are due."""
        found: dict[str, list[Call]] = {}
        for call in signalled(calls):
            found.setdefault(call.call_ids[0], []).append(call)
        for name in found.keys() - self.signalling.keys():
            self.faults.append(f"call {name} was never made")
        whole = self.whole
        for name, times in self.signalling.items():
            heard = any(not within(time, self.deaf) for time in times)
            records = found.get(name, [])
            if len(records) != 1 and (heard or records):
                self.faults.append(f"call {name}: {len(records)} records")
            for call in records[:1]:
                self._media(store, call, due=name in whole)

    def _all_heard(self, times: Sequence[int]) -> bool:
        return len(times) >= SETUP and not any(within(time, self.deaf) for time in times)

    def _media(self, store: Store, call: Call, due: bool) -> None:
        self.checked += due
        name = call.call_ids[0]
        frames: dict[int, list[Frame]] = {ssrc: [] for ssrc in self._said}
        ssrcs = {stream.number: stream.ssrc for stream in call.streams}
        for number, stored in streams_of(store, call.id).items():
            if ssrcs.get(number) in frames:
                frames[ssrcs[number]] += stored
            else:
                self.faults.append(f"call {name}: stream {number} is nobody's")
        for ssrc, said in self._said.items():
            voice = sorted(frames[ssrc])
            self._voice(f"call {name} {ssrc:#x}", voice, said)
            if due and not voice:
                self.faults.append(f"call {name} {ssrc:#x}: nothing")
            elif voice:
                # Where the set-up was missed, what was recorded once is due from then on.
                first = 0 if due else voice[0].number
                self._due(f"call {name} {ssrc:#x}", voice, first, len(said))
        if due:
            parties = {stream.ssrc: stream.party for stream in call.streams if stream.packets}
            if parties != {SSRC["a"]: "caller", SSRC["b"]: "callee"}:
                self.faults.append(f"call {name}: parties {parties}")

    def _voice(self, name: str, frames: list[Frame], said: Sequence[bytes]) -> None:
        self.frames += len(frames)
        made_up = [frame for frame in frames if frame.number >= len(said)]
        self._blame(name, "made up", [frame.number for frame in made_up])
        self._blame(name, "changed", changed([f for f in frames if f not in made_up], said))
        self._blame(name, "twice", repeated(frames))

    def _due(self, name: str, frames: list[Frame], first: int, count: int) -> None:
        gone = {n: when for n, when in missing(frames, count).items() if n >= first}
        self.lacking += len(gone)
        lost = [number for number, when in gone.items() if not within(when, self.excused)]
        self._blame(name, "lost", lost)

    def _blame(self, name: str, fault: str, numbers: Sequence[int]) -> None:
        if numbers:
            self.faults.append(f"{name}: {len(numbers)} frames {fault}, from number {numbers[0]}")

    def __str__(self) -> str:
        names = sorted({kill.name for kill in self.kills})
        by_name = ", ".join(f"{n} {sum(k.name == n for k in self.kills)}" for n in names)
        return (
            f"killed: {by_name}; {len(self.signalling)} calls, {self.checked} compared frame by "
            f"frame: {self.frames} stored, {self.lacking} missed while the capture was dead; "
            f"{len(self.unended)} calls without a heard end; "
            f"{self.strict_kills} kills of storaged where nothing was excused; "
            f"{len(self.faults)} faults"
        )


class Witness:
    """Reads recordings in progress, again and again, and remembers what it was given."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance, self._end = appliance, threading.Event()
        self._seen: dict[bytes, set[tuple[int, int]]] = {}  # call: stream and frame
        self._thread = threading.Thread(target=self._watch)
        self._faults: list[str] = []
        self.readings = 0

    def __enter__(self) -> "Witness":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def forgotten(self, store: Store) -> list[str]:
        """What is not there any more."""
        faults = list(self._faults)
        for call_id, seen in self._seen.items():
            if gone := seen - frames_in(store, call_id):
                faults.append(f"call {call_id.hex()}: {len(gone)} frames seen, and now gone")
        return faults

    def _watch(self) -> None:
        while not self._end.wait(0.5):
            with suppress(RequestFailed), self._appliance.client() as client:
                for call in client.search(Search(limit=6)):
                    self.read(client, call.id)

    def read(self, store: Store, call_id: bytes) -> None:
        """Remember what is there of a recording by now."""
        try:
            self._seen.setdefault(call_id, set()).update(frames_in(store, call_id))
            self.readings += 1
        except ValueError as error:
            self._faults.append(f"unreadable while in progress: {error}")

    def __str__(self) -> str:
        return f"{self.readings} readings of {len(self._seen)} recordings in progress"


def frames_in(store: Store, call_id: bytes) -> set[tuple[int, int]]:
    """Stream and number of every frame of a recording."""
    stored = streams_of(store, call_id)
    return {(stream, frame.number) for stream, frames in stored.items() for frame in frames}


def sip_times(capture: Path) -> dict[str, list[int]]:
    """When the messages of each Call-ID were on the wire, as tshark reads them."""
    fields = ["-T", "fields", "-e", "sip.Call-ID", "-e", "frame.time_epoch"]
    command = ["tshark", "-r", str(capture), "-Y", "sip", *fields]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    times: dict[str, list[int]] = {}
    for line in text.splitlines():
        call_id, seconds = line.split("\t")
        times.setdefault(call_id, []).append(round(float(seconds) * SECOND))
    return times


def signalled(calls: Iterable[Call]) -> list[Call]:
    """Without what was recorded of a call whose signalling fell into the capture's deaths."""
    return [call for call in calls if call.call_ids]


def wait_until_settled(client: Client, ends: set[str], seconds: float = 120) -> list[Call]:
    """All calls, once each that ends is over, its recording sealed, and copied."""
    end = time.monotonic() + seconds
    while True:
        try:
            calls = signalled(client.search(Search(limit=10_000)))
            due = [call for call in calls if call.call_ids[0] in ends]
            open_ = [what for call in due if (what := unsettled(client, call))]
        except RequestFailed as error:
            calls, open_ = [], [error.error]
        if calls and not open_:
            return calls
        assert time.monotonic() < end, f"{len(open_)} of {len(calls)} not settled: {open_[:5]}"
        time.sleep(1)


def unsettled(client: Client, call: Call) -> str:
    """What a call still waits for; nothing if all is done."""
    reply = client.get(call.id)
    if not call.final:
        return f"{call.call_ids[0]} is not over"
    if reply.size and not reply.sealed:
        return f"{call.call_ids[0]} is not sealed"
    return "" if reply.receipts or not reply.size else f"{call.call_ids[0]} has no copy"


def unsafe(kills: Sequence[Kill], margin_ns: int) -> Iterator[tuple[int, int]]:
    """Spans of time whose frames a killed capture may have held in memory alone, or missed."""
    storaged = [kill for kill in kills if kill.name == "storaged"]
    for kill in kills:
        if kill.name != "capture":
            continue
        start_ns = kill.at_ns - margin_ns
        for other in sorted(storaged, key=lambda k: -k.at_ns):
            # Nothing was acknowledged while storaged was away, either.
            if other.at_ns < kill.at_ns and other.back_ns > start_ns:
                start_ns = min(start_ns, other.at_ns - margin_ns)
        yield start_ns, kill.back_ns


def within(time_ns: int, spans: Spans) -> bool:
    """Whether a moment lies in one of them."""
    return any(start_ns <= time_ns <= end_ns for start_ns, end_ns in spans)


def merged(spans: Spans) -> list[tuple[int, int]]:
    """The same time in spans that do not overlap."""
    found: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def deaf_twice(deaf: Spans, talk_s: float, a_second: float) -> int:
    """How many calls at most may be answered while deaf, and end while deaf."""
    talk_ns, late_ns = round(talk_s * SECOND), SECOND // 2  # phones under load are a little late
    spans = merged(deaf)
    count = 0
    for begin, end in spans:
        for again, until in spans:
            both = min(end, until - talk_ns) - max(begin, again - talk_ns - late_ns)
            if both >= 0:
                count += int(both / SECOND * a_second) + 1
    return count
