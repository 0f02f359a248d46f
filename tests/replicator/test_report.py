"""What an operator reads."""

from replicator import report
from replicator.plan import Fault, Lag
from replicator.report import Progress
from replicator.targets import Space

NOW = 1_000_000_000_000
WELL = Progress("siteb", 40, Lag(0, None), None, 0, 12, 3_000_000, Space(10, 5), NOW)


def line(*targets: Progress) -> str:
    return report.status_line(targets, NOW)


def test_all_is_well() -> None:
    assert line(WELL) == "siteb: up to date, 12 copied"


def test_a_target_behind_says_how_far() -> None:
    behind = WELL._replace(lag=Lag(7, NOW - 90 * 10**9))
    assert line(behind) == "siteb: 7 changes behind, oldest 90 s, 12 copied"
    fields = report.fields([WELL, behind._replace(target="sitec")], NOW)
    assert (fields["changes_behind"], fields["oldest_s"]) == (7, 90.0)
    assert fields["targets"]["sitec"]["free_bytes"] == 5


def test_a_fault_comes_with_its_remedy() -> None:
    away = WELL._replace(fault=Fault("open /mnt/b: no such file", "Mount it.", NOW - 5 * 10**9))
    assert line(away) == "siteb: up to date; open /mnt/b: no such file, for 5 s. Mount it."


def test_a_place_that_hangs_is_named() -> None:
    stuck = WELL._replace(moved_ns=NOW - 61 * 10**9)
    assert "no answer for 61 s. The place hangs" in line(stuck)
    assert report.fields([stuck], NOW)["targets"]["siteb"]["hangs_s"] == 61.0


def test_what_was_set_aside_stays_in_sight() -> None:
    assert line(WELL._replace(aside=2)).endswith("2 set aside as damaged at the source")


def test_no_target_is_said_too() -> None:
    assert "add [[targets]]" in line()
