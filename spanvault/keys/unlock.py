"""Which key opens the store of `--store DIR`: given, found by the store's root file, or made.

Keys lie outside every store: in ${XDG_DATA_HOME:-~/.local/share}/spanvault/unlock, each named by
its public half. A store's root file names the public keys it is sealed to, so a store that was
moved or restored still finds its key. Key files: spanvault.keys.keyfile.
"""

import os
from pathlib import Path
from typing import Final, NamedTuple

from spanvault.keys import keyfile
from spanvault.spool import key_id

VARIABLE: Final = "SPANVAULT_UNLOCK_KEY"


class UnlockKey(NamedTuple):
    """A private key's file, and whether it was made just now."""

    path: Path
    made: bool


class NoKey(Exception):
    """The store exists, and no key at hand opens it. hint: what to do."""

    def __init__(self, error: str, hint: str) -> None:
        super().__init__(error)
        self.error, self.hint = error, hint


def folder() -> Path:
    """Where keys are kept that nobody named. Raises nothing, makes nothing."""
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "spanvault" / "unlock"


def root_file(store: Path) -> Path:
    """A store's sealed root key; a directory replica has it at the same place."""
    return store / "keys" / "root"


def choose(store: Path, given: Path | None) -> UnlockKey:
    """The key for a store, made where there is no store yet.

    given: what the operator named. Raises NoKey, ValueError (no key file), OSError.
    """
    root = root_file(store)
    if given is not None:
        if given.exists() or root.exists():
            keyfile.load(given)
            return UnlockKey(given, made=False)
        given.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        keyfile.create_private(given)
        return UnlockKey(given, made=True)
    return UnlockKey(find(root), made=False) if root.exists() else _make(folder())


def find(root: Path) -> Path:
    """The kept key that a root file is sealed to. Raises NoKey."""
    sealed = root.read_bytes()
    for path in sorted(folder().glob("*.key")):
        try:
            public = keyfile.public_of(keyfile.load(path))
        except ValueError:
            continue
        if public in sealed:
            return path
    raise NoKey(
        f"no key in {folder()} opens {root.parent.parent}",
        f"Name its unlock or recovery key: --unlock-key FILE, or {VARIABLE}=FILE.",
    )


def _make(place: Path) -> UnlockKey:
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = place / f"new-{os.getpid()}"
    public = keyfile.create_private(fresh)
    path = place / f"{key_id(public)}.key"
    fresh.rename(path)
    return UnlockKey(path, made=True)
