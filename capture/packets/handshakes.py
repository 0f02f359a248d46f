"""DTLS and ZRTP on a stream's own path, told by their bytes.

A hello proves nothing, the other may not answer; what only both together can have reached does:
DTLS that was answered, or ZRTP that was confirmed.
Sources: RFC 5764 §3, RFC 6347 §4.1, §4.3.2, RFC 6189 §5.1, §5.2. Whose it is:
capture.calls.handshakes.
"""

from typing import Final

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
