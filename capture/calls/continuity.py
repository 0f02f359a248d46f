"""What signalling tells of a gap in time: a pause, or was the clock set that stamps arrivals?

SIP tells of a step by a reply to an INVITE that everybody had long given up.
Source: RFC 3261 table 4. What media tells: capture.media.continuity.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

from capture.calls.livecall import LiveCall
from capture.model import Datagram
from capture.signalling import sip

NOBODY_WAITS_NS: Final = 12 * 3600 * 1_000_000_000


def waited_too_long(
    calls: Iterable[LiveCall], datagrams: Iterable[Datagram], now_ns: int, gap_ns: int
) -> bool:
    """Whether what is heard behind a gap shows that it was no pause: nobody waits that long.

    So of a reply to an INVITE whose transaction would be over, and of whatever is said in a call
    after half a day. Of calls that nobody speaks of a gap says nothing: their ends were missed.
    """
    waiting = [call for call in calls if not call.over]
    late = {call.call_id for call in waiting if (call.dialog.deadline_ns() or now_ns) < now_ns}
    half_a_day = gap_ns >= NOBODY_WAITS_NS
    asked = {call.call_id for call in waiting} if half_a_day else late
    return bool(asked) and any(
        message.call_id in asked and (half_a_day or _replies(message))
        for message in _messages(datagrams)
    )


def on_hold(calls: Iterable[LiveCall]) -> list[int]:
    """Media's rows of calls on hold."""
    return [row for call in calls if call.held for row in call.rows if row is not None]


def _replies(message: sip.SipMessage) -> bool:
    return message.method == "INVITE" and message.status is not None


def _messages(datagrams: Iterable[Datagram]) -> Iterator[sip.SipMessage]:
    for datagram in datagrams:
        with suppress(ValueError):
            yield sip.parse(datagram.payload)
