"""Session descriptions: which media, where to, in which codecs, how protected.

Only what a recorder needs is read; a line that makes no sense spoils itself, not the description.
Sources: RFC 8866; RFC 3605 (rtcp), 5761 (rtcp-mux), 4568 (crypto), 4574 (label), 5763
(fingerprint), 6189 (zrtp-hash), 8839 (candidate), 8840 §4.1.1 (none yet), 3264 §6 (port 0), §8.4
(hold). Who means what by it: capture.signalling.offer_answer.
"""

import contextlib
import ipaddress
import re
from functools import lru_cache
from typing import Final, Literal

import msgspec

from spanvault.media import sdes
from spanvault.media.payloadtypes import STATIC
from spanvault.messages import Codec, MediaKey

MAX_SIZE: Final = 64 << 10
MAX_MEDIA: Final = 32
MAX_CODECS: Final = 64
MAX_KEYS: Final = 16  # of one m= line
MAX_LABEL: Final = 256
MAX_CANDIDATES: Final = 16  # of one m= line
DISCARD: Final = 9  # the port of a line whose address ICE will find
MAX_ADDRESS: Final = 64  # characters; an IPv6 address has 45 at most

Direction = Literal["sendrecv", "sendonly", "recvonly", "inactive"]
DIRECTIONS: Final[tuple[Direction, ...]] = ("sendrecv", "sendonly", "recvonly", "inactive")

# Names are compared without regard to case (RFC 8866 §6.6); we show them as IANA has them.
REGISTERED: Final = {
    name.lower(): name
    for name in (
        *(codec.name for codec in STATIC.values()),
        "AAL2-G726-16", "AAL2-G726-24", "AAL2-G726-32", "AAL2-G726-40", "AMR", "AMR-WB", "EVS",
        "G7221", "G726-16", "G726-24", "G726-32", "G726-40", "GSM-EFR", "iLBC", "L8", "L24",
        "MP4A-LATM", "mpeg4-generic", "opus", "red", "speex", "telephone-event",
        "AV1", "H263-1998", "H263-2000", "H264", "H265", "rtx", "VP8", "VP9",
        "flexfec", "parityfec", "raptorfec", "ulpfec",
    )
}  # fmt: skip

_MEDIA: Final = re.compile(r"(\S+)\s+(\d{1,5})(?:/\d+)?\s+(\S+)\s*(.*)")
_CANDIDATE: Final = re.compile(r"\S+\s+1\s+udp\s+\d+\s+(\S{2,64})\s+(\d{1,5})\s+typ\s", re.I)
_RTPMAP: Final = re.compile(r"(\d{1,3})\s+([^/\s]+)\s*/\s*(\d{1,7})(?:\s*/\s*(\d{1,2}))?")


ORIENTATION: Final = "urn:3gpp:video-orientation"  # 3GPP TS 26.114 §7.4.5


class Media(msgspec.Struct, array_like=True):
    """One m= section. address: 4 or 16 bytes, None where the line gives none; 0 port: rejected."""

    kind: str  # "audio", "video", "image", …
    port: int
    protocol: str  # "RTP/AVP", "RTP/SAVPF", "udptl", …
    address: bytes | None = None
    codecs: dict[int, Codec] = {}
    direction: Direction = "sendrecv"
    rtcp_port: int | None = None
    rtcp_mux: bool = False
    ptime: int | None = None
    crypto: bool = False  # SDES: a key is written here, RFC 4568
    fingerprint: bool = False  # DTLS-SRTP, RFC 5763
    zrtp: bool = False
    keys: list[MediaKey] = []  # those of a=crypto that can be used
    label: str = ""  # what others call this line by: RFC 4574
    candidates: list[tuple[bytes, int]] = []  # of ICE, for RTP over UDP: RFC 8839 §5.1
    orientation: int = 0  # header extension that tells how a camera is held, 0: none; RFC 8285

    @property
    def accepted(self) -> bool:
        """RFC 3264 §6: port 0 rejects the stream."""
        return self.port != 0

    @property
    def held(self) -> bool:
        """Whether the one who wrote this does not want to hear: RFC 3264 §8.4 and older custom."""
        if self.nowhere and self.port != DISCARD:
            return True
        return self.direction in ("sendonly", "inactive")

    @property
    def nowhere(self) -> bool:
        """Whether the address is 0.0.0.0 or ::, which stands for "do not send"."""
        return self.address is not None and not any(self.address)

    @property
    def rtp(self) -> bool:
        """Whether RTP goes there."""
        return "RTP" in self.protocol.upper()


