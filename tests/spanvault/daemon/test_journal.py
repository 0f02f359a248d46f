"""What reaches stderr, and what would reach journald. The real journald: tests/e2e/test_systemd."""

import logging
import os
import sys

import pytest

from spanvault.daemon import journal
from spanvault.daemon.journald import Journald
from tests.support.journalplace import Place


@pytest.fixture(autouse=True)
def handlers():
    """Leave the root logger as pytest had it."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.fixture
def place(tmp_path):
    with Place(tmp_path / "socket") as made:
        yield made


def test_a_line_for_people(capsys):
    log = journal.set_up("capture")
    log.warning("RTP gap", extra={"SSRC": "0x0000002a", "LOST_PACKETS": 3})
    assert capsys.readouterr().err == "warning: RTP gap SSRC=0x0000002a LOST_PACKETS=3\n"


def test_modules_share_the_daemons_logger_and_libraries_are_heard_from_warning_on(capsys):
    journal.set_up("capture")
    logging.getLogger("capture.media.engine").info("stream heard")
    logging.getLogger("spanvault.transport").info("connected")
    logging.getLogger("some.library").info("chatter")
    logging.getLogger("some.library").warning("odd frame")
    assert capsys.readouterr().err.splitlines() == [
        "info: stream heard",
        "info: connected",
        "warning: odd frame",
    ]


def test_set_up_twice_writes_once(capsys):
    journal.set_up("capture")
    journal.set_up("capture").error("ring lost")
    assert capsys.readouterr().err == "error: ring lost\n"


def test_a_field_cannot_forge_a_line(capsys):
    journal.set_up("capture").warning(
        "capture refused", extra={"PEER": "x\nerror: disk full", "NOTE": "two words", "EMPTY": ""}
    )
    assert capsys.readouterr().err == (
        "warning: capture refused PEER='x\\nerror: disk full' NOTE='two words' EMPTY=''\n"
    )


def test_a_traceback_follows_the_line(capsys):
    log = journal.set_up("capture")
    try:
        raise OSError("no space")
    except OSError:
        log.exception("spool not written", extra={"SEQUENCE": 7})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: spool not written SEQUENCE=7"
    assert lines[-1] == "OSError: no space"


def test_journald_gets_the_fields_and_nothing_of_python(place):
    handler = journal.JournalHandler("spanvault-capture", Journald(place.path))
    record = logging.LogRecord(
        "capture.media.engine", logging.ERROR, "m.py", 7, "%s", ("gap",), None, "f"
    )
    record.LOST_PACKETS = 3
    handler.emit(record)
    assert place.read() == [{
        "MESSAGE": "gap",
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "spanvault-capture",
        "LOGGER": "capture.media.engine",
        "CODE_FILE": "m.py",
        "CODE_LINE": "7",
        "CODE_FUNC": "f",
        "LOST_PACKETS": "3",
    }]  # fmt: skip


def test_who_reads_plain_journalctl_sees_what_is_wrong_and_what_to_do(place):
    record = logging.LogRecord("capture", logging.ERROR, "m.py", 7, "cannot go on", None, None)
    record.FAULT, record.HINT = "no interface\nerror: x", "See: ip link"
    journal.JournalHandler("spanvault-capture", Journald(place.path)).emit(record)
    (sent,) = place.read()
    assert sent["MESSAGE"] == "cannot go on: no interface error: x. See: ip link"
    assert (sent["EVENT"], sent["FAULT"]) == ("cannot go on", "no interface\nerror: x")


def test_stderr_that_was_redirected_is_not_the_journal(monkeypatch, tmp_path):
    with (tmp_path / "stderr").open("w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        status = os.fstat(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert journal.under_systemd()
        monkeypatch.setenv("JOURNAL_STREAM", "8:1")
        assert not journal.under_systemd()
