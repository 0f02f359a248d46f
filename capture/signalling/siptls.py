"""SIP that is there and cannot be read: between whom TLS connections carry it.

A TLS connection carries SIP if its client says so (ALPN), or says nothing and one end speaks SIP:
plain messages name it as an end of theirs over TLS, or come from that very address and port, or it
is SIP's registered port. One that offers other protocols is none, as a WebSocket's (wss) and the
web's. Which message tells of a connection may be heard after it: those nobody spoke of wait.
Sources: RFC 3261 §18, §19.1.2, §26.2; RFC 7301 §6 (sip/2). TLS itself: capture.packets.tls.
"""

import ipaddress
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final

from capture.model import Datagram, Endpoint
from capture.packets.tls import Sighting

SIP_TLS_PORT: Final = 5061
MAX_SPEAKERS: Final = 16_384  # endpoints that are known to speak SIP
MAX_WAITING: Final = 4_096  # connections of which nobody has spoken
MAX_PAIRS: Final = 1_024
SHOWN: Final = 8

_HINTS: Final = (b"tls", b"sips:")  # in lower case: who names an endpoint for TLS writes either
_HOST: Final = rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::(\d{1,5}))?"
_VIA: Final = re.compile(rb"SIP\s*/\s*2\.0\s*/\s*TLS\s+" + _HOST + rb"([^\r\n,]*)", re.IGNORECASE)
_USER: Final = rb"(?:[^@\s<>;,]{0,256}+@)?"  # bounded: text full of schemes is searched from each
_URI: Final = re.compile(rb"\b(sips?):" + _USER + _HOST + rb"([^\s<>,]*)", re.IGNORECASE)
_RECEIVED: Final = re.compile(rb";\s*received=" + _HOST, re.IGNORECASE)
_TLS: Final = re.compile(rb";\s*transport=tls\b", re.IGNORECASE)


class SipTls:
    """Pairs of addresses between which SIP goes over TLS. connections: how many there were."""

    def __init__(self) -> None:
        self.connections = 0
        self._pairs: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._speakers: OrderedDict[Endpoint, None] = OrderedDict()
        self._waiting: OrderedDict[Endpoint, list[Sighting]] = OrderedDict()

    def heard(self, datagram: Datagram) -> None:
        """A SIP message: its ends speak SIP, and so do those it names for TLS."""
        if datagram.transport == "udp":
            for endpoint in (datagram.source, datagram.destination):
                if endpoint in self._speakers:  # nearly always; then none waits for its word
                    self._speakers.move_to_end(endpoint)
                else:
                    self._speaks(endpoint)
        text = datagram.payload.lower()  # looking for two words in it takes a tenth of a pattern
        if _HINTS[0] in text or _HINTS[1] in text:
            for endpoint in named(datagram):
                self._speaks(endpoint)

    def sighted(self, sightings: Iterable[Sighting]) -> None:
        """TLS connections that were found."""
        for each in sightings:
            if each.protocols is not None:
                if any(name.split("/")[0].lower() in ("sip", "sips") for name in each.protocols):
                    self._count(each)
            elif end := next((end for end in (each.server, each.client) if self._known(end)), None):
                self._count(each, end)
            else:
                self._wait(each)

    def between(self, most: int = SHOWN) -> list[str]:
        """The pairs, as `10.0.0.1 and 10.0.0.9:5071`, those with most connections first."""
        ranked = sorted(self._pairs.items(), key=lambda item: -item[1])
        return [f"{client} and {server}" for (client, server), _ in ranked[:most]]

    @property
    def told(self) -> str:
        """The pairs in a few words; "" where there are none."""
        more = len(self._pairs) - SHOWN
        return ", ".join(self.between()) + (f" and {more} more" if more > 0 else "")

    def _known(self, endpoint: Endpoint) -> bool:
        return endpoint.port == SIP_TLS_PORT or endpoint in self._speakers

    def _speaks(self, endpoint: Endpoint) -> None:
        self._speakers[endpoint] = None
        self._speakers.move_to_end(endpoint)
        if len(self._speakers) > MAX_SPEAKERS:
            self._speakers.popitem(last=False)
        for each in self._waiting.pop(endpoint, ()):
            self._count(each, endpoint)
            other = each.client if endpoint == each.server else each.server
            if each in self._waiting.get(other, ()):
                self._waiting[other].remove(each)

    def _wait(self, sighting: Sighting) -> None:
        for end in (sighting.server, sighting.client):
            waiting = self._waiting.setdefault(end, [])
            if len(waiting) < SHOWN:
                waiting.append(sighting)
        while len(self._waiting) > MAX_WAITING:
            self._waiting.popitem(last=False)

    def _count(self, sighting: Sighting, server: Endpoint | None = None) -> None:
        """server: the end that is known to speak SIP; of a connection who began it may not be."""
        server = server or sighting.server
        client = sighting.client if server == sighting.server else sighting.server
        pair = str(client._replace(port=0)).rpartition(":")[0], str(server)
        self.connections += 1
        self._pairs[pair] = self._pairs.get(pair, 0) + 1
        if len(self._pairs) > MAX_PAIRS:
            self._pairs.popitem(last=False)


def named(datagram: Datagram) -> Iterator[Endpoint]:
    """The endpoints a SIP message names for SIP over TLS: in Via, Contact, Route and the like.

    A name cannot be looked up by a listener: it is that of one of the message's two hosts, or
    nobody's here.
    """
    for host, port, more in _VIA.findall(datagram.payload):
        received = _RECEIVED.search(more)
        yield from _at(received.group(1) if received else host, port, datagram)
    for scheme, host, port, more in _URI.findall(datagram.payload):
        if scheme.lower() == b"sips" or _TLS.search(more):
            yield from _at(host, port, datagram)


def _at(host: bytes, port: bytes, datagram: Datagram) -> Iterator[Endpoint]:
    number = int(port or SIP_TLS_PORT)
    if number > 0xFFFF:
        return
    try:
        yield Endpoint(ipaddress.ip_address(host.strip(b"[]").decode()).packed, number)
    except ValueError:
        if number != datagram.source.port:
            yield datagram.source._replace(port=number)
        if number != datagram.destination.port:
            yield datagram.destination._replace(port=number)
