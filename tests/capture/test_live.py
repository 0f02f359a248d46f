"""A live port over several lives of the capture; the ring is a file's blocks."""

import logging
import os
import time

import pytest

from capture import hearing, live
from capture.live import Live
from capture.sources import files
from tests.support.callgen import SECOND, answered, busy, phones, write_pcap
from tests.support.capturing import Life
from tests.support.smalldisk import SmallDisk, fill

TALK_S = 2.0
PACKETS = 2 * 50 * int(TALK_S)


class Port:
    """Some frames, then SIGTERM. What `later` holds is in the ring when the capture stops."""

    broken = False
    interruptions, missed, trouble = 0, 0, ""

    def __init__(self, life, path, later=None) -> None:
        self._life, self._path, self._later = life, path, later
        self.closed = False

    def blocks(self, timeout_ms, wake_fd):
        yield from files.blocks(self._path)
        if self.broken:
            raise OSError("interface 'span0' is back, but down")
        self._life.stop_requested = True

    def drain(self):
        return files.blocks(self._later) if self._later else iter(())

    def drops(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True


class Lives:
    """One port whose capture is started again and again."""

    def __init__(self, vault, folder, monkeypatch) -> None:
        self._vault, self._folder, self._patch = vault, folder, monkeypatch
        self._files = 0

    def file(self, frames):
        self._files += 1
        path = self._folder / f"heard-{self._files}.pcap"
        write_pcap(path, frames)
        return path

    def record(self, frames, later=None) -> Life:
        """One life of the capture."""
        life = Life()
        port = Port(life, self.file(frames), self.file(later) if later else None)
        self._patch.setattr(hearing, "Port", lambda interface, megabytes, log: port)
        Live(self._vault.settings, "span0", life, logging.getLogger("capture")).run()
        assert port.closed
        return life


@pytest.fixture
def port(vault, folder, monkeypatch):
    return Lives(vault, folder, monkeypatch)


@pytest.fixture
def call():
    """A call that has just ended: a live recorder's time is the clock's."""
    frames = answered(time.time_ns() - 4 * SECOND, *phones(TALK_S), "live@example.org")
    return frames[: len(frames) // 2], frames[len(frames) // 2 :]


def test_what_the_ring_still_holds_at_the_stop_is_recorded(vault, port, call):
    life = port.record(call[0], later=call[1])
    (stored,) = vault.calls()
    assert vault.stored_frames(stored) == PACKETS
    assert life.said[0] == "listening on span0"
    assert life.said[-1] == "stopped"


def test_a_restart_goes_on_with_the_call(vault, port, call):
    port.record(call[0])
    (begun,) = vault.calls()
    assert (begun.final, begun.ended_ns) == (False, None)
    port.record(call[1])
    (stored,) = vault.calls()
    assert (stored.id, stored.flags) == (begun.id, ["capture_restarted"])
    assert stored.ended_ns is not None
    assert sum(stream.packets for stream in stored.streams) == PACKETS
    assert vault.stored_frames(stored) == PACKETS


@pytest.mark.parametrize("step_s", [-3600, 3600])
def test_a_clock_set_between_two_lives_splits_no_call(vault, port, call, monkeypatch, step_s):
    port.record(call[0])
    now_ns, step_ns = time.time_ns, step_s * SECOND
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + step_ns)
    port.record([frame._replace(time_ns=frame.time_ns + step_ns) for frame in call[1]])
    (stored,) = vault.calls()
    assert stored.flags == ["capture_restarted", "clock_set"]
    assert vault.stored_frames(stored) == PACKETS
    assert (stored.ended_ns - stored.answered_ns) / SECOND == pytest.approx(TALK_S, abs=0.1)


def test_without_storaged_it_is_put_away_sealed_and_delivered_by_the_next_life(
    vault, port, call, monkeypatch
):
    other = busy(time.time_ns() - 4 * SECOND, *phones(0.1, 1), "busy@example.org")
    port.record(other)  # from now on it knows the key to seal with
    vault.stop()
    monkeypatch.setattr(live, "DRAIN_S", 0.1)
    life = port.record(call[0])
    assert "batches on disk wait for storaged" in life.said[-1]
    assert list((vault.settings.state_dir / "spool").glob("*.sealed"))
    monkeypatch.undo()
    vault.start()
    port.record(call[1])
    (stored,) = [one for one in vault.calls() if one.outcome == "answered"]
    assert vault.stored_frames(stored) == PACKETS
    assert not list((vault.settings.state_dir / "spool").iterdir())


def test_a_port_that_cannot_be_heard_any_more_ends_it_but_loses_nothing(
    vault, port, call, monkeypatch
):
    monkeypatch.setattr(Port, "broken", True)
    with pytest.raises(OSError, match="is back, but down"):
        port.record(call[0])
    (stored,) = vault.calls()
    assert vault.stored_frames(stored) == sum(b"SIP/2.0" not in frame.data for frame in call[0])


def test_a_saved_table_that_is_nonsense_is_said_and_recording_goes_on(vault, port, call, caplog):
    port.record(call[0])
    monkey = live.CallState.load
    live.CallState.load = lambda self: b"nonsense"
    try:
        port.record(call[1])
    finally:
        live.CallState.load = monkey
    assert "saved calls cannot be read" in [one.message for one in caplog.records]
    assert len(vault.calls()) == 2


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_call_table_that_a_full_run_does_not_take_is_told_and_recording_goes_on(
    vault, port, call, caplog
):
    disk = SmallDisk(vault.settings.runtime_dir, 1)
    try:
        fill(disk.mounted)
        port.record([*call[0], *call[1]])
    finally:
        disk.close()
    told = [one for one in caplog.records if one.message == "the call table cannot be saved"]
    assert len(told) == 1
    assert f"{disk.mounted} (disk {disk.mounted}): No space left on device. Free" in told[0].FAULT
    (stored,) = vault.calls()
    assert vault.stored_frames(stored) == PACKETS
