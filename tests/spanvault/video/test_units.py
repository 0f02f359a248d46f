"""Packets in, whole pictures out: what is lost takes its own picture with it, and no other."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault.messages import Codec
from spanvault.video import vp9
from spanvault.video.nal import H264, H265, START_CODE, NalUnits
from spanvault.video.units import KINDS, Assembler, Packet, Unit, muxable
from spanvault.video.vp8 import descriptor
from tests.support.pictures import STEP, Sent, encoded, packetised, units

CODECS = {name: Codec(name, 90_000) for name in ("H264", "H265", "VP8", "VP9")}
COUNT = 20
PICTURES = {name: encoded(name, COUNT, every=8) for name in CODECS}


def packets(sent: list[Sent]) -> list[Packet]:
    return [
        Packet(100 + n, one.picture * STEP, one.marker, False, one.picture * STEP, one.payload)
        for n, one in enumerate(sent)
    ]


def assemble(codec: Codec, arrived: list[Packet]) -> tuple[list[Unit], Assembler]:
    assembler = Assembler(codec)
    found = [unit for packet in arrived for unit in assembler.receive(packet)]
    return found + list(assembler.finish()), assembler


def whole(name: str) -> list[Packet]:
    return packets(list(packetised(CODECS[name], PICTURES[name])))


def slices(name: str, picture: bytes) -> list[bytes]:
    """A picture without its parameter sets."""
    layout = {"H264": H264, "H265": H265}.get(name)
    if layout is None:
        return [picture]
    return [part for part in units(picture) if layout.kind(part) in layout.slices]


def numbers(found: list[Unit]) -> list[int]:
    return [unit.ticks // STEP for unit in found]


@pytest.mark.parametrize("name", CODECS)
def test_what_was_sent_comes_out(name: str):
    found, assembler = assemble(CODECS[name], whole(name))
    assert numbers(found) == list(range(COUNT))
    assert [unit.ticks // STEP for unit in found if unit.key] == [0, 8, 16]
    assert assembler.damaged == 0
    if name in ("VP8", "VP9"):
        assert [unit.data for unit in found] == PICTURES[name]
    else:
        assert [units(unit.data) for unit in found] == [units(one) for one in PICTURES[name]]


@pytest.mark.parametrize("name", CODECS)
def test_every_single_loss_costs_its_own_picture(name: str):
    arrived = whole(name)
    for lost in range(len(arrived)):
        found, _ = assemble(CODECS[name], arrived[:lost] + arrived[lost + 1 :])
        picture = arrived[lost].ticks // STEP
        missing = set(range(COUNT)) - set(numbers(found))
        if picture == 0:  # nothing can be seen before the next key picture
            assert missing in (set(range(8)), set())
        else:
            assert missing <= {picture}
        for unit in found:
            assert slices(name, unit.data) == slices(name, PICTURES[name][unit.ticks // STEP])


@pytest.mark.parametrize("name", CODECS)
def test_without_markers_the_next_picture_ends_the_last(name: str):
    found, _ = assemble(CODECS[name], [one._replace(marker=False) for one in whole(name)])
    assert numbers(found) == list(range(COUNT))


@pytest.mark.parametrize("name", CODECS)
def test_a_stream_that_is_joined_begins_with_a_key_picture(name: str):
    arrived = [one for one in whole(name) if one.ticks >= 3 * STEP]
    found, assembler = assemble(CODECS[name], arrived)
    assert numbers(found) == list(range(8, COUNT))
    assert assembler.early == 5


@pytest.mark.parametrize("name", CODECS)
def test_a_packet_that_was_cut_is_a_lost_one(name: str):
    arrived = whole(name)
    row = next(n for n, one in enumerate(arrived) if one.ticks == 10 * STEP)
    arrived[row] = arrived[row]._replace(cut=True)
    found, assembler = assemble(CODECS[name], arrived)
    assert set(range(COUNT)) - set(numbers(found)) == {10}
    assert assembler.damaged == 1


def test_late_and_doubled_packets_change_nothing():
    arrived = whole("H264")
    doubled = [copy for one in arrived for copy in (one, one)]
    assert assemble(CODECS["H264"], doubled)[0] == assemble(CODECS["H264"], arrived)[0]


def test_empty_packets_probe_the_network_and_are_no_loss():
    arrived = whole("VP8")
    probing = [
        part
        for one in arrived
        for part in (
            one._replace(sequence=2 * one.sequence),
            one._replace(sequence=2 * one.sequence + 1, payload=b"", marker=False),
        )
    ]
    assert numbers(assemble(CODECS["VP8"], probing)[0]) == list(range(COUNT))


def test_parameter_sets_with_a_marker_of_their_own_wait_for_their_picture():
    parts = units(PICTURES["H264"][0])
    arrived = [Packet(n, 0, True, False, 0, part) for n, part in enumerate(parts)]
    found, _ = assemble(CODECS["H264"], arrived)
    assert units(found[0].data) == parts[: parts.index(units(found[0].data)[-1]) + 1]
    assert found[0].key


def test_parameter_sets_that_only_sdp_has_are_put_before_the_key_picture():
    parts = units(PICTURES["H264"][0])
    sets = [part for part in parts if H264.kind(part) in H264.parameters]
    slices = [part for part in parts if H264.kind(part) in H264.slices]
    sprop = ",".join(base64.b64encode(part).decode() for part in sets)
    codec = Codec("H264", 90_000, 1, f"packetization-mode=1; sprop-parameter-sets={sprop}")
    arrived = [Packet(n, 0, False, False, 0, part) for n, part in enumerate(slices)]
    ((unit,), _) = assemble(codec, arrived)
    assert units(unit.data) == sets + slices
    nothing, assembler = assemble(CODECS["H264"], arrived)
    assert (nothing, assembler.damaged) == ([], 1)


def test_a_picture_behind_a_delimiter_is_whole():
    """GStreamer sends each access unit's delimiter in a packet of its own, of two bytes."""
    for name, delimiter in (("H264", b"\x09\xf0"), ("H265", b"\x46\x01\x50")):
        layout = H264 if name == "H264" else H265
        parts = [part for part in units(PICTURES[name][0]) if layout.kind(part) != delimiter[0]]
        payloads = [delimiter, *parts]
        arrived = [Packet(n, 0, False, False, 0, part) for n, part in enumerate(payloads)]
        ((unit,), _) = assemble(CODECS[name], arrived)
        assert unit.key
        assert units(unit.data) == payloads


