"""Messages to and from ZeroMQ frames. WIRE.md is the specification; no sockets here.

Frame 1 is the protocol and its version, frame 2 the struct as MessagePack, the rest bulk bytes.
"""

import re
from collections.abc import Sequence
from typing import Any, Final, TypeVar, get_args

import msgspec
import numpy as np

from spanvault.media.chunk import CHUNK, FRAME, Media
from spanvault.messages import FromIngest, Message, Reply, Request, ToIngest

PROTOCOL: Final = b"SPANVAULT/1"
MAX_HEADER: Final = 16 << 20  # bytes of MessagePack; a batch of calls stays far below

# Faults are logged: of what a peer sent only our own words may be in them, it may be a number.
_OURS: Final = re.compile(rb"SPANVAULT/[0-9]{1,3}")
_KINDS: Final = {
    repr(kind.__struct_config__.tag)
    for union in (Request, Reply, ToIngest, FromIngest)
    for kind in get_args(union)
}
_SENT_VALUE: Final = re.compile(r"value (.*?)(?= - at |\Z)", re.DOTALL)  # as msgspec quotes it

T = TypeVar("T", bound=Message)
_encoder: Final = msgspec.msgpack.Encoder()
_request: Final[msgspec.msgpack.Decoder[Any]] = msgspec.msgpack.Decoder(Request)
_reply: Final[msgspec.msgpack.Decoder[Any]] = msgspec.msgpack.Decoder(Reply)
_to_ingest: Final[msgspec.msgpack.Decoder[Any]] = msgspec.msgpack.Decoder(ToIngest)
_from_ingest: Final[msgspec.msgpack.Decoder[Any]] = msgspec.msgpack.Decoder(FromIngest)

Buffer = bytes | memoryview


def encode(message: Message, *bulk: Any) -> list[Any]:
    """The frames of a message. bulk: anything with a contiguous buffer."""
    return [PROTOCOL, _encoder.encode(message), *bulk]


def encode_media(message: Message, media: Media) -> list[Any]:
    """The frames of a Batch or FetchReply with its media, uncopied."""
    return encode(message, byte_view(media.table), byte_view(media.frames), media.payload)


def byte_view(array: np.ndarray[Any, Any]) -> memoryview:
    """A contiguous array's bytes, uncopied. (numpy does not export void dtypes as buffers.)"""
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1).data


def decode_request(frames: Sequence[Buffer]) -> tuple[Request, list[Buffer]]:
    """A request to storaged and its bulk frames. Raises ValueError, naming the fault."""
    return _decode(_request, frames)


def decode_reply(frames: Sequence[Buffer]) -> tuple[Reply, list[Buffer]]:
    """A reply of storaged and its bulk frames. Raises ValueError, naming the fault."""
    return _decode(_reply, frames)


def decode_to_ingest(frames: Sequence[Buffer]) -> tuple[ToIngest, list[Buffer]]:
    """A capture's message and its bulk frames. Raises ValueError, naming the fault."""
    return _decode(_to_ingest, frames)


def decode_from_ingest(frames: Sequence[Buffer]) -> tuple[FromIngest, list[Buffer]]:
    """An answer to a capture. Raises ValueError, naming the fault."""
    return _decode(_from_ingest, frames)


def decode_media(bulk: Sequence[Buffer]) -> Media:
    """The three media frames behind a Batch or FetchReply, checked. Raises ValueError."""
    if len(bulk) != 3:
        raise ValueError(f"media takes 3 frames, {len(bulk)} came")
    for name, part, dtype in (("chunk table", bulk[0], CHUNK), ("frames", bulk[1], FRAME)):
        if len(part) % dtype.itemsize:
            raise ValueError(f"{name}: {len(part)} bytes are no multiple of {dtype.itemsize}")
    media = Media(np.frombuffer(bulk[0], CHUNK), np.frombuffer(bulk[1], FRAME), memoryview(bulk[2]))
    media.check()
    return media


def _without_value(fault: re.Match[str]) -> str:
    return fault[0] if fault[1] in _KINDS else "value"


def _decode(
    decoder: msgspec.msgpack.Decoder[Any], frames: Sequence[Buffer]
) -> tuple[Any, list[Buffer]]:
    if len(frames) < 2:
        raise ValueError(f"a message has at least 2 frames, {len(frames)} came")
    if bytes(frames[0]) != PROTOCOL:
        theirs = bytes(frames[0])
        named = theirs.decode() if _OURS.fullmatch(theirs) else "unknown"
        raise ValueError(f"protocol {named}, this end speaks {PROTOCOL.decode()}")
    if len(frames[1]) > MAX_HEADER:
        raise ValueError(f"message of {len(frames[1])} bytes, at most {MAX_HEADER} are taken")
    try:
        message = decoder.decode(frames[1])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"message: {_SENT_VALUE.sub(_without_value, str(error))}") from None
    return message, list(frames[2:])
