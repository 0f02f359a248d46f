"""One disk of several takes nothing: its pool stops and is named, the others go on, and it resumes.

Base, core and sensitive are on disks of their own, and so are the index, the keys, the intakes and
the access log. Each is filled, made read-only, or fails (an ext4 whose disk the test serves
itself), a pool's is also unmounted or lacks inodes, under a running storaged with calls coming for
all three pools. What was acknowledged is there afterwards, and clean.
"""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from spanvault import cli, wire
from spanvault import messages as m
from tests.support.fusedisk import SLOW, WORKS, WRITES_FAIL, Disk
from tests.support.smalldisk import (
    close_to_writes,
    empty,
    fill,
    give_inodes,
    mount_again,
    open_to_writes,
    small_disks,
    unmount,
    use_up_inodes,
)
from tests.support.threepools import POOLS, ThreePools, a_call
from tests.support.vault import fetch, make_call, make_media

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]
MEGABYTES = {"base": 4, "core": 4, "sensitive": 4, "index": 6, "keys": 2, "intake": 4, "log": 1}


class Fault(NamedTuple):
    """What is done to a disk, what mends it, and what the line for the operator says of it."""

    breaks: Callable[[Path], None]
    mends: Callable[[Path], None]
    cause: str
    remedy: str


FULL = Fault(fill, empty, "No space left on device", "Free space there")
READ_ONLY = Fault(close_to_writes, open_to_writes, "Read-only file system", "mount it writable")
NO_INODE = Fault(use_up_inodes, give_inodes, "No inode left", "df -i")
UNMOUNTED = Fault(unmount, mount_again, "Stale file handle", "mount it again")


@contextlib.contextmanager
def three_pools(*, apart: bool = True) -> Iterator[ThreePools]:
    """Not started yet: its disks come first."""
    folder = Path(tempfile.mkdtemp(prefix="sv-"))
    made = ThreePools(folder, apart=apart)
    made.rig.store.mkdir(mode=0o700)
    yield made
    shutil.rmtree(folder)


@contextlib.contextmanager
def begun(made: ThreePools) -> Iterator[ThreePools]:
    """With a first round. Ended before its disks go."""
    made.start()
    made.send()
    assert made.acknowledged() == [1]
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def small() -> Iterator[ThreePools]:
    """On small disks."""
    with three_pools() as made:
        sizes = {made.place(name): size for name, size in MEGABYTES.items()}
        with small_disks(sizes), begun(made):
            yield made


def told(made: ThreePools, place: Path, fault: Fault, *, within: bool = False) -> str:
    """The one line of status that names place, disk, cause and remedy."""
    state = made.status(lambda reply: str(place) in reply.state).state
    assert within or f"{place} (disk " in state
    assert (fault.cause in state, fault.remedy in state, "\n" in state) == (True, True, False)
    return state


@pytest.mark.parametrize("fault", [FULL, READ_ONLY, NO_INODE, UNMOUNTED],
                         ids=["full", "read-only", "no inode", "unmounted"])  # fmt: skip
@pytest.mark.parametrize("pool", POOLS)
def test_a_pool_s_disk_takes_nothing(small, pool, fault):
    """Its calls wait, sealed, on the store's disk."""
    place, others = small.place(pool), set(POOLS) - {pool}
    fault.breaks(place)
    sent = small.send()
    assert small.acknowledged() == [len(small.sent)]
    state = told(small, place, fault)
    assert state.count(f"pool {pool} takes no writes, its calls wait") == 1
    assert not state.startswith("not recording")
    pools = small.ask(m.Status()).fields["pools"]
    assert {name for name in POOLS if pools[name]["state"] == "ok"} == others
    assert {name for name in POOLS if not pools[name]["waiting"]} == others
    assert small.faults([sent], others) == []
    fault.mends(place)
    small.well()
    assert small.faults([small.sent[0], sent]) == []


def test_the_index_s_disk_is_full(small):
    """LMDB calls that a disk that fails."""
    fill(small.place("index"))
    sent = small.send(records=400)
    state = told(small, small.place("index"), FULL)
    assert state.startswith("not recording: the store cannot be written")
    assert small.acknowledged(0.3) == []
    assert small.faults([small.sent[0]]) == []
    empty(small.place("index"))
    assert small.acknowledged() == [len(small.sent)]
    small.well()
    assert small.faults([small.sent[0], sent]) == []


