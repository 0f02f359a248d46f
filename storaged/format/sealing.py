"""The bytes of a sealed recording: segment headers, frames, trailer and locator.

STREAM over AES-256-GCM: every frame is sealed under a key of its own segment with a nonce that
counts, so frames can neither be changed, swapped, repeated nor left out unnoticed. GCM does not
commit to its key; the header does, and that is checked before anything is opened.
Source: Hoang, Reyhanitabar, Rogaway, Vizár 2015 (STREAM); RFC 5869 (HKDF). FORMAT.md §4 specifies
the bytes. Where they lie in a file: storaged.format.walk. Pure: no clock, no file, no randomness.
"""

import hashlib
import hmac
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

MAGIC: Final = b"\x89SVR\r\n\x1a\n"  # as in PNG: shows a transfer that changed line ends
VERSION: Final = 1
SUITE_AES_256_GCM: Final = 1  # HKDF-SHA256, STREAM with AES-256-GCM

DATA: Final = 0  # packed chunks
LAST: Final = 1  # the trailer; the segment, and the recording as far as known, is complete
EVENTS: Final = 2  # packed chunks of telephone events: digits, under a key of their own

CHUNK_MAX: Final = 1 << 20  # plaintext bytes of a DATA frame that this program writes
LAST_MAX: Final = 64 << 20
TAG: Final = 16

_HEADER: Final = struct.Struct("<8sHHBBH16sQIIq16s32s")
HEADER_BYTES: Final = _HEADER.size
_FRAME: Final = struct.Struct("<IB")
FRAME_HEAD_BYTES: Final = _FRAME.size
_LOCATOR: Final = struct.Struct("<QQQ8s")
LOCATOR_BYTES: Final = _LOCATOR.size
LOCATOR_MAGIC: Final = b"SVRLAST\n"
_COUNT: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<QIIqq")

ENTRY: Final = np.dtype(
    [
        ("offset", "<u8"),  # of the frame's length field, from the start of the object
        ("segment", "<u4"),
        ("sequence", "<u4"),
        ("first_ns", "<i8"),  # earliest chunk start in the frame
        ("last_ns", "<i8"),  # latest chunk start in the frame
    ]
)  # one row of the trailer's table

Sealed = TypeVar("Sealed", bytes, memoryview)

assert HEADER_BYTES == 104
assert LOCATOR_BYTES == 32
assert ENTRY.itemsize == 32


class Header(NamedTuple):
    """The head of one segment, as it lies in the clear. salt: 16 bytes, commit: 32."""

    tier: int  # the pool's number: spanvault.daemon.rules.TIERS
    segment: int  # 0, 1, 2 … within the object
    recording_id: bytes
    key_id: int
    chunk_max: int
    created_ns: int
    salt: bytes
    commit: bytes

    def serialize(self) -> bytes:
        """HEADER_BYTES bytes."""
        return _HEADER.pack(
            MAGIC, VERSION, SUITE_AES_256_GCM, self.tier, 0, self.segment, self.recording_id,
            self.key_id, self.chunk_max, 0, self.created_ns, self.salt, self.commit,
        )  # fmt: skip

    @classmethod
    def parse(cls, data: bytes | memoryview) -> "Header":
        """Read HEADER_BYTES bytes. Raises ValueError, naming the field at fault."""
        if len(data) < HEADER_BYTES:
            raise ValueError(f"header cut: {len(data)} of {HEADER_BYTES} bytes")
        (
            magic, version, suite, tier, zero8, segment, recording_id,
            key_id, chunk_max, zero32, created_ns, salt, commit,
        ) = _HEADER.unpack_from(data)  # fmt: skip
        if magic != MAGIC:
            raise ValueError("not a spanvault recording: wrong magic")
        if version != VERSION:
            raise ValueError(f"object version {version}, this program reads {VERSION}")
        if suite != SUITE_AES_256_GCM:
            raise ValueError(f"cipher suite {suite} is unknown")
        if zero8 or zero32:
            raise ValueError("reserved header bytes are not zero")
        return cls(tier, segment, recording_id, key_id, chunk_max, created_ns, salt, commit)


