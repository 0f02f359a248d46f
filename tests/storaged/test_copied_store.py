"""A store that was copied file by file while it ran: what was there before comes back by reindex.

Such a copy has an index of one moment and recordings of another. How to copy: docs/operating.md.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from spanvault import messages as m
from spanvault import wire
from tests.support.vault import Rig, call_id, chunk_keys, make_call, make_media

ONE, TWO = call_id(1), call_id(2)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """Copies `early` and `late` of a running store; a call went on between, and another began."""
    folder = Path(tempfile.mkdtemp(prefix="sv-"))
    made = Rig(folder, commit_interval_s=0.05)
    made.start()
    capture = made.capture()

    def send(number: int, chunks: list[tuple[bytes, int, int]], *calls: m.Call) -> None:
        capture.send(m.Batch("test", number, list(calls)), make_media(chunks))
        capture.receive(wire.decode_from_ingest)

    send(1, [(ONE, 1, 0)], make_call(1, final=False))
    shutil.copytree(made.store, folder / "early")
    send(2, [(ONE, 1, 1), (TWO, 1, 0)], make_call(1, revision=1), make_call(2))
    shutil.copytree(made.store, folder / "late")
    made.stop()
    yield made
    made.close()
    shutil.rmtree(folder)


def heard(rig: Rig, recording: bytes) -> list[tuple[int, int]]:
    reply, bulk = rig.client("operator").ask(m.Fetch(recording, 0))
    assert isinstance(reply, m.FetchReply), reply
    return [key[1:3] for key in chunk_keys(wire.decode_media(bulk))]


@pytest.mark.parametrize(
    ("index", "rest", "found"),
    [("early", "late", [(1, 0), (1, 1)]), ("late", "early", [(1, 0)])],
)
def test_copy_of_two_moments_has_what_its_recordings_have(rig, index, rest, found):
    rig.store = rig.folder / f"of-{index}-{rest}"
    shutil.copytree(rig.folder / rest, rig.store)
    shutil.rmtree(rig.store / "index")
    shutil.copytree(rig.folder / index / "index", rig.store / "index")
    rig.configure(commit_interval_s=0.05)
    shutil.move(rig.store / "index/data.mdb", rig.folder / f"{index}.mdb")
    assert rig.reindex() == 0
    rig.start()
    assert heard(rig, ONE) == found
    assert rig.client("operator").ask(m.Verify(ONE))[0].faults == []
    assert rig.stop() == 0
