"""Which codecs can be heard, and what decodes each: one row a codec.

What has no row, or cannot be what its SDP says, gives no decoder, and so silence: noise is never
rendered. Sources: RFC 3551 §4.5, RFC 4867 §8 (AMR), RFC 3952 (iLBC), RFC 7587 (Opus), RFC 5574
(Speex). Bytes to samples: plain.py and foreign.py; where foreign code runs: decoding.py.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from spanvault.audio import aac, amr, bridging, framing, mpeg
from spanvault.audio.foreign import Amr, Decoder, EitherMode, EitherPacking, Foreign
from spanvault.audio.plain import A_LAW, MU_LAW, OFFSET_BINARY, Linear, Table
from spanvault.messages import Codec

MPEG_RATE: Final = 48000  # its frames tell each their rate, SDP only the clock's: RFC 3551 §4.5.13
RATES: Final = range(4000, 192_001)  # of a sound; what SDP says beyond that is nonsense


class Row(NamedTuple):
    """make: a decoder for a stream. foreign: it is FFmpeg's. rate: of the sound; 0: the clock's."""

    make: Callable[[Codec], Decoder]
    foreign: bool
    rate: int = 0


def fmtp(codec: Codec, name: str, default: str = "") -> str:
    """A parameter of the codec's fmtp line."""
    pairs = (part.partition("=") for part in codec.parameters.split(";"))
    found = {key.strip().lower(): value.strip() for key, _, value in pairs}
    return found.get(name, default)


def _foreign(name: str, split: framing.Split, rate: int = 0, **more: Any) -> Row:
    return Row(lambda codec: Foreign(name, rate or codec.clock_rate, split, **more), True, rate)


def _bits(count: int) -> dict[str, str]:
    """FFmpeg's option for so many bits a sample."""
    return {"bits_per_coded_sample": str(count)}


def _g726(bits: int, first: str, second: str) -> Row:

    def make(codec: Codec) -> Decoder:
        both = (
            Foreign(name, codec.clock_rate, framing.whole, options=_bits(bits))
            for name in (first, second)
        )
        return EitherPacking(*both)

    return Row(make, True)


def _ilbc(codec: Codec) -> Decoder:
    return EitherMode(first=38 if fmtp(codec, "mode") == "20" else 50)


def _speex(codec: Codec) -> Decoder:
    rate = codec.clock_rate
    return Foreign("speex", rate, framing.whole, bridge=bridging.speex(rate))


def _amr(name: str, rate: int) -> Row:
    def make(codec: Codec) -> Decoder:
        crc = fmtp(codec, "crc", "0") == "1"
        # A CRC is for octet-aligned payloads only: §8.1.
        aligned = crc or fmtp(codec, "octet-align", "0") == "1"
        wide = rate > 8000
        split = partial(amr.either, wide=wide, aligned=aligned, crc=crc)
        return Amr(name, rate, split, amr.WIDE_SID if wide else amr.NARROW_SID)

    return Row(make, True, rate)


def _aac(codec: Codec) -> Decoder:
    latm = codec.name.lower() == "mp4a-latm"
    split = aac.latm if latm else partial(aac.generic, mode=fmtp(codec, "mode").lower())
    config = aac.configuration(fmtp(codec, "config"), mux=latm)
    return Foreign("aac", codec.clock_rate, split, extradata=config)


def _mpeg(_: Codec) -> Decoder:
    return Foreign("mp3", MPEG_RATE, mpeg.Frames().split, any_rate=True)


