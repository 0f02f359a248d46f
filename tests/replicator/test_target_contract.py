"""What every target must do. A new kind joins by one line in TARGETS; no test here is its own."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replicator.targets import PART_BYTES, Entry, Missing, Target, TargetError
from replicator.targets.base import check_name
from replicator.targets.directory import DirectoryTarget

Make = Callable[[], Target]  # each call opens the same place anew, as a restart does

TARGETS: dict[str, Callable[[Path], Make]] = {
    "directory": lambda folder: lambda: DirectoryTarget(folder / "replica"),
}


@pytest.fixture(params=TARGETS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    return TARGETS[request.param](tmp_path)


@pytest.fixture
def target(make: Make) -> Target:
    target = make()
    target.prepare(create=True)
    return target


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def whole(target: Target, name: str) -> bytes:
    return b"".join(target.read(name))


NAME = "objects/3f/3f00.svr"


def test_what_was_put_reads_back(target: Target) -> None:
    assert target.put(NAME, [b"one ", memoryview(b"two"), b""]) == 7
    assert whole(target, NAME) == b"one two"
    assert target.sha256(NAME) == digest(b"one two")
    assert target.exists(NAME)


def test_a_large_file_comes_in_parts(target: Target) -> None:
    data = bytes(range(256)) * 10_000  # 2.56 MB
    target.put(NAME, (data[at : at + 70_000] for at in range(0, len(data), 70_000)))
    parts = list(target.read(NAME))
    assert b"".join(parts) == data
    assert max(map(len, parts)) <= PART_BYTES
    assert target.sha256(NAME) == digest(data)


def test_an_empty_file_is_a_file(target: Target) -> None:
    assert target.put(NAME, []) == 0
    assert target.exists(NAME)
    assert whole(target, NAME) == b""


def test_a_second_put_replaces_the_first(target: Target) -> None:
    target.put(NAME, [b"a longer first version"])
    target.put(NAME, [b"second"])
    assert whole(target, NAME) == b"second"


def test_it_is_there_after_a_restart(target: Target, make: Make) -> None:
    target.put(NAME, [b"kept"])
    again = make()
    again.prepare(create=False)
    assert whole(again, NAME) == b"kept"


def test_a_source_that_breaks_leaves_nothing(target: Target) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise RuntimeError("source is gone")

    with pytest.raises(RuntimeError, match="source is gone"):
        target.put(NAME, broken())
    assert not target.exists(NAME)
    assert list(target.list("objects")) == []


def test_a_source_that_breaks_leaves_the_older_version(target: Target) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise OSError("source is gone")  # and is not taken for an error of the target

    target.put(NAME, [b"older"])
    with pytest.raises(OSError, match="source is gone"):
        target.put(NAME, broken())
    assert whole(target, NAME) == b"older"


def test_what_an_interrupted_put_left_is_never_listed_and_cleared(
    target: Target, make: Make
) -> None:
    def interrupted() -> Iterator[bytes]:
        yield b"half of it"
        # Seen from here: the temporary file lies there, as after kill -9 at this moment.
        assert list(target.list("objects")) == []
        assert not target.exists(NAME)
        make().prepare(create=False)  # a restart clears it away
        yield b"the other half"

    try:
        target.put(NAME, interrupted())
    except TargetError:
        assert not target.exists(NAME)
    else:
        assert whole(target, NAME) == b"half of itthe other half"


def test_list_gives_names_and_sizes_below_a_folder(target: Target) -> None:
    target.put("objects/3f/a.svr", [b"1"])
    target.put("objects/41/b.svr", [b"22"])
    target.put("keys/root", [b"333"])
    assert sorted(target.list("objects")) == [
        Entry("objects/3f/a.svr", 1),
        Entry("objects/41/b.svr", 2),
    ]
    assert list(target.list("keys")) == [Entry("keys/root", 3)]
    assert list(target.list("records")) == []


def test_remove(target: Target) -> None:
    target.put(NAME, [b"x"])
    target.remove(NAME)
    target.remove(NAME)
    assert not target.exists(NAME)


@pytest.mark.parametrize("ask", ["read", "sha256"])
def test_a_missing_file_is_called_missing(target: Target, ask: str) -> None:
    with pytest.raises(Missing):
        list(getattr(target, ask)("objects/00/none.svr"))


def test_space_is_told(target: Target) -> None:
    space = target.space()
    if space.total is not None and space.free is not None:
        assert 0 < space.free <= space.total


def test_a_place_that_is_not_there_is_an_error_with_a_remedy(make: Make) -> None:
    target = make()
    for act in (
        lambda: target.prepare(create=False),
        lambda: target.put(NAME, [b"x"]),
        lambda: list(target.list("objects")),
        lambda: list(target.read(NAME)),
        target.space,
    ):
        with pytest.raises(TargetError) as caught:
            act()
        assert not isinstance(caught.value, Missing)
        assert caught.value.operation
        assert caught.value.hint
        assert target.place in caught.value.path


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../x", "objects/../../x", "a//b", ".part/x", "a/.hidden", "a b", "ä"],
)
def test_a_name_that_leaves_the_place_is_refused(target: Target, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a file's name"):
        target.put(name, [b"x"])


def test_plain_names_pass() -> None:
    assert check_name("keys/page-000001") == "keys/page-000001"


def test_what_is_destroyed_is_gone(target: Target) -> None:
    target.put(NAME, [b"secret" * 1000])
    target.destroy(NAME)
    assert not target.exists(NAME)
    target.destroy(NAME)
    assert target.grade


def test_supplanted_file_leaves_nothing_of_itself(target: Target, make: Make) -> None:
    for text in (b"old", b"new"):
        assert target.supplant("keys/root", [text]) == 3
    assert whole(target, "keys/root") == b"new"
    assert [entry.name for entry in target.list("keys")] == ["keys/root"]
