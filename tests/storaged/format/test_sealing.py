"""Vectors of the object format, one fault each and the error it must give. FORMAT.md §4."""

import contextlib
import hashlib
import struct

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from spanvault.media import chunk
from storaged.format import walk
from storaged.format.sealing import (
    DATA,
    EVENTS,
    FRAME_HEAD_BYTES,
    LAST,
    LOCATOR_BYTES,
    Header,
    Locator,
    ObjectWriter,
    SegmentKey,
    Trailer,
    parse_frame_head,
)
from tests.support.vault import START, at, call_id, make_media

RECORDING = call_id(1)
DEK = bytes(range(32))
FRAMES = 4


def packed(second: int, stream: int = 1) -> list[bytes]:
    return [chunk.pack(piece) for piece in make_media([(RECORDING, stream, second)]).chunks()]


def with_digits(flag: int = EVENTS, stream: int = chunk.EVENTS + 1) -> bytes:
    """Sound, digits, sound."""
    writer = ObjectWriter(RECORDING, 7, 0)
    parts = [writer.begin(DEK, START, bytes(16)), writer.data(packed(0), *at(0))]
    parts += [writer.data(packed(1, stream), *at(1), flag)]
    parts += [writer.data(packed(2), *at(2)), writer.last(b"record")]
    return b"".join(parts)


def make_object(sealed: bool = True) -> bytes:
    """One segment of FRAMES frames, with fixed salt and time: always the same bytes."""
    writer = ObjectWriter(RECORDING, 7, 0)
    parts = [writer.begin(DEK, START, bytes(16))]
    parts += [writer.data(packed(second), *at(second)) for second in range(FRAMES)]
    if sealed:
        parts.append(writer.last(b"record"))
    return b"".join(parts)


def faults(data: bytes, dek: bytes = DEK) -> list[str]:
    return walk.check(data, lambda key_id: dek).faults


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


OBJECT = make_object()
PLACES = walk.walk(OBJECT).places


def test_bytes_are_as_specified():
    """The figures of FORMAT.md §4, so that neither can change alone."""
    assert OBJECT[:8] == b"\x89SVR\r\n\x1a\n"
    assert struct.unpack_from("<HHBBH", OBJECT, 8) == (1, 1, 0, 0, 0)
    assert OBJECT[16:32] == RECORDING
    assert struct.unpack_from("<QIIq", OBJECT, 32) == (7, 1 << 20, 0, START)
    assert OBJECT[56:72] == bytes(16)
    assert struct.unpack_from("<IB", OBJECT, 104) == (64 + 40 + 320 + 16, DATA)


def test_keys_and_frames_are_those_of_an_independent_reader():
    """HKDF, AES-GCM, nonce and AAD again, by FORMAT.md alone and by another implementation."""

    def derive(name: bytes) -> bytes:
        return HKDF(SHA256(), 32, salt=bytes(16), info=name + RECORDING).derive(DEK)

    assert OBJECT[72:104] == derive(b"commit")
    nonce = (0).to_bytes(11, "big") + b"\x00"
    plain = AESGCM(derive(b"audio")).decrypt(
        nonce, OBJECT[109 : 104 + 5 + 440], hashlib.sha256(OBJECT[:104]).digest()
    )
    assert plain == b"".join(packed(0))


def test_digits_are_sealed_under_a_key_of_their_own():
    """By FORMAT.md alone: each of the two keys opens its frames, and none of the other's."""
    data = with_digits()
    assert faults(data) == []
    header = hashlib.sha256(data[:104]).digest()
    keys = {
        name: AESGCM(HKDF(SHA256(), 32, salt=bytes(16), info=name + RECORDING).derive(DEK))
        for name in (b"audio", b"events")
    }
    for place in walk.walk(data).places[:3]:
        mine, other = (b"events", b"audio") if place.flag == 2 else (b"audio", b"events")
        nonce = place.sequence.to_bytes(11, "big") + bytes((place.flag,))
        stream = chunk.EVENTS + 1 if place.flag == 2 else 1
        sealed = data[place.start : place.end]
        assert keys[mine].decrypt(nonce, sealed, header) == b"".join(packed(place.sequence, stream))
        with pytest.raises(InvalidTag):
            keys[other].decrypt(nonce, sealed, header)


