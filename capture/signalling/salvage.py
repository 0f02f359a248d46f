"""What can still be read of a SIP header that the grammar refuses.

A recorder cannot ask for the message to be sent again: names with odd quotes, users with spaces
and stray bytes are common in the field. Everything here takes any text and raises nothing.
Source: RFC 3261 §25.1, read with tolerance. Who falls back on it: capture.signalling.sip.
"""

import re
from typing import Final
from urllib.parse import unquote

_CSEQ: Final = re.compile(r"\s*(\d{1,10})\s*([A-Za-z]*)")
_URI: Final = re.compile(r"<([^>]*)>?")
_TAG: Final = re.compile(r";\s*tag\s*=\s*([^;,\s>]+)", re.I)
_SCHEME: Final = re.compile(r"^\s*(?:sips?|tel)\s*:\s*", re.I)
_WORDS: Final = re.compile(r"[\s:\"<>]+")
_HOST: Final = re.compile(r"\[[^\]]*\]|[^\s:;?>,]*")


def salvage_cseq(value: str) -> tuple[int, str]:
    """(number, method); 0 and "" stand for what is not there."""
    found = _CSEQ.match(value)
    return (min(int(found[1]), 0xFFFFFFFF), found[2].upper()) if found else (0, "")


def salvage_address(value: str) -> tuple[str, str, str]:
    """(user or host, tag, URI) of a From, To or Refer-To."""
    bracketed = _URI.search(value)
    if bracketed:
        uri, behind = bracketed[1], value[bracketed.end() :]
    else:
        uri, semicolon, rest = value.partition(";")
        behind = semicolon + rest
    tag = _TAG.search(behind) or _TAG.search(value)
    return salvage_user(uri), tag[1] if tag else "", uri.strip()


def salvage_user(uri: str) -> str:
    """The user part of a URI, or its host where there is none."""
    rest, schemes = _SCHEME.subn("", uri)
    user, at, host = rest.rpartition("@")
    if at and not schemes:  # a URI without its beginning: the word before the @ is left
        words = _WORDS.split(user)
        user = words[-1] or user
    if at and user:
        return unquote(user.partition(";")[0].partition(":")[0].strip(), errors="replace")
    found = _HOST.match(host.strip())
    return found[0] if found else ""


def salvage_parameters(text: str) -> dict[str, str | None]:
    """The parameters of a header, as `name=value` between semicolons."""
    parameters: dict[str, str | None] = {}
    for part in text.split(";"):
        name, equals, value = part.partition("=")
        if name.strip():
            parameters[name.strip().lower()] = value.strip() if equals else None
    return parameters