@pytest.mark.parametrize("fault", [FULL, READ_ONLY], ids=["full", "read-only"])
def test_the_intake_s_disk_takes_nothing_while_a_pool_is_locked(small, fault):
    small.lock()
    fault.breaks(small.place("intake"))
    sent = small.send()
    told(small, small.place("intake") / "sensitive", fault)
    assert small.acknowledged(0.3) == []
    fault.mends(small.place("intake"))
    assert small.acknowledged() == [len(small.sent)]
    small.unlock()
    small.well()
    assert small.faults([small.sent[0], sent]) == []


@pytest.mark.parametrize("fault", [FULL, READ_ONLY], ids=["full", "read-only"])
def test_the_keys_disk_takes_nothing(small, fault):
    """Recording goes on; an erasure that was begun is completed by itself, a new root is refused"""
    fault.breaks(small.place("keys"))
    first = small.send()
    assert small.acknowledged() == [len(small.sent)]
    doomed = a_call(len(small.sent), "core")
    small.erased.add(doomed)
    reply = small.ask(m.Erase([doomed], "test"))
    assert (reply.code, fault.cause in reply.error) == ("unavailable", True)
    assert "an erasure is NOT COMPLETE" in told(small, small.place("keys") / "core", fault)
    assert small.ask(m.Get(doomed)).code == "erased"
    reply = small.ask(m.Rotate("base", "root"))
    assert (reply.code, str(small.place("keys")) in reply.error) == ("unavailable", True)
    second = small.send()
    assert small.acknowledged() == [len(small.sent)]
    fault.mends(small.place("keys"))
    small.well()
    assert small.ask(m.Erasures()).erasures[0].done
    assert small.ask(m.Rotate("base", "root")) == m.Done()
    assert small.faults([small.sent[0], first, second]) == []


def test_the_access_log_s_disk_is_full(small):
    """Recording goes on, nothing is given out."""
    fill(small.place("log"))
    sent = small.send()
    assert small.acknowledged() == [len(small.sent)]
    while (reply := small.ask(m.Erasures())) and not isinstance(reply, m.Failure):
        pass  # until the last block of the log is full, too
    assert (reply.code, "access log" in reply.error) == ("full", True)
    empty(small.place("log"))
    assert small.faults([small.sent[0], sent]) == []


def test_everything_was_kept_and_the_store_opens_again(small):
    """Behind all of the above."""
    small.rig.end()
    small.start()
    small.well()
    assert small.faults(small.sent) == []
    assert small.ask(m.Status()).fields["scrub"]["damaged"] == 0
    assert "the access log was CHANGED" not in small.ask(m.Status()).state
    assert verified(small) == WHOLE


WHOLE = (0, ["0 damaged"] * 4, "")  # key files, ledgers, call records, recordings


def verified(made: ThreePools) -> tuple[int, list[str], str]:
    """`spanvault verify --all`, as the operator would: the exit code, and what it tells."""
    folder = made.rig.folder
    config = folder / "spanvault.toml"
    config.write_text(
        f'storaged = "{made.rig.requests}"\n'
        f'certificate = "{folder}/secret/operator.key_secret"\n'
        f'storaged_certificate = "{folder}/secret/storaged.key"\n'
    )
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = cli.run(["verify", "--all", "--config", str(config)])
    lines = said.getvalue().splitlines()
    counts = [line.rpartition(", ")[2] for line in lines if " checked, " in line]
    return code, counts, "".join(line for line in lines if " checked, " not in line)


with_fuse = [
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="needs loop devices"),
]


@pytest.fixture
def on_disk(request) -> Iterator[tuple[ThreePools, Disk, str]]:
    """On an ext4 of its own under one place; "store": all of it, pools and all."""
    name: str = request.param
    with three_pools(apart=name != "store") as made:
        mounted = made.rig.store if name == "store" else made.place(name)
        with Disk(made.rig.folder / "disk", 32, mounted) as disk, begun(made):
            yield made, disk, name


