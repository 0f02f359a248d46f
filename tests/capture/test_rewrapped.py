"""The same calls in other clothes give the same table of calls and the same sound, byte by byte."""

import struct
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

import pytest

from capture.sources import files
from tests.support.callgen import SECOND, START_NS, Frame, answered, busy, phones
from tests.support.folders import SHARED
from tests.support.frames import enhanced, ethernet, interface, ipv4, option, pcap, section, udp
from tests.support.recorded import Line, Recording
from tests.support.wrapping import COPIES, HEAD, WRAPPINGS, Wrap, wrapped

# One-way; sequences that wrap; two legs of a B2BUA whose media moves; comfort noise; an INVITE in
# fragments; hold; a transfer.
REAL = [
    "captures/pcap/s03_gsm.pcap",
    "captures/pcap/s10_pcmu_linphone_seqwrap.pcapng",
    "captures/pcap/s16_b2bua_directmedia_reinvite.pcapng",
    "captures/pcap/s18_prack_cn.pcap",
    "lab/cases/frag_invite/call.pcap",
    "lab/cases/hold_resume/call.pcap",
    "lab/cases/xfer_attended/call.pcap",
]


def forged() -> list[Frame]:
    """A call that talks for two seconds, one to a busy line."""
    frames = answered(START_NS, *phones(2.0), "wrapped-1@spanvault.example")
    return sorted(frames + busy(START_NS + SECOND, *phones(0.1, 1), "wrapped-2@spanvault.example"))


def recorded(folder: Path, frames: Sequence[Frame], link_type: int = 1) -> Recording:
    path = folder / f"{link_type}.pcap"
    path.write_bytes(pcap(frames, link_type=link_type))
    return Recording(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    lines = recorded(tmp_path_factory.mktemp("plain"), forged()).lines()
    assert [(line.outcome, len(line.sounds)) for line in lines] == [("answered", 2), ("busy", 0)]
    return lines


@pytest.mark.parametrize("name", WRAPPINGS)
def test_wrapped(name: str, plain: list[Line], tmp_path: Path) -> None:
    link_type, wrap = WRAPPINGS[name]
    recording = recorded(tmp_path, wrapped(forged(), wrap), link_type)
    assert recording.lines() == plain
    assert (recording.duplicates, recording.late) == (0, 0)


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_recognised_and_counted(name: str, plain: list[Line], tmp_path: Path) -> None:
    recording = recorded(tmp_path, wrapped(forged(), COPIES[name].wrap))
    assert recording.lines() == twice(plain)
    packets = sum(sound.packets for line in plain for sound in line.sounds)
    assert (recording.duplicates, recording.late) == (packets, 0)


@pytest.mark.parametrize("name", ["VXLAN", "fragments", "authentication header"])
def test_a_stream_of_which_only_every_third_packet_is_wrapped(
    name: str, plain: list[Line], tmp_path: Path
) -> None:
    """Packets of one stream go two ways through the decoder, and keep their order."""
    numbers = count()

    def some(frame: Frame) -> list[Frame]:
        return [frame] if next(numbers) % 3 else WRAPPINGS[name].wrap(frame)

    recording = recorded(tmp_path, wrapped(forged(), some))
    assert recording.lines() == plain
    assert (recording.duplicates, recording.late) == (0, 0)


# --- merged by the card ---------------------------------------------------------------------------


def merged(frames: Iterable[Frame], most: int) -> list[Frame]:
    """As GRO leaves them: a stream's packets in one datagram, so many at once."""
    found: list[Frame] = []
    waiting: dict[bytes, list[Frame]] = {}
    for frame in frames:
        ends = frame.data[HEAD + 12 : HEAD + 24]
        if frame.data[HEAD + 28] >> 6 != 2:
            found.append(frame)
            continue
        waiting.setdefault(ends, []).append(frame)
        if len(waiting[ends]) == most:
            found.append(_as_one(waiting.pop(ends)))
    return sorted([*found, *map(_as_one, waiting.values())])


def _as_one(frames: list[Frame]) -> Frame:
    payload = b"".join(frame.data[HEAD + 28 :] for frame in frames)
    ports = struct.unpack_from(">HH", frames[0].data, HEAD + 20)
    addresses = [".".join(map(str, frames[0].data[at : at + 4])) for at in (HEAD + 12, HEAD + 16)]
    return Frame(frames[-1].time_ns, ethernet(ipv4(udp(payload, *ports), *addresses)))


def twice(lines: list[Line]) -> list[Line]:
    """As they are told of a mirror of both directions, where there is enough to tell it by."""
    return [
        line._replace(flags=tuple(sorted({*line.flags, "mirrored_twice"})))
        if sum(each.packets for each in line.sounds) >= 50
        else line
        for line in lines
    ]


def almost(lines: list[Line]) -> list[Line]:
    """Without the seconds, to which a copy adds how late it came."""
    return [
        line._replace(seconds=0.0, sounds=tuple(each._replace(seconds=0.0) for each in line.sounds))
        for line in lines
    ]


@pytest.mark.parametrize("most", [9, 10, 33])
def test_merged_packets_are_taken_apart(most: int, plain: list[Line], tmp_path: Path) -> None:
    frames = merged(forged(), most)
    assert max(len(frame.data) for frame in frames) > 1500
    assert almost(recorded(tmp_path, frames).lines()) == almost(plain)


def test_what_is_only_large_stays_whole(tmp_path: Path) -> None:
    """A jumbo frame of linear sound, in which the bytes of its SSRC occur by chance."""
    caller, callee = phones(2.0)
    frames = answered(START_NS, caller, callee, "jumbo@spanvault.example")
    grown = []
    for frame in frames:
        if frame.data[HEAD + 28] >> 6 == 2:
            packet = frame.data[HEAD + 28 :]
            packet += (bytes(500) + packet[8:12]) * 4
            ports = struct.unpack_from(">HH", frame.data, HEAD + 20)
            ends = [".".join(map(str, frame.data[at : at + 4])) for at in (HEAD + 12, HEAD + 16)]
            frame = Frame(frame.time_ns, ethernet(ipv4(udp(packet, *ports), *ends)))
        grown.append(frame)
    (line,) = recorded(tmp_path, grown).lines()
    assert [(each.packets, each.lost) for each in line.sounds] == [(100, 0), (100, 0)]


# --- snap lengths ---------------------------------------------------------------------------------


def snapped(folder: Path, frames: Iterable[Frame], size: int) -> Recording:
    head = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, size, 1)
    records = [
        struct.pack("<IIII", *divmod(time_ns, SECOND), min(size, len(data)), len(data))
        + data[:size]
        for time_ns, data in frames
    ]
    path = folder / "cut.pcap"
    path.write_bytes(head + b"".join(records))
    return Recording(path)


