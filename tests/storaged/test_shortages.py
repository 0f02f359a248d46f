"""Too few open files: recordings share what there is, and where there is none it says so."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from spanvault import messages as m
from spanvault import wire
from storaged.pools import opening
from tests.support.privileges import sees_into_daemons
from tests.support.vault import Rig, acknowledged, call_id, fetch, make_call, make_media

FILES, CALLS = 128, 300


class Short(Rig):
    """May open few files."""

    def spawn(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["prlimit", f"--nofile={FILES}", sys.executable, "-m", "storaged",
             "--config", self.config],
            stderr=(self.folder / "stderr").open("ab"),
        )  # fmt: skip


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    made = Short(tmp_path_factory.mktemp("rig"))
    made.start()
    yield made
    made.close()


def test_more_recordings_grow_than_files_may_be_open(rig):
    capture, operator = rig.capture(), rig.client("operator")
    ids = [call_id(number) for number in range(CALLS)]
    for second in range(3):
        ended = [make_call(number) for number in range(CALLS)] if second == 2 else []
        media = make_media([(one, 1, second) for one in ids])
        capture.send(m.Batch("test", second, ended), media)
        assert acknowledged(capture) == [second]
    for one in ids[::50]:
        assert fetch(operator, one) == [(1, 0), (1, 1), (1, 2)]


def limit(rig, most: int) -> None:
    """So many files and no more, from now on."""
    resource.prlimit(rig.process.pid, resource.RLIMIT_NOFILE, (most, FILES))


def highest(rig) -> int:
    """The highest number of a file that is open."""
    return max(int(path.name) for path in Path(f"/proc/{rig.process.pid}/fd").iterdir())


@pytest.mark.root
@pytest.mark.skipif(not sees_into_daemons(), reason="needs root, with CAP_SYS_PTRACE")
def test_where_none_is_left_it_is_told_and_resumes_by_itself(rig):
    capture, operator = rig.capture(), rig.client("operator")
    going_on = make_media([(call_id(1000 + number), 1, 0) for number in range(10)])
    capture.send(m.Batch("test", 9, []), going_on)
    assert acknowledged(capture) == [9]
    operator.ask(m.Status())
    limit(rig, highest(rig) + 1)  # files of recordings that go on give way to a new one's
    capture.send(m.Batch("test", 10, []), make_media([(call_id(1011), 1, 0)]))
    assert acknowledged(capture) == [10]
    limit(rig, 8)  # and then nothing does
    capture.send(m.Batch("test", 11, []), make_media([(call_id(1012), 1, 0)]))
    assert acknowledged(capture, 0.5) == []
    state = operator.ask(m.Status())[0].state
    assert state.startswith("not recording: the store cannot be written: ")
    assert "Too many open files. This daemon has too few: raise LimitNOFILE= of its unit" in state
    capture.send(m.Hello("test"))
    assert isinstance(capture.receive(wire.decode_from_ingest)[0], m.Welcome)
    limit(rig, FILES)
    assert acknowledged(capture) == [11]
    assert fetch(operator, call_id(1012)) == [(1, 0)]


@pytest.mark.parametrize(("most", "of_a_pool"), [(128, 21), (1024, 170), (65536, 16384)])
def test_a_part_of_the_files_stays_for_connections(most, of_a_pool):
    assert opening._files_of_a_pool(most) == of_a_pool


def test_with_hardly_any_it_does_not_start_and_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "FILES", 64)
    rig = Short(tmp_path)
    process = rig.spawn()
    assert process.wait(20) == 78
    assert "It needs 128 at least: raise LimitNOFILE= of its unit" in rig.messages
