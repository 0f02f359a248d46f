"""Long conversations of which the signalling is missing, or comes late: RTP of two phones."""

from collections.abc import Iterable

from tests.support.callgen import SECOND, START_NS, Dialogue, Frame, Phone, rtp, sdp, udp_frame

PACKET_NS = 20_000_000


def tone(speaker: Phone, number: int) -> bytes:
    """20 ms that no other packet of any phone has."""
    return speaker.number.encode() + number.to_bytes(4, "big") + bytes(146)


def speech(
    speaker: Phone, listener: Phone, seconds: float, at: float = 0.0, first: int = 0,
    payload_type: int = 8,
) -> list[Frame]:  # fmt: skip
    """RTP from a time on. first: number of the first packet of all that the speaker sends."""
    ends = (speaker.address, speaker.rtp_port), (listener.address, listener.rtp_port)
    return [
        udp_frame(
            START_NS + round(at * SECOND) + n * PACKET_NS, *ends,
            rtp(1000 + first + n, 160 * (first + n), speaker.ssrc, tone(speaker, first + n),
                payload_type),
        )
        for n in range(round(seconds * 50))
    ]  # fmt: skip


def both(one: Phone, other: Phone, seconds: float, at: float = 0.0, first: int = 0) -> list[Frame]:
    """Both directions, in order of time."""
    there = speech(one, other, seconds, at, first)
    return sorted([*there, *speech(other, one, seconds, at + 0.007, first)])


def signalled(
    one: Phone, other: Phone, call_id: str, at: float, kinds: Iterable[str],
    media: tuple[Phone, Phone] | None = None,
) -> list[Frame]:  # fmt: skip
    """Some messages of a call, 10 ms apart. kinds: invite, reinvite, ok, okbye, ack, bye, info.

    media: whose endpoints are told, if not those of the two who signal.
    """
    words = Dialogue(one, other, call_id)
    here, there = media or (one, other)
    said = {
        "invite": lambda t: words.request(t, "INVITE", body=sdp(here)),
        "reinvite": lambda t: words.request(t, "INVITE", 2, body=sdp(here)),
        "ok": lambda t: words.response(t, "200 OK", body=sdp(there)),
        "ack": lambda t: words.request(t, "ACK"),
        "info": lambda t: words.request(t, "INFO", 2),
        "bye": lambda t: words.request(t, "BYE", 3),
        "okbye": lambda t: words.response(t, "200 OK", "3 BYE"),
    }
    start_ns = START_NS + round(at * SECOND)
    return [said[kind](start_ns + n * 10_000_000) for n, kind in enumerate(kinds)]
