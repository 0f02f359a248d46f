"""The process in which FFmpeg decodes: payloads in, samples out, of all streams of one call.

Started by decoding.py, which survives its death. Confinement: spanvault.sandbox.
"""

from typing import Final

import msgspec
import numpy as np

from spanvault import sandbox
from spanvault.audio.codecs import open_decoder
from spanvault.audio.foreign import Decoder, decode_all
from spanvault.audio.plain import SILENCE
from spanvault.messages import Codec

REFUSED: Final = -1


class Payloads(msgspec.Struct, array_like=True):
    """Payloads of one stream that follow each other, all of one codec.

    missing: how many packets were lost before each, if any were.
    """

    stream: int
    codec: Codec
    payloads: list[bytes]
    missing: list[int] = []


class Sounds(msgspec.Struct, array_like=True):
    """The samples of each payload: how many, REFUSED where it is none of its codec; int16."""

    counts: list[int]
    samples: bytes


class Worker:
    """A decoder for each stream and codec, since most have a memory."""

    def __init__(self) -> None:
        self._decoders: dict[tuple[int, Codec], Decoder] = {}

    def answer(self, message: bytes) -> bytes:
        """One message of payloads to one of sounds."""
        asked = msgspec.msgpack.decode(message, type=Payloads)
        key = (asked.stream, asked.codec)
        if key not in self._decoders:
            self._decoders[key] = open_decoder(asked.codec)
        heard = decode_all(self._decoders[key], asked.payloads, asked.missing)
        counts = [REFUSED if sound is None else len(sound) for sound in heard]
        samples = np.concatenate([SILENCE, *(sound for sound in heard if sound is not None)])
        return msgspec.msgpack.encode(Sounds(counts, samples.tobytes()))


def main() -> None:
    """What the process does."""
    import av  # noqa: F401 - here: the decoders' own import finds no files to be opened any more

    sandbox.serve(Worker().answer)
