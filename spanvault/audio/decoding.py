"""Payloads of a call's streams to samples, wherever that is safe to do.

Arithmetic is done here; FFmpeg's decoders run in a process of their own (worker.py). If one makes
it crash or never end, what it was given is silence, and all streams go on with a new process.
"""

from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np

from spanvault.audio.codecs import is_foreign, open_decoder
from spanvault.audio.foreign import Decoder, decode_all
from spanvault.audio.plain import SILENCE, Samples
from spanvault.audio.worker import REFUSED, Payloads, Sounds
from spanvault.messages import Codec
from spanvault.sandbox import ANSWER_S, Sandbox, SandboxDied

MODULE = "spanvault.audio.worker"
MAX_DEATHS = 5  # of one stream's decoder; each costs a second of sound and a new process


class Decoding:
    """The decoders of one call. warnings: what could not be heard, and how many packets."""

    def __init__(self, answer_s: float = ANSWER_S) -> None:
        self.warnings: Counter[str] = Counter()
        self._answer_s = answer_s
        self._plain: dict[tuple[int, Codec], Decoder] = {}
        self._deaths: Counter[tuple[int, Codec]] = Counter()
        self._sandbox: Sandbox | None = None

    def decode(
        self, stream: int, codec: Codec, payloads: list[bytes], missing: Sequence[int] = ()
    ) -> list[Samples]:
        """The sound of each payload, empty where there is none; all of one stream and codec.

        codec: a decodable one.  missing: how many packets were lost before each, if any were.
        """
        if is_foreign(codec):
            lost = list(missing) if any(missing) else []
            sounds = self._foreign(Payloads(stream, codec, payloads, lost))
        else:
            sounds = self._arithmetic(stream, codec, payloads)
        refused = sum(sound is None for sound in sounds)
        if refused:
            self.warnings[f"packets are no {codec.name}, though they say so: silence"] += refused
        return [SILENCE if sound is None else sound for sound in sounds]

    def close(self) -> None:
        """End the process, if there is one."""
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None

    def _arithmetic(self, stream: int, codec: Codec, payloads: list[bytes]) -> list[Samples | None]:
        key = (stream, codec)
        decoder = self._plain.get(key) or self._plain.setdefault(key, open_decoder(codec))
        return decode_all(decoder, payloads)

    def _foreign(self, asked: Payloads) -> list[Samples | None]:
        codec, key = asked.codec, (asked.stream, asked.codec)
        if self._deaths[key] < MAX_DEATHS:
            try:
                return self._ask(asked)
            except SandboxDied as death:
                self._deaths[key] += 1
                self._sandbox = None
                reason = str(death)
        else:
            reason = f"died {MAX_DEATHS} times"
        self.warnings[f"packets of codec {codec.name}: their decoder {reason}: silence"] += len(
            asked.payloads
        )
        return [SILENCE for _ in asked.payloads]

    def _ask(self, payloads: Payloads) -> list[Samples | None]:
        """Raises SandboxDied; a process whose answer makes no sense is ended too."""
        if self._sandbox is None:
            self._sandbox = Sandbox(MODULE, answer_s=self._answer_s)
        answer = self._sandbox.ask(msgspec.msgpack.encode(payloads))
        try:
            return _taken_apart(answer, len(payloads.payloads))
        except ValueError:
            self.close()
            raise SandboxDied("gave an answer that is none") from None


def _taken_apart(answer: bytes, wanted: int) -> list[Samples | None]:
    """Raises ValueError where the answer is not for so many payloads."""
    told = msgspec.msgpack.decode(answer, type=Sounds)
    samples = np.frombuffer(told.samples, np.int16)
    lengths = [max(count, 0) for count in told.counts]
    if len(lengths) != wanted or sum(lengths) != len(samples):
        raise ValueError("samples and counts do not fit")
    parts = np.split(samples, np.cumsum(lengths)[:-1])
    return [
        None if count == REFUSED else part for count, part in zip(told.counts, parts, strict=True)
    ]
