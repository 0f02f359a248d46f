"""kill -9 of each daemon at random moments, under concurrent calls: nothing that was safe is lost.

What may be missing is only what no recorder could have: what was on the wire while the capture was
dead, and what it held in memory, unacknowledged, when it was killed. So the first half of the kills
spares the capture: there, every frame must be stored. And whatever storaged has handed out once, it
must have to the end. tcpdump at the same mirror says which signalling there was; the phones' own
voices say what every frame must hold.

SPANVAULT_KILLS: how many (50). SPANVAULT_SEED: repeats a run.
"""

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from spanvault.client import Client, RequestFailed
from spanvault.messages import Call, Search
from tests.support.appliance import Appliance
from tests.support.lab import Lab
from tests.support.phones import Phones
from tests.support.stored import changed, frames_of, missing, repeated, streams_of
from tests.support.voices import payloads

LACKING = [name for name in ("sipp", "tcpdump", "tshark", "tc") if shutil.which(name) is None]

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and a raw socket need root"),
    pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}"),
    pytest.mark.timeout(900),
]

KILLS = int(os.environ.get("SPANVAULT_KILLS", "50"))
SEED = int(os.environ.get("SPANVAULT_SEED", str(random.SystemRandom().randrange(10**6))))
AT_ONCE = 20
TALK_S = 20.0
PAUSE_S = 2.0  # between kills, on average
CALM_S = 8.0  # between the halves: all that was heard in the first gets acknowledged
DAEMONS = ("storaged", "replicator", "capture")
SECOND = 1_000_000_000
# From the wire to storaged's disk: a second's flush, ring and commit, a reconnection (≤ 2 s).
UNSAFE_NS = 6 * SECOND
# From the wire to the saved table of calls.
UNSAVED_NS = 2 * SECOND


class Kill(NamedTuple):
    """What was killed, when, and when it was back at work."""

    name: str
    at_ns: int
    back_ns: int