class Description(msgspec.Struct, array_like=True):
    """A session description: its origin and its media in order, rejected ones included."""

    origin: str  # username, session id and address of the o= line: who made it, RFC 8866 §5.2
    media: list[Media]


def parse(body: bytes) -> Description:
    """Raises ValueError if this is no session description."""
    if len(body) > MAX_SIZE:
        raise ValueError(f"session description of {len(body)} bytes")
    lines = [line.strip() for line in body.decode("utf-8", "replace").splitlines()]
    lines = [line for line in lines if len(line) > 1 and line[1] == "="]
    if not any(line.startswith(("v=", "m=")) for line in lines):
        raise ValueError("no session description: neither v= nor m=")
    head, sections = _sections(lines)
    # Session-level address and attributes hold for every medium that has none of its own.
    session = _Section(None)
    for line in head:
        session.read(line)
    return Description(
        origin=next((_origin(line) for line in head if line.startswith("o=")), ""),
        media=[media for media in (_media(session, rows) for rows in sections) if media],
    )


def _sections(lines: list[str]) -> tuple[list[str], list[list[str]]]:
    starts = [at for at, line in enumerate(lines) if line.startswith("m=")][: MAX_MEDIA + 1]
    if not starts:
        return lines, []
    ends = [*starts[1:], len(lines)]
    sections = [lines[start:end] for start, end in zip(starts, ends, strict=True)]
    return lines[: starts[0]], sections[:MAX_MEDIA]


def _origin(line: str) -> str:
    fields = line[2:].split()
    return " ".join([*fields[:2], *fields[-1:]])


