"""Reading recordings back: pages of media.

A stream that another call's recording holds is read there and given this call's id and number, so a
listener need not know. A sealed object is read by its trailer (storaged.format.seeking); any other,
and one that its trailer does not fit, by its structure. Structure and opening:
storaged.format.walk. The check of an object: storaged.recordings.examining.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, TypeVar

import numpy as np

from spanvault.media.chunk import CHUNK, FRAME, NO_MEDIA, Chunk, Media
from spanvault.messages import Call, VerifyReply
from storaged.faults import Fault
from storaged.format import seeking, walk
from storaged.format.sealing import DATA, EVENTS
from storaged.index import damage
from storaged.index.environment import Index
from storaged.index.rows import OBJECT, SEALED, State
from storaged.pools.vaults import Vaults
from storaged.recordings.examining import examining

PAGE_BYTES: Final = 1 << 20
_KEPT: Final = 64  # objects whose structure is remembered
_SOURCE_BITS: Final = 48  # a cursor is source × 2⁴⁸ + offset in that source's object
_HINT: Final = "Restore this recording from a replica; `spanvault verify` shows what is damaged."

T = TypeVar("T")
_Version = tuple[bytes, int, bytes]  # an object's id, size and SHA-256: such bytes do not change


class Source(NamedTuple):
    """An object to read, and which of its streams belong to the call, under which number."""

    recording_id: bytes
    numbers: dict[int, int] | None  # None: all, as they are


class Page(NamedTuple):
    """Media, the cursor behind it, and what could not be opened on the way."""

    media: Media
    cursor: int | None
    damaged: list[str]


class Wanted(NamedTuple):
    """What a page is to hold. flag: of the frames that are opened. from_ns: the first moment."""

    call_id: bytes
    flag: int
    from_ns: int | None


class Reader:
    """Reads objects for one thread of requests."""

    def __init__(self, index: Index, vaults: Vaults) -> None:
        self._index, self._vaults = index, vaults
        self._layouts: OrderedDict[_Version, walk.Layout] = OrderedDict()
        # None: an object that its trailer does not fit.
        self._contents: OrderedDict[_Version, seeking.Contents | None] = OrderedDict()

    def fetch(
        self, call: Call, cursor: int, *, digits: bool = False, from_ns: int | None = None
    ) -> Page:
        """The media behind a cursor, about PAGE_BYTES of it. Raises Fault.

        digits: the telephone events instead of all else; nothing but what is wanted is opened.
        from_ns: what lies before that moment is passed over where the object is sealed.
        """
        return walk.finish(self.fetching(call, cursor, digits=digits, from_ns=from_ns))

    def fetching(
        self, call: Call, cursor: int, *, digits: bool = False, from_ns: int | None = None
    ) -> walk.Steps[Page]:
        """fetch() in steps of some milliseconds: the structure of a day's recording takes long.

        Once a key is at hand there is no step more: whoever destroys it meanwhile can rely on it.
        """
        sources = sources_of(call)
        number, offset = cursor >> _SOURCE_BITS, cursor & ((1 << _SOURCE_BITS) - 1)
        if not 0 <= number < len(sources):
            raise Fault("invalid", f"cursor {cursor} is none of ours", "Begin at cursor 0.")
        wanted = Wanted(call.id, EVENTS if digits else DATA, from_ns)
        while number < len(sources):
            page = yield from self._fetch_from(sources[number], offset, wanted)
            if page.cursor is not None:
                return page._replace(cursor=(number << _SOURCE_BITS) + page.cursor)
            number, offset = number + 1, 0
            if len(page.media.table) or page.damaged or number == len(sources):
                more = number < len(sources)
                return page._replace(cursor=number << _SOURCE_BITS if more else None)
        raise AssertionError("a call has at least its own recording")

    def forget(self, recording_id: bytes) -> None:
        """Know nothing of an object any more: another file took its place."""
        for cache in (self._layouts, self._contents):
            for version in [one for one in cache if one[0] == recording_id]:
                del cache[version]

    def verify(self, recording_id: bytes) -> VerifyReply:
        """Check one object by structure, tags and stored hash. Raises Fault if there is none."""
        return walk.finish(self.verifying(recording_id))

    def verifying(self, recording_id: bytes) -> walk.Steps[VerifyReply]:
        """verify() in steps of some milliseconds: hours of sound take seconds."""
        state, size = self._extent(recording_id)
        if state is None or not state.bits & OBJECT:
            raise Fault("not_found", "there is no recording of this id")
        sealed, vault = bool(state.bits & SEALED), self._vaults.of(state.tier)
        try:
            with vault.pool.reading(recording_id, None if sealed else size) as data:
                reply = yield from examining(recording_id, state, data, vault.dek)
        except OSError as error:
            raise Fault("corrupt", f"the object cannot be read ({error.strerror})", _HINT) from None
        if sealed and not reply.faults:
            damage.clear(self._index, recording_id)
        return reply

    def _extent(self, recording_id: bytes) -> tuple[State | None, int]:
        """The row, and how many bytes of the object count."""
        with self._index.reading() as view:
            state, committed = view.state(recording_id), view.committed(recording_id)
        if state is None or not state.bits & OBJECT:
            return state, 0
        return state, state.size if state.bits & SEALED else committed or 0

    def _erased(self, source: Source, call_id: bytes) -> list[str]:
        """What there is to say of a recording that has nothing: another's may have been erased."""
        with self._index.reading() as view:
            if source.recording_id == call_id or not view.erased(source.recording_id):
                return []
        return [f"streams of this call lay in {source.recording_id.hex()}, which was erased"]

    def _fetch_from(self, source: Source, offset: int, wanted: Wanted) -> walk.Steps[Page]:
        """A page out of one object. Its cursor is an offset there, None at the end."""
        state, size = self._extent(source.recording_id)
        if state is None or not size:
            return Page(NO_MEDIA, None, self._erased(source, wanted.call_id))
        version, vault = (source.recording_id, size, state.sha256), self._vaults.of(state.tier)
        try:
            with vault.pool.reading(source.recording_id, size) as data:
                one = _Object(source, data, vault.dek)
                misfit = ""
                if state.bits & SEALED and wanted.flag == DATA:
                    try:
                        return self._listed(one, version, offset, wanted)
                    except ValueError as error:
                        _keep(self._contents, version, None)
                        misfit = str(error)
                layout = yield from self._layout(version, data)
                places = [place for place in layout.places if place.offset >= offset]
                faults = list(layout.faults) if misfit or not offset else []
                page = one.page(layout, places, wanted, faults)
                # Nothing else is wrong: the trailer itself is.
                return page._replace(damaged=faults or [misfit] * bool(misfit))
        except ValueError as error:
            raise Fault("corrupt", str(error), _HINT) from None
        except OSError as error:
            raise Fault("corrupt", f"the object cannot be read ({error.strerror})", _HINT) from None

    def _listed(self, one: "_Object", version: _Version, offset: int, wanted: Wanted) -> Page:
        """A page of a sealed object by its trailer. Raises ValueError if that does not fit."""
        if version not in self._contents:
            found = seeking.contents(one.data, one.find_key)
            _keep(self._contents, version, found)
        known = self._contents[version]
        if known is None:
            raise ValueError("")  # it was said when it was found
        return one.page(known, known.places(one.data, offset, wanted.from_ns), wanted, None)

    def _layout(self, version: _Version, data: walk.Bytes) -> walk.Steps[walk.Layout]:
        """An object's structure; kept, so that the pages of one recording find it once."""
        layout = self._layouts.get(version)
        if layout is None:
            layout = yield from walk.walking(data)
            _keep(self._layouts, version, layout)
        return layout


