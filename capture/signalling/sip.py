"""SIP messages as the dialogs need them: one pass over the headers, the rest typed on demand.

sipmessage types each header; what it refuses is salvaged here, so that one bad byte never loses a
call and a damaged header spoils only itself. Arbitrary bytes raise ValueError and nothing else.
Sources: RFC 3261 §7, §18.3, §20, §25; RFC 3515 (Refer-To), 3891 (Replaces), 3326 (Reason),
2046 §5.1 (multipart); RFC 4475 for what must be survived. Bodies: capture.signalling.sdp.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from urllib.parse import unquote

from capture.signalling.cached import cached
from capture.signalling.salvage import salvage_address, salvage_cseq, salvage_parameters

MAX_SIZE: Final = 128 << 10
MAX_HEADERS: Final = 256
MAX_VALUE: Final = 4096  # characters of one header; patterns that search it take n² at worst
MAX_CALL_ID: Final = 1024
MAX_USER: Final = 256
MAX_PARTS: Final = 16
SDP: Final = frozenset({"application/sdp"})
METADATA: Final = frozenset({"application/rs-metadata+xml", "application/rs-metadata"})

COMPACT: Final = {
    "i": "call-id", "f": "from", "t": "to", "v": "via", "m": "contact", "l": "content-length",
    "c": "content-type", "r": "refer-to", "b": "referred-by", "e": "content-encoding",
}  # fmt: skip
# As nearly everybody writes them: what is found here need not be typed.
COMMON: Final = (
    "Accept", "Allow", "Authorization", "Call-ID", "Contact", "Content-Length", "Content-Type",
    "CSeq", "Date", "Expires", "From", "Max-Forwards", "Min-SE", "P-Asserted-Identity", "Privacy",
    "Proxy-Authorization", "Reason", "Record-Route", "Require", "Route", "Server",
    "Session-Expires", "Supported", "Timestamp", "To", "User-Agent", "Via",
)  # fmt: skip
_NAMES: Final = {name: name.lower() for name in COMMON} | COMPACT
_METHOD: Final = re.compile(r"[A-Za-z0-9.!%*_+`'~-]{1,64}")
_STATUS: Final = re.compile(r"SIP/2\.0[ \t]+(\d{3})(?:[ \t](.*))?", re.I)
_HEAD_END: Final = re.compile(rb"\r\n\r\n|\n\r?\n|\r\r")
_FOLD: Final = re.compile(r"\r?\n[ \t]+")
_BRANCH: Final = re.compile(r";\s*branch\s*=\s*([^;,\s]+)", re.I)
_VIA_TRANSPORT: Final = re.compile(r"SIP\s*/\s*2\.0\s*/\s*(\w+)", re.I)
_FOCUS: Final = re.compile(r";\s*isfocus\b", re.I)
_ASKED_FOR: Final = re.compile(r";\s*method\s*=\s*([a-z]+)")
# Nobody asks for a display name; inside its quotes "<" and ";" mean nothing (RFC 3261 §25.1).
_DISPLAY: Final = re.compile(r'\s*"(?:[^"\\]|\\.)*+"\s*(?=<)')
# A From or To as nearly everybody writes it, in which nothing is escaped or meant otherwise: typed
# by sipmessage it gives the very same (tested there), at twenty times the cost.
_LABELS: Final = r"(?:[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*\.)*[A-Za-z]+"
_ADDRESS: Final = re.compile(
    r'(?:"[^"\\]*" ?|[A-Za-z0-9._ -]*)'
    rf"<(sips?:(?:([A-Za-z0-9+._-]+)@)?([0-9]{{1,3}}(?:\.[0-9]{{1,3}}){{3}}|{_LABELS})"
    r"(?::[1-9][0-9]{0,4})?(?:;(?!self[=>])[a-z]+(?:=[A-Za-z0-9.-]+)?)?)>"
    r"(?:;tag=([A-Za-z0-9._~*+-]+))?"
)
_CSEQ: Final = re.compile(r"([0-9]{1,9}) ([A-Z]+)")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# sipmessage hands parameter names on as keywords: one called "self" is a TypeError there.
_REFUSED: Final = (ValueError, TypeError)
_CAUSE: Final = re.compile(r"Q\.850\s*;[^,]*?cause\s*=\s*(\d{1,3})", re.I)


class Party(NamedTuple):
    """From or To: who, where, and the dialog tag ("" where there is none)."""

    user: str  # user part of the URI, or its host where there is none
    tag: str
    uri: str


class Replaces(NamedTuple):
    """The dialog that another one takes the place of: RFC 3891 §6.1."""

    call_id: str
    to_tag: str
    from_tag: str


@dataclass(frozen=True)
class SipMessage:
    """One request or response. Header names are lower-case and long; values as received."""

    method: str  # of the request, or the one that a response answers
    status: int | None
    uri: str  # Request-URI, "" in a response
    call_id: str
    cseq: int
    headers: dict[str, list[str]] = field(repr=False)
    body: bytes = field(repr=False)
    cut: bool = False  # the capture's snap length left only the beginning of it

    def first(self, name: str) -> str | None:
        """The first value of a header, or None."""
        values = self.headers.get(name)
        return values[0] if values else None

    @property
    def is_request(self) -> bool:
        """Requests have no status."""
        return self.status is None

    @cached
    def from_(self) -> Party:
        """From; all empty where it is missing or beyond repair."""
        return parse_party(self.first("from") or "")

    @cached
    def to(self) -> Party:
        """To; all empty where it is missing or beyond repair."""
        return parse_party(self.first("to") or "")

    @cached
    def request_user(self) -> str:
        """The user in the Request-URI: what was dialled; "" where there is none."""
        return (
            parse_party(f"<{self.uri}>").user if "@" in self.uri or self.uri[:4] == "tel:" else ""
        )

    @cached
    def branch(self) -> str:
        """The topmost Via's branch, which names the transaction on this hop."""
        found = _BRANCH.search(self.first("via") or "")
        return found[1] if found else ""

    @cached
    def replaces(self) -> Replaces | None:
        """Replaces: this INVITE takes another dialog's place."""
        value = self.first("replaces")
        return parse_replaces(value) if value else None

    @cached
    def join(self) -> Replaces | None:
        """Join: this INVITE makes another dialog a conference (RFC 3911)."""
        value = self.first("join")
        return parse_replaces(value) if value else None

    @property
    def focus(self) -> bool:
        """Whether who sends it mixes a conference: RFC 4579 §4.1."""
        return _FOCUS.search(self.first("contact") or "") is not None

    @cached
    def transfers(self) -> bool:
        """Whether a REFER asks for a call, and not for another method, a list or a page."""
        value = (self.first("refer-to") or "").lower()
        uri = (value.partition("<")[2] or value).lstrip()
        method = _ASKED_FOR.search(value)
        called = method is None or method[1] == "invite"
        return called and not uri.startswith(("cid:", "http:", "https:"))

    @cached
    def refer_to(self) -> Party | None:
        """Where a REFER sends the other party."""
        value = self.first("refer-to")
        return parse_party(value) if value else None

    @cached
    def refer_replaces(self) -> Replaces | None:
        """The dialog to be replaced, from the header part of the Refer-To URI."""
        found = re.search(r"[?&]replaces=([^&>\s]+)", self.first("refer-to") or "", re.I)
        return parse_replaces(unquote(found[1], errors="replace")) if found else None

    @cached
    def secure(self) -> bool:
        """Whether some hop of this message goes over TLS: part of the signalling may be unseen."""
        hops = [_VIA_TRANSPORT.search(value) for value in self.headers.get("via", [])]
        return self.uri.lower().startswith("sips:") or any(
            hop is not None and hop[1].upper() in ("TLS", "WSS") for hop in hops
        )

    @cached
    def cause(self) -> int | None:
        """The Q.850 cause of a Reason header: RFC 3326 §2."""
        found = _CAUSE.search(self.first("reason") or "")
        return int(found[1]) if found else None

    @cached
    def sdp(self) -> bytes | None:
        """The session description, also out of a multipart body; None where there is none."""
        found = _find(SDP, self.first("content-type") or "", self.body)
        return _whole_words(found) if found and self.cut else found

    @cached
    def recording_metadata(self) -> bytes | None:
        """What a session recording client says of the recorded session: RFC 7865 §5."""
        return None if self.cut else _find(METADATA, self.first("content-type") or "", self.body)


