"""Capture files through the real recorder: into a real storaged, or to one that misbehaves."""

import json
import logging
import signal
import time

import pytest

from capture import replay
from capture.replay import Replay
from capture.sources.files import in_order
from tests.support.callgen import SECOND, START_NS, Frame, answered, phones, write_pcap
from tests.support.capturing import Life
from tests.support.frames import ethernet, ipv4
from tests.support.routers import Answering

LOG = logging.getLogger("capture")
TALK_S = 6.0
PACKETS = 2 * 50 * int(TALK_S)


def _replay(vault, paths) -> bool:
    return Replay(vault.settings, True, Life(), LOG).run(paths)


def call_frames(start_ns=START_NS):
    caller, callee = phones(TALK_S)
    return answered(start_ns, caller, callee, f"call-{start_ns}@example.org")


def files(folder, *parts):
    """One capture file a part."""
    paths = [folder / f"part-{number}.pcap" for number in range(len(parts))]
    for path, frames in zip(paths, parts, strict=True):
        write_pcap(path, frames)
    return paths


def halves(frames):
    return frames[: len(frames) // 2], frames[len(frames) // 2 :]


def test_rotated_files_continue_a_call(vault, folder, capsys):
    assert _replay(vault, files(folder, *halves(call_frames())))
    (call,) = vault.calls()
    assert (call.outcome, call.end_reason, call.flags) == ("answered", "bye", [])
    assert vault.stored_frames(call) == PACKETS
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"id": call.id.hex()}, {"frames": len(call_frames()), "unacknowledged": 0}]


def test_files_cut_between_two_frames_out_of_order_are_still_one_capture(vault, folder):
    frames = call_frames()
    half = len(frames) // 2
    late = frames[half - 1]._replace(time_ns=frames[half].time_ns + 1000)
    first, second = [*frames[: half - 1], late], frames[half:]
    assert _replay(vault, files(folder, first, second))
    (call,) = vault.calls()
    assert (call.end_reason, vault.stored_frames(call)) == ("bye", PACKETS)


@pytest.mark.parametrize("shift_s", [-3600, 3600])
def test_a_file_of_another_time_begins_a_new_time_line(vault, folder, shift_s):
    begun, _ = halves(call_frames())
    other = call_frames(START_NS + shift_s * SECOND)
    assert _replay(vault, files(folder, begun, other))
    ended = {call.started_ns: call.end_reason for call in vault.calls()}
    assert ended == {START_NS: "capture_end", START_NS + shift_s * SECOND: "bye"}


def is_sip(frame) -> bool:
    return frame.data[42] & 0xC0 != 0x80


def test_signalling_and_media_that_were_captured_apart_are_one_capture(vault, folder):
    frames = call_frames()
    apart = [[f for f in frames if is_sip(f) == sip] for sip in (True, False)]
    rotated = [*apart[:1], apart[1][:100], apart[1][100:]]
    assert _replay(vault, in_order(files(folder, *rotated)[::-1]))
    (call,) = vault.calls()
    assert (call.outcome, call.end_reason, call.flags) == ("answered", "bye", [])
    assert vault.stored_frames(call) == PACKETS


def test_clocks_that_are_far_apart_are_told_of(vault, folder, caplog):
    frames = call_frames()
    sip = [frame for frame in frames if is_sip(frame)]
    rtp = [f._replace(time_ns=f.time_ns + 3600 * SECOND) for f in frames if not is_sip(f)]
    assert not _replay(vault, files(folder, sip, rtp))
    (told,) = [one for one in caplog.records if one.levelno > 30]
    assert "different times" in told.message
    assert "editcap -t" in told.HINT
    assert 3590 <= told.APART_S <= 3610


def test_what_nobody_can_read_is_told_of_where_there_is_much(vault, folder, caplog):
    frames = call_frames()
    sealed = [
        Frame(frame.time_ns, ethernet(ipv4(bytes(range(1, 99)), protocol=50)))
        for frame in frames[: len(frames) // 3]
    ]
    for each, said in ((sealed, True), (sealed[: len(frames) // 8], False)):
        caplog.clear()
        assert _replay(vault, files(folder, sorted([*frames, *each])))
        told = [one.UNREAD for one in caplog.records if "cannot be read" in one.message]
        assert told == ([f"{len(each)} of IPsec"] if said else [])


def test_a_cut_file_gives_what_it_has_and_is_told(vault, folder, caplog):
    first, second = files(folder, call_frames(), call_frames(START_NS + 60 * SECOND))
    first.write_bytes(first.read_bytes()[:-700])  # within the last packets
    assert not _replay(vault, [first, second])
    assert [call.outcome for call in vault.calls()] == ["answered", "answered"]
    assert [one.FAULT.startswith(str(first)) for one in caplog.records if one.levelno > 30] == [
        True
    ]


def test_storaged_may_be_killed_in_between(vault, folder):
    early, late = halves(call_frames())
    first, second, third = files(folder, *halves(early), late)

    def with_a_kill_between():
        yield first
        yield second  # looked at already while the first is read: it might overlap
        vault.stop(signal.SIGKILL)
        vault.start()
        yield third

    assert _replay(vault, with_a_kill_between())
    (call,) = vault.calls()
    assert (call.end_reason, vault.stored_frames(call)) == ("bye", PACKETS)


def test_a_refused_batch_is_no_success(router, folder, caplog):
    run = Replay(router.settings, False, Life(), LOG, patience_s=10)
    with Answering(router, "refuse") as storaged:
        assert not run.run(files(folder, call_frames()))
    assert storaged.batches > 0
    refusals = [one for one in caplog.records if one.message == "storaged refused a batch"]
    assert len(refusals) == storaged.batches


def test_a_storaged_that_never_acknowledges_is_given_up(router, folder, capsys, caplog):
    run = Replay(router.settings, True, Life(), LOG, patience_s=0.3)
    started = time.monotonic()
    with Answering(router, "") as storaged:
        assert not run.run(files(folder, call_frames()))
    assert time.monotonic() - started < 5
    assert json.loads(capsys.readouterr().out)["unacknowledged"] == storaged.batches > 0
    assert "storaged did not store everything" in [one.message for one in caplog.records]


def test_reading_waits_for_storaged_only_so_long(router, folder, monkeypatch):
    monkeypatch.setattr(replay, "UNACKNOWLEDGED_BYTES", 0)
    run = Replay(router.settings, False, Life(), LOG, patience_s=0.3)
    with Answering(router, ""), pytest.raises(TimeoutError, match="stored nothing for"):
        run.run(files(folder, call_frames()))


def test_reading_goes_on_as_storaged_acknowledges(router, folder, monkeypatch):
    monkeypatch.setattr(replay, "UNACKNOWLEDGED_BYTES", 0)
    run = Replay(router.settings, False, Life(), LOG, patience_s=10)
    with Answering(router, "acknowledge") as storaged:
        assert run.run(files(folder, call_frames()))
    assert storaged.batches > 1
