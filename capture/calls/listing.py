"""How a call lists a stream: who speaks, what its payload types mean, where it is stored.

Source: RFC 3264 §5.1. Which call it is: capture.calls.attachment.
"""

from msgspec.structs import replace

from capture.calls.association import OTHER, Match
from capture.calls.livecall import LiveCall
from capture.model import NewStream
from spanvault.media.payloadtypes import STATIC, VIDEO_STATIC
from spanvault.messages import Codec, MediaKind, Stream


def add_stream(match: Match, heard: NewStream) -> None:
    """List a stream in the match's call."""
    codecs = named_codecs(match)
    if heard.payload_type in STATIC:
        codecs.setdefault(heard.payload_type, STATIC[heard.payload_type])
    named = match.to or match.from_
    match.call.streams.append(
        Stream(
            number=len(match.call.streams),
            party=match.speaker,
            media=named.kind if named else guess(heard.payload_type),
            ssrc=heard.ssrc,
            source=str(heard.source),
            destination=str(heard.destination),
            codecs=codecs,
            orientation=named.orientation if named else 0,
            first_ns=heard.time_ns,
            last_ns=heard.time_ns,
        )
    )
    match.call.rows.append(heard.row)


def add_joined(known: Stream, row: int | None, kept: LiveCall, match: Match, there: bool) -> Stream:
    """List a stream of a recording without signalling in the call that it turned out to be.

    there: whether it runs as the stream that the match is about does, not back.
    """
    call, named = match.call, match.to or match.from_
    listed = replace(
        known,
        number=len(call.streams),
        party=match.speaker if there else OTHER[match.speaker],
        media=named.kind if named else known.media,
        codecs={**known.codecs, **named_codecs(match)},
        payload_types=dict(known.payload_types),
        stored_in=kept.id,
        stored_as=known.number,
    )
    call.streams.append(listed)
    call.rows.append(row)
    return listed


def named_codecs(match: Match) -> dict[int, Codec]:
    """What payload types mean: the receiver's description says what they do to it."""
    codecs: dict[int, Codec] = {}
    for binding in (match.from_, match.to):
        codecs |= binding.codecs if binding else {}
    return codecs


def guess(payload_type: int) -> MediaKind:
    """What a stream is of which nothing but its packets is known."""
    return "video" if payload_type in VIDEO_STATIC else "audio"


def differ(one: Codec | None, other: Codec | None) -> bool:
    """Whether two meanings of a payload type sound different."""
    if one is None or other is None:
        return False
    return (one.name.lower(), one.clock_rate) != (other.name.lower(), other.clock_rate)
