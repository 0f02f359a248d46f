"""The command as an operator runs it: real processes, a real store, the sample capture."""

import io
import json
import os
import signal
import ssl
import subprocess
import tempfile
import time
import wave
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from spanvault import cli
from tests.support.callgen import (
    SECOND,
    START_NS,
    Frame,
    answered,
    busy,
    phones,
    sample,
    write_pcap,
)
from tests.support.command import SPANVAULT, start
from tests.support.folders import SAMPLE
from tests.support.voices import heard

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(home: Path) -> Run:
    return partial(start, home=home, variables={"TZ": "Europe/Berlin", "COLUMNS": "120"})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """A store with the sample's two calls."""
    store = tmp_path_factory.mktemp("recorded") / "store"
    done = run("replay", SAMPLE, "--store", store)
    assert done.returncode == 0, done.stderr
    return store


def lines(done: "subprocess.CompletedProcess[bytes]") -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def ids(run: Run, store: Path) -> dict[str, str]:
    """Outcome to id."""
    return {call["outcome"]: call["id"] for call in lines(run("calls", "--json", "--store", store))}


def test_the_sample_is_what_its_generator_makes(tmp_path: Path):
    write_pcap(tmp_path / "fresh.pcap", sample())
    assert (tmp_path / "fresh.pcap").read_bytes() == SAMPLE.read_bytes()
    assert SAMPLE.stat().st_size < 300_000


def test_replay_prints_its_calls_in_the_order_they_began(run: Run, tmp_path: Path):
    done = run("replay", SAMPLE, "--store", tmp_path / "store", "--json")
    first, second = lines(done)
    assert (first["caller"], first["callee"], first["outcome"]) == (
        "4930555000", "4989777000", "answered",
    )  # fmt: skip
    assert first["started_at"] == "2026-11-18T11:06:40.000000Z"
    assert first["answered_at"] == "2026-11-18T11:06:41.000000Z"
    assert first["end_reason"] == "bye"
    assert first["recording_id"] == first["id"]
    assert [(c["party"], c["codec"], c["packets"], c["seconds"]) for c in first["channels"]] == [
        ("caller", "PCMA", 400, 7.98), ("callee", "PCMA", 400, 7.98),
    ]  # fmt: skip
    assert (second["outcome"], second["recording_id"], second["channels"]) == ("busy", None, [])
    assert b"unlock key" in done.stderr
    assert b"Keep a copy" in done.stderr


@pytest.mark.parametrize("name", ["-", "/dev/stdin", "FIFO"])
def test_a_capture_may_be_a_pipe(run: Run, tmp_path: Path, name: str):
    piped = {"input": SAMPLE.read_bytes()}
    if name == "FIFO":
        name, piped = str(tmp_path / "fifo"), {}
        os.mkfifo(name)
        subprocess.Popen(["/bin/sh", "-c", 'cat "$0" > "$1"', SAMPLE, name])
    done = run("replay", name, "--store", tmp_path / "store", "--json", **piped)
    assert [call["outcome"] for call in lines(done)] == ["answered", "busy"]


def test_sip_over_tls_is_told_of(run: Run, tmp_path: Path):
    heard, said = ssl.MemoryBIO(), ssl.MemoryBIO()
    phone = ssl.create_default_context().wrap_bio(heard, said, server_hostname="pbx.example")
    with pytest.raises(ssl.SSLWantReadError):
        phone.do_handshake()
    hello = IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=40000, dport=5061) / said.read()
    write_pcap(tmp_path / "tls.pcap", [Frame(START_NS, bytes(Ether() / hello))])
    done = run("replay", tmp_path / "tls.pcap", "--store", tmp_path / "store", "--json")
    assert lines(done) == []
    assert b"SIP over TLS cannot be read" in done.stderr


def test_a_store_that_exists_is_added_to(run: Run, tmp_path: Path):
    write_pcap(tmp_path / "later.pcap", busy(START_NS + 3600 * SECOND, *phones(0.1, 7), "later@x"))
    run("replay", SAMPLE, "--store", tmp_path / "store")
    again = run("replay", tmp_path / "later.pcap", "--store", tmp_path / "store", "--json")
    assert [call["call_ids"] for call in lines(again)] == [["later@x"]]
    assert b"unlock key" not in again.stderr
    assert len(lines(run("calls", "--json", "--store", tmp_path / "store"))) == 3


