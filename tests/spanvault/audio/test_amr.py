"""AMR payloads in both packings, bit by bit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault.audio import amr
from tests.support.encoded import encode, pack_amr, stored


@pytest.mark.parametrize("aligned", [True, False])
def test_a_frame_written_by_hand(aligned: bool):
    speech = int("10" * 122, 2)  # 244 bits: 12.2 kbit/s, frame type 7
    contents = 0b0_0111_1 << 2 if aligned else 0b0_0111_1
    bits = 0xF0 << 8 | contents if aligned else 0xF << 6 | contents
    length = (16 if aligned else 10) + 244
    packed = (bits << 244 | speech) << (-length % 8)
    (frame,) = amr.frames(packed.to_bytes((length + 7) // 8, "big"), wide=False, aligned=aligned)
    assert frame == bytes([7 << 3 | 1 << 2]) + (speech << 4).to_bytes(31, "big")


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("wide", [True, False])
def test_several_frames_come_out_as_they_went_in(wide: bool, aligned: bool):
    speech = stored("amr-wb") if wide else encode("libopencore_amrnb", 8000, bit_rate=7950)
    payload = pack_amr(speech[10:15], wide=wide, aligned=aligned)
    assert list(amr.frames(payload, wide=wide, aligned=aligned)) == speech[10:15]


def test_a_damaged_frame_is_one_that_is_missing():
    payload = pack_amr(stored("amr-wb")[:2], wide=True, aligned=True)
    damaged = payload[:2] + bytes([payload[2] & 0xFB]) + payload[3:]
    first, second = amr.frames(damaged, wide=True, aligned=True)
    assert [first, amr.kind(second)] == [stored("amr-wb")[0], amr.NO_DATA]


@pytest.mark.parametrize("kind", [9, 14])
def test_a_reserved_frame_type_is_refused(kind: int):
    with pytest.raises(ValueError, match="reserved"):
        list(amr.frames(bytes([0xF0, kind << 3 | 4]), wide=False, aligned=True))


def test_bytes_that_the_contents_do_not_name_are_refused():
    payload = pack_amr(stored("amr-wb")[:1], wide=True, aligned=True) + b"\0"
    with pytest.raises(ValueError, match="more than the table"):
        list(amr.frames(payload, wide=True, aligned=True))


@given(st.binary(max_size=300), st.booleans(), st.booleans(), st.booleans())
def test_any_bytes_raise_only_value_error(payload: bytes, wide: bool, aligned: bool, crc: bool):
    try:
        list(amr.either(payload, wide=wide, aligned=aligned, crc=crc))
    except ValueError:
        return
