"""Which call does this RTP stream belong to? Endpoints named in SDP, each for some time.

A party RECEIVES at the endpoint its SDP names, so a stream's destination tells the call and its
speaker is the other party; the source is the weaker witness, since NAT may change it. Ports are
used again by the next call within seconds: what was valid when the stream began decides.
Sources: RFC 3264 §5.1, RFC 4961. Streams and their fate: capture.calls.attachment.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from capture.calls.livecall import Binding, LiveCall
from capture.model import Endpoint, NewStream
from spanvault.messages import Party

MAX_PER_ENDPOINT: Final = 32  # calls that claim one address: beyond that someone plays games
MAX_PER_CALL: Final = 256

EXCHANGE_NS: Final = 32_000_000_000  # 64·T1: offer and answer are not further apart
OTHER: Final[dict[Party, Party]] = {
    "caller": "callee", "callee": "caller", "unknown": "unknown",
}  # fmt: skip
RACE_NS: Final = 1_000_000_000  # signalling is heard so much later, where its capture lags
BOTH, DESTINATION, SOURCE = 3, 2, 1  # how well a stream fits, best first


class Match(NamedTuple):
    """A call that a stream may belong to. to and from_: the bindings that say so."""

    call: LiveCall
    speaker: Party
    score: int
    to: Binding | None
    from_: Binding | None

    @property
    def since_ns(self) -> int:
        """When the call first named an end of this stream."""
        return min(binding.since_ns for binding in (self.to, self.from_) if binding)

    @property
    def latest_ns(self) -> int:
        """When the call last named an end of this stream."""
        return max(binding.since_ns for binding in (self.to, self.from_) if binding)


class Association:
    """The bindings of all live calls, by endpoint."""

    def __init__(self, patience_ns: int, grace_ns: int) -> None:
        """patience_ns: how long RTP may precede the SDP that explains it.  grace_ns: and outlive
        the BYE."""
        self._patience_ns, self._grace_ns = patience_ns, grace_ns
        self._by_endpoint: dict[Endpoint, list[tuple[LiveCall, Binding]]] = {}
        self._rtcp: dict[Endpoint, Endpoint] = {}  # where a=rtcp says so: to where RTP goes

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._by_endpoint.values())

    def bind(self, call: LiveCall, binding: Binding) -> bool:
        """Add or renew a binding. Returns whether something about it is new."""
        for known in call.bindings:
            # Who named it first counts as owner: a proxy repeats what it passes on.
            same = known.endpoint == binding.endpoint and known.party == binding.party
            if same and known.until_ns is None:
                known.tags += [tag for tag in binding.tags if tag not in known.tags]
                if binding.rtcp_port != known.rtcp_port:
                    known.rtcp_port = binding.rtcp_port
                    self._listen(known)
                same = known.orientation == binding.orientation
                if same and known.kind == binding.kind and known.codecs == binding.codecs:
                    return False
                known.orientation = binding.orientation
                known.kind, known.codecs = binding.kind, {**known.codecs, **binding.codecs}
                return True
        if len(call.bindings) >= MAX_PER_CALL:
            return False
        call.bindings.append(binding)
        self._insert(call, binding)
        return True

    def restore(self, call: LiveCall) -> None:
        """Take up a call that was saved, with its bindings."""
        for binding in call.bindings:
            self._insert(call, binding)

    def forget(self, call: LiveCall) -> None:
        """The call is gone."""
        for endpoint in {binding.endpoint for binding in call.bindings}:
            entries = self._by_endpoint.get(endpoint, [])
            kept = [entry for entry in entries if entry[0] is not call]
            if kept:
                self._by_endpoint[endpoint] = kept
            else:
                self._by_endpoint.pop(endpoint, None)
        for binding in call.bindings:
            self._rtcp.pop(_rtcp_end(binding), None)

    def media_ends(self, rtcp: Endpoint) -> Iterator[Endpoint]:
        """Where RTP may go whose RTCP goes to, or comes from, this endpoint, likeliest first.

        RFC 5761: the same one; RFC 3605: as SDP says; RFC 3550 §11: the port below.
        """
        yield rtcp
        if rtcp in self._rtcp:
            yield self._rtcp[rtcp]
        if rtcp.port & 1:
            yield rtcp._replace(port=rtcp.port - 1)

    def at(self, endpoint: Endpoint) -> list[tuple[LiveCall, Binding]]:
        """Who has named this endpoint, oldest first."""
        return self._by_endpoint.get(endpoint, [])

    def matches(self, stream: NewStream, given_up: bool = False) -> list[Match]:
        """The calls the stream may belong to, best first. More than one: they share it.

        given_up: ends count at which by now, as they said, no RTP is received.
        """
        found: dict[bytes, Match] = {}
        for match in self._candidates(stream, given_up):
            known = found.get(match.call.id)
            if known is None or (match.score, match.latest_ns) > (known.score, known.latest_ns):
                found[match.call.id] = match
        if not found:
            return []
        ranked = sorted(found.values(), key=lambda match: self._rank(match, stream), reverse=True)
        best = ranked[0]
        if best.score < BOTH:
            return [best]
        shared: list[Match] = []
        for match in ranked:
            # With any of them, not with the best alone: of two calls through a B2BUA, the first leg
            # of one and the second of the other were told of by different hosts.
            if shared and _came_later(match, stream):
                continue
            if match.score == BOTH and not any(_rivals(match, other) for other in shared):
                shared.append(match)
        # All of these name both ends and none took the place of another: the first call holds it.
        return sorted(shared, key=lambda match: match.call.started_ns)

    def given_up(self, match: Match, stream: NewStream) -> bool:
        """Whether the call received no RTP at an end of a stream when that began."""
        return any(
            call is match.call and binding.until_ns is not None
            and binding.until_ns < stream.time_ns < match.latest_ns
            for end in (stream.source, stream.destination)
            for call, binding in self.at(end)
        )  # fmt: skip

    def _rank(
        self, match: Match, stream: NewStream
    ) -> tuple[bool, bool, int, bool, bool, bool, int]:
        """Compares greater the better a match is."""
        named = match.to or match.from_
        return (
            # Valid when the stream began: named by then, and not over.
            match.since_ns <= stream.time_ns,
            match.call.ended_ns is None or match.call.ended_ns > stream.time_ns,
            match.score,
            # Private addresses are candidates in many calls at once.
            not any(binding.candidate for binding in (match.to, match.from_) if binding),
            named is not None and stream.payload_type in named.codecs,
            # Some phones and load generators send all their calls from one port: the stream is
            # the call's that still lacks one.
            not any(known.party == match.speaker for known in match.call.streams),
            match.latest_ns,
        )

    def _candidates(self, stream: NewStream, given_up: bool) -> Iterator[Match]:
        sources, targets = (
            [one for one in self.at(end) if self._valid(*one, stream.time_ns, given_up)]
            for end in (stream.source, stream.destination)
        )
        for call, to in targets:
            speaker = OTHER[to.party]
            from_ = next(
                (
                    binding
                    for other, binding in reversed(sources)
                    if other is call and binding.party == speaker and binding.kind == to.kind
                ),
                None,
            )
            yield Match(call, speaker, BOTH if from_ else DESTINATION, to, from_)
        for call, from_ in sources:
            yield Match(call, from_.party, SOURCE, None, from_)

    def _valid(self, call: LiveCall, binding: Binding, time_ns: int, given_up: bool) -> bool:
        if self._gone(call, time_ns):
            return False
        early = time_ns < binding.since_ns - self._patience_ns
        if early and not met_in_its_midst(call, binding):
            return False
        return given_up or binding.until_ns is None or time_ns <= binding.until_ns

    def _gone(self, call: LiveCall, time_ns: int) -> bool:
        until_ns = call.media_until_ns
        return until_ns is not None and time_ns > until_ns + self._grace_ns

    def _insert(self, call: LiveCall, binding: Binding) -> None:
        entries = self._by_endpoint.setdefault(binding.endpoint, [])
        entries.append((call, binding))
        self._listen(binding)
        if len(entries) > MAX_PER_ENDPOINT:
            entries.pop(0)

    def _listen(self, binding: Binding) -> None:
        """Note where its RTCP goes, if SDP says so."""
        if binding.rtcp_port:
            self._rtcp[_rtcp_end(binding)] = binding.endpoint


def _rtcp_end(binding: Binding) -> Endpoint:
    return binding.endpoint._replace(port=binding.rtcp_port or 0)


def met_in_its_midst(call: LiveCall, binding: Binding) -> bool:
    """Whether media may have been flowing to this endpoint long before the call was heard of.

    So of the endpoints that the first messages name of a call that was up already; what a later
    one names is as new as in any call.
    """
    return "started_mid_call" in call.flags and binding.since_ns - call.started_ns <= EXCHANGE_NS


def supersedes(newer: Binding, older: Binding) -> bool:
    """Whether the same speaker gave the endpoint to another call: it can no longer be the first's.

    Two legs of one B2BUA call name each endpoint too, but there the word is given by different
    hosts: once by the phone itself, once by the B2BUA.
    """
    return newer.owner == older.owner and newer.since_ns >= older.since_ns


def _came_later(match: Match, stream: NewStream) -> bool:
    """Whether the stream flowed in another call before this one was begun."""
    midway = any(met_in_its_midst(match.call, one) for one in (match.to, match.from_) if one)
    return not midway and match.call.started_ns - stream.time_ns > RACE_NS


def _rivals(match: Match, best: Match) -> bool:
    """Whether best took the place of match, or the other way round."""
    if match.call is best.call:
        return False
    return any(
        ours is not None and theirs is not None and ours.owner == theirs.owner
        for ours, theirs in ((match.to, best.to), (match.from_, best.from_))
    )
