"""A process that may die: whatever happens within, the parent gets an answer or one exception."""

import ctypes
import os
import socket
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spanvault import sandbox
from spanvault.sandbox import Sandbox, SandboxDied
from tests.support.privileges import sees_into_daemons

INMATE = """
import ctypes, os, resource, signal, sys, time
from spanvault import sandbox

def tries(act):
    try:
        return repr(act()).encode()
    except (OSError, MemoryError) as error:
        return type(error).__name__.encode()

def answer(message):
    word, _, rest = message.decode().partition(" ")
    if word == "echo":
        return message
    if word == "open":
        return tries(lambda: open(rest).read())
    if word == "signal":
        return tries(lambda: os.kill(int(rest), 0))
    if word == "dump":  # PR_GET_DUMPABLE
        limit = resource.getrlimit(resource.RLIMIT_CORE)
        return repr((limit, ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))).encode()
    if word == "eat":
        return tries(lambda: len(bytearray(int(rest))))
    if word == "starve":
        bytearray(4 << 30)
    if word == "sleep":
        time.sleep(60)
    if word == "abort":
        os.abort()
    if word == "lie":
        os.write(0, b"\\xff\\xff\\xff\\xff")
        time.sleep(60)

def main():
    sandbox.serve(answer)
"""
Start = Callable[..., Sandbox]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    (tmp_path / "inmate.py").write_text(INMATE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path[1:]]))
    made: list[Sandbox] = []

    def start(answer_s: float = 20.0) -> Sandbox:
        made.append(Sandbox("inmate", answer_s=answer_s))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_what_is_said_within_is_in_no_core_dump(start: Start):
    assert start().ask(b"dump") == b"((0, 0), 0)"


def test_messages_come_back_whole(start: Start):
    sandbox = start()
    long = b"echo " + bytes(5 << 20)
    assert sandbox.ask(b"echo ") == b"echo "
    assert sandbox.ask(long) == long


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"abort", "was ended by SIGABRT"),
        (b"starve", "ran out of memory"),
        (b"lie", "gave an answer that is none"),
    ],
)
def test_it_dies_and_says_of_what(start: Start, message: bytes, reason: str):
    sandbox = start()
    with pytest.raises(SandboxDied, match=reason):
        sandbox.ask(message)
    with pytest.raises(SandboxDied):
        sandbox.ask(b"echo")


def test_it_is_ended_when_it_does_not_answer(start: Start):
    sandbox = start(answer_s=2.0)
    sandbox.ask(b"echo")
    with pytest.raises(SandboxDied, match="gave no answer in 2 s"):
        sandbox.ask(b"sleep")
    assert sandbox.process.poll() is not None


def test_memory_has_a_limit(start: Start):
    sandbox = start()
    assert sandbox.ask(b"eat 100000000") == b"100000000"
    assert sandbox.ask(b"eat 2000000000") == b"MemoryError"


def test_no_file_can_be_opened(start: Start, tmp_path: Path):
    if not landlock():
        pytest.skip("this kernel has no Landlock")
    secret = tmp_path / "unlock.key"
    secret.write_text("secret")
    assert start().ask(f"open {secret}".encode()) == b"PermissionError"


@pytest.mark.root
@pytest.mark.skipif(not sees_into_daemons(), reason="needs root, with CAP_SYS_PTRACE")
def test_what_only_the_parent_should_know_is_not_passed_on(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SPANVAULT_SECRET", "not for libraries")
    sandbox = start()
    sandbox.ask(b"echo")  # whatever it read to begin is closed by then
    process = Path("/proc", str(sandbox.process.pid))
    assert b"not for libraries" not in (process / "environ").read_bytes()
    links = [str(link.readlink()) for link in (process / "fd").iterdir()]
    assert {link for link in links if link.startswith("/")} <= {"/dev/null"}


def landlock() -> bool:
    """Whether this kernel has it: its version is asked for."""
    return bool(ctypes.CDLL(None).syscall(444, None, 0, 1) > 0)


def test_a_message_that_says_it_is_long_takes_memory_only_as_it_comes() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(sandbox.LENGTH.pack(sandbox.MESSAGE_BYTES) + b"short")
        theirs.shutdown(socket.SHUT_WR)
        tracemalloc.start()
        try:
            assert sandbox._receive(ours) is None
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()
