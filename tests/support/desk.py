"""storaged's desk of requests on a store of the test's, with somebody who asks; no sockets."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from spanvault import messages as m
from spanvault import wire
from spanvault.transport import Identity
from storaged.erasing.eraser import Eraser
from storaged.erasing.moving import Mover
from storaged.erasing.retention import Retention
from storaged.erasing.retiring import Retirer
from storaged.format.walk import finish
from storaged.integrity.mending import Mender
from storaged.pools.layout import Store
from storaged.requests.accesslog import AccessLog
from storaged.requests.desk import Answer, Desk
from tests.support.vault import Parts, chunk_keys

OPERATOR = Identity("operator", "alice")
GRACE_NS = 30 * 86_400 * 10**9
REPLICATOR = Identity("replicator", "copier")


class Counter:
    """A desk with somebody behind it."""

    def __init__(
        self, parts: Parts, forget: Callable[[Sequence[bytes]], None] | None = None,
        captures: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.parts, self.store = parts, Store(parts.folder)
        self.store.log.mkdir(exist_ok=True)
        self.store.write_format(parts.keyring.store_id)
        self.access = AccessLog(self.store.log / "access.log")
        self.store.refused.mkdir(exist_ok=True)
        self.eraser = Eraser(
            self.store, parts.index, parts.vaults, forget or parts.writer.forget, time.time_ns
        )
        mender = Mender(
            parts.index, parts.vaults, forget or parts.writer.forget, time.time_ns, time.monotonic
        )
        self.clock_ns, self.monotonic_ns = time.time_ns, time.monotonic_ns
        self.retention = Retention(
            parts.index, parts.vaults, self.eraser, lambda: self.clock_ns(),
            lambda: self.monotonic_ns(),
        )  # fmt: skip
        self.retirer = Retirer(
            parts.index, parts.vaults, parts.opener, self.store.refused, captures, GRACE_NS,
            lambda: self.clock_ns(), lambda: self.monotonic_ns(),
        )  # fmt: skip
        self.desk = Desk(
            self.store, parts.index, parts.vaults, self.access, self.eraser, mender,
            Mover(parts.index, parts.vaults, self.eraser, forget or parts.writer.forget,
                  time.time_ns),
            time.time_ns, lambda: ("fine", {}), parts.opener, self.retention, self.retirer,
        )  # fmt: skip

    def ask(self, request: Any, *bulk: bytes, who: Identity = OPERATOR) -> Any:
        return self.answer(request, *bulk, who=who).reply

    def answer(self, request: Any, *bulk: bytes, who: Identity = OPERATOR) -> Answer:
        return self.desk.answer(who, request, list(bulk))

    def convert(self) -> None:
        """Have search rows of erased calls go, as storaged does by and by."""
        finish(self.desk.converting())

    def fetch(self, call: bytes) -> tuple[list[tuple[bytes, int, int, bytes]], int]:
        """All chunks of a call, and how many pages they took."""
        found, cursor, pages = [], 0, 0
        while cursor is not None:
            reply, bulk = wire.decode_reply(self.answer(m.Fetch(call, cursor)).frames())
            found += chunk_keys(wire.decode_media(bulk))
            cursor, pages = reply.cursor, pages + 1
        return found, pages

    @property
    def lines(self) -> list[dict[str, Any]]:
        text = (self.store.log / "access.log").read_text()
        return [json.loads(line) for line in text.rstrip("\0").splitlines()]
