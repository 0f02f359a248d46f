"""Packets with more than twelve bytes of header: kept whole where they may be encrypted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.media.engine import Media
from capture.media.events import UNSURE
from capture.model import Attach
from capture.packets import rtpheader
from capture.packets.decode import Decoder
from spanvault.daemon.config import CaptureConfig
from spanvault.media import rtp as reading
from spanvault.media.chunk import EVENTS, FRAME, TRUNCATED, WHOLE, Chunk
from tests.support.frames import block, ethernet, ipv4, rtp, udp

VOICE = b"a voice of 20 ms"
PACKETS = [
    rtp(sequence=1, payload=VOICE),
    rtp(sequence=2, payload=VOICE, extension=b"level..."),
    rtp(sequence=3, payload=VOICE, csrcs=(1, 2)),
    rtp(sequence=4, payload=VOICE, padding=b"\0\x02"),
    rtp(sequence=5, payload=VOICE, csrcs=(9,), extension=b"word", padding=b"\0\0\x03"),
    rtp(sequence=6, payload=VOICE),
]


def chunks(packets: list[bytes], *, sealed: bool, kinds: bytes = bytes(128)) -> list[Chunk]:
    """What leaves of a stream of these."""
    decoder, media = Decoder(), Media(CaptureConfig())
    decoded = decoder.decode(block([ethernet(ipv4(udp(packet))) for packet in packets]))
    (stream,) = media.receive(decoded.packets, decoded.endpoints)
    media.attach(Attach(stream.row, b"recording-number", 0, kinds=kinds, whole=sealed))
    return [chunk for part in media.flush() for chunk in part.chunks()]


def contents(chunk: Chunk) -> list[bytes]:
    return [bytes(one) for one in chunk.payloads()]


def test_of_what_surely_is_not_encrypted_the_payload_alone_is_kept():
    (chunk,) = chunks(PACKETS, sealed=False)
    assert contents(chunk) == [VOICE] * 6
    assert chunk.frames["flags"].tolist() == [0] * 6


def test_of_what_may_be_encrypted_the_header_is_kept_where_there_is_more_than_the_usual():
    (chunk,) = chunks(PACKETS, sealed=True)
    assert contents(chunk) == [VOICE, *PACKETS[1:5], VOICE]
    assert (chunk.frames["flags"] & WHOLE != 0).tolist() == [False, *[True] * 4, False]
    (read,) = reading.payloads([chunk])
    assert contents(read) == [VOICE] * 6
    assert read.frames["flags"].tolist() == [0] * 6


@pytest.mark.parametrize("sealed", [True, False])
def test_a_digit_is_set_apart_whatever_its_header(sealed: bool):
    digit = rtp(sequence=7, payload_type=101, payload=b"\x05\x0a\0\xa0", extension=b"word")
    voice, digits = chunks([*PACKETS, digit], sealed=sealed, kinds=bytes([UNSURE]) * 128)
    assert (int(voice.header["stream"]), int(digits.header["stream"])) == (0, EVENTS)
    (read,) = reading.payloads([digits])
    assert contents(read) == [b"\x05\x0a\0\xa0"]


@given(st.binary(min_size=12, max_size=80), st.binary(max_size=80), st.booleans())
def test_columns_and_single_packets_are_read_alike(packet: bytes, behind: bytes, cut: bool):
    """The capture's reading of a packet among others, and that of who reads the recording."""
    packet = bytes([0x80 | packet[0] & 0x3F]) + packet[1:]
    data = np.frombuffer(b"before" + packet + behind, np.uint8)
    at, size = np.array([6]), np.array([len(packet)])
    start, length, _ = rtpheader.payloads(data, at, size, np.array([cut]))
    frames = np.zeros(1, FRAME)
    frames["length"], frames["flags"] = len(packet), WHOLE | (TRUNCATED if cut else 0)
    ((payload,),) = (
        contents(one)
        for one in reading.payloads([Chunk(np.zeros(1)[0], frames, memoryview(packet))])
    )
    if 6 + reading.header_length(packet) <= len(data) - len(behind):
        assert payload == bytes(data[start[0] : start[0] + length[0]])
    else:
        assert payload == b""
