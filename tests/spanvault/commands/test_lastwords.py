"""The last error of a unit, in `spanvault status`. A real one: tests/e2e/test_systemd.py."""

from datetime import datetime

from spanvault.commands.lastwords import MOST, last_words, one_line

AT = datetime(2026, 3, 1, 12, 0, 5)


def test_it_is_one_line_with_its_time():
    entry = {"MESSAGE": "cannot go on: no key.\n  Hint", "__REALTIME_TIMESTAMP": AT}
    assert one_line(entry) == "2026-03-01 12:00:05 cannot go on: no key. Hint"


def test_it_is_cut_and_need_not_be_text():
    told = one_line({"MESSAGE": b"\xff" * 9999, "__REALTIME_TIMESTAMP": AT})
    assert told is not None
    assert len(told) == MOST + len("2026-03-01 12:00:05 ")


def test_a_unit_that_said_nothing_has_none():
    assert one_line({}) is None
    assert last_words("spanvault-no-such-unit") is None