class SegmentKey:
    """Seals and opens the frames of one segment: telephone events under another key than the rest.

    Whoever is given one of the two keys, and not what they are made of, can open nothing else.
    """

    __slots__ = ("_aad", "_aead", "_events")

    def __init__(self, header: Header, prk: bytes) -> None:
        self._aead = AESGCM(_expand(prk, b"audio" + header.recording_id))
        self._events = AESGCM(_expand(prk, b"events" + header.recording_id))
        self._aad = hashlib.sha256(header.serialize()).digest()

    @classmethod
    def open(cls, header: Header, dek: bytes) -> "SegmentKey":
        """Derive the key and check that the header was made with it.

        dek: 32 bytes.  Raises ValueError for another DEK, or a header that was changed.
        """
        prk = _extract(header.salt, dek)
        if not hmac.compare_digest(_expand(prk, b"commit" + header.recording_id), header.commit):
            raise ValueError("key commitment does not match: another key, or a changed header")
        return cls(header, prk)

    def seal(self, sequence: int, flag: int, plain: bytes) -> memoryview:
        """One frame: length, flag, ciphertext and tag. A (sequence, flag) is used once only."""
        size = len(plain) + TAG
        frame = np.empty(FRAME_HEAD_BYTES + size, np.uint8).data  # uninitialised: all is written
        _FRAME.pack_into(frame, 0, size, flag)
        body = frame[FRAME_HEAD_BYTES:]
        self._cipher(flag).encrypt_into(_nonce(sequence, flag), plain, self._aad, body)
        return frame

    def open_frame(self, sequence: int, flag: int, cipher: bytes | memoryview) -> bytes:
        """The plaintext of a frame's body. Raises ValueError if it is not the one sealed here."""
        try:
            return self._cipher(flag).decrypt(_nonce(sequence, flag), cipher, self._aad)
        except InvalidTag:
            raise ValueError(f"frame {sequence} does not authenticate") from None

    def _cipher(self, flag: int) -> AESGCM:
        return self._events if flag == EVENTS else self._aead


def new_segment(
    recording_id: bytes, key_id: int, dek: bytes, *, tier: int, segment: int,
    created_ns: int, salt: bytes,
) -> tuple[Header, SegmentKey]:  # fmt: skip
    """Begin a segment. salt: 16 fresh random bytes; never one that was used with this DEK."""
    prk = _extract(salt, dek)
    commit = _expand(prk, b"commit" + recording_id)
    header = Header(tier, segment, recording_id, key_id, CHUNK_MAX, created_ns, salt, commit)
    return header, SegmentKey(header, prk)


def parse_frame_head(data: bytes | memoryview) -> tuple[int, int]:
    """Ciphertext length (tag included) and flag. Raises ValueError for an impossible pair."""
    if len(data) < FRAME_HEAD_BYTES:
        raise ValueError(f"frame head cut: {len(data)} of {FRAME_HEAD_BYTES} bytes")
    length, flag = _FRAME.unpack_from(data)
    if flag not in (DATA, LAST, EVENTS):
        raise ValueError(f"frame flag {flag} is unknown")
    if not TAG <= length <= LAST_MAX + TAG:
        raise ValueError(f"frame length {length} is impossible")
    return length, flag


class Trailer(NamedTuple):
    """What the LAST frame holds. entries: ENTRY[n], every frame of chunks so far, in order."""

    segments: list[int]  # offset of each segment's header
    entries: NDArray[np.void]
    record: bytes  # the call, MessagePack (messages.Call); empty if none was known

    def serialize(self) -> bytes:
        """The plaintext of a LAST frame."""
        return b"".join(
            (
                _COUNT.pack(len(self.segments)),
                struct.pack(f"<{len(self.segments)}Q", *self.segments),
                _COUNT.pack(len(self.entries)),
                self.entries.tobytes(),
                _COUNT.pack(len(self.record)),
                self.record,
            )
        )

    @classmethod
    def parse(cls, data: bytes) -> "Trailer":
        """Raises ValueError for one that is cut or too long."""
        at = 0

        def take(width: int) -> bytes:
            nonlocal at
            if len(data) - at < _COUNT.size:
                raise ValueError("trailer cut")
            size = _COUNT.unpack_from(data, at)[0] * width
            start = at + _COUNT.size
            if size > len(data) - start:
                raise ValueError("trailer cut")
            at = start + size
            return data[start:at]

        segments = list(struct.unpack(f"<{len(raw := take(8)) // 8}Q", raw))
        entries = np.frombuffer(take(ENTRY.itemsize), ENTRY)
        record = take(1)
        if at != len(data):
            raise ValueError(f"{len(data) - at} bytes behind the trailer")
        return cls(segments, entries, record)


