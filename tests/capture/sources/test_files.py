"""Capture files in, the frames they hold out, whatever wrote them and wherever they were cut."""

import bz2
import gzip
import lzma
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.sources.files import blocks, in_order
from tests.support.frames import (
    EPOCH,
    SECOND,
    enhanced,
    interface,
    option,
    pcap,
    pcapng_block,
    section,
)

Frame = tuple[int, bytes]
FRAMES: list[Frame] = [
    (EPOCH, b"first frame"),
    (EPOCH + 1_234_567_000, b"a second later"),
    (EPOCH + 400 * SECOND, b""),
    (EPOCH + 401 * SECOND, b"minutes later"),
]


def read(path: Path) -> list[Frame]:
    return [frame for frame, _ in frames(path)]


def frames(path: Path) -> Iterator[tuple[Frame, int]]:
    """Each frame and its link type."""
    for block in blocks(path):
        columns = (block.time_ns, block.start, block.length)
        for when, start, length in zip(*(each.tolist() for each in columns), strict=True):
            yield (when, bytes(block.data[start : start + length])), block.link_type


def read_until_fault(path: Path) -> tuple[list[Frame], str]:
    found: list[Frame] = []
    with pytest.raises(ValueError, match=path.name) as caught:
        found.extend(frame for frame, _ in frames(path))
    return found, str(caught.value)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nano", [True, False])