@pytest.mark.parametrize(("flag", "stream"), [(DATA, chunk.EVENTS + 1), (EVENTS, 1)])
def test_digits_and_sound_in_the_wrong_place_are_a_fault(flag, stream):
    assert faults(with_digits(flag, stream)) == ["frame 1: digits and sound in one place"]


def test_an_object_with_digits_is_gone_on_with():
    data = with_digits()
    found = walk.resume(data, len(data), lambda key_id: DEK)
    assert (found.faults, found.end, found.sealed) == ([], len(data), True)
    assert [stream for stream, _ in found.have] == [1, chunk.EVENTS + 1, 1]


def test_sealed_object_has_no_fault():
    layout = walk.walk(OBJECT)
    assert faults(OBJECT) == []
    assert layout.sealed
    assert layout.end == len(OBJECT)
    assert [place.flag for place in layout.places] == [DATA] * FRAMES + [LAST]


def test_unsealed_object_is_valid():
    data = make_object(sealed=False)
    assert faults(data) == []
    assert not walk.walk(data).sealed


def test_trailer_finds_frames_without_reading_them():
    locator = Locator.parse(OBJECT[-LOCATOR_BYTES:])
    header = Header.parse(OBJECT[locator.header_offset :])
    length, flag = parse_frame_head(OBJECT[locator.frame_offset :])
    start = locator.frame_offset + FRAME_HEAD_BYTES
    plain = SegmentKey.open(header, DEK).open_frame(
        locator.sequence, flag, OBJECT[start : start + length]
    )
    trailer = Trailer.parse(plain)
    assert trailer.entries["offset"].tolist() == [place.offset for place in PLACES[:FRAMES]]
    assert trailer.entries["first_ns"].tolist() == [at(n)[0] for n in range(FRAMES)]
    assert trailer.record == b"record"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param(lambda data: b"RIFF" + data[4:], "wrong magic", id="magic"),
        pytest.param(lambda data: flipped(data, 8), "object version 0", id="version"),
        pytest.param(lambda data: flipped(data, 10), "cipher suite 0", id="suite"),
        pytest.param(lambda data: flipped(data, 13), "reserved", id="reserved"),
        pytest.param(lambda data: data[:90], "header cut: 90 of 104", id="header cut"),
    ],
)
def test_header_that_cannot_be_read(change, error):
    with pytest.raises(ValueError, match=error):
        walk.walk(change(OBJECT))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param(lambda data: flipped(data, 72), "commitment", id="commitment"),
        pytest.param(lambda data: flipped(data, 56), "commitment", id="salt"),
        pytest.param(lambda data: flipped(data, 16), "commitment", id="recording id"),
        pytest.param(lambda data: flipped(data, 48), "frame 0 does not auth", id="created"),
        pytest.param(lambda data: flipped(data, 12), "frame 0 does not auth", id="tier"),
        pytest.param(
            lambda data: flipped(data, PLACES[2].start + 9), "frame 2 does not auth", id="frame"
        ),
        pytest.param(
            lambda data: flipped(data, PLACES[1].end - 1), "frame 1 does not auth", id="tag"
        ),
        pytest.param(lambda data: flipped(data, PLACES[1].offset + 4), "no locator", id="flag"),
        pytest.param(lambda data: flipped(data, len(data) - 1), "no locator", id="locator magic"),
        pytest.param(lambda data: flipped(data, len(data) - 20), "points elsewhere", id="locator"),
        pytest.param(lambda data: data + b"more", "behind the last frame", id="appended"),
    ],
)
def test_one_fault_each(change, error):
    found = faults(change(OBJECT))
    assert found
    assert error in found[0]


def test_fault_names_the_bytes():
    place = PLACES[2]
    (fault,) = faults(flipped(OBJECT, place.start + 9))
    assert f"bytes {place.offset}-{place.end}" in fault


def test_wrong_key_opens_nothing():
    found = faults(OBJECT, dek=bytes(32))
    assert len(found) == FRAMES + 1
    assert all("commitment" in fault for fault in found)