def parse(payload: bytes, *, datagram: bool = True, cut: bool = False) -> SipMessage:
    """One message. datagram: the body may end before Content-Length, as UDP is cut short.

    cut: the capture holds only its beginning; what stands whole in it is read.
    Raises ValueError, naming the fault: keep-alives, other protocols, no Call-ID, no method.
    """
    if len(payload) > MAX_SIZE:
        raise ValueError(f"SIP message of {len(payload)} bytes")
    payload = payload.lstrip(b"\r\n")
    if not payload.strip(b"\0 \t\r\n"):
        raise ValueError("SIP keep-alive")
    end = _HEAD_END.search(payload)
    head, body = (payload, b"") if end is None else (payload[: end.start()], payload[end.end() :])
    if cut and end is None:
        head = head[: head.rfind(b"\n") + 1]  # half a Call-ID would be another call's
    lines = _lines(head)
    method, status, uri = _start_line(next(lines, ""))
    headers = _headers(lines)
    call_id = bounded_call_id(headers.get("call-id", [""])[0])
    if not call_id:
        raise ValueError("SIP message without Call-ID")
    number, cseq_method = _cseq(headers.get("cseq", [""])[0])
    method = method or cseq_method
    if not method:
        raise ValueError("SIP response without a method in CSeq")
    body = _body(body, headers.get("content-length", [""])[0], datagram)
    return SipMessage(method, status, uri, call_id, number, headers, body, cut)