@pytest.mark.parametrize(
    ("question", "outcomes"),
    [
        ([], ["busy", "answered"]),
        (["--outcome", "answered"], ["answered"]),
        (["--number", "4930555001"], ["busy"]),
        (["--number", "493055500"], []),
        (["--longer", "5s"], ["answered"]),
        (["--shorter", "5s"], ["busy"]),
        (["--since", "2026-11-18T11:06:45Z"], ["busy"]),
        (["--since", "2026-11-18T12:06:45"], ["busy"]),  # Berlin
        (["--until", "2026-11-18T11:06:45Z"], ["answered"]),
        (["--call-id", "sample-1@spanvault.example"], ["answered"]),
        (["--limit", "1"], ["busy"]),
    ],
)
def test_calls_are_found(run: Run, store: Path, question: list[str], outcomes: list[str]):
    found = lines(run("calls", *question, "--json", "--store", store))
    assert [call["outcome"] for call in found] == outcomes


def test_people_get_a_table_in_local_time(run: Run, store: Path):
    table = run("calls", "--store", store).stdout.decode()
    assert "2026-11-18 12:06:40" in table
    assert "caller PCMA, callee PCMA" in table


def test_show_tells_everything_of_a_call(run: Run, store: Path):
    one = ids(run, store)["answered"]
    (shown,) = lines(run("show", one, "--json", "--store", store))
    assert shown["id"] == one
    assert shown["recording"]["sealed"] is True
    text = run("show", one[:20], "--waveform", "--store", store).stdout.decode()
    for part in (one, "sample-1@spanvault.example", "10.20.0.10:20000", "PCMA/8000", "█", "0:08.0"):
        assert part in text


def test_export_puts_each_voice_on_its_side(run: Run, store: Path, tmp_path: Path):
    one = ids(run, store)["answered"]
    done = run("export", one, "-o", tmp_path / "call.wav", "--store", store)
    assert done.returncode == 0, done.stderr
    with wave.open(str(tmp_path / "call.wav")) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16).reshape(-1, 2)
        assert file.getframerate() == 8000
    caller, callee = phones(8.0)
    assert np.array_equal(sound[:64_000, 0], heard(caller.samples))
    assert np.array_equal(sound[56 : 56 + 64_000, 1], heard(callee.samples))  # 7 ms later


def test_an_export_is_for_its_owner_alone(run: Run, store: Path, tmp_path: Path):
    both, target, folder = ids(run, store), tmp_path / "call.wav", tmp_path / "out"
    target.touch(0o666)
    old = os.umask(0)
    try:
        run("export", both["answered"], "-o", target, "--store", store)
        run("export", *both.values(), "-o", folder, "--store", store)
    finally:
        os.umask(old)
    (one,) = folder.iterdir()
    assert [path.stat().st_mode & 0o777 for path in (target, one, folder)] == [0o600, 0o600, 0o700]


@pytest.mark.parametrize(
    ("name", "magic"), [("wav", b"RIFF"), ("flac", b"fLaC"), ("opus", b"OggS")]
)
def test_export_to_a_pipe(run: Run, store: Path, name: str, magic: bytes):
    one = ids(run, store)["answered"]
    done = run("export", one, "-o", "-", "--format", name, "--store", store)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(magic)
    if name == "wav":
        with wave.open(io.BytesIO(done.stdout)) as file:
            assert file.getnframes() >= 64_000


def test_export_of_several_is_a_folder_and_says_what_failed(run: Run, store: Path, tmp_path: Path):
    both = ids(run, store)
    done = run(
        "export", *both.values(), "-o", tmp_path / "out", "--format", "mp3", "--store", store
    )
    assert done.returncode == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{both['answered']}.mp3"]
    assert b"has no sound: no audio was heard" in done.stderr


