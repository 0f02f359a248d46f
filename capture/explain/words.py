"""Messages and decisions in words: what an administrator reads beside each arrow."""

import ipaddress
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from capture.calls.association import BOTH, DESTINATION, Match
from capture.calls.livecall import Binding, LiveCall
from capture.calls.witness import Decision
from capture.model import Datagram
from capture.signalling.dialog import Event, State
from capture.signalling.offer_answer import Role, Side
from capture.signalling.sdp import Media
from capture.signalling.sip import SipMessage
from spanvault.messages import Codec

LABEL: Final = 120  # characters of a start line that are shown
SECOND_NS: Final = 1_000_000_000

MOVES: Final[dict[State, str]] = {
    State.PROCEEDING: "the call is under way",
    State.CHALLENGED: "refused in a way that asks for another INVITE: that will be the same call",
    State.CANCELLING: "the caller gives up; the final reply is awaited",
    State.CONFIRMED: "answered",
}
CLOSED: Final = {
    "ended": "takes no packets from {at} on: its call ended, and the grace after BYE with it",
    "taken": "takes no packets from {at} on: another call was given its addresses",
    "recoded": "ends at {at}: its payload type means another codec from then on",
    "joined": "ends at {at}: it was kept without signalling until then, and is this call's",
    "moved": "ends at {at}: another call names both of its ends, this one only its source",
}
NO_CALL: Final = {
    "late": "a late copy of a message of a call that is over",
    "call_id_abused": "so many calls bear this Call-ID that it can only be an attack",
    "no_dialog": "begins no call, and proves none",
}