def test_pcap_of_either_byte_order_and_resolution(tmp_path: Path, order: str, nano: bool) -> None:
    path = tmp_path / "a.pcap"
    path.write_bytes(pcap(FRAMES, order=order, nano=nano, link_type=113))
    assert list(frames(path)) == [(frame, 113) for frame in FRAMES]


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_of_either_byte_order(tmp_path: Path, order: str) -> None:
    path = tmp_path / "a.pcapng"
    packets = [enhanced(frame, when // 1000, order=order) for when, frame in FRAMES]
    path.write_bytes(section(order) + interface(order=order) + b"".join(packets))
    assert read(path) == FRAMES


def test_interfaces_have_their_own_link_types_and_clocks(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    nano = option(9, b"\x09")
    binary = option(9, b"\x8a")  # 2**-10 s
    shifted = option(14, struct.pack("<q", 1_700_000_000))
    path.write_bytes(
        section()
        + interface(1, options=nano)
        + interface(113, options=binary + shifted)
        + enhanced(b"one", EPOCH + 5)
        + enhanced(b"two", 1536, number=1)
        + enhanced(b"three", EPOCH + 6)
    )
    assert list(frames(path)) == [
        ((EPOCH + 5, b"one"), 1),
        ((EPOCH + 1_500_000_000, b"two"), 113),
        ((EPOCH + 6, b"three"), 1),
    ]


def test_a_clock_finer_than_nanoseconds(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    picoseconds = 3 * 10**12 + 123_456_789_999
    path.write_bytes(
        section() + interface(options=option(9, b"\x0c")) + enhanced(b"x", picoseconds)
    )
    assert read(path) == [(3_123_456_789, b"x")]


def test_times_that_no_clock_shows_are_brought_to_the_nearest_that_one_does(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    seconds = interface(options=option(9, b"\0"))
    before = interface(options=option(9, b"\0") + option(14, struct.pack("<q", -(10**9))))
    frames = enhanced(b"late", 10**10) + before + enhanced(b"early", 7, number=1)
    path.write_bytes(section() + seconds + frames)
    assert read(path) == [(4_102_444_800 * SECOND, b"late"), (0, b"early")]


def test_other_blocks_are_passed_over_and_old_packet_blocks_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    stamp = EPOCH // 1000
    obsolete = struct.pack("<HHIIII", 0, 0, stamp >> 32, stamp & 0xFFFFFFFF, 3, 3) + b"old"
    path.write_bytes(
        section()
        + pcapng_block(0x0BAD, b"custom")
        + interface(snap=4)
        + pcapng_block(2, obsolete)
        + pcapng_block(3, struct.pack("<I", 6) + b"simp")  # cut to the snap length
        + pcapng_block(5, bytes(12))
        + section(">")
        + interface(order=">")
        + enhanced(b"new section", stamp, order=">")
    )
    assert read(path) == [(EPOCH, b"old"), (EPOCH, b"simp"), (EPOCH, b"new section")]


def test_blocks_of_all_kinds_between_each_other_are_read_without_a_search_for_each(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.pcapng"
    stamp = EPOCH // 1000
    old = struct.pack("<HHIIII", 0, 0, stamp >> 32, stamp & 0xFFFFFFFF, 3, 3) + b"old"
    obsolete = pcapng_block(2, old)
    simple = pcapng_block(3, struct.pack("<I", 4) + b"simp")
    kinds = [obsolete, simple, enhanced(b"enhanced", stamp), interface(), pcapng_block(0xBAD, b"")]
    path.write_bytes(section() + interface() + b"".join(kinds * 10_000))
    begun = time.process_time()
    found = read(path)
    assert time.process_time() - begun < 2  # with a search for each: 10
    assert found == [(EPOCH, b"old"), (EPOCH, b"simp"), (EPOCH, b"enhanced")] * 10_000
    assert max(len(block.start) for block in blocks(path)) <= 65_536


def test_large_files_come_in_bounded_blocks(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    random = np.random.default_rng(1)
    sent = [
        (EPOCH + 1_000_000 * row, random.bytes(int(size)))
        for row, size in enumerate(random.choice([54, 214, 218, 1514], 20_000))
    ]
    path.write_bytes(pcap(sent))
    assert read(path) == sent
    assert max(len(block.data) for block in blocks(path)) <= 4 << 20
    assert max(len(block.start) for block in blocks(path)) <= 65_536


def test_record_headers_within_a_payload_are_payload(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    inner = pcap([(EPOCH, b"captured capture")])[24:]
    sent = [(EPOCH + row, inner * 3) for row in range(50)]
    path.write_bytes(pcap(sent))
    assert read(path) == sent


def test_packed_files_and_pipes_are_read_alike(tmp_path: Path) -> None:
    for pack in (gzip.compress, lzma.compress, bz2.compress):
        packed = tmp_path / "a.pcap"  # its bytes tell, no matter the name
        packed.write_bytes(pack(pcap(FRAMES)))
        assert read(packed) == FRAMES
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    many = FRAMES * 20_000  # more than one window
    writer = threading.Thread(target=pipe.write_bytes, args=(pcap(many),))
    writer.start()
    assert read(pipe) == many
    writer.join()


def test_files_go_by_their_first_frame_and_not_by_name(tmp_path: Path) -> None:
    begins = {"call.pcap": 1, "call.pcap10": 11, "call.pcap2": 3}
    for name, second in begins.items():
        (tmp_path / name).write_bytes(pcap([(EPOCH + second * SECOND, b"frame")]))
    (tmp_path / "call.pcap3").write_bytes(gzip.compress((tmp_path / "call.pcap2").read_bytes()))
    (tmp_path / "notes.txt").write_text("no capture")
    given = [tmp_path / name for name in [*begins, "call.pcap3", "notes.txt", "gone"]]
    ordered = [path.name for path in in_order(given)]
    assert ordered == ["notes.txt", "gone", "call.pcap", "call.pcap2", "call.pcap3", "call.pcap10"]


def test_a_pipe_is_left_unread_where_it_was_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "later").write_bytes(pcap([(EPOCH, b"frame")]))
    given = [tmp_path / "later", tmp_path / "pipe", tmp_path / "gone"]
    assert in_order(given) == given


def test_a_cut_file_gives_its_whole_frames_then_says_where_it_was_cut(tmp_path: Path) -> None:
    for name, data, at in (
        ("cut.pcap", pcap(FRAMES)[:-3], 97),
        ("cut.pcapng", section() + interface() + b"".join(
            enhanced(frame, when // 1000) for when, frame in FRAMES)[:-3], 172),
    ):  # fmt: skip
        path = tmp_path / name
        path.write_bytes(data)
        found, fault = read_until_fault(path)
        assert found == FRAMES[:-1]
        assert f"cut off at byte {len(data)}" in fault
        assert f"offset {at} is not whole" in fault


@pytest.mark.parametrize(
    ("head", "program"),
    [(b"\x28\xb5\x2f\xfd", "zstdcat"), (b"\x04\x22\x4d\x18", "lz4cat"), (b"PK\3\4", "unzip")],
)
def test_what_we_cannot_unpack_is_told_who_can(head: bytes, program: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pcap.zst"
    path.write_bytes(head + bytes(100))
    with pytest.raises(ValueError, match=f"a.pcap.zst: compressed. Unpack it: {program}"):
        read(path)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress])
def test_a_cut_packed_file_gives_what_could_be_unpacked(
    pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "a.pcap.gz"
    random = np.random.default_rng(1)
    sent = [(EPOCH + row, random.bytes(1000)) for row in range(3000)]
    packed = pack(pcap(sent))
    path.write_bytes(packed[: len(packed) // 2])
    found, fault = read_until_fault(path)
    assert found == sent[: len(found)]
    assert 800 < len(found) < 1500  # bzip2 gives blocks of 900 kB alone
    assert "cannot be read to its end" in fault


def test_a_damaged_length_is_named_after_the_frames_before_it(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    data = bytearray(pcap(FRAMES))
    struct.pack_into("<I", data, 24 + 16 + 11 + 8, 0x7FFFFFFF)
    path.write_bytes(data)
    found, fault = read_until_fault(path)
    assert found == FRAMES[:1]
    assert "the record at offset 51 claims 2147483647 bytes" in fault


def test_frames_of_several_interfaces_come_in_blocks_if_their_links_are_alike(
    tmp_path: Path,
) -> None:
    """One mirrors each direction, on ports with clocks of their own; a third is no Ethernet."""
    path = tmp_path / "a.pcapng"
    nanoseconds = option(9, b"\x09") + option(14, struct.pack("<q", 100))
    ports = interface() + interface(options=nanoseconds) + interface(101)
    order = [0, 1] * 50 + [2] + [0, 1] * 50
    units = {0: 1_000_000, 1: SECOND, 2: 1_000_000}
    path.write_bytes(
        section() + ports
        + b"".join(enhanced(bytes([n]), 7 * units[n], number=n) for n in order)
    )  # fmt: skip
    found = list(blocks(path))
    assert [len(block.start) for block in found] == [100, 1, 100]
    assert [block.link_type for block in found] == [1, 101, 1]
    assert found[2].time_ns.tolist() == [7 * SECOND, 107 * SECOND] * 50
    assert [bytes(found[2].data[at : at + 1]) for at in found[2].start[:2]] == [b"\0", b"\x01"]


def test_a_frame_longer_than_its_block_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    bad = bytearray(enhanced(b"long", 2))
    struct.pack_into("<I", bad, 20, 500)
    path.write_bytes(section() + interface() + enhanced(b"good", 1) + bad)
    found, fault = read_until_fault(path)
    assert found == [(1000, b"good")]
    assert "a frame longer than its block" in fault


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "the file is empty"),
        (b"RIFF....WAVE", r"not a capture file \(it begins with 52494646\)"),
        (pcap([])[:10], "cut off within the pcap file header"),
        (section() + enhanced(b"x", 1), "interface 0, which was not described"),
        (section()[:8] + b"\0\0\0\0" + section()[12:], "without a byte-order magic"),
        (section() + struct.pack("<II", 77, 3) + bytes(20), "a block of 3 bytes"),
    ],
)
def test_what_is_no_capture_is_refused_by_name(tmp_path: Path, data: bytes, fault: str) -> None:
    path = tmp_path / "some.file"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"some.file: .*{fault}"):
        list(blocks(path))


def test_what_cannot_be_opened_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Is a directory"):
        list(blocks(tmp_path))
    with pytest.raises(ValueError, match="No such file"):
        list(blocks(tmp_path / "nothing"))


HEADS = [pcap([]), pcap([], order=">"), section() + interface(), gzip.compress(pcap(FRAMES))[:30]]


@settings(max_examples=300, deadline=None)
@given(head=st.sampled_from([b"", *HEADS]), tail=st.binary(max_size=400))
def test_arbitrary_bytes_raise_only_value_error(head: bytes, tail: bytes) -> None:
    path = Path(f"/tmp/spanvault-test-{os.getpid()}.pcap")
    path.write_bytes(head + tail)
    with suppress(ValueError):
        read(path)
    path.unlink()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_captures_raise_only_value_error(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from([
        pcap(FRAMES),
        section() + interface() + b"".join(enhanced(frame, when) for when, frame in FRAMES),
    ]))  # fmt: skip
    damaged = bytearray(whole)
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=6)):
        damaged[at] = data.draw(st.integers(0, 255))
    test_arbitrary_bytes_raise_only_value_error.hypothesis.inner_test(bytes(damaged), b"")
