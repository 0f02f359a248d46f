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
BEFORE_NS: Final = 10_000_000_000  # of a call first heard by its media, as without signalling


class Handshakes:
    """Between which endpoints keys were agreed upon, and when."""

    def __init__(self) -> None:
        self._heard: OrderedDict[frozenset[str], dict[str, int]] = OrderedDict()

    def receive(self, datagram: Datagram) -> bool:
        """Whether a datagram is of an agreement, not RTCP."""
        flag = agreed(datagram.payload)
        if flag:
            pair = frozenset((str(datagram.source), str(datagram.destination)))
            self._heard.setdefault(pair, {})[flag] = datagram.time_ns
            self._heard.move_to_end(pair)
            if len(self._heard) > MAX_PAIRS:
                self._heard.popitem(last=False)
        return bool(flag)

    def of(self, call: LiveCall) -> set[str]:
        """The flags of a call: what was agreed upon between the ends of its streams meanwhile."""
        if not self._heard:
            return set()
        midway = call.ends is not None or "started_mid_call" in call.flags
        since_ns = call.started_ns - (BEFORE_NS if midway else 0)
        until_ns = call.ended_ns
        return {
            flag
            for stream in call.streams
            for flag, at_ns in self._heard.get(
                frozenset((stream.source, stream.destination)), {}
            ).items()
            if since_ns <= at_ns and (until_ns is None or at_ns <= until_ns)
        }
