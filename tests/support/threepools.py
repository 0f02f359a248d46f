"""storaged with calls for all three pools at once, whose disks a test breaks one by one.

Base, core and sensitive have folders of their own, beside the store or in it; sensitive opens with
a key that storaged does not have. A round is one batch with a call for each of them.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from spanvault import messages as m
from spanvault import wire
from spanvault.keys import keyfile
from tests.support.forked import Forked
from tests.support.kept import lost, not_clean, stored
from tests.support.loads import Load, Sent
from tests.support.vault import call_id, make_call, make_media

POOLS: Final = ("base", "core", "sensitive")
SECONDS: Final = 40  # of a call: more than what is left of the last block
_SETTINGS: Final = """
[pools.base]
path = '{pools}/base'
[pools.core]
path = '{pools}/core'
[pools.sensitive]
path = '{pools}/sensitive'
recipients = ['{folder}/sensitive.pub']
[[rules]]
pool = 'core'
number = ['core']
[[rules]]
pool = 'sensitive'
number = ['sensitive']
"""


def a_call(number: int, pool: str) -> bytes:
    """The id of a round's call for a pool."""
    return call_id(1000 * (1 + POOLS.index(pool)) + number)


def a_round(number: int, records: int = 0) -> Sent:
    """A call for each pool, begun and ended: no file of it stays open. records: calls besides."""
    calls = [make_call(1000 * (1 + tier) + number, callee=pool) for tier, pool in enumerate(POOLS)]
    chunks = [(call.id, 1, second) for call in calls for second in range(SECONDS)]
    calls += [make_call(100_000 + 1000 * number + one, callee="other") for one in range(records)]
    return Sent(m.Batch("test", number, calls), chunks)


class ThreePools:
    """The daemon, a capture and an operator, and every round that was sent.

    apart: the pools lie beside the store, else in it.
    """

    def __init__(self, folder: Path, *, apart: bool = True) -> None:
        self.rig = Forked(folder)
        self._pools = folder if apart else self.rig.store / "pools"
        keyfile.create_private(folder / "sensitive.key")
        public = keyfile.public_of(keyfile.load(folder / "sensitive.key"))
        keyfile.write_public(folder / "sensitive.pub", public)
        with self.rig.config.open("a") as file:
            file.write(_SETTINGS.format(folder=folder, pools=self._pools))
        self.sent: list[Sent] = []
        self.erased: set[bytes] = set()

    def place(self, name: str) -> Path:
        """A pool's folder, or one of the store's."""
        return (self._pools if name in POOLS else self.rig.store) / name

    def start(self, spoil: str = "") -> None:
        """storaged anew, all pools open, and a capture that has found it."""
        self.rig.launch(spoil=spoil)
        self.rig.wait_for(self.rig.requests)
        listens = Path(self.rig.requests.removeprefix("ipc://")).exists()
        assert listens, f"storaged does not start: {self.rig.messages[-300:]}"
        self.operator = self.rig.client("operator")
        self.capture = self.rig.capture()
        self.unlock()

    def unlock(self) -> None:
        key = keyfile.load(self.rig.folder / "sensitive.key")
        assert self.ask(m.Unlock("sensitive", key)) == m.Done()

    def lock(self) -> None:
        assert self.ask(m.Lock("sensitive")) == m.Done()

    def ask(self, request: Any) -> Any:
        return self.operator.ask(request)[0]

    def send(self, records: int = 0) -> Sent:
        """The next round."""
        sent = a_round(len(self.sent) + 1, records)
        self.sent.append(sent)
        self.send_again(sent)
        return sent

    def send_again(self, sent: Sent) -> None:
        self.capture.send(sent.message, make_media(sent.chunks))

    def acknowledged(self, seconds: float = 20) -> list[int]:
        """The sequences of the next answer; none if there is none for so long."""
        answer = self.capture.receive(wire.decode_from_ingest, seconds)
        return answer[0].sequences if answer else []

    def status(self, due: Callable[[m.StatusReply], bool]) -> m.StatusReply:
        """Wait until status is so."""
        end = time.monotonic() + 10
        while not due(reply := self.ask(m.Status())):
            assert time.monotonic() < end, reply
            time.sleep(0.05)
        return reply

    def well(self) -> None:
        """Wait until nothing is wrong with any disk, and nothing waits."""
        self.status(lambda reply: all(
            pool["state"] == "ok" and not pool["waiting"] for pool in reply.fields["pools"].values()
        ) and "NOT COMPLETE" not in reply.state)  # fmt: skip

    def faults(self, rounds: Iterable[Sent], pools: Iterable[str] = POOLS) -> list[str]:
        """What is missing or damaged of these rounds, in these pools."""
        wanted = [_only(sent, set(pools)) for sent in rounds]
        load = Load(lambda _: None, wanted)
        found = stored(self.operator, load)
        every = set(range(len(wanted)))
        missing = [one for one in lost(load, every, found) if not self._is_erased(one)]
        return [*missing, *not_clean(self.operator, load, found)]

    def _is_erased(self, what: str) -> bool:
        return any(what.endswith(one.hex()[:8]) for one in self.erased)

    def close(self) -> None:
        self.rig.close()


def _only(sent: Sent, pools: set[str]) -> Sent:
    """Of a round what goes into these pools."""
    assert isinstance(sent.message, m.Batch)
    calls = [call for call in sent.message.calls if call.callee in pools | {"other"}]
    ids = {call.id for call in calls}
    chunks = [chunk for chunk in sent.chunks if chunk[0] in ids]
    return Sent(m.Batch("test", sent.message.sequence, calls), chunks)
