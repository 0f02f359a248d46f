"""What payload types mean: those that are fixed, those that are no sound, and what RED carries.

Shared by capture (records), the call's line and the rendering of sound.
Sources: RFC 3551 §6 (static payload types), RFC 2198 §5 (RED's parameters), RFC 4733, RFC 3389,
RFC 5109 (FEC).
"""

from collections.abc import Mapping
from typing import Final

from spanvault.messages import Codec, Stream

STATIC: Final[dict[int, Codec]] = {
    0: Codec("PCMU", 8000), 3: Codec("GSM", 8000), 4: Codec("G723", 8000),
    5: Codec("DVI4", 8000), 6: Codec("DVI4", 16000), 7: Codec("LPC", 8000),
    8: Codec("PCMA", 8000), 9: Codec("G722", 8000), 10: Codec("L16", 44100, 2),
    11: Codec("L16", 44100), 12: Codec("QCELP", 8000), 13: Codec("CN", 8000),
    14: Codec("MPA", 90000), 15: Codec("G728", 8000), 16: Codec("DVI4", 11025),
    17: Codec("DVI4", 22050), 18: Codec("G729", 8000), 19: Codec("CN", 8000),
    25: Codec("CelB", 90000), 26: Codec("JPEG", 90000), 28: Codec("nv", 90000),
    31: Codec("H261", 90000), 32: Codec("MPV", 90000), 33: Codec("MP2T", 90000),
    34: Codec("H263", 90000),
}  # fmt: skip
VIDEO_STATIC: Final = frozenset({25, 26, 28, 31, 32, 33, 34})
EVENTS: Final = frozenset({"telephone-event", "tone"})
# They ride on an audio stream without being its sound: digits, tones, comfort noise, repair.
NOT_SOUND: Final = EVENTS | {"cn", "rtx"}
FEC: Final = "fec"  # in all names of the formats of forward error correction, and in no codec's


def meaning(stream: Stream, number: int) -> Codec | None:
    """What a payload type means in a stream: as its signalling says, else as it is fixed."""
    return stream.codecs.get(number) or STATIC.get(number)


def is_event(codec: Codec) -> bool:
    """Whether packets are telephone events or tones: what was dialled, RFC 4733."""
    return codec.name.lower() in EVENTS


def is_fec(codec: Codec) -> bool:
    """Whether packets only repair others: RFC 5109 (ulpfec), 8627 (flexfec), 3009 (parityfec)."""
    return FEC in codec.name.lower()


def is_sound(codec: Codec) -> bool:
    """Whether packets are sound or pictures themselves, known to us or not."""
    return codec.name.lower() not in NOT_SOUND and not is_fec(codec)


def is_red(codec: Codec) -> bool:
    """Whether packets are wrapped with copies of earlier ones: RFC 2198."""
    return codec.name.lower() == "red"


def primary(codec: Codec, codecs: Mapping[int, Codec]) -> Codec:
    """What is heard in a codec: of RED the first payload type of its fmtp, else itself.

    Phones that say RED and no more mean by it the codec that they prefer.
    """
    if not is_red(codec):
        return codec
    number = codec.parameters.strip().partition("/")[0].strip()
    if number.isascii() and number.isdigit():
        within = codecs.get(int(number[:4])) or STATIC.get(int(number[:4]))
        return within if within is not None and not is_red(within) else codec
    alike = (one for one in codecs.values() if one.clock_rate == codec.clock_rate)
    sounds = (one for one in alike if is_sound(one) and not is_red(one))
    return codec if number else next(sounds, codec)
