"""What a recording client says of the session it has recorded: RFC 7865 metadata in XML.

Some sites mirror the leg between a session recording client (SRC, often the SBC) and a recording
server (RFC 7866): both voices go one way there, each in an m= line of its own, and the metadata
says whose they are. Damaged metadata spoils itself only; no document type, entity or endless
nesting is followed. Which endpoints a label stands for: labelled(). Names in the record:
capture.calls.livecall.
Sources: RFC 7865 §6 and §10 (schema), RFC 7866 §7.1 and §8.1; earlier drafts name attributes and
associations otherwise, and are still sent.
"""

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Final, TypeVar
from xml.parsers import expat

import msgspec

from capture.model import Endpoint
from capture.signalling.offer_answer import OfferAnswer
from capture.signalling.sdp import Media
from capture.signalling.sip import parse_party, plain
from spanvault.messages import Participant, Party, Siprec

T = TypeVar("T")

MAX_SIZE: Final = 64 << 10
MAX_DEPTH: Final = 16
MAX_ELEMENTS: Final = 2_000
MAX_TEXT: Final = 256
MAX_OF_EACH: Final = 32  # participants, streams, sessions of one recording
SIDES: Final[tuple[Party, ...]] = ("caller", "callee")
# RFC 7865 §10; behind it, as drafts before it called the same.
IDS: Final = {
    "participant": ("participant_id", "id"),
    "stream": ("stream_id", "id"),
    "session": ("session_id", "id"),
    "group": ("group_id", "id"),
    "participantstreamassoc": ("participant_id",),
}


class Metadata(msgspec.Struct, array_like=True):
    """What was told so far. Order is that of the telling."""

    sessions: list[str] = []
    groups: list[str] = []
    participants: dict[str, tuple[str, str]] = {}  # address of record and name, by id
    labels: dict[str, str] = {}  # of SDP's m= lines, by stream id
    sends: dict[str, list[str]] = {}  # stream ids, by participant id

    def merge(self, later: "Metadata") -> None:
        """Take in what was told next: all that changed (partial), or all there is (complete).

        Who took part once stays in the record.
        """
        self.sessions = _joined(self.sessions, later.sessions)
        self.groups = _joined(self.groups, later.groups)
        for each, known in later.participants.items():
            _put(self.participants, each, known)
        for stream, label in later.labels.items():
            _put(self.labels, stream, label)
        for each, streams in later.sends.items():
            _put(self.sends, each, _joined(self.sends.get(each, []), streams))

    def speakers(self) -> dict[str, str]:
        """Who is heard under a label: the first of its senders, by the order of participants."""
        return {
            self.labels[stream]: participant
            for participant in reversed(list(self.participants))
            for stream in reversed(self.sends.get(participant, []))
            if stream in self.labels
        }

    def parties(self, labels: Iterable[str] = ()) -> dict[str, Party]:
        """By label: the first participant who is heard is left, the second right.

        labels: of the m= lines, in order. Those of which nothing was told take the sides that are
        free: some clients label both voices and name nobody.
        """
        speakers = self.speakers()
        heard = [each for each in self.participants if each in speakers.values()]
        sides: dict[str, Party] = dict(zip(heard, SIDES, strict=False))
        found = {label: sides.get(each, "unknown") for label, each in speakers.items()}
        free: list[Party] = [side for side in SIDES if side not in found.values()]
        untold = [label for label in dict.fromkeys(labels) if label not in found]
        return {**dict(zip(untold, free, strict=False)), **found}

    def told(self) -> Siprec:
        """As the call's record has it."""
        speakers = self.speakers()
        parties = self.parties()
        sides = {speakers[label]: party for label, party in parties.items()}
        return Siprec(
            list(self.sessions),
            list(self.groups),
            [
                Participant(aor, name, sides.get(each, "unknown"))
                for each, (aor, name) in self.participants.items()
            ],
        )

    def names(self) -> list[str]:
        """Users of the participants, those first who are heard."""
        heard = self.speakers().values()
        order = sorted(self.participants, key=lambda each: each not in heard)
        return [_user(*self.participants[each]) for each in order]


def parse(document: bytes) -> Metadata:
    """Raises ValueError if this is no metadata, or XML that is damaged or meant to harm."""
    if len(document) > MAX_SIZE:
        raise ValueError(f"recording metadata of {len(document)} bytes")
    reader = _Reader()
    # Namespaces are not looked up: some SBCs send extensions whose prefix they never declare.
    parser = expat.ParserCreate()
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    parser.StartDoctypeDeclHandler = _refuse
    try:
        parser.Parse(document.strip(b"\0 \t\r\n"), True)
    except (expat.ExpatError, LookupError) as error:  # LookupError: an encoding nobody knows
        raise ValueError(f"recording metadata: {error}") from None
    if not reader.recording:
        raise ValueError("recording metadata without <recording>")
    return reader.found


