"""Into which pool a call goes, by each kind of rule: frames in, the command's answer out.

The daemons are the real ones, with the settings an administrator would write. The conditions
themselves: test_rules.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.appliance import Appliance
from tests.support.callgen import (
    SECOND,
    START_NS,
    Frame,
    answered,
    phones,
    udp_frame,
    write_pcap,
)

RULES = """
[pools.core]
[pools.sensitive]
[[rules]]
pool = "sensitive"
number = ["4930555001"]
[[rules]]
pool = "core"
number = ["4989777002*"]
[[rules]]
pool = "sensitive"
did = ["+49 800 111"]
[[rules]]
pool = "core"
trunk = ["10.77.0.0/16"]
[[rules]]
pool = "sensitive"
header = { X-Class = "legal*" }
[[rules]]
pool = "core"
schedule = ["wed 22:00-06:00"]
timezone = "UTC"
[[rules]]
pool = "sensitive"
trunk = ["10.78.0.1"]
header = { X-Class = "press" }
"""
HOUR_NS = 3600 * SECOND  # calls begin on Wednesday, 2026-11-18, at 11:06:40 UTC
HEADERS = 42  # Ethernet, IP and UDP


class Case(NamedTuple):
    """A call that differs from all others in what one rule asks for, and its pool."""

    pool: str
    address: str = ""  # the caller's, on a trunk
    header: str = ""  # more of its INVITE
    dialled: str = ""  # in the Request-URI alone
    hours: int = 0  # later than the others


CASES = {
    "default": Case("base"),
    "caller": Case("sensitive"),
    "callee": Case("core"),
    "did": Case("sensitive", dialled="+49800111"),
    "did-of-another": Case("base", dialled="+49800112"),
    "trunk": Case("core", address="10.77.3.4"),
    "header": Case("sensitive", header="X-Class: Legal-7"),
    "header-of-another": Case("base", header="X-Class: illegal"),
    "header-not-kept": Case("base", header="X-Other: legal"),
    "time": Case("core", hours=12),
    "time-after-midnight": Case("core", hours=18),
    "time-of-another-day": Case("base", hours=12 + 24),
    "all-conditions": Case("sensitive", address="10.78.0.1", header="X-Class: press"),
    "one-of-two-conditions": Case("base", header="X-Class: press"),
    "first-of-two-rules": Case("core", address="10.77.3.5", header="X-Class: legal"),
}


def heard(number: int, name: str, case: Case) -> list[Frame]:
    """The frames of a case's call: half a second of talk."""
    caller, callee = phones(0.5, number)
    caller = replace(caller, address=case.address or caller.address)
    start_ns = START_NS + number * 10 * SECOND + case.hours * HOUR_NS
    invite, *rest = answered(start_ns, caller, callee, name)
    text = invite.data[HEADERS:].decode()
    if case.dialled:
        text = text.replace(f"INVITE sip:{callee.number}@", f"INVITE sip:{case.dialled}@", 1)
    if case.header:
        text = text.replace("\r\nCSeq", f"\r\n{case.header}\r\nCSeq", 1)
    ends = (caller.address, 5060), (callee.address, 5060)
    return [udp_frame(start_ns, *ends, text.encode()), *rest]


@pytest.fixture(scope="module")
def recorded() -> Iterator[Appliance]:
    folder = Path(tempfile.mkdtemp(prefix="spanvault-", dir="/tmp"))
    frames = [
        frame
        for number, (name, case) in enumerate(CASES.items())
        for frame in heard(number, name, case)
    ]
    write_pcap(folder / "calls.pcap", sorted(frames))
    with Appliance(folder / "a") as appliance:
        with (appliance.etc / "capture.toml").open("a") as file:
            file.write('headers = ["X-Class"]\n')
        with (appliance.etc / "storaged.toml").open("a") as file:
            file.write("commit_interval_s = 0.2\n" + RULES)
        appliance.start("storaged")
        appliance.start("capture", str(folder / "calls.pcap"), wait=False)
        assert appliance.finished("capture") == 0, appliance.log("capture")
        yield appliance
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def listed(recorded: Appliance) -> dict[str, dict[str, Any]]:
    """What `spanvault calls` lists, by Call-ID."""
    done = recorded.spanvault("calls", "--json")
    assert done.returncode == 0, done.stderr
    calls = [json.loads(line) for line in done.stdout.splitlines()]
    return {one["call_ids"][0]: one for one in calls}


@pytest.mark.parametrize("name", CASES)
def test_call_enters_the_pool_of_the_first_rule_that_fits(recorded, listed, name):
    """In that pool's folder, and no other, lies its recording."""
    call = listed[name]
    assert call["outcome"] == "answered"
    objects = recorded.store.glob(f"pools/*/objects/*/{call['recording_id']}.svr")
    assert [path.relative_to(recorded.store).parts[1] for path in objects] == [CASES[name].pool]


def test_command_names_the_pool(recorded, listed):
    done = recorded.spanvault("show", listed["header"]["id"], "--json")
    assert json.loads(done.stdout)["recording"]["pool"] == "sensitive"


def test_all_calls_are_listed_once(listed):
    assert sorted(listed) == sorted(CASES)
