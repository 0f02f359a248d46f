"""The saved call table survives a crash of the capture, and tells a thief nothing."""

import os
from pathlib import Path

import pytest

from capture.callstate import CallState


def test_a_later_life_of_the_same_boot_reads_it(tmp_path):
    CallState(tmp_path / "run").save(b"1001 calls 1002")
    assert CallState(tmp_path / "run").load() == b"1001 calls 1002"


def test_nothing_was_saved(tmp_path):
    assert CallState(tmp_path / "run").load() is None


def test_after_a_reboot_the_key_is_gone_and_recording_starts_afresh(tmp_path):
    CallState(tmp_path / "run").save(b"1001 calls 1002")
    (tmp_path / "run/calls.key").unlink()  # the table may have been swapped to a disk
    assert CallState(tmp_path / "run").load() is None


def test_a_cut_or_changed_file_is_no_table(tmp_path):
    state = CallState(tmp_path / "run")
    state.save(b"1001 calls 1002")
    file = tmp_path / "run" / "calls.sealed"
    sealed = file.read_bytes()
    for damaged in (b"", sealed[:5], sealed[:-1], sealed[:-1] + b"x"):
        file.write_bytes(damaged)
        assert state.load() is None


def test_no_number_lies_in_the_file_and_the_key_is_private(tmp_path):
    CallState(tmp_path / "run").save(b"1001 calls 1002")
    assert b"1001" not in (tmp_path / "run" / "calls.sealed").read_bytes()
    assert (tmp_path / "run" / "calls.key").stat().st_mode & 0o777 == 0o600


def test_folder_without_room_stops_nothing_and_is_used_once_there_is(tmp_path, monkeypatch):
    """/run is full at the start; later it is not."""

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as while_full:
        while_full.setattr(os, "open", full)
        while_full.setattr(Path, "mkdir", full)
        state = CallState(tmp_path / "run")
        assert state.load() is None
        with pytest.raises(OSError, match="No space left"):
            state.save(b"table")
    state.save(b"table")
    assert CallState(tmp_path / "run").load() == b"table"


def test_file_that_cannot_be_read_is_no_table(tmp_path):
    CallState(tmp_path).save(b"table")
    (tmp_path / "calls.sealed").unlink()
    (tmp_path / "calls.sealed").mkdir()
    assert CallState(tmp_path).load() is None