def _refuse(*_: object) -> None:
    raise ValueError("recording metadata with a document type, which it needs none of")


def labelled(state: OfferAnswer) -> dict[str, str]:
    """The labels of m= lines (RFC 4574) by the endpoints of both sides, as `ip:port`."""
    found: dict[str, str] = {}
    for session in state.sessions.values():
        sides = [each.media if each else [] for each in (session.caller, session.callee)]
        for lines in zip_longest(*sides):
            # The client labels; what the server answers may bear none, or labels of its own.
            label = next((line.label for line in lines if line and line.label), "")
            if label:
                found |= dict.fromkeys(_endpoints(lines), label)
    return found


def _endpoints(lines: tuple[Media | None, ...]) -> Iterator[str]:
    for line in lines:
        if line is not None and line.accepted and line.address is not None:
            yield str(Endpoint(line.address, line.port))


class _Reader:
    """Gathers what matters while expat reads."""

    def __init__(self) -> None:
        self.found = Metadata()
        self.recording = False
        self._path: list[str] = []
        self._elements = 0
        self._text = ""
        self._owner = ""  # id of the participant, stream, session or association we are in
        self._aor = ""

    def start(self, name: str, attributes: dict[str, str]) -> None:
        name = _local(name)
        self._path.append(name)
        self._elements += 1
        if len(self._path) > MAX_DEPTH or self._elements > MAX_ELEMENTS:
            raise ValueError("recording metadata is nested too deep, or has too many elements")
        self._text = ""
        self.recording |= self._path == ["recording"]
        if name in IDS and self._path[-2:-1] == ["recording"]:
            given = {_local(key): value for key, value in attributes.items()}
            self._owner = _bounded(next((given[key] for key in IDS[name] if key in given), ""))
            self._begin(name)
        elif name == "nameID":
            self._aor = _bounded(attributes.get("aor", ""))
            self._name("")

    def text(self, data: str) -> None:
        if len(self._text) < MAX_TEXT:
            self._text += data

    def end(self, name: str) -> None:
        name, parents = _local(name), self._path[1:-1]
        text, self._text = _bounded(self._text), ""
        self._path.pop()
        if parents == ["stream"] and name == "label":
            _put(self.found.labels, self._owner, text)
        elif parents == ["participant", "nameID"] and name == "name":
            self._name(text)
        elif parents == ["participant"] and name in ("aor", "name"):  # a draft, before nameID
            self._aor = text if name == "aor" else self._aor
            self._name(text if name == "name" else "")
        elif parents in (["participantstreamassoc"], ["participant"]):
            self._associate(name, text)
        elif parents == ["session"] and name == "group-ref":
            self.found.groups = _joined(self.found.groups, [text])

    def _begin(self, name: str) -> None:
        if name == "session":
            self.found.sessions = _joined(self.found.sessions, [self._owner])
        elif name == "group":
            self.found.groups = _joined(self.found.groups, [self._owner])
        elif name == "participant":
            self._aor = ""
            _put(self.found.participants, self._owner, ("", ""))

    def _name(self, name: str) -> None:
        known = self.found.participants.get(self._owner)
        if self._path[1:2] == ["participant"] and known is not None:
            self.found.participants[self._owner] = (self._aor, name or known[1])

    def _associate(self, name: str, text: str) -> None:
        if name == "participant":
            self._owner = text  # a draft's way to say whose association it is
        elif name in ("send", "stream"):
            streams = self.found.sends.get(self._owner, [])
            _put(self.found.sends, self._owner, _joined(streams, [text]))


def _local(name: str) -> str:
    return name.rpartition(":")[2]


def _bounded(text: str) -> str:
    return plain(text.strip())[:MAX_TEXT]


def _put(mapping: dict[str, T], key: str, value: T) -> None:
    if key in mapping or len(mapping) < MAX_OF_EACH:
        mapping[key] = value


def _joined(known: list[str], more: list[str]) -> list[str]:
    return list(dict.fromkeys(each for each in (*known, *more) if each))[:MAX_OF_EACH]


def _user(aor: str, name: str) -> str:
    return parse_party(f"<{aor}>").user if aor else name
