"""kill -9 of each daemon at random moments, under concurrent calls: nothing that was safe is lost.

The first half of the kills spares the capture: there, every frame must be stored. And whatever
storaged has handed out once, it must have to the end. What is held against what, and what is
excused: tests/support/killing.py.

SPANVAULT_KILLS: how many (50). SPANVAULT_SEED: repeats a run.
"""

import os
import random
import shutil
import signal
import time

import pytest

from tests.support.appliance import Appliance
from tests.support.killing import (
    Kill,
    Report,
    Witness,
    deaf_twice,
    merged,
    sip_times,
    wait_until_settled,
)
from tests.support.lab import Lab
from tests.support.phones import Phones
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


def test_fifty_kills_lose_nothing_that_was_acknowledged(tmp_path, tell):
    tell(f"{KILLS} kills, SPANVAULT_SEED={SEED}")
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
        report = Report(kills, signalling, {n: payloads(v) for n, v in phones.voices.items()})
        with appliance.client() as client:
            calls = wait_until_settled(client, signalling.keys() - report.unended)
            report.compare(client, calls)
            report.faults += witness.forgotten(client)
        tell(f"{report}; {witness}")
        assert report.faults == []
        assert_little_is_excused(report)
        done = appliance.spanvault("verify", "--all")
        assert done.returncode == 0, done.stderr


def assert_little_is_excused(report: Report) -> None:
    """Every excuse rests on the capture's own deaths; most of the calls need none."""
    first_half = report.kills[: KILLS // 2]
    assert report.strict_kills >= sum(kill.name == "storaged" for kill in first_half)
    assert not any(kill.name == "capture" for kill in first_half)
    # A call begun before the capture was first killed needs no excuse.
    first_ns = min((begin for begin, _ in report.deaf), default=1 << 63)
    early = {name for name, times in report.signalling.items() if times[3] < first_ns}
    assert early <= report.whole
    assert report.checked == len(report.whole) >= len(report.signalling) / 2
    # Without 200 and BYE: as many as were answered while the capture was deaf, and deaf again at
    # their end. When that was, the kills alone say.
    assert len(report.unended) <= deaf_twice(report.deaf, TALK_S + 0.2, AT_ONCE / TALK_S)
    # Not more may be missing than both voices of all calls said while it was excused.
    spans = merged(report.excused)
    at_most = 2 * AT_ONCE * 50 * sum(end - begin for begin, end in spans) / 1e9
    assert report.lacking <= at_most


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