class Locator(NamedTuple):
    """The clear 32 bytes behind a LAST frame: where to find it without reading what is before."""

    header_offset: int
    frame_offset: int
    sequence: int

    def serialize(self) -> bytes:
        """LOCATOR_BYTES bytes."""
        return _LOCATOR.pack(*self, LOCATOR_MAGIC)

    @classmethod
    def parse(cls, data: bytes | memoryview) -> "Locator":
        """Raises ValueError if it is none."""
        if len(data) < LOCATOR_BYTES:
            raise ValueError(f"locator cut: {len(data)} of {LOCATOR_BYTES} bytes")
        header_offset, frame_offset, sequence, magic = _LOCATOR.unpack_from(data)
        if magic != LOCATOR_MAGIC:
            raise ValueError("no locator behind the last frame")
        return cls(header_offset, frame_offset, sequence)


class ObjectWriter:
    """Gives the bytes to append to one object, and knows what it has given.

    Holds no file: the caller writes every answer, whole, before it asks for the next, and forgets
    the writer if it could not. A writer that goes on with bytes from before its time is made by
    storaged.format.walk.resume().
    """

    __slots__ = (
        "_key", "digest", "entries", "key_id", "next_segment", "recording_id", "segments",
        "sequence", "size", "tier",
    )  # fmt: skip

    def __init__(self, recording_id: bytes, key_id: int, tier: int) -> None:
        self.recording_id, self.key_id, self.tier = recording_id, key_id, tier
        self.size = 0
        self.segments: list[int] = []
        self.next_segment = 0
        self.entries = bytearray()  # ENTRY rows; 32 bytes a frame, for hours
        self.digest: Any = hashlib.sha256()
        self._key: SegmentKey | None = None
        self.sequence = 0  # of the next frame in the segment

    @property
    def in_segment(self) -> bool:
        """Whether data() and last() may be asked."""
        return self._key is not None

    def begin(self, dek: bytes, created_ns: int, salt: bytes) -> bytes:
        """A new segment's header."""
        header, self._key = new_segment(
            self.recording_id, self.key_id, dek,
            tier=self.tier, segment=self.next_segment, created_ns=created_ns, salt=salt,
        )  # fmt: skip
        self.sequence = 0
        self.next_segment += 1
        self.segments.append(self.size)
        return self._given(header.serialize())

    def data(
        self, chunks: Sequence[bytes | memoryview], first_ns: int, last_ns: int, flag: int = DATA
    ) -> memoryview:
        """A frame of chunks. chunks: parts of packed ones, at most CHUNK_MAX bytes together.

        flag: DATA, or EVENTS where all of them are telephone events.
        """
        assert self._key is not None
        self.add_entry(self.size, self.next_segment - 1, self.sequence, first_ns, last_ns)
        return self._given(self._frame(flag, b"".join(chunks)))

    def add_entry(
        self, offset: int, segment: int, sequence: int, first_ns: int, last_ns: int
    ) -> None:
        """Note a frame of chunks for the trailer."""
        self.entries += _ENTRY.pack(offset, segment, sequence, first_ns, last_ns)

    def last(self, record: bytes) -> bytes:
        """The LAST frame and its locator. Afterwards only a new segment can go on."""
        locator = Locator(self.segments[-1], self.size, self.sequence)
        trailer = Trailer(self.segments, np.frombuffer(bytes(self.entries), ENTRY), record)
        frame = self._frame(LAST, trailer.serialize())
        self._key = None
        return self._given(b"".join((frame, locator.serialize())))

    def _frame(self, flag: int, plain: bytes) -> memoryview:
        assert self._key is not None
        frame = self._key.seal(self.sequence, flag, plain)
        self.sequence += 1
        return frame

    def _given(self, data: Sealed) -> Sealed:
        self.size += len(data)
        self.digest.update(data)
        return data


def _nonce(sequence: int, flag: int) -> bytes:
    return sequence.to_bytes(11, "big") + bytes((flag,))


def _extract(salt: bytes, dek: bytes) -> bytes:
    """RFC 5869 §2.2 with SHA-256."""
    return hmac.digest(salt, dek, "sha256")


def _expand(prk: bytes, info: bytes) -> bytes:
    """RFC 5869 §2.3 for 32 bytes, which with SHA-256 is one block."""
    return hmac.digest(prk, info + b"\x01", "sha256")