def _lines(head: bytes) -> Iterator[str]:
    """Header lines, unfolded. Bytes that are not UTF-8 are kept as Latin-1 would read them."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        text = head.decode("latin-1")
    if "\n " in text or "\n\t" in text:
        text = _FOLD.sub(" ", text)
    return iter(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))


def _start_line(line: str) -> tuple[str, int | None, str]:
    """Method ("" in a response), status (None in a request), Request-URI. Raises ValueError."""
    if found := _STATUS.match(line):
        status = int(found[1])
        if not 100 <= status <= 699:
            raise ValueError(f"SIP status {status}")
        return "", status, ""
    line = line.rstrip()
    if line[-8:].upper() not in (" SIP/2.0", "\tSIP/2.0"):
        raise ValueError("neither a SIP request nor a response")
    method, _, uri = line[:-8].strip().partition(" ")
    if not uri or not _METHOD.fullmatch(method):
        raise ValueError("SIP request line without method or URI")
    return method, None, uri.strip().strip("<>")


def _headers(lines: Iterator[str]) -> dict[str, list[str]]:
    headers: dict[str, list[str]] = {}
    for count, line in enumerate(lines):
        if count >= MAX_HEADERS:
            break
        name, colon, value = line.partition(":")
        if not colon:
            continue
        name = _NAMES.get(name) or _long_name(name)
        value = value[:MAX_VALUE].strip()
        if name in headers:
            headers[name].append(value)
        else:
            headers[name] = [value]
    return headers


def _long_name(name: str) -> str:
    name = name.strip().lower()
    return COMPACT.get(name, name)


def _cseq(value: str) -> tuple[int, str]:
    """(number, method), as far as they can be read: (0, "") at worst."""
    if plainly := _CSEQ.fullmatch(value):
        return int(plainly[1]), plainly[2]
    from sipmessage import CSeq  # loaded by those alone who need it: it takes a while

    try:
        cseq = CSeq.parse(value)
    except ValueError as error:
        _let_go(error)
        return salvage_cseq(value)
    return min(cseq.sequence, 0xFFFFFFFF), cseq.method


def _body(body: bytes, content_length: str, datagram: bool) -> bytes:
    """RFC 3261 §18.3: bytes behind Content-Length are not the message's; a datagram may be cut."""
    if not (content_length.isascii() and content_length.isdigit()):
        return body
    length = int(content_length[:9])
    if length > len(body) and not datagram:
        raise ValueError(f"SIP body of {length} bytes, {len(body)} are there")
    return body[:length]