def places_of(frames: Iterable[Frame], text: bytes) -> list[int]:
    """How many bytes of the longest frames come before a text."""
    return [frame.data.index(text) for frame in frames if text in frame.data]


@pytest.mark.parametrize(
    "kept", [b"v=0", b"c=IN", b"m=audio", b" RTP/AVP 8", b"a=ptime"], ids=bytes.decode
)
@pytest.mark.parametrize("name", [None, "VXLAN", "IPv4 options"])
def test_a_description_that_the_snap_length_cut(
    kept: bytes, name: str | None, plain: list[Line], tmp_path: Path
) -> None:
    """Its SIP is cut a few bytes behind this text; the sound is there, flagged and complete."""
    frames = answered(START_NS, *phones(2.0), "wrapped-1@spanvault.example")
    if name:
        frames = wrapped(frames, WRAPPINGS[name].wrap)
    size = min(places_of(frames, kept)) + len(kept) + 4
    (line,) = snapped(tmp_path, frames, size).lines()
    wanted = plain[0]
    assert (line.caller, line.callee, line.outcome) == (
        wanted.caller, wanted.callee, wanted.outcome,
    )  # fmt: skip
    assert line.sounds == wanted.sounds
    assert "sip_cut" in line.flags


def test_sound_that_the_snap_length_cut_is_marked_and_counted_whole(
    plain: list[Line], tmp_path: Path
) -> None:
    for wrap in (lambda frame: [frame], WRAPPINGS["IPv4 options"].wrap):
        frames = [
            frame if b"SIP/2.0" in frame.data else Frame(frame.time_ns, frame.data[:150])
            for frame in wrapped(forged(), wrap)
        ]
        path = tmp_path / "cut.pcap"
        path.write_bytes(pcap(frames))
        recording = Recording(path)
        answer = recording.lines()[0]
        assert [(each.packets, each.lost) for each in answer.sounds] == [(100, 0), (100, 0)]
        assert recording.truncated == 200


# --- files ----------------------------------------------------------------------------------------


def nanoseconds(order: str) -> bytes:
    return section(order) + interface(options=option(9, b"\x09", order), order=order)