class _Section:
    """What the lines of one section said. `base` is the session's, which counts by default."""

    def __init__(self, base: "_Section | None") -> None:
        self.address: bytes | None = base.address if base else None
        self.direction: Direction = base.direction if base else "sendrecv"
        self.ptime: int | None = base.ptime if base else None
        self.fingerprint: bool = base.fingerprint if base else False
        self.zrtp: bool = base.zrtp if base else False
        self.crypto = self.rtcp_mux = False
        self.keys: list[MediaKey] = []
        self.label = ""
        self.candidates: list[tuple[bytes, int]] = []
        self.rtcp_port: int | None = None
        self.orientation: int = base.orientation if base else 0
        self.names: dict[int, tuple[str, int, int]] = {}
        self.parameters: dict[int, str] = {}

    def read(self, line: str) -> None:
        """One line; what makes no sense is passed over."""
        if line.startswith("c="):
            self.address = _address(line[2:]) or self.address
        elif line.startswith("a="):
            name, _, value = line[2:].partition(":")
            self._attribute(name.strip().lower(), value.strip())

    def _attribute(self, name: str, value: str) -> None:
        if name == "rtpmap":
            self._rtpmap(value)
        elif name == "fmtp":
            number, _, parameters = value.partition(" ")
            if number.isascii() and number.isdigit() and int(number[:4]) < 128:
                self.parameters[int(number[:4])] = parameters.strip()[:1024]
        elif name == "ptime":
            found = re.match(r"\d{1,4}", value)
            self.ptime = int(found[0]) if found else None
        elif name == "rtcp":
            found = re.match(r"\d{1,5}", value)
            self.rtcp_port = int(found[0]) if found and int(found[0]) < 65536 else None
        elif name == "crypto":
            self.crypto = True
            self._keys(value)
        elif name == "candidate":
            self._candidate(value)
        elif name == "extmap":
            self._extension(value)
        elif name == "label":
            self.label = value[:MAX_LABEL]
        else:
            self._flag(name)

    def _keys(self, value: str) -> None:
        with contextlib.suppress(ValueError):  # as heard, it stays sealed
            self.keys += sdes.parse(value)[: MAX_KEYS - len(self.keys)]

    def _extension(self, value: str) -> None:
        """`3 urn:3gpp:video-orientation`, or with a direction behind the number."""
        number, _, uri = value.partition(" ")
        found = re.match(r"\d{1,3}", number)
        if found and uri.split(" ")[0].strip().lower() == ORIENTATION and int(found[0]) < 256:
            self.orientation = int(found[0])

    def _candidate(self, value: str) -> None:
        found = _CANDIDATE.match(value)
        address = _packed(found[1].partition("%")[0]) if found else None
        if found and address and any(address) and 0 < int(found[2]) < 65536:
            self.candidates = [*self.candidates, (address, int(found[2]))][:MAX_CANDIDATES]

    def _flag(self, name: str) -> None:
        for direction in DIRECTIONS:
            if name == direction:
                self.direction = direction
        self.rtcp_mux |= name == "rtcp-mux"
        self.fingerprint |= name == "fingerprint"
        self.zrtp |= name == "zrtp-hash"

    def _rtpmap(self, value: str) -> None:
        found = _RTPMAP.match(value)
        if found and int(found[1]) < 128 and len(self.names) < MAX_CODECS:
            self.names[int(found[1])] = (found[2][:64], int(found[3]), int(found[4] or 1))


def _media(session: _Section, lines: list[str]) -> Media | None:
    found = _MEDIA.match(lines[0][2:])
    if found is None or int(found[2]) > 65535:
        # Its place is kept: answers are paired with offers by index.
        return Media(kind="", port=0, protocol="")
    section = _Section(session)
    for line in lines[1:]:
        section.read(line)
    return Media(
        kind=found[1].lower(),
        port=int(found[2]),
        protocol=found[3],
        address=section.address,
        codecs=_codecs(section, found[4]) if "RTP" in found[3].upper() else {},
        direction=section.direction,
        rtcp_port=section.rtcp_port,
        rtcp_mux=section.rtcp_mux,
        ptime=section.ptime,
        crypto=section.crypto,
        fingerprint=section.fingerprint,
        zrtp=section.zrtp,
        keys=section.keys,
        label=section.label,
        candidates=section.candidates,
        orientation=section.orientation,
    )


def _codecs(section: _Section, formats: str) -> dict[int, Codec]:
    """The payload types of the m= line in their order of preference."""
    codecs: dict[int, Codec] = {}
    for text in formats.split()[:MAX_CODECS]:
        if not (text.isascii() and text.isdigit()) or int(text[:4]) > 127:
            continue
        number = int(text[:4])
        parameters = section.parameters.get(number, "")
        if number in section.names:
            name, clock_rate, channels = section.names[number]
            codecs[number] = Codec(
                REGISTERED.get(name.lower(), name), clock_rate, channels, parameters
            )
        elif number in STATIC:
            known = STATIC[number]
            codecs[number] = Codec(known.name, known.clock_rate, known.channels, parameters)
    return codecs


def _address(value: str) -> bytes | None:
    """The address of a c= line; None for a host name, which a passive listener cannot look up."""
    fields = value.split()
    if len(fields) < 3 or fields[0].upper() != "IN":
        return None
    return _packed(fields[2].partition("/")[0].strip("[]").partition("%")[0][:MAX_ADDRESS])


@lru_cache(maxsize=4096)  # the same few hosts describe sessions again and again
def _packed(text: str) -> bytes | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped.packed
    return address.packed
