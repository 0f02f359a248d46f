"""Calls whose keys were agreed upon on their media's own path: DTLS-SRTP and ZRTP.

Signalling may be silent about it: it goes over TLS, or ZRTP is agreed upon without a word in SDP.
What an agreement looks like: capture.packets.handshakes.
"""

from collections import OrderedDict
from typing import Final

from capture.calls.livecall import LiveCall
from capture.model import Datagram
from capture.packets.handshakes import agreed

MAX_PAIRS: Final = 16_384
APART_NS: Final = 30_000_000_000  # two agreements, not one that is made sure of
BEFORE_NS: Final = 10_000_000_000  # of a call first heard by its media, as without signalling


class Handshakes:
    """Between which endpoints keys were agreed upon, and when."""

    def __init__(self) -> None:
        # The first and the last time of each kind, of those that follow each other.
        self._heard: OrderedDict[frozenset[str], dict[str, tuple[int, int]]] = OrderedDict()

    def receive(self, datagram: Datagram) -> bool:
        """Whether a datagram is of an agreement, not RTCP."""
        flag = agreed(datagram.payload)
        if flag:
            pair = frozenset((str(datagram.source), str(datagram.destination)))
            kinds, at_ns = self._heard.setdefault(pair, {}), datagram.time_ns
            first_ns, last_ns = kinds.get(flag, (at_ns, at_ns))
            kinds[flag] = (first_ns if at_ns - last_ns < APART_NS else at_ns, at_ns)
            self._heard.move_to_end(pair)
            if len(self._heard) > MAX_PAIRS:
                self._heard.popitem(last=False)
        return bool(flag)

    def mark(self, call: LiveCall) -> None:
        """Flag a call by what was agreed upon between the ends of its streams meanwhile."""
        if not self._heard:
            return
        midway = call.ends is not None or "started_mid_call" in call.flags
        since_ns = call.started_ns - (BEFORE_NS if midway else 0)
        until_ns = call.ended_ns
        for stream in call.streams:
            pair = frozenset((stream.source, stream.destination))
            for flag, (first_ns, last_ns) in self._heard.get(pair, {}).items():
                if since_ns <= last_ns and (until_ns is None or first_ns <= until_ns):
                    call.flags.add(flag)
                    call.in_clear.seal(max(first_ns, since_ns))
