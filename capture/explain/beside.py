"""Our account beside tshark's: the same call, the same stream, and where they differ."""

from collections.abc import Callable
from typing import Final

from capture.explain.tshark import View
from spanvault.explained import Explained, Flow, OnlyTheirs, TheirCall, TheirFlow, Unowned
from spanvault.messages import Outcome

# What Wireshark's state of a call means in our words.
OUTCOMES: Final[dict[str, frozenset[Outcome]]] = {
    "call setup": frozenset({"in_progress", "no_answer", "failed"}),
    "ringing": frozenset({"in_progress", "no_answer"}),
    "in call": frozenset({"answered"}),
    "completed": frozenset({"answered"}),
    "cancelled": frozenset({"cancelled", "no_answer", "busy", "declined", "failed", "not_found"}),
    "rejected": frozenset(
        {"busy", "declined", "no_answer", "not_found", "failed", "cancelled", "in_progress"}
    ),
}  # fmt: skip


class Beside:
    """Marks differences in documents as they pass. view: None where tshark was not asked."""

    def __init__(self, view: View | None) -> None:
        self._view = view
        self._seen: set[str] = set()  # Call-IDs: a second call of one cannot be compared

    def mark(self, document: Explained | Unowned) -> None:
        """Put tshark's view beside ours."""
        if self._view is None:
            return
        if isinstance(document, Unowned):
            self._mark_flow(self._view, document.flow, _of_unowned)
            return
        self._mark_call(self._view, document)
        for flow in document.flows:
            self._mark_flow(self._view, flow, _of_flow)

    def rest(self) -> list[OnlyTheirs]:
        """What tshark has and we have not."""
        if self._view is None:
            return []
        calls = [call for call in self._view.calls.values() if call.call_id not in self._seen]
        return [
            *(OnlyTheirs(call=call, why=_why_not_ours(call)) for call in calls),
            *(OnlyTheirs(flow=flow) for flow in self._view.flows.values()),
        ]

    def _mark_call(self, view: View, document: Explained) -> None:
        call_id = document.call.call_ids[0] if document.call.call_ids else ""
        again = call_id in self._seen
        self._seen.add(call_id)
        theirs = document.theirs = view.calls.get(call_id)
        if theirs is None:
            document.differences.append("tshark has no SIP messages of this Call-ID")
        elif again:
            document.differences.append("this Call-ID names several calls; for tshark they are one")
        else:
            document.differences += _of_call(document, theirs)

    def _mark_flow(
        self, view: View, flow: Flow, compare: Callable[[Flow, TheirFlow], list[str]]
    ) -> None:
        key = (flow.source, flow.destination, flow.ssrc)
        theirs = flow.theirs = view.flows.get(key)
        if theirs is not None:
            flow.differences = compare(flow, theirs)
        elif flow.packets:
            flow.differences = ["tshark takes it for no RTP"]

    def forget(self, document: Explained | Unowned) -> None:
        """What was found in ours need not be told as tshark's alone."""
        if self._view is None:
            return
        flows = [document.flow] if isinstance(document, Unowned) else document.flows
        for flow in flows:
            self._view.flows.pop((flow.source, flow.destination, flow.ssrc), None)


def _of_call(document: Explained, theirs: TheirCall) -> list[str]:
    call, found = document.call, []
    if theirs.messages != document.messages:
        late = " with late copies" if theirs.messages > document.messages else ""
        found.append(f"SIP messages: {document.messages}, tshark {theirs.messages}{late}")
    for name in ("caller", "callee"):
        ours, other = getattr(call, name), getattr(theirs, name)
        if ours != other and "started_mid_call" not in call.flags:
            found.append(f"{name}: {ours}, tshark {other}")
    if theirs.state in OUTCOMES and call.outcome not in OUTCOMES[theirs.state]:
        found.append(f"outcome: {call.outcome}, tshark: {theirs.state}")
    return found


def _of_flow(ours: Flow, theirs: TheirFlow) -> list[str]:
    """tshark counts a copy as a packet, and as one lost less."""
    heard, lost = ours.packets + ours.duplicates, ours.lost - ours.duplicates
    found = []
    if heard != theirs.packets:
        found.append(f"packets: {heard} with copies, tshark {theirs.packets}")
    if lost != theirs.lost:
        found.append(f"lost: {ours.lost}, tshark {theirs.lost}")
    return found


def _of_unowned(ours: Flow, theirs: TheirFlow) -> list[str]:
    """Of a stream that nobody owns only what was heard is counted."""
    if ours.packets == theirs.packets:
        return []
    return [f"packets: {ours.packets}, tshark {theirs.packets}"]


def _why_not_ours(call: TheirCall) -> str:
    if call.state == "mid-call":
        return "its messages begin no call and prove none"
    return "damaged beyond our reading, or under another Call-ID"