def test_a_wave_of_a_call_that_was_lost_in_part_keeps_its_length(run: Run, tmp_path: Path):
    caller, callee = phones(4.0, 3)
    frames = answered(START_NS, caller, callee, "lossy@x")
    write_pcap(tmp_path / "lossy.pcap", frames[:100] + frames[200:])
    (call,) = lines(run("replay", tmp_path / "lossy.pcap", "--store", tmp_path / "s", "--json"))
    assert sum(channel["lost"] for channel in call["channels"]) == 100
    run("export", call["id"], "-o", tmp_path / "lossy.wav", "--store", tmp_path / "s")
    with wave.open(str(tmp_path / "lossy.wav")) as file:
        assert abs(file.getnframes() / 8000 - 4.0) < 0.05


def damage(store: Path) -> None:
    """Change a byte in the middle of the one recording."""
    (path,) = (store / "pools").rglob("*.svr")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_recording_is_found_and_exported_as_far_as_it_goes(run: Run, tmp_path: Path):
    store, sound = tmp_path / "store", tmp_path / "x.wav"
    run("replay", SAMPLE, "--store", store)
    assert run("verify", "--all", "--store", store).returncode == 0
    damage(store)
    found = run("verify", "--all", "--json", "--store", store)
    assert found.returncode == 1
    assert json.loads(found.stdout)["faults"]
    assert b"1 recordings checked, 1 damaged" in found.stderr
    done = run("export", ids(run, store)["answered"], "-o", sound, "--store", store)
    assert done.returncode == 1
    assert b"does not authenticate" in done.stderr
    with wave.open(str(sound)) as file:
        assert abs(file.getnframes() / 8000 - 8.0) < 0.05  # the rest, and silence


@pytest.mark.parametrize(
    ("name", "data", "fault"),
    [
        ("cut.pcap", SAMPLE.read_bytes()[:100_000], "cut off at byte 100000"),
        ("text.pcap", b"this is no capture\n" * 9, "not a capture file"),
        ("empty.pcap", b"", "empty"),
        ("missing.pcap", None, "no such file"),
    ],
)
def test_a_bad_capture_is_named(run: Run, tmp_path: Path, name: str, data: bytes, fault: str):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    done = run("replay", tmp_path / name, "--store", tmp_path / "store", "--json")
    assert done.returncode == 1
    assert f"{tmp_path / name}: ".encode() in done.stderr
    assert fault.encode() in done.stderr
    assert b"Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) == (1 if name == "cut.pcap" else 0)


@pytest.mark.parametrize(
    ("arguments", "code", "fault"),
    [
        (["show", "ffffffff"], 1, "no call's id begins with ffffffff"),
        (["show", "f" * 32], 1, "there is no call fff"),
        (["show", "xyz"], 2, "is no call's id"),
        (["export", "01", "-o", "-"], 1, "several calls' ids begin with 01"),
        (["export", "01", "-o", "x.wav", "--format", "ogg"], 2, "'ogg' is no format"),
        (["export", "01", "02", "-o", "-"], 2, "stdout takes one call's sound"),
        (["verify"], 2, "say which recordings"),
        (["calls", "--outcome", "fine"], 2, "'fine' is no outcome"),
        (["calls", "--since", "soon"], 2, "'soon' is no time"),
        (["calls", "--since", "1500-01-01"], 2, "between the years 1678 and 2262"),
        (["calls", "--until", "-999999999999999w"], 2, "is no time"),
        (["calls", "--longer", "long"], 2, "'long' is no duration"),
        (["calls", "--bogus"], 2, "No such option"),
    ],
)
def test_wrong_questions(run: Run, store: Path, arguments: list[str], code: int, fault: str):
    done = run(*arguments, "--store", store)
    assert (done.returncode, done.stdout) == (code, b"")
    assert fault.encode() in done.stderr
    assert b"Traceback" not in done.stderr


def test_stores_that_cannot_be_opened(run: Run, store: Path, tmp_path: Path):
    other = tmp_path / "other.key"
    run("replay", SAMPLE, "--store", tmp_path / "new", "--unlock-key", other)
    for arguments, fault in (
        (["--store", tmp_path / "none"], "there is no store at"),
        (["--store", store, "--unlock-key", other], "not one this store is sealed to"),
        (["--store", tmp_path / "new"], "no key in"),
        (["--config", tmp_path / "none.toml"], "is not there, so no daemon can be reached"),
    ):
        done = run("calls", *arguments)
        assert done.returncode == 69
        assert fault.encode() in done.stderr
    assert run("calls", "--store", tmp_path / "new", "--unlock-key", other).returncode == 0


