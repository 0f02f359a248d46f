"""Committing on a thread: what a failing disk does, and what a fault of ours does."""

import errno
import os
import time
from collections.abc import Callable
from typing import Any

import lmdb
import pytest

from spanvault import messages as m
from spanvault.media.chunk import NO_MEDIA
from storaged.faults import Fault
from storaged.recordings import committer
from storaged.recordings.committer import Committer
from storaged.recordings.gathering import Group
from storaged.recordings.writer import Counts


class Disk:
    """In place of the writer: raises what it is told to, then succeeds."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)

    def commit(self, group: Group) -> Counts:
        if self.errors:
            raise self.errors.pop(0)
        return Counts(1, 0, 0, group.bytes)

    def read_next(self) -> bool:
        return False


def group(sequence: int = 1) -> Group:
    made = Group()
    made.add("capture", m.Batch("test", sequence), NO_MEDIA)
    return made


def until(true: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


def make(*errors: BaseException) -> Committer:
    return Committer(Disk(*errors))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer, "RETRY_S", 0.05)


def test_what_the_disk_refuses_is_kept_and_goes_when_it_can():
    thread = make(OSError(errno.EROFS, os.strerror(errno.EROFS)), Fault("locked", "no page"))
    mine = group()
    thread.submit(mine)
    until(lambda: thread.fault)
    assert "Read-only file system" in str(thread.fault)
    assert not thread.idle
    until(lambda: thread.done)
    assert (thread.done.popleft().group, thread.fault, thread.idle) == (mine, None, True)
    assert os.eventfd_read(thread.wake_fd) == 1
    assert thread.close(1)


def test_stop_while_the_disk_is_full_ends_without_acknowledging():
    full = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) for _ in range(1000)]
    thread = make(*full)
    thread.submit(group())
    until(lambda: thread.fault)
    assert not thread.close(0.2)
    assert not thread.done


@pytest.mark.parametrize("error", [KeyError("ours"), lmdb.PanicError("panic")])
def test_fault_of_ours_is_handed_to_the_daemon(error):
    thread = make(error)
    thread.submit(group())
    until(lambda: thread.broken)
    assert thread.broken is error
    assert not thread.idle
    assert not thread.close(0.2)


def test_idle_work_that_has_come_is_not_left_until_the_next_look(monkeypatch):
    monkeypatch.setattr(committer, "IDLE_S", 60.0)
    looks: list[bool] = []

    def idle() -> bool:
        looks.append(True)
        return False

    thread = Committer(Disk(), idle)  # type: ignore[arg-type]
    until(lambda: looks)
    thread.hurry()
    until(lambda: len(looks) == 2)
    assert thread.close(1)