# By the lower-case name in SDP. A new one goes here.
DECODERS: Final[dict[str, Row]] = {
    "pcmu": Row(lambda codec: Table(MU_LAW, codec), False),
    "pcma": Row(lambda codec: Table(A_LAW, codec), False),
    "l8": Row(lambda codec: Table(OFFSET_BINARY, codec), False),
    "l16": Row(lambda codec: Linear(codec, 2), False),
    "l24": Row(lambda codec: Linear(codec, 3), False),
    "dvi4": _foreign("adpcm_ima_wav", framing.dvi4, skip=1, options=_bits(4)),
    "g722": _foreign("g722", framing.whole, 16000),  # the RTP clock says 8000: RFC 3551 §4.5.2
    "g723": _foreign("g723_1", framing.g723, 8000, silence=240, bridge=bridging.G723),
    "g728": _foreign("g728", framing.every(5), 8000),
    "g729": _foreign("g729", framing.g729, 8000, silence=80, bridge=bridging.G729),
    "g729a": _foreign("g729", framing.g729, 8000, silence=80, bridge=bridging.G729),
    "gsm": _foreign("gsm", framing.every(33), 8000, bridge=bridging.AGAIN),
    "ilbc": Row(_ilbc, True, 8000),
    "speex": Row(_speex, True),
    "opus": _foreign("opus", framing.whole, 48000, bridge=bridging.OPUS),
    "mpeg4-generic": Row(_aac, True),
    "mp4a-latm": Row(_aac, True),
    "mpa": Row(_mpeg, True, MPEG_RATE),
    "amr": _amr("libopencore_amrnb", 8000),
    "amr-wb": _amr("libopencore_amrwb", 16000),
    **{f"g726-{bits * 8}": _g726(bits, "g726le", "g726") for bits in (2, 3, 4, 5)},
    **{f"aal2-g726-{bits * 8}": _g726(bits, "g726", "g726le") for bits in (2, 3, 4, 5)},
}
# What a codec's parameters may not ask for, or its clock may not be.
SPREAD: Final = ("interleaving", "robust-sorting")
SPEEX_RATES: Final = (8000, 16000, 32000)


def refusal(codec: Codec) -> str:
    """Why a codec cannot be heard; empty where it can."""
    name = codec.name.lower()
    if name not in DECODERS:
        return "cannot be decoded"
    if codec.clock_rate not in RATES or (name == "speex" and codec.clock_rate not in SPEEX_RATES):
        return f"at {codec.clock_rate} Hz cannot be"
    if name in ("mpeg4-generic", "mp4a-latm"):
        return _aac_refusal(codec)
    if name.startswith("amr"):
        for parameter in SPREAD:
            if fmtp(codec, parameter, "0") != "0":
                return f"with {parameter} cannot be decoded"
        if codec.channels > 1:
            return f"of {codec.channels} channels cannot be decoded"
    return ""


def _aac_refusal(codec: Codec) -> str:
    """AAC is told by its parameters: without them it is none, or another of MPEG-4's codecs."""
    latm = codec.name.lower() == "mp4a-latm"
    if latm and fmtp(codec, "cpresent", "1") != "0":
        return "with its configuration in band cannot be decoded"
    if not latm and fmtp(codec, "mode").lower() not in aac.MODES:
        return f"in mode {fmtp(codec, 'mode') or 'unknown'} cannot be decoded"
    try:
        aac.configuration(fmtp(codec, "config"), mux=latm)
    except ValueError:
        return "without a configuration that we know cannot be decoded"
    return ""


def decodable(codec: Codec | None) -> bool:
    """Whether its sound can be rendered."""
    return codec is not None and not refusal(codec)


def open_decoder(codec: Codec) -> Decoder:
    """A fresh decoder. Raises ValueError where this codec cannot be heard."""
    why = refusal(codec)
    if why:
        raise ValueError(f"codec {codec.name} {why}")
    return DECODERS[codec.name.lower()].make(codec)


def is_foreign(codec: Codec) -> bool:
    """Whether a decodable codec takes FFmpeg."""
    return DECODERS[codec.name.lower()].foreign


def sound_rate(codec: Codec) -> int:
    """Samples per second of the decoded sound; 0 where it cannot be decoded."""
    return 0 if refusal(codec) else DECODERS[codec.name.lower()].rate or codec.clock_rate
