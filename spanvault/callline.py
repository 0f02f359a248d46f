"""One call attempt as the flat document that `--json` prints and tables are made of.

The same keys in `replay`, `calls` and `show`; docs/calls.md explains each, with all flags.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from spanvault.media.chunk import EVENTS
from spanvault.media.payloadtypes import is_sound, primary
from spanvault.messages import Call, Codec, FarEnd, Stream

# Flags of a call whose payloads cannot be heard as they lie there.
ENCRYPTED = {"srtp_no_key", "srtp_dtls", "zrtp"}


def iso_utc(time_ns: int | None) -> str | None:
    """RFC 3339 in UTC with microseconds, or None."""
    if time_ns is None:
        return None
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds // 1000:06d}Z"


def main_codec(stream: Stream) -> Codec | None:
    """The codec of most of a stream's packets, events and noise apart; of RED, the inner one."""
    heard = sorted(stream.payload_types.items(), key=lambda item: -item[1])
    known = [
        primary(stream.codecs[number], stream.codecs)
        for number, _ in heard
        if number in stream.codecs
    ]
    sound = [codec for codec in known if is_sound(codec)]
    return next(iter(sound or known), None)


def encrypted(call: Call) -> bool:
    """Whether no key to the media was heard: stored as heard, never rendered as noise."""
    return not ENCRYPTED.isdisjoint(call.flags)


Decodable = Callable[[Codec | None], bool]  # whether a codec can be rendered


def call_line(call: Call, decodable: Decodable) -> dict[str, Any]:
    """The document of one call."""
    dialled = {one.number - EVENTS: one.packets for one in call.beside if one.media == "events"}
    channels = _channels(call, dialled, (lambda _: False) if encrypted(call) else decodable)
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
        "siprec": msgspec.to_builtins(call.siprec),
        "channels": channels,
        "expires_at": iso_utc(call.expires_ns),
    }


def _channels(call: Call, dialled: Mapping[int, int], decodable: Decodable) -> list[dict[str, Any]]:
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
        _channel(streams, dialled, decodable)
        for streams in sorted(groups.values(), key=lambda group: group[0].first_ns)
    ]


def _channel(
    streams: list[Stream], dialled: Mapping[int, int], decodable: Decodable
) -> dict[str, Any]:
    first, codec = streams[0], main_codec(streams[0])
    name = codec.name if codec else "unknown"
    span_ns = max(s.last_ns for s in streams) - min(s.first_ns for s in streams)
    return {
        "party": first.party,
        "media": first.media,
        "codec": name,
        "clock_rate": codec.clock_rate if codec else None,
        "ssrcs": [f"{ssrc:#010x}" for ssrc in dict.fromkeys(s.ssrc for s in streams)],
        "lost_fork": first.lost_fork,
        "source": first.source,
        "destination": first.destination,
        "packets": sum(s.packets for s in streams),
        "lost": sum(s.lost for s in streams),
        "duplicates": sum(s.duplicates for s in streams),
        "events": sum(dialled.get(s.number, 0) for s in streams),
        "seconds": round(span_ns / 1e9, 3),
        "decodable": decodable(codec),
        "far_end": _far_end([s.far_end for s in streams if s.far_end], codec),
        "bye_at": iso_utc(max((s.bye_ns for s in streams if s.bye_ns), default=None)),
    }


def _far_end(told: list[FarEnd], codec: Codec | None) -> dict[str, Any] | None:
    """What RTCP reported of a channel's streams, together."""
    if not told:
        return None
    rate = codec.clock_rate if codec else 8000
    trips = sum(one.round_trips for one in told)
    total_ms = sum((one.round_trip_ms or 0.0) * one.round_trips for one in told)
    return {
        "reports": sum(one.reports for one in told),
        "lost": sum(one.lost for one in told),
        "worst": round(max(one.worst for one in told), 3),
        "jitter_ms": round(1000 * max(one.jitter for one in told) / rate, 1),
        "round_trip_ms": round(total_ms / trips, 1) if trips else None,
    }
