"""Who calls, and in which session, where From and Call-ID do not tell: on each side of a B2BUA.

A network asserts who an anonymous caller is; a B2BUA writes numbers as its own side dials them, and
hands on a name of the whole session, so that calls can be traced. What is made of it:
capture.calls.relations.
Sources: RFC 3323 §4.1 (anonymous), 3325 §9.1 (P-Asserted-Identity), 7989 (Session-ID), 7315 §4.6
(P-Charging-Vector); Remote-Party-ID: draft-ietf-sip-privacy-04; X- and vendors' own: as heard.
"""

import re
from typing import Final

from capture.signalling.sip import SipMessage, parse_party

ANONYMOUS: Final = "anonymous"
ASSERTED: Final = ("p-asserted-identity", "remote-party-id", "p-preferred-identity")
# Headers that a B2BUA hands on as they are, and the part of them that is the same on both sides.
SESSIONS: Final = {
    "session-id": re.compile(r"([0-9a-fA-F]{32})"),  # the caller's half; the other comes later
    "av-global-session-id": re.compile(r"([^\s;,]{16,128})"),
    "cisco-guid": re.compile(r"([0-9]{1,10}(?:-[0-9]{1,10}){3})"),  # four numbers of 32 bits
    "x-genesys-calluuid": re.compile(r"([^\s;,]{16,128})"),
    "x-broadworks-correlation-info": re.compile(r"([^\s;,]{16,128})"),
    "p-charging-vector": re.compile(r'(?:^|;)\s*icid-value\s*=\s*"?([^\s";,]{8,256})', re.I),
}
NIL: Final = "0" * 32  # RFC 7989 §5: not known yet
EXTENSION: Final = 4  # digits that may be the end of a longer number, at least
NATIONAL: Final = 7  # digits that are the same however a number is dialled

# Of some values the first; nothing of it could match less than it does (*+), so spaces cost little.
_FIRST: Final = re.compile(r'\s*+(?:"(?:[^"\\]|\\.)*+"\s*+|[^"<,]*+)<[^>]*>|[^,]*')


def sessions(message: SipMessage) -> list[str]:
    """Names of the session that an INVITE is part of, as any B2BUA on its way hands them on."""
    if SESSIONS.keys().isdisjoint(message.headers):
        return []
    found = []
    for name, pattern in SESSIONS.items():
        value = message.first(name)
        if value and (match := pattern.search(value)) and match[1] != NIL:
            found.append(f"{name} {match[1].lower()}")
    return found


def hidden(message: SipMessage) -> bool:
    """Whether the caller asked not to be shown: From is nobody in particular."""
    uri = message.from_.uri.lower()
    return ANONYMOUS in uri and (
        message.from_.user.lower() == ANONYMOUS or "anonymous.invalid" in uri
    )


def asserted(message: SipMessage) -> str:
    """The user that the network says is calling; "" if it does not say."""
    for name in ASSERTED:
        for value in message.headers.get(name, ()):
            first = _FIRST.match(value)
            user = parse_party(first[0] if first else value).user
            if user and user.lower() != ANONYMOUS:
                return user
    return ""


def same_number(one: str, other: str) -> bool:
    """Whether two users may be one: equal, or one number as dialled inside and outside."""
    if one == other:
        return True
    short, long = sorted((_digits(one), _digits(other)), key=len)
    return len(short) >= EXTENSION and long.endswith(short[-NATIONAL:])


def tail(user: str) -> str:
    """What is equal of all users that may be one."""
    return _digits(user)[-EXTENSION:] or user


def _digits(user: str) -> str:
    """A number without what is dialled in front of it; "" if it is a name."""
    digits = user.removeprefix("+")
    return digits.lstrip("0") if digits.isascii() and digits.isdigit() else ""
