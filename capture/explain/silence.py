"""Why was a party of an answered call not heard? By what its SDP asked for, and who sent SIP where.

Gathered message by message; what came of it the call's last record tells. What can be done about
flags that need no such look: capture.explain.remedies.
"""

from collections.abc import Iterable
from typing import Final

from capture.calls.livecall import Binding
from capture.model import Endpoint
from capture.signalling.offer_answer import Side
from capture.signalling.sdp import Media
from spanvault.messages import Call, Party

MAX_NAMED: Final = 3  # endpoints in one sentence; a proxy that rewrites SDP names its own
MAX_ENDS: Final = 64  # of a call, the latest
MAX_WAYS: Final = 64
OTHER: Final[dict[Party, Party]] = {"caller": "callee", "callee": "caller"}
MUTE: Final = ("recvonly", "inactive")  # who says so sends nothing: RFC 4566 §6
DEAF: Final = ("sendonly", "inactive")  # who says so is sent nothing


class Asked:
    """What was asked for in one call's signalling."""

    def __init__(self) -> None:
        self._receives: dict[Endpoint, Party] = {}
        self._directions: dict[Party, str] = {}
        self._ways: set[tuple[str, str]] = set()  # that SIP went, from host to host

    def message(self, source: str, destination: str) -> None:
        """A message of the call, by the ip:port it goes from and to."""
        if len(self._ways) < MAX_WAYS:
            self._ways.add((source.rpartition(":")[0], destination.rpartition(":")[0]))

    def described(self, side: Side, media: Iterable[Media]) -> None:
        """A side's session description."""
        for line in media:
            if line.kind == "audio":
                self._directions[side] = line.direction

    def bound(self, binding: Binding) -> None:
        """A party asks for media at an endpoint."""
        if binding.kind == "audio" and not binding.candidate:
            self._receives.pop(binding.endpoint, None)
            self._receives[binding.endpoint] = binding.party
            if len(self._receives) > MAX_ENDS:
                del self._receives[next(iter(self._receives))]

    def answers(self, call: Call) -> dict[str, str]:
        """By flag, why nothing was heard; only where the signalling tells."""
        if "no_media" in call.flags:
            return {"no_media": self._nothing()} if self._receives else {}
        if "one_way" not in call.flags:
            return {}
        heard = {each.party for each in call.streams if each.packets and each.media == "audio"}
        silent = [OTHER[party] for party in heard if party in OTHER]
        if len(silent) != 1 or not self._ends(OTHER[silent[0]]):
            return {}
        return {"one_way": self._silent(silent[0])}

    def _nothing(self) -> str:
        ends = [end for party in OTHER for end in self._ends(party)]
        what = f"Answered, and no RTP goes to {_listed(ends)}, which its SDP names."
        if not self._both_ways:
            return f"{what} {ONE_WAY}"
        return (
            f"{what} SIP is heard both ways, so media takes another path, as from phone to phone "
            "past the PBX: mirror that path, too."
        )

    def _silent(self, silent: Party) -> str:
        listener = OTHER[silent]
        ends = _listed(self._ends(listener))
        what = f"The {silent} was not heard: no RTP goes to {ends}, where the {listener} wants it."
        if (said := self._directions.get(silent, "")) in MUTE:
            return f"{what} Its own SDP says {said}: it sends nothing."
        if (said := self._directions.get(listener, "")) in DEAF:
            return f"{what} The {listener}'s SDP says {said}: nothing is to be sent."
        if not self._both_ways:
            return f"{what} {ONE_WAY}"
        return (
            f"{what} SIP is heard both ways, so the {silent} sent none, or its media takes a path "
            "that is not mirrored: a capture at its own port tells."
        )

    def _ends(self, party: Party) -> list[Endpoint]:
        return [end for end, receiver in self._receives.items() if receiver == party]

    @property
    def _both_ways(self) -> bool:
        return any((there, here) in self._ways for here, there in self._ways)


ONE_WAY: Final = "SIP is heard one way only, too: set the mirror to both directions of the port."


def _listed(ends: list[Endpoint]) -> str:
    return " or ".join(map(str, ends[-MAX_NAMED:]))