FILES = {
    "pcap, microseconds": lambda frames: pcap(frames, nano=False),
    "pcap, nanoseconds": pcap,
    "pcap, big-endian": lambda frames: pcap(frames, order=">"),
    "pcap, big-endian, microseconds": lambda frames: pcap(frames, order=">", nano=False),
    "pcapng": lambda frames: (
        nanoseconds("<") + b"".join(enhanced(frame, time) for time, frame in frames)
    ),
    "pcapng, big-endian": lambda frames: (
        nanoseconds(">") + b"".join(enhanced(frame, time, order=">") for time, frame in frames)
    ),
    "pcapng, clock from an offset on": lambda frames: (
        section()
        + interface(options=option(9, b"\x06") + option(14, struct.pack("<q", START_NS // SECOND)))
        + b"".join(enhanced(frame, (time - START_NS) // 1000) for time, frame in frames)
    ),
    "pcapng, a clock of 2⁻²⁰ s": lambda frames: (
        section()
        + interface(options=option(9, b"\x94"))
        + b"".join(enhanced(frame, (time << 20) // SECOND) for time, frame in frames)
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_file_formats(name: str, plain: list[Line], tmp_path: Path) -> None:
    path = tmp_path / "capture"
    path.write_bytes(FILES[name](forged()))
    assert Recording(path).lines() == plain


def test_each_direction_of_another_interface_with_its_own_link_and_clock(
    plain: list[Line], tmp_path: Path
) -> None:
    """Replies are heard on a cooked interface whose clock counts nanoseconds."""
    cooked = WRAPPINGS["cooked"]
    head = section() + interface() + interface(cooked.link_type, options=option(9, b"\x09"))
    body = b"".join(
        enhanced(frame.data, frame.time_ns // 1000)
        if frame.data[HEAD + 12 : HEAD + 16] < frame.data[HEAD + 16 : HEAD + 20]
        else enhanced(cooked.wrap(frame)[0].data, frame.time_ns, number=1)
        for frame in forged()
    )
    path = tmp_path / "two.pcapng"
    path.write_bytes(head + body)
    assert Recording(path).lines() == plain


# --- real calls -----------------------------------------------------------------------------------


def real(name: str) -> list[Frame]:
    return [
        Frame(int(time_ns), bytes(block.data[start : start + length]))
        for block in files.blocks(SHARED / name)
        for start, length, time_ns in zip(block.start, block.length, block.time_ns, strict=True)
    ]


def only_ip(wrap: Wrap) -> Wrap:
    """Leave alone what is neither UDP nor TCP over plain IPv4."""
    return lambda frame: (
        wrap(frame) if frame.data[12:15] == b"\x08\0E" and frame.data[HEAD + 9] in (6, 17) else []
    )


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason=f"no public captures at {SHARED}")
@pytest.mark.parametrize("capture", REAL, ids=lambda name: Path(name).parent.name + Path(name).stem)
@pytest.mark.parametrize(
    "name",
    ["cooked 2", "QinQ", "PPPoE", "pseudowire", "ERSPAN III", "VXLAN", "GENEVE", "TZSP",
     "GTP-U with extension", "HEP3", "GRE in VXLAN in QinQ", "fragments of VXLAN of fragments"],
)  # fmt: skip
def test_a_real_call_wrapped(capture: str, name: str, tmp_path: Path) -> None:
    frames = wrapped(real(capture), only_ip(lambda frame: [frame]))
    link_type, wrap = WRAPPINGS[name]
    bare, again = (
        recorded(tmp_path, wrapped(frames, only_ip(clothes)), kind)
        for kind, clothes in ((1, lambda frame: [frame]), (link_type, wrap))
    )
    assert bare.lines()
    assert almost(again.lines()) == almost(bare.lines())
    assert again.late == bare.late


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason=f"no lab cases at {SHARED}")
@pytest.mark.parametrize(
    "name",
    ["NULL", "RAW", "cooked", "cooked 2", "ERF", "QinQ", "five tags", "PPPoE", "MPLS", "pseudowire",
     "IP in IP", "4 in 6", "GRE of Ethernet", "ERSPAN II", "ERSPAN III of IP", "VXLAN",
     "GENEVE", "TZSP", "GTP-U with extension", "fragments of VXLAN"],
)  # fmt: skip
def test_a_real_call_over_ipv6_wrapped(name: str, tmp_path: Path) -> None:
    """Its signalling at least: the sound goes over IPv4."""
    frames = [
        each
        for each in real("lab/cases/ipv6/call.pcap")
        if each.data[12:14] in (b"\x86\xdd", b"\x08\0")
    ]
    link_type, wrap = WRAPPINGS[name]
    bare = recorded(tmp_path, frames).lines()
    assert [len(line.sounds) for line in bare] == [2]
    assert recorded(tmp_path, wrapped(frames, wrap), link_type).lines() == bare


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason=f"no public captures at {SHARED}")
@pytest.mark.parametrize("capture", REAL, ids=lambda name: Path(name).parent.name + Path(name).stem)
@pytest.mark.parametrize("name", COPIES)
def test_a_real_call_heard_twice(capture: str, name: str, tmp_path: Path) -> None:
    frames = wrapped(real(capture), only_ip(lambda frame: [frame]))
    bare = recorded(tmp_path, frames)
    again = recorded(tmp_path, wrapped(frames, COPIES[name].wrap))
    assert almost(again.lines()) == almost(twice(bare.lines()))
    assert again.late == bare.late
