"""Kill storaged at a named step under a load, start it again, and hold the store against what was
acknowledged.

What must hold, whatever the step: the store opens; nothing acknowledged is missing; every check is
clean; what was not acknowledged is taken when it comes again, once; and no key was used for two
recordings, no salt for two segments, no nonce for two frames. Where storaged can be killed, and how
it is done: tests/support/crashpoints.py. What it is given: tests/support/loads.py.
"""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import zmq

from spanvault import messages as m
from spanvault import wire
from spanvault.media.chunk import NO_MEDIA
from tests.support.crashacts import ACTS
from tests.support.forked import Forked
from tests.support.kept import (
    drained,
    greet,
    left_over,
    lost,
    lost_for_good,
    not_clean,
    not_rotated,
    stored,
    unconverted,
    unnoted,
    unretired,
    untold,
)
from tests.support.loads import AFTERWARDS, Load, Sent, Step
from tests.support.remains import Remains
from tests.support.vault import Client, make_media

ANSWERS: Final = (
    m.Done, m.EraseReply, m.MoveReply, m.VerifyReply, m.FeedReply, m.CheckReply
)  # fmt: skip


# These come by the clock, or by which pages are free, in one run and not in the next: no step in
# them can be waited for.
TIMED: Final = {
    "storaged/index/environment.py:_reach_its_end": "zeros where LMDB may not have written yet",
    "storaged/requests/witness.py:_tell": "the access log's head, in one transaction",
    "storaged/integrity/keycheck.py:check": "a root that was read back, in one transaction",
}


class Outcome(NamedTuple):
    """What became of a store whose storaged was killed."""

    step: Step
    acknowledged: int  # messages, of those sent
    faults: list[str]


class Sender:
    """Sends a load's messages, and knows which were acknowledged."""

    def __init__(self, rig: Forked, sent: Sequence[Sent]) -> None:
        self._rig, self._sent = rig, sent
        self.acknowledged: set[int] = set()

    def send_all(self) -> None:
        """Send what is not acknowledged yet, each once the one before is, until storaged ends."""
        # What is taken in parts comes again from its beginning.
        whole = any(isinstance(one.message, m.Import | m.Return) for one in self._sent)
        self._rig.wait_for(self._rig.requests)
        clients: dict[str, Client] = {}
        try:
            for number, one in enumerate(self._sent):
                if number in self.acknowledged and not whole:
                    continue
                role, endpoint = self._way(one)
                if role not in clients:
                    clients[role] = Client(self._rig, role, endpoint)
                media = make_media(one.chunks) if one.chunks else NO_MEDIA
                as_batch = isinstance(one.message, m.Batch) and not one.bulk
                clients[role].send(one.message, media if as_batch else None, *one.bulk)
                if not self._answered(clients[role], number):
                    return
                self.acknowledged.add(number)
        finally:
            for client in clients.values():
                client.socket.close(linger=0)
                client.context.term()

    def _way(self, one: Sent) -> tuple[str, str]:
        """Whose message it is, and where it goes."""
        if isinstance(one.message, m.Batch):
            return "capture", self._rig.ingest
        of_replicas = isinstance(one.message, m.Feed | m.Return | m.Receipt)
        return "replicator" if of_replicas else "operator", self._rig.requests

    def _answered(self, client: Client, number: int) -> bool:
        """Whether it was acknowledged before storaged came to its end."""
        ended = os.pidfd_open(self._rig.pid)
        try:
            poller = zmq.Poller()
            poller.register(client.socket, zmq.POLLIN)
            poller.register(ended, zmq.POLLIN)
            while True:
                ready = dict(poller.poll(20_000))
                assert ready, f"no answer to message {number}"
                if client.socket in ready:
                    return self._fits(client.socket.recv_multipart(), number)
                if not client.socket.poll(20):  # what was sent before the end still comes
                    return False
        finally:
            os.close(ended)

    def _fits(self, frames: list[bytes], number: int) -> bool:
        sent = self._sent[number].message
        if not isinstance(sent, m.Batch):
            reply, _ = wire.decode_reply(frames)
            if isinstance(sent, m.Return) and isinstance(reply, m.Failure):
                assert reply.code == "not_found", reply  # it is whole again
                return True
            assert isinstance(reply, ANSWERS), reply
            assert not isinstance(reply, m.CheckReply) or not reply.faults, reply
            return True
        answer, _ = wire.decode_from_ingest(frames)
        if self._sent[number].bulk:  # made to be refused
            return isinstance(answer, m.Refuse)
        assert isinstance(answer, m.Acknowledge), answer
        return sent.sequence in answer.sequences


class Traced(NamedTuple):
    """A run that nothing killed. functions: of the product, that took a step (FILE:NAME)."""

    steps: list[Step]
    functions: set[str]