def test_status(run: Run, store: Path):
    (status,) = lines(run("status", "--json", "--store", store))
    assert status["fields"]["calls"] == 2
    assert b"store" in run("status", "--store", store).stdout


def test_check_names_file_and_line(run: Run, tmp_path: Path):
    (tmp_path / "capture.toml").write_text('name = "a"\nringg_mb = 3\n')
    (tmp_path / "storaged.toml").write_text("")
    (tmp_path / "storage.toml").write_text("")
    done = run("check", tmp_path)
    assert done.returncode == 2
    assert b"capture.toml:2: unknown key 'ringg_mb'" in done.stderr
    assert b"storage.toml: no daemon reads this file" in done.stderr
    (tmp_path / "capture.toml").unlink()
    (tmp_path / "storage.toml").unlink()
    assert run("check", tmp_path).returncode == 0


def test_check_names_a_public_key_that_is_not_there(run: Run, tmp_path: Path):
    away = tmp_path / "away.public"
    (tmp_path / "storaged.toml").write_text(f"[pools.core]\nrecipients = ['{away}']\n")
    done = run("check", tmp_path)
    assert done.returncode == 2
    assert b"pools.core.recipients: " in done.stderr
    assert f"{away}: key file cannot be read".encode() in done.stderr
    away.write_text("ab" * 32)
    assert run("check", tmp_path).returncode == 0


def test_init_then_check(run: Run, tmp_path: Path):
    assert run("init", "--folder", tmp_path / "etc").returncode == 0
    assert run("check", tmp_path / "etc").returncode == 0
    again = run("init", "--folder", tmp_path / "etc")
    assert (again.returncode, b"all is there already" in again.stderr) == (0, True)


def test_a_reader_that_leaves_is_no_fault_worth_a_word(store: Path, home: Path):
    command = f"{SPANVAULT} calls --json --store {store} | true"
    done = subprocess.run(
        command, shell=True, env={**os.environ, "XDG_DATA_HOME": str(home)},
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == b""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["calls"], ["calls", "--json"], ["export", "ID", "-o", "-"]])
def test_output_that_goes_nowhere_is_a_fault_without_a_traceback(
    store: Path, home: Path, run: Run, command: list[str], unbuffered: str
):
    answered = ids(run, store)["answered"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [SPANVAULT, *(answered if word == "ID" else word for word in command),
             "--store", store],
            env={**os.environ, "XDG_DATA_HOME": str(home), "PYTHONUNBUFFERED": unbuffered},
            stdout=full, stderr=subprocess.PIPE, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, b"error: output: no space left on device\n")


def test_export_replaces_no_device_and_no_pipe(run: Run, store: Path, tmp_path: Path):
    special = tmp_path / "special.wav"
    os.mkfifo(special)
    done = run("export", ids(run, store)["answered"], "-o", special, "--store", store)
    assert (done.returncode, b"is no regular file" in done.stderr) == (2, True)
    assert special.is_fifo()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_leaves_nothing_behind(
    home: Path, tmp_path: Path, number: signal.Signals, code: int
):
    words = phones(0.1)[0].samples.repeat(200)
    frames = [
        frame
        for n in range(40)
        for frame in answered(
            START_NS, *(replace(phone, samples=words) for phone in phones(0.1, n)), f"{n}@x"
        )
    ]
    write_pcap(tmp_path / "long.pcap", sorted(frames))
    temporary = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))  # short: sockets lie in it
    process = subprocess.Popen(
        [SPANVAULT, "replay", tmp_path / "long.pcap", "--store", tmp_path / "store"],
        env={**os.environ, "XDG_DATA_HOME": str(home), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A shell starts what runs in its background with SIGINT ignored; so may have been we.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not list(temporary.glob("*/capture.toml")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in errors
    temporary.rmdir()  # it is empty


def test_help_names_the_exit_codes(capsys: pytest.CaptureFixture[str]):
    assert cli.run(["--help"]) == 0
    assert "69 no storaged answers" in " ".join(capsys.readouterr().out.split())
