"""The streams that media has told of, found by what they run between.

A row is a stream as media knows it and the call that holds it, if one does. Whose it is:
capture.calls.attachment, capture.calls.tenure, capture.calls.joining.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from capture.calls.livecall import LiveCall
from capture.model import Endpoint, NewStream

Key = TypeVar("Key")


@dataclass(slots=True, eq=False)
class Row:
    """A stream as media knows it, and the call that holds it."""

    stream: NewStream
    call: LiveCall | None = None
    number: int = 0
    score: int = 0
    closed_ns: int | None = None
    bye_ns: int | None = None  # when RTCP said that it ends
    sharers: list[LiveCall] = field(default_factory=list)  # calls besides, that list it too
    contested: bool = False  # media looks whether a newer call has taken it over
    after: str = ""  # the call it went on behind, by Call-ID

    @property
    def ends(self) -> tuple[Endpoint, Endpoint]:
        """Source and destination."""
        return self.stream.source, self.stream.destination

    @property
    def unsignalled(self) -> bool:
        """Whether it is kept, but no call has claimed it."""
        return self.call is not None and self.call.ends is not None


class Rows:
    """All rows that media has and nobody has released."""

    def __init__(self) -> None:
        self.unclaimed: OrderedDict[int, Row] = OrderedDict()  # that nobody holds, oldest first
        self._rows: dict[int, Row] = {}
        self._between: dict[tuple[bytes, bytes], dict[int, Row]] = {}  # by hosts
        self._by_endpoint: dict[Endpoint, dict[int, Row]] = {}
        self._by_source: dict[tuple[Endpoint, int], Row] = {}  # the newest of an SSRC from there
        self._by_target: dict[tuple[Endpoint, int], Row] = {}
        self._by_ssrc: dict[int, dict[int, Row]] = {}

    def add(self, stream: NewStream) -> Row:
        """A row for a stream that was heard for the first time."""
        row = self._rows[stream.row] = Row(stream)
        for endpoint in row.ends:
            self._by_endpoint.setdefault(endpoint, {})[stream.row] = row
        self._by_source[stream.source, stream.ssrc] = row
        self._by_target[stream.destination, stream.ssrc] = row
        self._by_ssrc.setdefault(stream.ssrc, {})[stream.row] = row
        return row

    def get(self, number: int | None) -> Row | None:
        """The row that media knows by this number."""
        return None if number is None else self._rows.get(number)

    def remove(self, number: int) -> Row | None:
        """Forget a row; returns it, if there was one."""
        row = self._rows.pop(number, None)
        if row is None:
            return None
        stream = row.stream
        self.unclaimed.pop(number, None)
        self.unlist(row)
        for index, key in (
            (self._by_source, (stream.source, stream.ssrc)),
            (self._by_target, (stream.destination, stream.ssrc)),
        ):
            if index.get(key) is row:
                del index[key]
        for endpoint in row.ends:
            _strike(self._by_endpoint, endpoint, number)
        _strike(self._by_ssrc, stream.ssrc, number)
        return row

    def of_ssrc(self, ssrc: int) -> dict[int, Row]:
        """Those that bear an SSRC, whatever they run between."""
        return self._by_ssrc.get(ssrc, {})

    def at(self, endpoint: Endpoint) -> list[Row]:
        """Those that come from an endpoint or go there, oldest first."""
        return list(self._by_endpoint.get(endpoint, {}).values())

    def before(self, stream: NewStream) -> Row | None:
        """The row that an SSRC from this source had until now."""
        return self._by_source.get((stream.source, stream.ssrc))

    def speaking(
        self, ssrc: int, sources: Iterable[Endpoint], destinations: Iterable[Endpoint]
    ) -> Row | None:
        """The newest stream of an SSRC from one of these sources, or else to a destination."""
        for end in sources:
            if (row := self._by_source.get((end, ssrc))) is not None:
                return row
        for end in destinations:  # NAT changed the source
            if (row := self._by_target.get((end, ssrc))) is not None:
                return row
        return None

    # --- by hosts: calls whose SDP was never heard have nothing else to go by ---------------

    def enlist(self, row: Row) -> None:
        """No call has claimed it: it may be claimed by its hosts."""
        self._between.setdefault(_hosts(row.stream), {})[row.stream.row] = row

    def unlist(self, row: Row) -> None:
        """It is not to be claimed by its hosts any more."""
        rows = self._between.get(_hosts(row.stream), {})
        rows.pop(row.stream.row, None)
        if not rows:
            self._between.pop(_hosts(row.stream), None)

    def between(self, source: bytes, destination: bytes) -> Iterator[Row]:
        """Those from one host to another that no call has claimed, kept or not."""
        rows = self._between.get((source, destination), {}).values()
        return (row for row in rows if row.call is None or not row.call.over)


def _strike(index: dict[Key, dict[int, Row]], key: Key, number: int) -> None:
    """Take a row out of an index, and its place if none is left."""
    rows = index.get(key, {})
    rows.pop(number, None)
    if not rows:
        index.pop(key, None)


def _hosts(stream: NewStream) -> tuple[bytes, bytes]:
    return stream.source.address, stream.destination.address
