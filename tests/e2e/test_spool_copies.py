"""Copies of spools and intakes from before an erasure open no more behind it, all by itself.

storaged as a process, the capture's own delivery, and somebody who copied the capture's disk and
the store's intakes, and has every key of the operators. The same on an image of the medium:
test_forensic.py.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from capture.delivery.courier import Courier
from capture.recorder import Heard
from spanvault import messages as m
from spanvault import spool, transport
from spanvault.daemon.config import CaptureConfig
from spanvault.keys import keyfile
from storaged.keys.keyring import Keyring
from tests.support.capturing import Life
from tests.support.vault import Rig, call_id, make_call, make_media, payload

CORE = """
[pools.core]
recipients = ['{folder}/core.pub']
[[rules]]
pool = 'core'
number = ['core']
"""


class Site:
    """storaged, with a pool core that starts locked, and captures of it."""

    def __init__(self, folder: Path) -> None:
        self.rig, self.folder = Rig(folder), folder
        keyfile.create_private(folder / "core.key")
        public = keyfile.public_of(keyfile.load(folder / "core.key"))
        keyfile.write_public(folder / "core.pub", public)
        with self.rig.config.open("a") as file:
            file.write(CORE.format(folder=folder))
        self.know("annex")

    def know(self, name: str) -> None:
        secret = self.folder / "secret"
        transport.make_certificate(secret, "capture", name)
        (self.folder / f"clients/{name}.key").write_bytes((secret / f"{name}.key").read_bytes())

    def start(self) -> None:
        self.rig.start()
        self.operator = self.rig.client("operator")

    def ask(self, request: Any) -> Any:
        return self.operator.ask(request)[0]

    @contextmanager
    def capture(self, name: str = "capture") -> Iterator[Courier]:
        """A capture from start to stop; what is not acknowledged then lies in its spool."""
        secret = self.folder / "secret"
        settings = CaptureConfig(
            name=name, storaged=self.rig.ingest, certificate=secret / f"{name}.key_secret",
            storaged_certificate=secret / "storaged.key", state_dir=self.folder / name,
            runtime_dir=self.folder / "run",
        )  # fmt: skip
        courier = Courier(settings, Life(), logging.getLogger(name))
        try:
            yield courier
        finally:
            courier.put_away()
            courier.close()

    def until(self, done: Callable[[], bool], *couriers: Courier) -> None:
        end = time.monotonic() + 20
        while not done():
            assert time.monotonic() < end, self.ask(m.Status())
            for courier in couriers:
                courier.pump(10)
                courier.tell("recording", {}, now=True)
            time.sleep(0.01)

    def meet(self, *couriers: Courier) -> None:
        self.until(lambda: all(one.link.connected for one in couriers), *couriers)

    def delivered(self, *couriers: Courier) -> None:
        self.until(lambda: not any(one.outbox.waiting for one in couriers), *couriers)

    def waits_for(self, what: str) -> bool:
        """Whether that, and nothing else, is what keys wait for which have to go."""
        keys = self.ask(m.Status()).fields["erasing"]["ingest_keys"]
        return bool(keys) and all(f"waits for {what} until" in one for one in keys)

    def spools_gone(self, number: int) -> bool:
        (erasure,) = self.ask(m.Erasures(call_id(number))).erasures
        return bool(erasure.spools_gone_ns)

    def erase(self, number: int) -> None:
        reply = self.ask(m.Erase([call_id(number)], "asked for"))
        assert isinstance(reply, m.EraseReply), reply

    def opened(self, copy: Path) -> list[bytes]:
        """What somebody hears of a copy who has the store's key files of now, and every key."""
        found = []
        with tempfile.TemporaryDirectory() as place:
            keys = Path(shutil.copytree(self.rig.store / "keys", Path(place) / "keys"))
            rings = [
                Keyring(keys, keyfile.load(self.folder / "secret/unlock.key")),
                Keyring(keys / "core", keyfile.load(self.folder / "core.key")),
            ]
            for path in copy.rglob("*.sealed"):
                for key in (key for ring in rings for key in ring.ingest_keys()):
                    try:
                        found.append(spool.open_plain(path.read_bytes(), key))
                    except ValueError:
                        continue
        return found


def hear(courier: Courier, number: int, callee: str = "base") -> None:
    courier.put(Heard([make_call(number, callee=callee)], [make_media([(call_id(number), 1, 0)])]))


def said(number: int) -> bytes:
    return payload(call_id(number), 1, 0, 32)


@pytest.fixture
def site() -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="sv-"))
    made = Site(folder)
    yield made
    made.rig.close()
    shutil.rmtree(folder)


def test_copy_of_a_spool_opens_until_who_was_away_has_delivered_and_then_no_more(site):
    """Nothing is lost of a capture that comes back late; its key goes once it has delivered."""
    site.start()
    with site.capture() as here, site.capture("annex") as annex:
        site.meet(here, annex)
        site.rig.stop()
        hear(here, 1)
        hear(annex, 2)
    copy = Path(shutil.copytree(site.folder / "capture/spool", site.folder / "copy"))
    site.start()
    with site.capture() as here:
        site.delivered(here)
        assert not list((site.folder / "capture/spool").iterdir())
        assert any(said(1) in each for each in site.opened(copy))  # the control
        site.erase(1)
        site.until(lambda: site.waits_for("capture annex"), here)
        assert any(said(1) in each for each in site.opened(copy))
        assert not site.spools_gone(1)
        with site.capture("annex") as annex:
            site.until(lambda: site.spools_gone(1), here, annex)
    assert site.opened(copy) == []
    reply = site.ask(m.Get(call_id(2)))
    assert (reply.size > 0, reply.call.callee) == (True, "base")
    assert site.ask(m.Verify(call_id(2))).faults == []
    assert site.ask(m.Status()).fields["ingest"]["refused"] == 0


def test_copy_of_the_intake_of_a_locked_pool_opens_no_more(site):
    site.start()
    with site.capture() as here, site.capture("annex") as annex:
        site.meet(here, annex)
        hear(here, 1, "core")
        hear(here, 2, "core")
        site.delivered(here, annex)
        copy = Path(shutil.copytree(site.rig.store / "intake/core", site.folder / "copy"))
        assert any(said(1) in each for each in site.opened(copy))
        assert site.ask(m.Unlock("core", keyfile.load(site.folder / "core.key"))) == m.Done()
        site.until(lambda: isinstance(site.ask(m.Get(call_id(1))), m.GetReply), here, annex)
        site.erase(1)
        site.until(lambda: site.spools_gone(1), here, annex)
        assert site.opened(copy) == []
        assert site.ask(m.Verify(call_id(2))).faults == []
        (erasure,) = site.ask(m.Erasures(call_id(1))).erasures
        assert {key.pool for key in erasure.ingest_keys} == {"base", "core"}