def on(*names: str) -> Callable[[Any], Any]:
    def mark(test: Any) -> Any:
        for one in with_fuse:
            test = one(test)
        return pytest.mark.parametrize("on_disk", names, indirect=True)(test)

    return mark


@on("store")
def test_the_one_disk_of_a_store_is_full(on_disk):
    made, disk, _ = on_disk
    fill(disk.mounted)
    sent = made.send()
    state = told(made, disk.mounted / "pools", FULL, within=True)
    assert state.startswith("not recording: the store cannot be written")
    assert made.acknowledged(0.3) == []
    assert FULL.cause in made.rig.messages
    empty(disk.mounted)
    assert made.acknowledged() == [2]
    made.well()
    assert made.faults([made.sent[0], sent]) == []


@on("store", "sensitive")
def test_a_disk_vanishes_under_calls_that_go_on_and_comes_back(on_disk):
    made, disk, name = on_disk
    ids = [a_call(9, pool) for pool in POOLS]

    def calls(*, final: bool) -> list[m.Call]:
        return [make_call(1000 * (1 + tier) + 9, callee=pool, final=final, revision=1 + final)
                for tier, pool in enumerate(POOLS)]  # fmt: skip

    def talk(second: int, about: list[m.Call]) -> None:
        made.capture.send(m.Batch("test", 10 + second, about),
                          make_media([(one, 1, second) for one in ids]))  # fmt: skip

    talk(0, calls(final=False))
    assert made.acknowledged() == [10]
    disk.vanish()
    talk(1, [])
    state = made.status(lambda reply: "takes no writes" in reply.state or "cannot" in reply.state)
    assert "It is gone: is its disk mounted? Mount it" in state.state
    if name == "sensitive":
        assert made.acknowledged() == [11]
    made.capture.send(m.Hello("test"))
    assert isinstance(made.capture.receive(wire.decode_from_ingest)[0], m.Welcome)
    disk.come_back()
    if name == "store":
        assert made.acknowledged() == [11]
    talk(2, calls(final=True))
    assert made.acknowledged() == [12]
    made.well()
    assert [fetch(made.operator, one) for one in ids] == [[(1, 0), (1, 1), (1, 2)]] * 3
    assert made.faults(made.sent) == []


@on("sensitive")
def test_a_disk_is_slow(on_disk):
    """It is named while that lasts."""
    made, disk, _ = on_disk
    disk.mood(SLOW)
    made.send()
    state = made.status(lambda reply: "is SLOW" in reply.state).state
    assert f"{disk.mounted} (disk {disk.mounted}) is SLOW: " in state
    assert made.acknowledged() == [2]
    assert "is SLOW" in made.ask(m.Status()).state
    disk.mood(WORKS)
    made.send()
    assert made.acknowledged() == [3]
    assert "is SLOW" not in made.ask(m.Status()).state
    assert made.faults(made.sent) == []


@on("store", "base", "core", "index", "keys", "intake")
def test_a_disk_fails_and_is_mended(on_disk):
    """EIO, then read-only as ext4 makes itself; it has to be mounted anew, so storaged restarts."""
    made, disk, name = on_disk
    if name == "intake":
        made.lock()
    disk.mood(WRITES_FAIL)
    made.send()
    if name == "keys":
        made.erased.add(a_call(1, "base"))
        assert made.ask(m.Erase([a_call(1, "base")], "test")).code == "unavailable"
    state = made.status(lambda reply: str(disk.mounted) in reply.state).state
    assert any(cause in state for cause in ("Input/output error", READ_ONLY.cause))
    kept = made.acknowledged(0.3)
    assert bool(kept) == (name in ("base", "core", "keys"))
    made.rig.end()
    disk.unmount()
    disk.mood(WORKS)
    disk.mount()
    made.start()
    made.well()
    assert made.faults(made.sent if kept else made.sent[:1]) == []
    if not kept:
        made.send_again(made.sent[1])
        assert made.acknowledged() == [2]
        made.well()
    assert made.faults(made.sent) == []
    assert verified(made) == WHOLE
