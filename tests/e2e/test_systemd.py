"""The units under a real systemd: started, looked at, stopped in mid-call, frozen, and judged."""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spanvault.client import Client
from spanvault.daemon.config import OperatorConfig
from spanvault.messages import Call, Search
from tests.support.container import PREFIX, Container
from tests.support.lab import Lab
from tests.support.phones import CALLER, Phones
from tests.support.stored import PACKET_NS, Frame, changed, frames_of, missing
from tests.support.voices import payloads

NEEDED = ("systemd-nspawn", "nsenter", "sipp", "ip", "tc", "ethtool")
LACKING = [name for name in NEEDED if shutil.which(name) is None]

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="a container and namespaces need root"),
    pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}"),
]

STORAGED, REPLICATOR = "spanvault-storaged.service", "spanvault-replicator.service"
CAPTURE = "spanvault-capture@span0.service"
DAEMONS = (STORAGED, CAPTURE, REPLICATOR)
COMMAND = f"{PREFIX}/bin/spanvault"
CAP_NET_RAW = 1 << 13  # linux/capability.h
TALK_S = 10.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def machine(lab) -> Iterator[Container]:
    """A machine on which an administrator installed spanvault and enabled it, and no more."""
    with Container(lab.network("span")) as machine:
        machine.run("systemd-sysusers", "/usr/local/lib/sysusers.d/spanvault.conf")
        machine.run("systemd-tmpfiles", "--create", "/usr/local/lib/tmpfiles.d/spanvault.conf")
        machine.run("systemctl", "enable", *DAEMONS, "spanvault.target")
        machine.run("systemctl", "start", "spanvault-init.service")
        add_target(machine)
        machine.run("systemctl", "start", "spanvault.target")
        until(lambda: all(state(machine, unit) == "active" for unit in DAEMONS), machine)
        yield machine


@pytest.fixture(scope="module")
def phones(lab, tmp_path_factory) -> Phones:
    return Phones(lab, tmp_path_factory.mktemp("phones"), TALK_S)


def add_target(machine: Container) -> None:
    settings = machine.path("/etc/spanvault/replicator.toml")
    block = '\n[[targets]]\nname = "siteb"\nkind = "directory"\npath = "/srv/spanvault-replica"\n'
    settings.write_text(settings.read_text() + block)


def until(condition: Callable[[], bool], machine: Container, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(machine.run("journalctl", "-n", "40", "-o", "cat", "-u", "spanvault*"))
        time.sleep(0.2)


def properties(machine: Container, unit: str) -> dict[str, str]:
    lines = machine.run("systemctl", "show", unit).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def state(machine: Container, unit: str) -> str:
    return properties(machine, unit)["ActiveState"]


def process_status(machine: Container, unit: str) -> dict[str, str]:
    pid = properties(machine, unit)["MainPID"]
    lines = machine.path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def journal(machine: Container, *match: str) -> list[dict[str, Any]]:
    text = machine.run("journalctl", "-o", "json", "--no-pager", *match)
    return [json.loads(line) for line in text.splitlines()]


def ask(machine: Container) -> Client:
    """The operator's way in, from outside the container."""
    keys = machine.path("/etc/spanvault/keys")
    endpoint = f"ipc://{machine.path('/run/spanvault/requests')}"
    return Client.of(OperatorConfig(endpoint, keys / "operator.key_secret", keys / "storaged.key"))


def newest_call(machine: Container) -> tuple[Call, dict[str, list[Frame]]]:
    with ask(machine) as client:
        (call,) = client.search(Search(limit=1))
        return call, frames_of(client, call)


@pytest.mark.parametrize("unit", DAEMONS)
def test_each_daemon_said_ready_and_what_it_does(machine, unit):
    shown = properties(machine, unit)
    assert (shown["Type"], shown["ActiveState"], shown["NRestarts"]) == ("notify", "active", "0")
    assert len(shown["StatusText"]) > 5
    assert int(shown["WatchdogTimestampMonotonic"]) > 0
    assert shown["WatchdogUSec"] not in ("0", "infinity")


def test_each_runs_as_its_own_user_and_only_capture_may_open_raw_sockets(machine):
    users = {unit: process_status(machine, unit)["Uid"].split()[1] for unit in DAEMONS}
    assert len(set(users.values())) == 3
    assert "0" not in users.values()
    for unit in DAEMONS:
        status, allowed = process_status(machine, unit), CAP_NET_RAW if unit == CAPTURE else 0
        for kind in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "CapInh"):
            assert int(status[kind], 16) & ~allowed == 0, f"{unit}: {kind}"
        assert int(status["CapEff"], 16) == allowed
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_capture_runs_in_real_time(machine):
    pid = properties(machine, CAPTURE)["MainPID"]
    assert "SCHED_RR" in machine.run("chrt", "-p", pid)


