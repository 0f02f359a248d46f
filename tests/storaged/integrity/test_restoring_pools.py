"""A replica's changes bring every pool back: its keys, its calls, its recordings."""

import shutil
from pathlib import Path

from spanvault import messages as m
from spanvault.daemon.rules import TIERS
from storaged.index.binding import Binding
from storaged.recordings.gathering import Group
from storaged.recordings.sorting import Sorter
from tests.support.desk import Counter
from tests.support.vault import Parts, call_id, make_call, make_media

ONE, TWO = call_id(1), call_id(2)


def test_all_pools_come_back(tmp_path: Path):
    lost, fresh = Parts(tmp_path / "lost"), tmp_path / "fresh"
    lost.vaults.add(lost.open_pool("sensitive"))
    pools = {ONE: "base", TWO: "sensitive"}
    sorter = Sorter(
        lost.index, lost.vaults, lambda: 1, lambda call: pools[call.id], "base",
        Binding(lost.index, 1, lambda: 1),
    )  # fmt: skip
    group = Group()
    calls = [make_call(1), make_call(2)]
    group.add(b"", m.Batch("test", 1, calls), make_media([(ONE, 1, 0), (TWO, 1, 0)]))
    sorter.commit(group)
    replica = Counter(lost)
    names = [name for vault in lost.vaults for name in vault.key_files()]
    keys = [
        m.Change(0, "keys", name=name, data=(lost.folder / "keys" / name).read_bytes())
        for name in sorted(names)
    ]
    changes = [one for one in replica.ask(m.Feed(0)).changes if one.kind != "keys"]
    fresh.mkdir()
    shutil.copy(lost.folder / "unlock.key", fresh)
    parts = Parts(fresh)
    counter = Counter(parts)
    store_id = lost.keyring.store_id.hex()
    for change in [*keys, *sorted(changes, key=lambda one: one.kind, reverse=True)]:
        bulk = []
        if change.kind == "object":
            pool = lost.vaults.of(TIERS[change.pool]).pool
            bulk = [pool.path(change.id).read_bytes()]
        assert counter.ask(m.Import(store_id, change), *bulk) == m.Done()
    for recording, pool_name in pools.items():
        reply = counter.ask(m.Get(recording))
        assert (reply.pool, reply.sealed) == (pool_name, True)
        assert counter.ask(m.Verify(recording)).faults == []
    assert len(counter.ask(m.Search()).calls) == 2
    replica.access.close()
    counter.access.close()
    for each in (lost, parts):
        each.close()
