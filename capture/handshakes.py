"""Media whose keys are agreed upon on its own path: DTLS-SRTP and ZRTP, told by their bytes.

Signalling may be silent about it: it goes over TLS, or ZRTP is agreed upon without a word in SDP.
A hello proves nothing, the other may not answer; what only both together can have reached does:
DTLS that was answered, or ZRTP that was confirmed.
Sources: RFC 5764 §3, RFC 6347 §4.1, §4.3.2, RFC 6189 §5.1, §5.2. Who finds them: capture.decode.
"""

from collections import OrderedDict
from typing import Final

from capture.livecall import LiveCall
from capture.model import Datagram

MAX_PAIRS: Final = 16_384
BEFORE_NS: Final = 10_000_000_000  # of a call first heard by its media, as without signalling
ZRTP_COOKIE: Final = b"ZRTP"
ZRTP_CONFIRMED: Final = {b"Confirm1", b"Confirm2", b"Conf2ACK"}
DTLS_VERSIONS: Final = {b"\xfe\xff", b"\xfe\xfd", b"\xfe\xfc"}
CHANGE_CIPHER: Final = 20
HANDSHAKE: Final = 22
SERVER_HELLO: Final = 2


def agreed(payload: bytes) -> str:
    """The flag of a call of which this is a datagram; "" if it shows no agreement."""
    if payload[4:8] == ZRTP_COOKIE:
        return "zrtp" if payload[16:24] in ZRTP_CONFIRMED else ""
    if payload[1:3] not in DTLS_VERSIONS or len(payload) < 14:
        return ""
    answered = payload[0] == HANDSHAKE and payload[13] == SERVER_HELLO
    return "srtp_dtls" if answered or payload[0] == CHANGE_CIPHER else ""


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