class _Object(NamedTuple):
    """An object that is open for reading."""

    source: Source
    data: walk.Bytes
    find_key: walk.FindKey

    def page(
        self, headed: walk.Headed, places: Iterable[walk.Place], wanted: Wanted,
        damaged: list[str] | None,
    ) -> Page:  # fmt: skip
        """About PAGE_BYTES of these frames.

        damaged: gets a line for each that does not open. Without it such a frame is a ValueError.
        """
        opener, total = walk.Opener(self.data, headed, self.find_key), 0
        chunks: list[Chunk] = []
        for place in places:
            if place.flag != wanted.flag:
                continue
            if total >= PAGE_BYTES:
                return Page(_media(chunks), place.offset, damaged or [])
            total += place.end - place.start
            try:
                plain = opener.open(place)
                chunks += _renumbered(
                    plain, self.source, wanted.call_id, events=wanted.flag == EVENTS
                )
            except ValueError as error:
                if damaged is None:
                    raise
                damaged.append(str(error))
        return Page(_media(chunks), None, damaged or [])


def _keep(cache: OrderedDict[_Version, T], version: _Version, found: T) -> None:
    """Remember what was found of an object, and forget what was found of another long ago."""
    cache[version] = found
    if len(cache) > _KEPT:
        cache.popitem(last=False)


def sources_of(call: Call) -> list[Source]:
    """The call's own recording, then those of others that hold streams of it."""
    others: dict[bytes, dict[int, int]] = {}
    for stream in (*call.streams, *call.beside):
        if stream.stored_in is not None and stream.stored_in != call.id:
            stored_as = stream.number if stream.stored_as is None else stream.stored_as
            others.setdefault(stream.stored_in, {})[stored_as] = stream.number
    return [Source(call.id, None), *(Source(*other) for other in sorted(others.items()))]


def _renumbered(plain: bytes, source: Source, call_id: bytes, *, events: bool) -> Iterator[Chunk]:
    """A frame's chunks as the call's own."""
    for piece in walk.chunks_of(plain, source.recording_id):
        if walk.is_events(piece) != events:
            continue  # another program's doing; digits leave under their own right only
        if source.numbers is None:
            yield piece
        elif (number := source.numbers.get(int(piece.header["stream"]))) is not None:
            header = np.array([piece.header], CHUNK)
            header["recording_id"], header["stream"] = np.void(call_id), number
            yield piece._replace(header=header[0])


def _media(chunks: list[Chunk]) -> Media:
    """Chunks as the three buffers that travel."""
    if not chunks:
        return NO_MEDIA
    table = np.array([piece.header for piece in chunks], CHUNK)
    frames = np.concatenate([piece.frames for piece in chunks]).astype(FRAME, copy=False)
    return Media(table, frames, memoryview(b"".join(piece.payload for piece in chunks)))
