"""What every replication target can do, and how it says that it could not.

A target keeps files of ciphertext under names such as `objects/3f/3f…e1.svr`. It knows nothing of
recordings, feeds or keys: those names mean something in replicator.layout only. A new kind of
target is one module beside this one, one line in `replicator.targets.KINDS`, and the suite in
tests/replicator/test_target_contract.py.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, Protocol

PART_BYTES: Final = 1 << 20  # files travel in parts of at most so many bytes
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


class TargetError(Exception):
    """A target did not do what it was asked: tried again later, and shown to the operator."""

    def __init__(self, operation: str, path: str, cause: object, hint: str) -> None:
        super().__init__(f"{operation} {path}: {cause}")
        self.operation, self.path, self.cause, self.hint = operation, path, cause, hint


class Missing(TargetError):
    """There is no file of that name."""


class Entry(NamedTuple):
    """One file at a target."""

    name: str
    size: int


class Space(NamedTuple):
    """Bytes a target can hold, and bytes still free; None where the target cannot say."""

    total: int | None
    free: int | None


class Target(Protocol):
    """A place for files of ciphertext. Every method may raise TargetError.

    `place` is where it is, for people. Used by one thread at a time.
    """

    place: str

    def prepare(self, create: bool) -> None:
        """Make sure that the place is there, and clear away what an interrupted put left.

        create: make it if it is missing. Without, a missing place is an error: an unmounted disk
        must not be mistaken for a new one.
        """

    def put(self, name: str, parts: Iterable[bytes | memoryview]) -> int:
        """Keep a file, whole and durably, or not at all; gives its size. Replaces one of that name.

        What `parts` raises passes through, and nothing is kept.
        """

    def sha256(self, name: str) -> str:
        """Read a file back from the medium, past every cache in reach, and give its digest (hex).

        Raises Missing.
        """

    def read(self, name: str) -> Iterator[bytes]:
        """A file's bytes in parts of at most PART_BYTES. Raises Missing."""

    def list(self, folder: str) -> Iterator[Entry]:
        """The files below a folder, in any order; none if there is no such folder."""

    def exists(self, name: str) -> bool:
        """Whether a file of that name is kept, whole."""

    def remove(self, name: str) -> None:
        """Forget a file; one that is not there is no error."""

    def destroy(self, name: str) -> None:
        """remove(), after its bytes were overwritten where they lie, as far as the place can."""

    def supplant(self, name: str, parts: Iterable[bytes | memoryview]) -> int:
        """put(), after which what was there before is destroyed as by destroy()."""

    @property
    def grade(self) -> str:
        """How surely a destroyed file is gone, in words for a certificate."""

    def space(self) -> Space:
        """How much there is, and how much is left."""


def check_name(name: str) -> str:
    """The name, if it is plain enough for every target. Raises ValueError.

    Letters, digits, `_`, `-` and inner dots, in folders parted by `/`: what comes over the wire
    cannot leave the target's own folder, nor meet a file that a target hides (a leading dot).
    """
    if len(name) > 255 or not _NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} cannot be a file's name at a target")
    return name
