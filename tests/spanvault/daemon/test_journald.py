"""A journald that hangs, is stopped, or comes back: nobody waits, and it is told what was lost."""

import pytest

from spanvault.daemon import journald
from spanvault.daemon.journald import LOST, Journald, serialize
from tests.support.journalplace import Place


@pytest.fixture
def place(tmp_path):
    with Place(tmp_path / "socket") as made:
        yield made


def test_values_of_several_lines_and_of_any_bytes_arrive(place):
    sent = {"MESSAGE": "a=b", "TRACEBACK": "one\ntwo=2\n", "EMPTY": "", "NAME": "Zoë"}
    Journald(place.path).send(sent)
    assert place.read() == [sent]
    Journald(place.path).send({"MESSAGE": "\udcff \ud800"})
    assert place.read() == [{"MESSAGE": "\\udcff \\ud800"}]


def test_long_value_is_cut_and_not_lost(place):
    sender = Journald(place.path)
    sender.send({"MESSAGE": "x", "TRACEBACK": "y" * (1 << 20)})
    (line,) = place.read()
    assert (line["MESSAGE"], len(line["TRACEBACK"]), sender.lost) == ("x", 32 << 10, 0)


def test_journald_that_hangs_holds_nobody_up(place):
    """With libsystemd's call this test, and all threads beside it, would wait for ever."""
    sender = Journald(place.path)
    for number in range(5000):
        sender.send({"MESSAGE": str(number)})
    waiting = place.read()
    assert [line["MESSAGE"] for line in waiting] == [str(number) for number in range(len(waiting))]
    assert sender.lost == 5000 - len(waiting)
    lost = sender.lost
    sender.send({"MESSAGE": "again", "SYSLOG_IDENTIFIER": "spanvault-x", "FAULT": "its own"})
    told, line = place.read()
    assert told == {
        "MESSAGE": LOST, "LINES": str(lost), "PRIORITY": "4", "SYSLOG_IDENTIFIER": "spanvault-x",
    }  # fmt: skip
    assert line["MESSAGE"] == "again"


def test_it_waits_for_a_journald_that_hangs_once_and_not_for_each_line(place, monkeypatch):
    waits = []

    def settimeout(self, seconds):
        waits.append(seconds)
        real(self, seconds)

    real = journald.socket.socket.settimeout
    monkeypatch.setattr(journald.socket.socket, "settimeout", settimeout)
    sender = Journald(place.path)
    for _ in range(2000):
        sender.send({"MESSAGE": "x"})
    taken = len(place.read())
    assert waits.count(journald.WAIT_S) == taken + 1
    assert set(waits[taken + 1 :]) == {0.0}


def test_journald_that_was_stopped_is_found_again(place):
    sender = Journald(place.path)
    sender.send({"MESSAGE": "before"})
    place.close()
    sender.send({"MESSAGE": "nobody hears"})
    place.path.unlink()
    sender.send({"MESSAGE": "nobody is there"})
    place.open()
    sender.send({"MESSAGE": "after"})
    assert [line["MESSAGE"] for line in place.read()] == [LOST, "after"]


def test_line_is_one_datagram_of_the_native_protocol():
    assert serialize({"A": "1", "B": "x\ny"}) == b"A=1\nB\n\3\0\0\0\0\0\0\0x\ny\n"
