"""One call attempt as the flat document that `--json` prints and tables are made of.

The same keys in `replay`, `calls` and `show`; docs/calls.md explains each, with all flags.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from spanvault.messages import Call, Codec, Stream

# Payload types that ride on an audio stream without being its sound.
NOT_SOUND = {"telephone-event", "cn"}
# Flags of a call whose payloads cannot be heard as they lie there.
ENCRYPTED = {"srtp_sdes", "srtp_dtls", "zrtp"}


def iso_utc(time_ns: int | None) -> str | None:
    """RFC 3339 in UTC with microseconds, or None."""
    if time_ns is None:
        return None
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds // 1000:06d}Z"


def main_codec(stream: Stream) -> Codec | None:
    """The codec of most of a stream's packets, events and comfort noise apart."""
    heard = sorted(stream.payload_types.items(), key=lambda item: -item[1])
    known = [stream.codecs[number] for number, _ in heard if number in stream.codecs]
    sound = [codec for codec in known if codec.name.lower() not in NOT_SOUND]
    return next(iter(sound or known), None)


def encrypted(call: Call) -> bool:
    """Whether the media was protected end to end: stored as heard, never rendered as noise."""
    return not ENCRYPTED.isdisjoint(call.flags)


def call_line(call: Call, decodable: Sequence[str]) -> dict[str, Any]:
    """The document of one call. decodable: lower-case codec names that can be rendered."""
    channels = _channels(call, () if encrypted(call) else decodable)
    return {
        "id": call.id.hex(),
        "recording_id": call.id.hex() if channels else None,
        "call_ids": call.call_ids,
        "caller": call.caller,
        "callee": call.callee,
        "started_at": iso_utc(call.started_ns),
        "answered_at": iso_utc(call.answered_ns),
        "ended_at": iso_utc(call.ended_ns),
        "outcome": call.outcome,
        "end_reason": call.end_reason,
        "flags": call.flags,
        "related": [{"kind": other.kind, "call_id": other.call_id} for other in call.related],
        "channels": channels,
    }


def _channels(call: Call, decodable: Sequence[str]) -> list[dict[str, Any]]:
    """Streams that differ only in SSRC are one channel; addresses and codec are single-valued."""
    groups: dict[tuple[str, ...], list[Stream]] = {}
    for stream in call.streams:
        if not stream.packets:
            continue
        codec = main_codec(stream)
        name = codec.name if codec else "unknown"
        key = (stream.party, stream.media, stream.source, stream.destination, name)
        groups.setdefault(key, []).append(stream)
    return [
        _channel(streams, decodable)
        for streams in sorted(groups.values(), key=lambda group: group[0].first_ns)
    ]


def _channel(streams: list[Stream], decodable: Sequence[str]) -> dict[str, Any]:
    first, codec = streams[0], main_codec(streams[0])
    name = codec.name if codec else "unknown"
    span_ns = max(s.last_ns for s in streams) - min(s.first_ns for s in streams)
    return {
        "party": first.party,
        "media": first.media,
        "codec": name,
        "clock_rate": codec.clock_rate if codec else None,
        "ssrcs": [f"{ssrc:#010x}" for ssrc in dict.fromkeys(s.ssrc for s in streams)],
        "source": first.source,
        "destination": first.destination,
        "packets": sum(s.packets for s in streams),
        "lost": sum(s.lost for s in streams),
        "duplicates": sum(s.duplicates for s in streams),
        "seconds": round(span_ns / 1e9, 3),
        "decodable": name.lower() in decodable,
    }
