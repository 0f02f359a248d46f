"""A store whose ingest keys go after erasures, its captures, and a clock that the test sets."""

import json
import time
from typing import Any

from spanvault import messages as m
from spanvault import spool, wire
from storaged.format.walk import finish
from tests.storaged.requests.test_desk import Counter
from tests.support.vault import Parts, call_id, make_call, make_media

ONE, TWO = call_id(1), call_id(2)
DAY_NS = 86_400 * 10**9
CALLS = 4


class House:
    """A store with calls, its captures, and a clock that the test sets."""

    def __init__(self, parts: Parts, *captures: str) -> None:
        self.now_ns, self._captures = time.time_ns(), captures
        self._open(parts)
        parts.commit(calls=[make_call(number) for number in range(CALLS)])

    def _open(self, parts: Parts) -> None:
        self.counter = Counter(parts, captures=self._captures)
        self.counter.clock_ns = self.counter.monotonic_ns = lambda: self.now_ns

    def again(self) -> None:
        """After a crash and a restart."""
        self.counter.access.close()
        self._open(self.counter.parts.again())
        self.counter.eraser.finish()

    @property
    def keys(self) -> list[str]:
        return self.counter.parts.keyring.ingest_key_ids

    def erase(self, number: int) -> m.EraseReply:
        reply = self.counter.ask(m.Erase([call_id(number)], "asked for"))
        assert isinstance(reply, m.EraseReply), reply
        return reply

    def store(self, number: int) -> None:
        """A call that came just now."""
        self.counter.parts.commit(calls=[make_call(number)])

    def say(
        self, *keys: str, capture: str = "office", daemon: str = "capture office", host: str = "one"
    ) -> None:
        """A capture's word: what it holds is, or would be, sealed to these."""
        health = m.Health(daemon, "recording", {"sealed_to": list(keys), "host": host})
        self.counter.retirer.holding.hear(capture, health)

    def greet(self, capture: str = "office") -> None:
        self.counter.parts.index.write(lambda writing: writing.take_capture(capture))

    def look(self) -> None:
        finish(self.counter.retirer.retiring())

    def facts(self, call: bytes = ONE) -> dict[str, Any]:
        document = self.counter.ask(m.Certify(call)).document
        return json.loads(document)["certificate"]["ingest_keys"]

    def gone(self, call: bytes = ONE) -> bool:
        return self.facts(call)["gone_at"] is not None

    @property
    def state(self) -> list[str]:
        return [one.why for one in self.counter.retirer.waiting]

    def spooled(self, number: int) -> bytes:
        """What a capture's disk would hold of a call, under the key of now."""
        frames: list[Any] = wire.encode_media(
            m.Batch("office", 7), make_media([(call_id(number), 1, 0)])
        )
        return spool.seal_batch(frames, self.counter.parts.keyring.ingest_public)

    def opens(self, sealed: bytes) -> bool:
        for key in self.counter.parts.keyring.ingest_keys():
            try:
                spool.open_batch(sealed, key)
            except ValueError:
                continue
            return True
        return False
