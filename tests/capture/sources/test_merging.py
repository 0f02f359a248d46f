"""Files that overlap in time, read as one capture."""

import gzip
import os
import struct
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.sources import merging
from capture.sources.files import captures, in_order
from capture.sources.merging import merged
from tests.support.callgen import SECOND, START_NS, Frame, write_pcap


def frames_of(paths: list[Path], faults: list[str] | None = None) -> list[tuple[int, bytes]]:
    """Time and bytes of all frames, as they come."""
    found = []
    for block, _ in merged(paths, lambda error: (faults or []).append(str(error))):
        for start, length, time_ns in zip(block.start, block.length, block.time_ns, strict=True):
            found.append((int(time_ns), bytes(block.data[start : start + length])))
    return found


def written(folder: Path, *parts: list[Frame]) -> list[Path]:
    paths = [folder / f"{number}.pcap" for number in range(len(parts))]
    for path, frames in zip(paths, parts, strict=True):
        write_pcap(path, frames)
    return paths


def frame(at_ms: int, name: int) -> Frame:
    return Frame(START_NS + at_ms * SECOND // 1000, bytes([name]) * (20 + name % 40))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 500), min_size=1, max_size=40), min_size=1, max_size=6))
def test_frames_of_any_files_come_in_order_of_time_and_none_is_lost(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("parts")
    given_ = [[frame(at, number) for at in sorted(part)] for number, part in enumerate(parts)]
    found = frames_of(in_order(written(folder, *given_)))
    assert [time_ns for time_ns, _ in found] == sorted(time_ns for time_ns, _ in found)
    assert Counter(found) == Counter((f.time_ns, f.data) for part in given_ for f in part)


def test_files_of_two_link_types_are_cut_where_they_alternate(tmp_path):
    one, other = written(tmp_path, [frame(at, 1) for at in (0, 20, 40)],
                         [frame(at, 2) for at in (10, 30, 50)])  # fmt: skip
    other.write_bytes(other.read_bytes()[:20] + struct.pack("<I", 101) + other.read_bytes()[24:])
    links = [(b.link_type, len(b.start)) for b, _ in merged([one, other], pytest.fail)]
    assert links == [(1, 1), (101, 1), (1, 1), (101, 1), (1, 1), (101, 1)]


def test_a_file_on_its_own_is_not_copied_and_says_where_it_begins(tmp_path):
    paths = written(tmp_path, *([frame(1000 * n + at, n) for at in range(50)] for n in range(3)))
    assert [begins for _, begins in merged(paths, pytest.fail)] == [True, True, True]


def test_a_damaged_file_spoils_only_itself(tmp_path):
    paths = written(tmp_path, *([frame(10 * at + n, n) for at in range(50)] for n in range(3)))
    paths[1].write_bytes(paths[1].read_bytes()[:-5])
    faults: list[str] = [""]
    found = frames_of(paths, faults)
    assert len(found) == 149
    assert "1.pcap: cut off" in faults[-1]


def test_memory_does_not_grow_with_the_length_of_files(tmp_path):
    def most(count: int) -> int:
        paths = written(
            tmp_path, *3 * [[frame._replace(data=bytes(1400)) for frame in long[:count]]]
        )
        tracemalloc.start()
        assert sum(len(block.start) for block, _ in merged(paths, pytest.fail)) == 3 * count
        _, used = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return used

    long = [Frame(START_NS + at * 100_000, b"") for at in range(12_000)]
    assert most(12_000) < 1.2 * most(4_000)


def test_more_files_at_once_than_can_be_held_are_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "MAX_OPEN", 2)
    paths = written(tmp_path, *([frame(at, n) for at in range(5)] for n in range(4)))
    faults: list[str] = [""]
    assert len(frames_of(paths, faults)) == 10
    assert "other files go on" in faults[-1]
    assert len(faults) == 3


def test_a_folder_gives_its_captures_however_they_are_named(tmp_path):
    names = ["trace.pcap", "trace.pcap1", "trace.pcap10", "ring_00001_2026.pcapng", "old.gz"]
    write_pcap(tmp_path / "a", [frame(0, 1)])
    data = (tmp_path / "a").read_bytes()
    for name in names:
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    (tmp_path / "notes.txt").write_text("no capture")
    (tmp_path / "sub").mkdir()
    assert {path.name for path in captures([tmp_path])} == {"a", *names}
    with pytest.raises(ValueError, match="no capture file lies in this folder"):
        captures([tmp_path / "sub"])


def test_a_pipe_is_read_behind_what_was_given_before(tmp_path):
    (path,) = written(tmp_path, [frame(at, 1) for at in range(5)])
    reading, writing = os.pipe()
    os.write(writing, path.read_bytes())
    os.close(writing)
    found = frames_of([path, Path(f"/dev/fd/{reading}")])
    os.close(reading)
    assert [time_ns for time_ns, _ in found] == 2 * [frame(at, 1).time_ns for at in range(5)]
