"""When a call's media was in the clear, of a call that was encrypted at other times.

Signalling says when both sides agreed to it, to within what is on its way; a packet says nothing.
What a key may open is tried first, so the bounds may be wide; what nobody can open must not be
taken for sound, so they are narrow. Who notes the spans: capture.calls.inclear. Who asks: the
export (spanvault.commands.rendering).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spanvault.messages import Call, Span

UNDER_WAY_NS: Final = 1_000_000_000  # about a change, packets of before are still on their way
FOR_EVER: Final = np.iinfo(np.int64).max


def surely(call: Call) -> list[Span]:
    """While nothing encrypted can have been sent."""
    return [
        span if span.from_ns <= call.started_ns else _moved(span, UNDER_WAY_NS, 0)
        for span in call.in_clear
    ]


def perhaps(call: Call) -> list[Span]:
    """While something in the clear can have been sent."""
    return [_moved(span, -UNDER_WAY_NS, UNDER_WAY_NS) for span in call.in_clear]


def within(spans: Sequence[Span], arrival_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which packets arrived in one of the spans. int64[n]; returns bool[n]."""
    inside = np.zeros(len(arrival_ns), np.bool_)
    for span in spans:
        until_ns = FOR_EVER if span.until_ns is None else span.until_ns
        inside |= (span.from_ns <= arrival_ns) & (arrival_ns < until_ns)
    return inside


def _moved(span: Span, begin_ns: int, end_ns: int) -> Span:
    until_ns = None if span.until_ns is None else span.until_ns + end_ns
    return Span(span.from_ns + begin_ns, until_ns)