def parse_party(value: str) -> Party:
    """From, To and their like; what cannot be read of it is empty."""
    if found := _ADDRESS.fullmatch(value):
        uri, user, host, tag = found.groups("")
        return Party((user or host)[:MAX_USER], tag, uri)
    return _typed_party(value)


def _typed_party(value: str) -> Party:
    """By the grammar, or as much of it as can be salvaged."""
    from sipmessage import Address

    if quoted := _DISPLAY.match(value):
        value = value[quoted.end() :]
    try:
        address = Address.parse(value)
    except _REFUSED as error:
        _let_go(error)
        user, tag, text = salvage_address(value)
        return Party(plain(user), tag, text)
    tag = address.parameters.get("tag") or ""
    uri = address.uri
    # RFC 3261 §19.1.6: behind a semicolon in the user part come a telephone number's parameters.
    user = uri.user.partition(";")[0] if uri.user else uri.host
    return Party(plain(user), tag, str(uri))


def _let_go(error: Exception) -> None:
    """sipmessage raises the same object each time, and its traceback would keep every caller."""
    error.__traceback__ = error.__context__ = None


def plain(user: str) -> str:
    """A name for people's eyes: no control characters (escapes may hide any), not endless."""
    return _CONTROL.sub("", user)[:MAX_USER]


def bounded_call_id(call_id: str) -> str:
    """A Call-ID, or what stands for one that is too long: its beginning and a digest of it all.

    RFC 3261 bounds none; nobody writes one of more than some 100 characters but to harm.
    """
    if len(call_id) <= MAX_CALL_ID:
        return call_id
    digest = hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{call_id[: MAX_CALL_ID - len(digest) - 1]}…{digest}"


def parse_replaces(value: str) -> Replaces | None:
    """A Replaces value, or None if it names no dialog."""
    from sipmessage import Parameters

    call_id, _, rest = value.partition(";")
    try:
        parameters: dict[str, str | None] = dict(Parameters.parse(";" + rest)) if rest else {}
    except _REFUSED as error:
        _let_go(error)
        parameters = salvage_parameters(rest)
    call_id = bounded_call_id(call_id.strip())
    if not call_id:
        return None
    return Replaces(call_id, parameters.get("to-tag") or "", parameters.get("from-tag") or "")


def _find(wanted: frozenset[str], content_type: str, body: bytes, depth: int = 0) -> bytes | None:
    """The part of a body that is of a wanted type; it may be the body itself."""
    kind = content_type.partition(";")[0].strip().lower()
    if not body.strip() or depth > 3:
        return None
    if kind in wanted:
        return body
    if not kind:
        # No Content-Type survived; a body that begins as a session description is one.
        return body if wanted is SDP and body.lstrip()[:3] == b"v=0" else None
    if not kind.startswith("multipart/"):
        return None
    boundary = re.search(r'boundary\s*=\s*(?:"([^"]+)"|([^\s;]+))', content_type, re.I)
    if boundary is None:
        return None
    marker = b"--" + (boundary[1] or boundary[2]).encode("utf-8", "replace")
    parts = body.split(marker, MAX_PARTS + 1)[1 : MAX_PARTS + 1]
    if kind == "multipart/alternative":
        parts.reverse()  # RFC 2046 §5.1.4: the last is best; Lync's first is for older peers
    for part in parts:
        found = _find(wanted, *_part(part), depth + 1)
        if found is not None:
            return found
    return None


def _whole_words(description: bytes) -> bytes:
    """A description without the word that was cut in two, and without half an m= line.

    Half a port would be another port; a line without one would read as rejected.
    """
    head, newline, last = description.rpartition(b"\n")
    words = last.split()[:-1]
    if words and words[0].startswith(b"m=") and len(words) < 3:
        words = []
    return head + newline + b" ".join(words)


def _part(part: bytes) -> tuple[str, bytes]:
    """Content-Type and body of one part of a multipart body."""
    part = part.lstrip(b"\r\n")
    end = _HEAD_END.search(part)
    if end is None:
        return "text/plain", b""
    headers = _headers(_lines(part[: end.start()]))
    return headers.get("content-type", ["text/plain"])[0], part[end.end() :]