def steps_of(rig: Forked, load: Load, template: Path) -> Traced:
    """Run a load through, and give every step that storaged took for it."""
    rig.reset(template)
    trace = rig.folder / "trace"
    trace.unlink(missing_ok=True)
    rig.launch(trace=str(trace), task=load.task)
    if load.task:
        rig.wait_for_end(20.0)
        assert rig.end() == 0, rig.messages
    else:
        sender = Sender(rig, load.sent)
        sender.send_all()
        assert len(sender.acknowledged) == len(load.sent)
    answers = _answers(trace)
    if load.sorts:
        drained(rig.client("operator"))
    if load.erased or load.moved:
        assert not list(unconverted(rig.client("operator")))
    if load.greets:
        assert not list(unretired(rig, rig.client("operator")))
    rig.end()
    traced = read_trace(trace)
    # Answers behind those of the load are to what was asked here: no other run comes by them.
    return traced._replace(steps=[
        step for step in traced.steps
        if load.tries(step) and not (step.name == "answer" and step.nth > answers)
    ])  # fmt: skip


def _answers(trace: Path) -> int:
    return sum(step.name == "answer" for step in read_trace(trace).steps)


def read_trace(trace: Path) -> Traced:
    """What a traced process wrote."""
    steps: list[Step] = []
    functions: set[str] = set()
    counts: dict[str, int] = {}
    for line in trace.read_text().splitlines():
        name, half, stack = line.split("\t")
        counts[name] = counts.get(name, 0) + 1
        if not TIMED.keys().isdisjoint(stack.split()):
            continue
        steps.append(Step(name, counts[name]))
        if half:
            steps.append(Step(name, counts[name], within=True))
        functions |= set(stack.split())
    return Traced(steps, functions)


def trace_act(rig: Forked, name: str, folder: Path) -> Traced:
    """Every step of one of ACTS."""
    faults = _act(rig, name, folder, {"trace": str(folder / "trace")}, 0)
    assert not faults, faults
    return read_trace(folder / "trace")


def crash_act(rig: Forked, name: str, folder: Path, step: Step) -> Outcome:
    """Kill one of ACTS at a step; say what is wrong with what is there."""
    plan = {"kill": step.name, "nth": step.nth, "within": step.within}
    faults = _act(rig, name, folder, plan, -signal.SIGKILL)
    return Outcome(step, len(_notes(folder)), faults)


def _act(rig: Forked, name: str, folder: Path, plan: dict[str, Any], ends: int) -> list[str]:
    folder.mkdir()
    ACTS[name].prepare(folder)
    code = rig.act(folder, act=name, **plan)
    if code != ends:
        return [f"it ended with code {code}"]
    return [f"lost: {what}" for what in ACTS[name].check(folder, _notes(folder))]


def _notes(folder: Path) -> list[str]:
    path = folder / "notes"
    return path.read_text().splitlines() if path.exists() else []


def crash(rig: Forked, load: Load, template: Path, step: Step, spoil: str = "") -> Outcome:
    """Kill storaged at a step of a load; start it again; say what is wrong with what is there."""
    rig.reset(template)
    sender = Sender(rig, load.sent)
    rig.launch(kill=step.name, nth=step.nth, within=step.within, spoil=spoil, task=load.task)
    if not load.task:
        sender.send_all()
    acknowledged = set(sender.acknowledged)
    if load.greets:
        greet(rig, lambda: rig.wait_for_end(0))
    reached = rig.wait_for_end(20.0)
    if (code := rig.end()) != -signal.SIGKILL:
        return Outcome(step, len(acknowledged), [f"storaged ended by itself with code {code}"])
    if not reached:
        return Outcome(step, len(acknowledged), ["it never came to this step"])
    before = Remains.of(rig.store)
    rig.launch(spoil=spoil)
    rig.wait_for(rig.requests)
    operator = Client(rig, "operator", rig.requests)
    try:
        if load.locked:
            operator.ask(rig.unlock)
        drained(operator)
        halves = [f"{path.name} is left" for path in rig.store.glob("intake/*/*.moving")]
        faults = [f"lost: {what}" for what in lost_for_good(operator, load, acknowledged)]
        faults += halves if not load.follows else []
        faults += not_rotated(operator, load, acknowledged)
        faults += unnoted(operator, load, acknowledged)
        faults += untold(operator, rig.store, template)
        if faults:
            return Outcome(step, len(acknowledged), faults)
        sender.send_all()
        drained(operator)
        faults += unconverted(operator)
        if load.greets:
            faults += unretired(rig, operator)
        Sender(rig, [AFTERWARDS]).send_all()
        load = load._replace(sent=[*load.sent, AFTERWARDS])
        found = stored(operator, load)
        everything = set(range(len(load.sent)))
        faults += [f"not taken again: {what}" for what in lost(load, everything, found)]
        faults += not_clean(operator, load, found)
        faults += left_over(rig.store, load)
    finally:
        operator.close()
        rig.end()
    after = Remains.of(rig.store)
    if not load.repairs:  # there the same frames are written again, whole
        faults += before.reused(after)
    return Outcome(step, len(acknowledged), faults)