def test_fifty_kills_lose_nothing_that_was_acknowledged(tmp_path, capsys):
    with capsys.disabled():
        print(f"\n{KILLS} kills, SPANVAULT_SEED={SEED}")
    with (
        Lab() as lab,
        Appliance(tmp_path / "a", "span0", lab.within("span"), silence_s=8.0) as appliance,
    ):
        for name in DAEMONS:
            appliance.start(name)
        dump = lab.start(
            "span", ["tcpdump", "-U", "-i", "span0", "-w", tmp_path / "sip.pcap", "port", "5060"],
            tmp_path / "tcpdump.log",
        )  # fmt: skip
        time.sleep(1)
        phones = Phones(lab, tmp_path / "phones", TALK_S)
        count = max(AT_ONCE, round((KILLS * PAUSE_S + CALM_S) * AT_ONCE / TALK_S))
        calling = phones.call(count, AT_ONCE, a_second=AT_ONCE / TALK_S)
        with Witness(appliance) as witness:
            kills = kill_at_random(appliance, random.Random(SEED))
        assert calling.wait(120) == 0, "the phones could not talk to each other"
        dump.send_signal(signal.SIGINT)
        dump.wait()
        signalling = sip_times(tmp_path / "sip.pcap")
        assert len(signalling) == count
        with appliance.client() as client:
            report = Report(kills, signalling)
            calls = wait_until_settled(client, report.ends)
            report.compare(client, calls, {n: payloads(v) for n, v in phones.voices.items()})
            report.faults += witness.forgotten(client)
        with capsys.disabled():
            print(f"{report}; {witness}")
        assert report.faults == []
        assert report.strict_kills >= sum(k.name == "storaged" for k in kills[: KILLS // 2])
        done = appliance.spanvault("verify", "--all")
        assert done.returncode == 0, done.stderr


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

    def forgotten(self, client: Client) -> list[str]:
        """What is not there any more."""
        faults = list(self._faults)
        for call_id, seen in self._seen.items():
            if gone := seen - self._frames(client, call_id):
                faults.append(f"call {call_id.hex()}: {len(gone)} frames seen, and now gone")
        return faults

    def _watch(self) -> None:
        while not self._end.wait(0.5):
            with suppress(RequestFailed), self._appliance.client() as client:
                for call in client.search(Search(limit=6)):
                    self._read(client, call)

    def _read(self, client: Client, call: Call) -> None:
        try:
            self._seen.setdefault(call.id, set()).update(self._frames(client, call.id))
            self.readings += 1
        except ValueError as error:
            self._faults.append(f"unreadable while in progress: {error}")

    def _frames(self, client: Client, call_id: bytes) -> set[tuple[int, int]]:
        stored = streams_of(client, call_id)
        return {(stream, frame.number) for stream, frames in stored.items() for frame in frames}

    def __str__(self) -> str:
        return f"{self.readings} readings of {len(self._seen)} recordings in progress"


def kill_at_random(appliance: Appliance, chance: random.Random) -> list[Kill]:
    """Kill and start again, in the midst of start-ups, too. Returns when which was away."""
    killed: list[tuple[str, int]] = []
    time.sleep(3)
    for number in range(KILLS):
        time.sleep(CALM_S if number == KILLS // 2 else 0)
        time.sleep(chance.uniform(0.2, 2 * PAUSE_S - 0.2))
        name = chance.choice(DAEMONS[:2] if number < KILLS // 2 else DAEMONS)
        appliance.kill(name)
        killed.append((name, time.time_ns()))
        appliance.start(name, wait=False)
    for name in DAEMONS:
        appliance.until_ready(name)
    ready = appliance.ready_ns
    return [Kill(name, at, min(t for t in ready[name] if t > at)) for name, at in killed]


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


def wait_until_settled(client: Client, ends: set[str], seconds: float = 120) -> list[Call]:
    """All calls, once each that ends is over, its recording sealed, and copied."""
    end = time.monotonic() + seconds
    while True:
        try:
            calls = list(client.search(Search(limit=10_000)))
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


class Report:
    """What was held against what, and what did not fit."""

    def __init__(self, kills: list[Kill], signalling: dict[str, list[int]]) -> None:
        self.kills, self.signalling = kills, signalling
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
    def ends(self) -> set[str]:
        """Call-IDs of which more than the ringing was heard: others ring for three minutes yet."""
        return {
            call_id
            for call_id, times in self.signalling.items()
            if any(not within(time_ns, self.deaf) for time_ns in sorted(times)[2:])
        }

    def compare(self, client: Client, calls: list[Call], said: dict[str, list[bytes]]) -> None:
        """Every call once, and every frame of those whose beginning was heard."""
        found: dict[str, list[Call]] = {}
        for call in calls:
            found.setdefault(call.call_ids[0], []).append(call)
        self.faults += [
            f"call {unknown} was never made" for unknown in found.keys() - self.signalling
        ]
        for call_id, times in self.signalling.items():
            heard = [time_ns for time_ns in times if not within(time_ns, self.deaf)]
            records = found.get(call_id, [])
            if len(records) != 1 and (heard or records):
                self.faults.append(f"call {call_id}: {len(records)} records")
            elif records and len(heard) >= 4 and heard[:4] == sorted(times)[:4]:
                self._media(client, records[0], said)

    def _media(self, client: Client, call: Call, said: dict[str, list[bytes]]) -> None:
        self.checked += 1
        stored = frames_of(client, call)
        for party, phone in (("caller", "a"), ("callee", "b")):
            frames = stored.get(party, [])
            if not frames:
                self.faults.append(f"call {call.call_ids[0]}: nothing of the {party}")
                continue
            gone = missing(frames, len(said[phone]))
            lost = [number for number, when in gone.items() if not within(when, self.excused)]
            self.frames += len(frames)
            self.lacking += len(gone)
            for fault, numbers in (
                ("lost", lost),
                ("changed", changed(frames, said[phone])),
                ("twice", repeated(frames)),
            ):
                if numbers:
                    text = f"{len(numbers)} frames {fault}, from number {numbers[0]}"
                    self.faults.append(f"call {call.call_ids[0]} {party}: {text}")

    def __str__(self) -> str:
        by_name = ", ".join(f"{n} {sum(k.name == n for k in self.kills)}" for n in DAEMONS)
        return (
            f"killed: {by_name}; {len(self.signalling)} calls, {self.checked} compared frame by "
            f"frame: {self.frames} stored, {self.lacking} missed while the capture was dead; "
            f"{self.strict_kills} kills of storaged where nothing was excused; "
            f"{len(self.faults)} faults"
        )


def unsafe(kills: list[Kill], margin_ns: int) -> Iterator[tuple[int, int]]:
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


def within(time_ns: int, spans: list[tuple[int, int]]) -> bool:
    return any(start_ns <= time_ns <= end_ns for start_ns, end_ns in spans)