def test_swapped_frames_do_not_authenticate():
    one, two = PLACES[0], PLACES[1]
    swapped = (
        OBJECT[: one.offset] + OBJECT[two.offset : two.end] + OBJECT[one.offset : one.end]
        + OBJECT[two.end :]
    )  # fmt: skip
    assert len(faults(swapped)) == 2


def test_frame_left_out_shows_in_all_behind_it():
    without = OBJECT[: PLACES[1].offset] + OBJECT[PLACES[1].end :]
    assert any("frame 1 does not auth" in fault for fault in faults(without))


def test_cut_object_is_unsealed_with_a_torn_tail():
    for size in (PLACES[3].start + 7, PLACES[3].offset + 2, len(OBJECT) - 1):
        layout = walk.walk(OBJECT[:size])
        assert not layout.sealed
        assert layout.faults == []
        assert layout.end == max(place.end for place in PLACES[:FRAMES] if place.end <= size)


def test_resume_goes_on_in_a_new_segment_behind_the_last_whole_frame():
    torn = OBJECT[: PLACES[3].start + 7]
    found = walk.resume(torn, 0, lambda key_id: DEK)
    assert (found.end, found.sealed, found.faults) == (PLACES[2].end, False, [])
    assert found.have == [(1, START + second * 10**9) for second in range(3)]
    more = found.writer.begin(DEK, START, b"another salt 16B")
    more += found.writer.data(packed(3), *at(3))
    more += found.writer.last(b"")
    whole = torn[: found.end] + more
    assert faults(whole) == []
    assert [header.segment for _, header in walk.walk(whole).headers] == [0, 1]


def test_torn_at_any_byte_it_goes_on_behind_the_last_whole_frame():
    """Every length that a crash may leave the file at, from its first header's end on."""
    for size in range(PLACES[0].offset, len(OBJECT)):
        found = walk.resume(OBJECT[:size], 0, lambda key_id: DEK)
        kept = [place for place in PLACES[:FRAMES] if place.end <= size]
        end = kept[-1].end if kept else PLACES[0].offset
        assert (found.end, found.sealed, found.faults) == (end, False, []), size
        more = found.writer.begin(DEK, START, b"another salt 16B")
        more += found.writer.data(packed(len(kept)), *at(len(kept)))
        more += found.writer.last(b"")
        assert faults(OBJECT[: found.end] + more) == [], size


def test_resume_never_cuts_what_was_acknowledged():
    damaged = flipped(make_object(sealed=False), PLACES[3].start)
    assert walk.resume(damaged, len(damaged), lambda key_id: DEK).end == len(damaged)
    assert walk.resume(damaged, 0, lambda key_id: DEK).end == PLACES[2].end


def test_damaged_length_loses_one_segment_only():
    found = walk.resume(make_object(), len(OBJECT), lambda key_id: DEK)
    more = found.writer.begin(DEK, START, b"another salt 16B") + found.writer.data(
        packed(9), *at(9)
    )
    damaged = flipped(OBJECT + more, PLACES[1].offset + 3)
    layout = walk.walk(damaged)
    assert "frame 1 reaches beyond the end" in layout.faults[0]
    assert [place.segment for place in layout.places] == [0, 1]


@given(st.binary(max_size=400))
def test_arbitrary_bytes_raise_only_value_error(data):
    for parse in (Header.parse, Locator.parse, Trailer.parse, parse_frame_head, walk.walk):
        with contextlib.suppress(ValueError):
            parse(data)


@settings(max_examples=200)
@given(st.integers(0, len(OBJECT) - 1), st.integers(1, 255), st.integers(0, len(OBJECT)))
def test_changed_objects_never_give_wrong_bytes(at, mask, cut):
    """Any changed byte is found; what still opens is what was sealed."""
    changed = bytearray(OBJECT[: max(cut, at + 1)])
    changed[at] ^= mask
    try:
        layout = walk.walk(bytes(changed))
        opener = walk.Opener(bytes(changed), layout, lambda key_id: DEK)
    except ValueError:
        return
    truth = [b"".join(packed(second)) for second in range(FRAMES)]
    for place in layout.places:
        try:
            plain = opener.open(place)
        except ValueError:
            continue
        assert plain in truth or place.flag == LAST
