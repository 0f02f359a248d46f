"""Why does no call own this stream? By who named its addresses, and when.

The call table forgets a call with its last record; what it had named is remembered here for the
whole file, as far as there is room.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from capture.calls.livecall import Binding, LiveCall
from capture.explain.words import clock
from capture.model import Endpoint, NewStream
from spanvault.daemon.config import CaptureConfig
from spanvault.messages import Call

MAX_NAMED: Final = 100_000  # endpoints
MAX_NAMINGS: Final = 16  # of one endpoint, the latest
SHORT_NS: Final = 100_000_000  # five packets: so few may be anything that looks like RTP


@dataclass(slots=True)
class Naming:
    """A call that gave out an address for its media."""

    id: bytes
    call_id: str
    since_ns: int
    ended_ns: int | None = None


class Named:
    """Every address that SDP named in a capture, and by whom."""

    def __init__(self, settings: CaptureConfig) -> None:
        self._settings = settings
        self._by_endpoint: OrderedDict[Endpoint, list[Naming]] = OrderedDict()
        self._ports: dict[bytes, int] = {}  # by address: one that was named

    def add(self, call: LiveCall, binding: Binding) -> None:
        """A call named an endpoint."""
        namings = self._by_endpoint.setdefault(binding.endpoint, [])
        if not any(each.id == call.id for each in namings):
            namings.append(Naming(call.id, call.call_id, binding.since_ns))
            del namings[:-MAX_NAMINGS]
        self._ports[binding.endpoint.address] = binding.endpoint.port
        if len(self._by_endpoint) > MAX_NAMED:
            self._by_endpoint.popitem(last=False)
        if len(self._ports) > MAX_NAMED:
            del self._ports[next(iter(self._ports))]

    def ended(self, call: Call, endpoints: list[Endpoint]) -> None:
        """A call that had named these is final."""
        for endpoint in endpoints:
            for naming in self._by_endpoint.get(endpoint, []):
                if naming.id == call.id:
                    naming.ended_ns = call.ended_ns

    def why_not(self, stream: NewStream, last_ns: int) -> str:
        """Why a stream that began then belongs to nobody."""
        namings = [
            (end, naming)
            for end in (stream.destination, stream.source)
            for naming in self._by_endpoint.get(end, [])
        ]
        if not namings:
            return self._unnamed(stream, last_ns)
        return self._named(stream, last_ns, *max(namings, key=lambda each: each[1].since_ns))

    def _unnamed(self, stream: NewStream, last_ns: int) -> str:
        why = "no SDP in the capture names either of its ends"
        if last_ns - stream.time_ns < SHORT_NS:
            return f"{why}; so few packets may be anything that looks like RTP"
        for end in (stream.destination, stream.source):
            if end.address in self._ports:
                port = self._ports[end.address]
                return f"{why}; of the same host only other ports are named, as {port}"
        return f"{why}: its signalling is elsewhere, encrypted, or began before the capture"

    def _named(self, stream: NewStream, last_ns: int, end: Endpoint, naming: Naming) -> str:
        whose = f"call {naming.call_id} named {end}"
        grace_s, wait_s = self._settings.bye_grace_s, self._settings.unmatched_s
        if naming.ended_ns is not None and stream.time_ns > naming.ended_ns:
            return (
                f"{whose}, but had ended at {clock(naming.ended_ns)}: "
                f"RTP belongs to a call for {grace_s:g} s after its end"
            )
        if naming.since_ns > last_ns:
            return (
                f"{whose} only at {clock(naming.since_ns)}: "
                f"RTP without signalling is kept for {wait_s:g} s"
            )
        return f"{whose}, but another stream or call has that place"
