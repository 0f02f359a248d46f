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


class Clock:
    """Time that passes where a socket is waited for, and where a test says so."""

    def __init__(self, monkeypatch) -> None:
        self.now_s = self.waited_s = 0.0
        real = journald.socket.socket

        class Socket(real):
            def send(its, data: bytes) -> int:  # noqa: N805 - `self` is the clock's
                wait_s, _ = its.gettimeout(), its.settimeout(0.0)
                try:
                    return super().send(data)
                except BlockingIOError:
                    self.now_s += wait_s
                    self.waited_s += wait_s
                    raise

        monkeypatch.setattr(journald.socket, "socket", Socket)

    def __call__(self) -> float:
        return self.now_s


def told_lost(lines) -> int:
    return sum(int(line["LINES"]) for line in lines if line["MESSAGE"] == LOST)


def test_journald_that_is_slower_than_the_lines_is_not_waited_for_at_each(place, monkeypatch):
    """It takes a line for each three that come: before, two of three cost a tenth of a second."""
    clock = Clock(monkeypatch)
    sender, read, sent = Journald(place.path, clock), [], 3000
    for number in range(sent):
        sender.send({"MESSAGE": str(number)})
        clock.now_s += 0.001
        if number % 3 == 0:
            read += place.read_one()
    read += place.read()
    assert clock.waited_s == pytest.approx(journald.WAIT_S)
    lost = [line for line in read if line["MESSAGE"] == LOST]
    assert len(lost) <= 1 + sent * 0.001 / journald.CALM_S
    # Each line arrived, or was counted, once.
    assert len(read) - len(lost) + told_lost(read) + sender.lost == sent


def test_after_ten_calm_seconds_a_burst_is_waited_for_again(place, monkeypatch):
    clock = Clock(monkeypatch)
    sender = Journald(place.path, clock)
    for turn in (1, 2):
        for _ in range(2000):
            sender.send({"MESSAGE": "x"})
        assert clock.waited_s == pytest.approx(turn * journald.WAIT_S)
        place.read()
        clock.now_s += journald.CALM_S
        sender.send({"MESSAGE": "calm"})
        assert [line["MESSAGE"] for line in place.read()] == [LOST, "calm"]


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
