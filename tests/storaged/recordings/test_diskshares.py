"""Who has to wait when a disk is nearly full, and who never has to."""

import pytest

from storaged.recordings.diskshares import SLACK, Shares

SECOND, HOUR = 10**9, 3600 * 10**9
GB = 10**9


class Disk:
    free = 0.5

    def __call__(self) -> float:
        return self.free


@pytest.fixture
def disk():
    return Disk()


def test_nobody_waits_while_there_is_space(disk):
    shares = Shares(["a", "b"], 0.05, disk)
    shares.took("a", 1000 * GB)
    assert shares.may("a", 0)
    assert not shares.held


def test_who_took_far_more_waits_for_the_others_and_for_nobody_else(disk):
    shares = Shares(["a", "b", "c"], 0.05, disk)
    shares.took("a", 90 * GB)
    shares.took("b", 5 * GB)
    disk.free = 0.04
    assert (shares.may("a", 0), shares.may("b", 0), shares.may("c", 0)) == (False, True, True)
    assert shares.held == {"a"}


def test_it_goes_on_as_soon_as_space_is_freed(disk):
    shares = Shares(["a", "b"], 0.05, disk)
    shares.took("a", 90 * GB)
    disk.free = 0.04
    assert not shares.may("a", 0)
    disk.free = 0.06
    assert shares.may("a", 2 * SECOND)
    assert not shares.held


def test_captures_that_share_the_load_fill_the_disk_together(disk):
    shares = Shares(["a", "b"], 0.05, disk)
    shares.took("a", 60 * GB)
    shares.took("b", 40 * GB)
    disk.free = 0.01
    assert shares.may("a", 0)
    assert shares.may("b", 0)


def test_a_capture_alone_is_never_held_back(disk):
    shares = Shares(["a"], 0.05, disk)
    shares.took("a", 900 * GB)
    disk.free = 0.0
    assert shares.may("a", 0)


def test_after_a_start_on_a_full_disk_nobody_is_judged_by_his_first_batch(disk):
    shares = Shares(["a", "b"], 0.05, disk)
    disk.free = 0.01
    shares.took("a", SLACK)
    assert shares.may("a", 0)
    shares.took("a", 1)
    assert not shares.may("a", 2 * SECOND)


def test_what_was_taken_long_ago_is_forgotten(disk):
    shares = Shares(["a", "b"], 0.05, disk)
    shares.took("a", 10 * GB)
    disk.free = 0.01
    waits = [shares.may("a", hour * HOUR) for hour in range(24 * 10)]
    assert (waits[0], waits[24], waits[-1]) == (False, False, True)