def test_secrets_are_handed_to_their_daemon_alone(machine):
    for secret in machine.path("/etc/spanvault/keys").glob("*.key_secret"):
        assert (secret.stat().st_uid, secret.stat().st_mode & 0o777) == (0, 0o600)
    store = machine.path("/var/lib/spanvault").stat()
    assert store.st_mode & 0o777 == 0o700
    assert store.st_uid == int(process_status(machine, STORAGED)["Uid"].split()[1])


def test_the_journal_holds_fields(machine):
    (started,) = journal(machine, "-u", CAPTURE, "INTERFACE=span0", "MESSAGE=listening")
    assert started["SYSLOG_IDENTIFIER"] == "spanvault-capture"
    assert started["PRIORITY"] == "6"
    assert started["_SYSTEMD_UNIT"] == CAPTURE


def test_media_goes_by_memory_between_two_users_in_their_sandboxes(machine):
    words = "storaged takes media out of memory"
    until(lambda: words in machine.run("journalctl", "-u", CAPTURE, "-o", "cat"), machine)


def test_storaged_stopped_in_mid_call_loses_nothing(machine, phones):
    calling = phones.call()
    time.sleep(2.5)
    machine.run("systemctl", "restart", STORAGED)
    time.sleep(2)
    machine.run("systemctl", "stop", STORAGED)
    assert calling.wait(60) == 0
    machine.run("systemctl", "start", STORAGED)
    until(lambda: call_is_sealed(machine), machine)
    call, stored = newest_call(machine)
    assert (call.outcome, call.end_reason) == ("answered", "bye")
    for party, phone in (("caller", "a"), ("callee", "b")):
        said = payloads(phones.voices[phone])
        assert missing(stored[party], len(said)) == {}
        assert changed(stored[party], said) == []


def test_everything_stopped_in_mid_call_loses_nothing_that_was_heard(machine, phones):
    before = newest_call(machine)[0].id
    calling = phones.call()
    time.sleep(3)
    stopped_ns = time.time_ns()
    machine.run("systemctl", "stop", "spanvault.target")
    until(lambda: {state(machine, unit) for unit in DAEMONS} == {"inactive"}, machine)
    assert {properties(machine, unit)["Result"] for unit in DAEMONS} == {"success"}
    machine.run("systemctl", "start", "spanvault.target")
    until(lambda: state(machine, CAPTURE) == "active", machine)
    started_ns = time.time_ns()
    assert calling.wait(60) == 0
    until(lambda: newest_call(machine)[0].id != before and call_is_sealed(machine), machine)
    call, stored = newest_call(machine)
    assert (call.outcome, call.end_reason) == ("answered", "bye")
    for party, phone in (("caller", "a"), ("callee", "b")):
        said = payloads(phones.voices[phone])
        gap = missing(stored[party], len(said))
        assert gap, "the capture was off for a while"
        assert [when for when in gap.values() if when < stopped_ns - PACKET_NS] == []
        assert [when for when in gap.values() if when > started_ns] == []
        assert changed(stored[party], said) == []


def call_is_sealed(machine: Container) -> bool:
    with ask(machine) as client:
        (call,) = client.search(Search(limit=1))
        return call.final and client.get(call.id).sealed


def test_the_copy_is_made_by_the_replicator_and_confirmed(machine):
    def copied() -> bool:
        with ask(machine) as client:
            calls = list(client.search(Search()))
            return all(client.get(call.id).receipts for call in calls)

    until(copied, machine)


def test_the_command_works_as_installed(machine):
    lines = machine.run(COMMAND, "calls", "--json").splitlines()
    assert {json.loads(line)["caller"] for line in lines} == {f"{CALLER}1"}
    machine.run(COMMAND, "verify", "--all")
    machine.run(COMMAND, "check")


def test_no_number_got_into_the_journal(machine):
    said = machine.run("journalctl", "-o", "export", "--no-pager")
    assert CALLER not in said


def test_a_daemon_that_hangs_is_killed_by_the_watchdog_and_started_again(machine):
    drop_in = machine.path("/run/systemd/system/spanvault-replicator.service.d")
    drop_in.mkdir(parents=True)
    (drop_in / "watchdog.conf").write_text("[Service]\nWatchdogSec=6\nRestartSec=1\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", REPLICATOR)
    pid = properties(machine, REPLICATOR)["MainPID"]
    os.kill(machine.pid(int(pid)), signal.SIGSTOP)
    until(lambda: properties(machine, REPLICATOR)["NRestarts"] == "1", machine)
    until(lambda: state(machine, REPLICATOR) == "active", machine)
    assert properties(machine, REPLICATOR)["MainPID"] != pid
    said = machine.run("journalctl", "-u", REPLICATOR, "-o", "cat", "--no-pager")
    assert "Watchdog timeout" in said


