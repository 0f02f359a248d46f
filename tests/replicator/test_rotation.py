"""Root and ingest keys change while calls are recorded, and storaged is killed at random meanwhile.

Each single step of a rotation: the load "new keys" of tests/storaged/test_crash_points.py.
"""

import contextlib
import random
import threading
import time

from spanvault import spool, wire
from spanvault.client import RequestFailed
from spanvault.messages import Batch, Hello, Rotate, Sealed, Welcome
from tests.replicator.conftest import House
from tests.replicator.test_restore import heir, restore
from tests.support.ingest import Ingest, call, identity, media

SPOOLED = 900
ROUNDS = 3


class Rotating:
    """Rotates base's keys, one after the other, as long as the context lasts."""

    def __init__(self, house: House) -> None:
        self._house, self._ending, self.done = house, threading.Event(), 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Rotating":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(RequestFailed), self._house.client() as client:
                client._timeout_s = 1.0
                while not self._ending.is_set():
                    client.change_keys(Rotate("base", "root" if self.done % 3 else "ingest"))
                    self.done += 1


def test_keys_rotate_under_kills_and_nothing_is_lost(make_house, until) -> None:
    house, pause = make_house("old"), random.Random(7)
    house.start()
    with Ingest(house.etc / "capture.toml") as ingest:
        sealed, key_id = spooled(ingest)
    rotations, told = 0, []
    for number in range(ROUNDS):
        with Ingest(house.etc / "capture.toml") as ingest, Rotating(house) as rotating:
            told += told_until_killed(house, ingest, 100 * number, pause.uniform(0.2, 0.9))
        rotations += rotating.done
        house.start("storaged")
        with house.client() as client:
            client.erase([identity(told.pop())], "asked for", unfinished=False)
    assert rotations > ROUNDS
    assert told
    with Ingest(house.etc / "capture.toml") as ingest:
        ingest._socket.send_multipart(wire.encode(Sealed("test", 1, key_id), sealed))
        ingest._sequence = 1
        ingest.settle()
    told.append(SPOOLED)
    assert [number for number in told if not house.said(number)] == []
    with house.client() as client:
        (base, *_) = client.keys().pools
        assert base.ingest_keys > 2
        assert base.epoch > 2
        assert client.status().fields["scrub"]["damaged_keys"] == []
        until(lambda: not client.status().fields["erasing"]["days_due"])
        assert all(one.rows_gone_ns for one in client.erasures())

    until(lambda: house.copied(told), 60)
    until(lambda: (house.replica / "keys/root").read_bytes() == root_of(house))
    for name in ("replicator", "storaged"):
        assert house.appliance.stop(name) == 0
    pages = {path.name: path.read_bytes() for path in (house.store / "keys").glob("page-*")}
    copies = {path.name: path.read_bytes() for path in (house.replica / "keys").glob("page-*")}
    assert pages == copies
    # Anew with each erasure, and once more for the day's key: of several that wait for it at once.
    assert list(pages) in [[f"page-000000.{ROUNDS + more}"] for more in range(1, ROUNDS + 1)]
    new = heir(house, make_house, key="recovery")
    code, _, said = restore(house, new)
    assert (code, said) == (0, "")
    assert [number for number in told if not new.said(number)] == []


def root_of(house: House) -> bytes:
    return (house.store / "keys/root").read_bytes()


def spooled(ingest: Ingest) -> tuple[bytes, str]:
    """A call as a capture's spool has it, sealed to the key of before; and that key's id."""
    ingest._socket.send_multipart(wire.encode(Hello("test")))
    welcome = wire.decode_from_ingest(ingest._socket.recv_multipart())[0]
    assert isinstance(welcome, Welcome)
    batch = Batch("test", 1, [call(SPOOLED, 3)])
    frames = wire.encode_media(batch, media(SPOOLED, range(3), 8000))
    return spool.seal_batch(frames, welcome.ingest_key), welcome.key_id


def told_until_killed(house: House, ingest: Ingest, first: int, pause_s: float) -> list[int]:
    """Have calls recorded until storaged is killed. Gives those that were acknowledged."""
    killer = threading.Timer(pause_s, lambda: house.appliance.kill("storaged"))
    killer.start()
    told = []
    with contextlib.suppress(TimeoutError):
        for number in range(first, first + 30):
            ingest.send([call(number, 3)], media(number, range(3), 8000))
            ingest.settle(1.0)
            told.append(number)
            time.sleep(0.01)
    killer.join()
    return told