def clock(time_ns: int) -> str:
    """A time of the capture, UTC to the millisecond."""
    moment = datetime.fromtimestamp(time_ns // SECOND_NS, UTC)
    return f"{moment:%H:%M:%S}.{time_ns % SECOND_NS // 1_000_000:03d}"


def start_line(datagram: Datagram, message: SipMessage) -> str:
    """A message in a few words: method and URI, or status and reason."""
    if message.is_request:
        return f"{message.method} {message.uri}"[:LABEL]
    line = datagram.payload[: 4 * LABEL].lstrip(b"\r\n").splitlines()[0]
    reason = line.decode("utf-8", "replace").strip().partition(" ")[2].strip()
    return f"{reason} ({message.method})"[:LABEL]


def description(media: list[Media]) -> str:
    """A session description in one line; keys are not shown."""
    return "; ".join(map(_line, media)) or "no media"


def _line(media: Media) -> str:
    if not media.accepted:
        return f"{media.kind or 'a line'} refused (port 0)"
    where = f"{_host(media)}:{media.port}"
    codecs = " ".join(map(codec_name, media.codecs.values())) or media.protocol
    direction = [] if media.direction == "sendrecv" else [media.direction]
    return " ".join([media.kind, where, codecs, *direction, *_protection(media)])


def _host(media: Media) -> str:
    return "?" if media.address is None else address(media.address)


def _protection(media: Media) -> list[str]:
    found = {"SDES": media.crypto, "DTLS": media.fingerprint, "ZRTP": media.zrtp}
    return [name for name, holds in found.items() if holds]


def address(packed: bytes) -> str:
    """An IP address as an endpoint shows it."""
    text = str(ipaddress.ip_address(packed))
    return f"[{text}]" if ":" in text else text


def codec_name(codec: Codec | None) -> str:
    """As rtpmap has it."""
    return f"{codec.name}/{codec.clock_rate}" if codec else "unknown"


def sentence(decision: Decision, call: LiveCall | None, facts: dict[str, Any]) -> str:
    """A decision about a message; "" where there is nothing to say."""
    found = SENTENCES.get(decision)
    return found(call, **facts) if found else ""


def _begins(_: LiveCall | None, mid_call: bool) -> str:
    if mid_call:
        return "a call first heard in its midst: its INVITE is not in the capture"
    return "a new call: an INVITE outside any dialog"


def _moved(call: LiveCall | None, event: Event, before: State, after: State) -> str:
    if after is before:
        if event is Event.INVITE and after is State.CONFIRMED:
            return "a re-INVITE: the call goes on"
        return ""
    if after is State.TERMINATED and call is not None:
        return f"the call is over: {call.dialog.outcome}, by {call.dialog.end_reason}"
    return MOVES.get(after, "")


def _described(
    _: LiveCall | None, side: Side, role: Role, reoffer: bool, media: list[Media]
) -> str:
    again = "new " if reoffer else ""
    if role == "offer":
        return f"{again}offer of the {side} recorded"
    agreed = [codec_name(next(iter(line.codecs.values()))) for line in media if line.codecs]
    return f"{again}answer of the {side} to the offer: {', '.join(agreed) or 'no codec'}"


def _bound(_: LiveCall | None, binding: Binding, new: bool) -> str:
    if not new:
        return ""
    until = "on" if binding.until_ns is None else f"until {clock(binding.until_ns)}"
    return (
        f"media map: the {binding.party} receives {binding.kind} at {binding.endpoint} "
        f"from {clock(binding.since_ns)} {until}"
    )


def _unbound(_: LiveCall | None, binding: Binding) -> str:
    return f"media map: {binding.endpoint} was refused (port 0), nothing will be sent there"


def _not_bound(_: LiveCall | None, media: Media) -> str:
    if not media.accepted:
        why = "it is refused (port 0)"
    elif media.nowhere:
        why = "the address 0.0.0.0 says: send nothing (hold)"
    elif media.address is None:
        why = "its address is a name or is missing, and a listener cannot look it up"
    elif media.kind == "image":
        why = "T.38 is no RTP and is not recorded"
    else:
        why = f"{media.protocol or 'this'} is no RTP"
    return f"media map: no entry for {media.kind or 'a line'}, {why}"


SENTENCES: Final[dict[Decision, Callable[..., str]]] = {
    Decision.NO_CALL: lambda _, why: NO_CALL[why],
    Decision.BEGINS: _begins,
    Decision.MOVED: _moved,
    Decision.OTHER_BRANCH: lambda _: "one branch of a forking proxy failed: the call goes on",
    Decision.OTHER_DIALOG: lambda _: "one of several answered forks parts: the call goes on",
    Decision.SDP_UNREADABLE: lambda _, fault: f"its session description is unreadable: {fault}",
    Decision.SDP_OUT_OF_PLACE: lambda _: (
        "such a message carries neither offer nor answer (RFC 6337): its SDP is ignored"
    ),
    Decision.DESCRIBED: _described,
    Decision.BOUND: _bound,
    Decision.UNBOUND: _unbound,
    Decision.NOT_BOUND: _not_bound,
    Decision.HELD: lambda _, held: "on hold" if held else "resumed: no longer on hold",
    Decision.SIPREC: lambda _, told: (
        "SIPREC: a recording client's leg; it recorded "
        + ", ".join(f"{each.aor or each.name} ({each.party})" for each in told.participants)
    ),
    Decision.SIPREC_UNREADABLE: lambda _, fault: f"SIPREC metadata is unreadable: {fault}",
    Decision.RELATED: lambda _, kind, call_id: f"belongs with call {call_id} ({kind})",
    Decision.EXPIRED: lambda _, **__: "given up: nothing was heard of it for too long",
    Decision.STOPPED: lambda _, reason: f"ended by the capture: {reason}",
    Decision.AMBIGUOUS: lambda _: (
        "no SDP was heard, and several streams run between its hosts: none is taken"
    ),
}


def attached(match: Match, waited_ns: int) -> str:
    """Why a stream is a call's. waited_ns: how long it was heard before its signalling was."""
    if match.to is None and match.from_ is None:
        why = "no SDP was heard, and it is the only stream this way between the call's two hosts"
    elif match.score == BOTH:
        why = "SDP names both of its ends"
    elif match.score == DESTINATION:
        why = "SDP names where it goes; its source is not named (NAT, or symmetric RTP)"
    else:
        why = "SDP names where it comes from; where it goes is not named (NAT)"
    late = f"; its SDP came {waited_ns / 1e9:.1f} s after its first packet" if waited_ns > 0 else ""
    return f"attached, the {match.speaker} speaks: {why}{late}"


def closed(at_ns: int, why: str) -> str:
    """Why a stream ends for a call."""
    return CLOSED[why].format(at=clock(at_ns))