def test_a_fault_in_the_settings_is_told_once_and_not_tried_for_ever(machine):
    settings = machine.path("/etc/spanvault/storaged.toml")
    good = settings.read_text()
    settings.write_text(good + "\ncomit_interval_s = 1.0\n")
    machine.run("systemctl", "restart", STORAGED, check=False)
    until(lambda: state(machine, STORAGED) == "failed", machine)
    assert properties(machine, STORAGED)["ExecMainStatus"] == "78"
    said = machine.run("journalctl", "-u", STORAGED, "-n", "30", "--no-pager", "-o", "export")
    assert "unknown key 'comit_interval_s'" in said
    answer = machine.run("bash", "-c", f"{COMMAND} status 2>&1", check=False)
    assert "last error in the journal" in answer
    assert "unknown key 'comit_interval_s'" in answer
    settings.write_text(good)
    machine.run("systemctl", "restart", STORAGED)


def test_the_units_are_well_formed(machine):
    units = machine.run("bash", "-c", "ls /usr/local/lib/systemd/system/spanvault*").split()
    assert len(units) == 5
    done = machine.run("bash", "-c", f"systemd-analyze verify {' '.join(units)} 2>&1")
    assert done == ""


@pytest.mark.parametrize(("unit", "limit"), [(STORAGED, 1.0), (REPLICATOR, 1.0), (CAPTURE, 2.0)])
def test_the_sandbox_is_closed(machine, unit, limit):
    told = machine.run("systemd-analyze", "security", "--no-pager", unit)
    found = re.search(r"Overall exposure level .*: ([0-9.]+)", told)
    assert found
    assert float(found[1]) <= limit
    set_ = properties(machine, unit)
    assert (set_["LimitCORE"], set_["MemorySwapMax"] == "0") == ("0", unit != REPLICATOR)


def test_no_file_outside_the_daemons_folders_was_written_by_them(machine):
    owners = {process_status(machine, unit)["Uid"].split()[1] for unit in DAEMONS}
    who = " -o ".join(f"-uid {owner}" for owner in owners)
    found = machine.run("bash", "-c", f"find /var /etc /srv /opt -xdev -type f '(' {who} ')'")
    allowed = ("/var/lib/spanvault/", "/var/lib/spanvault-capture/",
               "/var/lib/spanvault-replicator/", "/srv/spanvault-replica/")  # fmt: skip
    assert found
    assert [path for path in found.splitlines() if not path.startswith(allowed)] == []


def test_the_folders_of_the_units_exist_as_named(machine):
    assert Path(machine.path("/run/spanvault")).stat().st_mode & 0o777 == 0o750


def test_merging_is_switched_off_and_one_unknown_switch_stops_nothing(machine):
    drop_in = machine.path(f"/run/systemd/system/{CAPTURE}.d")
    drop_in.mkdir(parents=True)
    start = "[Service]\nExecStartPre=-+/usr/sbin/ethtool -K %I no-such-feature off\n"
    (drop_in / "feature.conf").write_text(start)
    for feature in ("gro", "rx-udp-gro-forwarding"):
        machine.run("ethtool", "-K", "span0", feature, "on")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", CAPTURE)
    assert state(machine, CAPTURE) == "active"
    features = machine.run("ethtool", "-k", "span0")
    assert "generic-receive-offload: off" in features
    assert "rx-udp-gro-forwarding: off" in features
    (drop_in / "feature.conf").unlink()
    machine.run("systemctl", "daemon-reload")


def test_workers_run_in_the_same_sandbox_and_in_real_time(machine):
    settings = machine.path("/etc/spanvault/capture.toml")
    good = settings.read_text()
    settings.write_text(good.replace("workers = 1", "workers = 2"))
    machine.run("systemctl", "restart", CAPTURE)
    group = properties(machine, CAPTURE)["ControlGroup"]
    pids = machine.run("cat", f"/sys/fs/cgroup{group}/cgroup.procs").split()
    assert len(pids) == 3
    for pid in pids:
        assert "SCHED_RR" in machine.run("chrt", "-p", pid)
    settings.write_text(good)
    machine.run("systemctl", "restart", CAPTURE)
    assert state(machine, CAPTURE) == "active"
    assert properties(machine, CAPTURE)["NRestarts"] == "0"