def ue(*numbers: int) -> str:
    """Numbers as ue(v), H.264 §9.1, in bits."""
    return "".join("0" * (len(f"{n + 1:b}") - 1) + f"{n + 1:b}" for n in numbers)


def unit_of(head: bytes, text: str) -> bytes:
    """A NAL unit of these bits, a stop bit behind them."""
    text += "1" + "0" * (-len(text) % 8 or 8)
    return head + bytes(int(text[at : at + 8], 2) for at in range(0, len(text) // 8 * 8, 8))


@pytest.mark.parametrize("number", [0, 1, 5, 31])
def test_parameter_sets_are_told_apart_by_their_numbers(number: int):
    assert H264.number(7, b"\x67\x42\xc0\x1e" + unit_of(b"", ue(number, 0, 0))) == number
    assert H264.number(8, unit_of(b"\x68", ue(number, 0))) == number
    assert H265.number(34, unit_of(b"\x44\x01", ue(number, 0))) == number
    levels = "0" * 88 + f"{93:08b}"
    assert (
        H265.number(33, unit_of(b"\x42\x01", "0000" + "000" + "1" + levels + ue(number))) == number
    )
    two = "0000" + "010" + "1" + levels + "1101" + "0" * 12 + "0" * 96 + "0" * 8 + ue(number)
    assert H265.number(33, unit_of(b"\x42\x01", two)) == number
    assert H265.number(32, bytes([0x40, 1, number % 16 << 4, 0])) == number % 16


def test_a_key_picture_gets_every_parameter_set_that_it_does_not_bring():
    parts = units(PICTURES["H264"][0])
    sps, pps = (next(part for part in parts if H264.kind(part) == kind) for kind in (7, 8))
    other = unit_of(b"\x68", ue(1, 0) + "0" * 8)
    slices = [part for part in parts if H264.kind(part) in H264.slices]
    sent = [sps, pps, other, *slices]
    assert len(sent) == 5
    arrived = [Packet(n, 0, False, False, 0, part) for n, part in enumerate(sent)]
    again = [Packet(5 + n, STEP, False, False, STEP, part) for n, part in enumerate(slices)]
    (first, second), _ = assemble(CODECS["H264"], [*arrived, *again])
    assert units(first.data) == sent
    assert units(second.data) == sent


def test_a_stream_that_renews_itself_bit_by_bit_can_be_joined():
    """Without an IDR picture: a recovery point says that decoding may begin (H.264 D.1.8)."""
    parts = units(PICTURES["H264"][0])
    sets = [part for part in parts if H264.kind(part) in H264.parameters]
    later = [part for part in units(PICTURES["H264"][1]) if H264.kind(part) in H264.slices]
    said = b"\x06\x05\x02ab" + b"\x06\x01\xc4" + b"\x80"  # another message goes before
    arrived = [Packet(n, 0, False, False, 0, part) for n, part in enumerate([*sets, said, *later])]
    ((unit,), _) = assemble(CODECS["H264"], arrived)
    assert unit.key
    silent = [Packet(n, 0, False, False, 0, part) for n, part in enumerate([*sets, *later])]
    found, assembler = assemble(CODECS["H264"], silent)
    assert (found, assembler.early) == ([], 1)


@pytest.mark.parametrize(
    ("layout", "payload", "why"),
    [
        (H264, b"\x65", "payload of 1 bytes"),
        (H264, b"\x7c\x05rest", "without its beginning"),
        (H264, b"\x78\x00\xffshort", "longer than its packet"),
        (H264, b"\x78", "payload of 1 bytes"),
        (H264, b"\x78\x00", "no units"),
        (H264, b"\x79\x00\x00\x00\x05inter", "interleaved"),
        (H264, b"\x1dx\x00", "interleaved"),
        (H265, b"\x62\x01\x13rest", "without its beginning"),
        (H265, b"\x64\x01rest", "interleaved"),
    ],
)
def test_payloads_that_are_none(layout, payload: bytes, why: str):
    with pytest.raises(ValueError, match=why):
        NalUnits(layout).add(payload)


@pytest.mark.parametrize(
    ("payload", "length"),
    [
        (b"\x10frame", 1),
        (b"\x90\x80\x05frame", 3),
        (b"\x90\x80\x85\x01frame", 4),
        (b"\x90\xf0\x85\x01\x02\x03frame", 6),
        (b"\x90\x20\x03frame", 3),
    ],
)
def test_the_descriptor_of_vp8(payload: bytes, length: int):
    assert descriptor(payload) == length
    for end in range(length + 1):
        with pytest.raises(ValueError, match="VP8"):
            descriptor(payload[:end])


@pytest.mark.parametrize(
    ("payload", "length"),
    [
        (b"\x0cframe", 1),
        (b"\x8c\x05frame", 2),
        (b"\xac\x85\x01\x10\x07frame", 5),  # layers, with TL0PICIDX
        (b"\xbc\x85\x01\x10frame", 4),  # layers in flexible mode: without
        (b"\xdc\x85\x01\x03\x05\x02frame", 6),  # flexible, three references
        (b"\x8e\x05\x38\0\xb0\0\x90\0\xb0\0\x90\x01\x14\x01frame", 14),  # a structure
    ],
)
def test_the_descriptor_of_vp9(payload: bytes, length: int):
    assert vp9.descriptor(payload) == length
    for end in range(length + 1):
        with pytest.raises(ValueError, match="VP9"):
            vp9.descriptor(payload[:end])


def test_the_layers_of_a_vp9_picture_are_one_superframe():
    frames = vp9.Vp9Frames()
    lower, upper = b"\x82" + bytes(300), b"\x86" + bytes(40)
    payloads = [b"\x28\0\7" + lower[:100], b"\x24\0\7" + lower[100:], b"\x6c\x02\7" + upper]
    assert [frames.starts(one) for one in payloads] == [True, False, False]
    for one in payloads:
        frames.add(one)
    index = b"\xc9" + (301).to_bytes(2, "little") + (41).to_bytes(2, "little") + b"\xc9"
    assert frames.take() == (lower + upper + index, True)
    assert frames.take() is None


@pytest.mark.parametrize(
    "payloads", [[b"\x04abc"], [b"\x08abc", b"\x08abc"]], ids=["no beginning", "no end"]
)
def test_frames_of_vp9_that_are_not_whole(payloads: list[bytes]):
    frames = vp9.Vp9Frames()
    with pytest.raises(ValueError, match="without its"):
        [frames.add(one) for one in payloads]


@pytest.mark.parametrize("name", sorted(KINDS))
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 3), st.booleans(), st.binary(max_size=30)),
        max_size=30,
    )
)
def test_any_packets_are_survived(name: str, rows: list[tuple[int, int, bool, bytes]]):
    sequence, arrived = 0, []
    for step, timestamp, marker, payload in rows:
        sequence += step
        arrived.append(Packet(sequence, timestamp, marker, False, 0, payload))
    found, _ = assemble(Codec(name, 90_000), arrived)
    assert all(unit.data for unit in found)


def test_what_can_be_shown():
    assert muxable(Codec("h264", 90_000))
    assert not muxable(Codec("H263", 90_000))
    assert not muxable(None)
    assert START_CODE == b"\0\0\0\1"
