"""A store on disk: what lies where, how one is made, and who has it open.

FORMAT.md §3 specifies the folders. Keys: storaged.keys.keyring; index: storaged.index.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from spanvault import spool
from storaged import files
from storaged.diskfaults import remedy
from storaged.faults import Fault
from storaged.keys import keyring

FORMAT: Final = "spanvault store"
VERSION: Final = 3  # FORMAT.md §3.1 says what each was
LEDGERS: Final = 2  # from this version on an index can be made anew, and so brought to ours
_OLDER: Final = (
    "It is from before there were ledgers. Export what must be kept with the spanvault that made "
    "it, and name an empty folder as `store`."
)
_REINDEX: Final = (
    "Its recordings and keys are as they must be, its index is of another form: run `spanvault "
    "reindex` once, with --pool-key for every pool that is locked."
)
_OURS: Final = {
    "lock",
    "keys",
    "index",
    "index.new",
    "pools",
    "intake",
    "refused",
    "log",
    "format.json",
    "format.json.new",
}
# What there is only once something was recorded, or a pool was added.
_USED: Final = (
    "keys/page-*", "keys/*/root", "intake/*/*.sealed", "pools/*/objects/*/*", "pools/*/ledger/*",
)  # fmt: skip
_RECORDED: Final = ("objects/*/*", "ledger/*")  # the same in a pool's folder elsewhere


class Store:
    """The paths of a store, and its lock while it is open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys, self.index = folder / "keys", folder / "index"
        self.refused, self.log = folder / "refused", folder / "log"
        self.intake = folder / "intake"
        self.index_aside = folder / "index.new"  # while one is made anew
        self._lock = -1
        self._store_id: bytes | None = None

    @property
    def format_file(self) -> Path:
        """What makes a folder a store. Written last when one is made."""
        return self.folder / "format.json"

    def pool(self, name: str) -> Path:
        """A pool's folder, unless the settings name another."""
        return self.folder / "pools" / name

    def used(self, pools: Iterable[Path] = ()) -> Path | None:
        """Something that tells that the store was in use, its keys too; None: nothing does.

        pools: folders of pools that lie elsewhere. They may be empty because they are not mounted.
        """
        own = (found for kind in _USED for found in self.folder.glob(kind))
        others = (found for pool in pools for kind in _RECORDED for found in pool.glob(kind))
        return next(own, None) or next(others, None)

    def open(
        self, recipients: Callable[[], Sequence[bytes]], pools: Sequence[Path] = (), *,
        make: bool = True, oldest: int = VERSION,
    ) -> None:  # fmt: skip
        """Lock the store; make it first where there is none, unless it must be there.

        recipients: gives the public keys that a new store is sealed to; asked for a new one only.
        pools: folders of pools that lie elsewhere.  oldest: version that will do.
        Raises Fault: in use, not a store, of another version, unreadable.
        """
        try:
            if make:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            elif not self.format_file.exists():
                raise Fault(
                    "invalid", f"{self.folder}: there is no store",
                    "Name the folder of a store (it holds format.json).",
                )  # fmt: skip
            names = {path.name for path in self.folder.iterdir()}
            if self.format_file.name in names:
                self._check_format(oldest)  # before anything is written: the lock is, too
            else:
                self._check_ours(names)
            self._take_lock()
            if not self.format_file.exists():
                self._check_unused(pools)
                self._create(recipients())
            self._check_format(oldest)
            self.refused.mkdir(mode=0o700, exist_ok=True)
            self.clear_refused()
        except OSError as error:
            raise Fault(
                "unavailable",
                f"{error.filename or self.folder}: {error.strerror}",
                remedy(error, "Check that the store's folder exists and belongs to this user."),
            ) from None

    def close(self) -> None:
        """Give the lock back."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def clear_refused(self) -> None:
        """Away with what a crash or a full disk left of a refused batch: it comes again."""
        with contextlib.suppress(OSError):
            for torn in self.refused.glob("*.new"):
                spool.shred_torn(torn)

    def write_format(self, store_id: bytes) -> None:
        """Write down whose store this is."""
        text = json.dumps({"format": FORMAT, "version": VERSION, "store_id": store_id.hex()})
        files.replace(self.format_file, text.encode() + b"\n", 0o644)
        self._store_id = store_id

    @property
    def store_id(self) -> bytes:
        """16 bytes. Read once: captures ask for it while the store's disk may fail."""
        if self._store_id is None:
            self._store_id = bytes.fromhex(self._read_format()["store_id"])
        return self._store_id

    def _check_ours(self, names: set[str]) -> None:
        # What an interrupted creation left is made anew; anything else is not ours to touch.
        if names <= _OURS:
            return
        raise Fault(
            "invalid",
            f"{self.folder}: not a store, and not empty",
            "Name an empty folder, or the folder of a store (it holds format.json).",
        )

    def _check_unused(self, pools: Sequence[Path]) -> None:
        """A creation that was interrupted has recorded nothing; else its keys must stay."""
        if used := self.used():
            raise Fault(
                "corrupt",
                f"{self.folder}: format.json is missing, and the store was in use ({used})",
                "Restore format.json from a backup; no new store is made over this one's keys.",
            )
        for pool in pools:
            if any(any(pool.glob(kind)) for kind in _RECORDED):
                raise Fault(
                    "unavailable",
                    f"{self.folder}: there is no store, and the pool {pool} is one's",
                    "Mount the store's volume, or name its folder in storaged.toml; for a new "
                    "store name an empty folder for that pool.",
                )

    def _take_lock(self) -> None:
        path = self.folder / "lock"
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            self.close()
            raise Fault(
                "unavailable",
                f"{self.folder}: storaged with pid {owner} is running on this store",
                "Talk to that daemon, or stop it first.",
            ) from None
        pid = f"{os.getpid()}\n".encode()
        with contextlib.suppress(OSError):  # only told; a full disk must not keep us from starting
            os.pwrite(self._lock, pid, 0)
            os.ftruncate(self._lock, len(pid))

    def _create(self, recipients: Sequence[bytes]) -> None:
        for folder in (self.refused, self.log, self.folder / "pools"):
            folder.mkdir(mode=0o700, exist_ok=True)
        for left in self.index.glob("*.mdb"):
            left.unlink()
        store_id = os.urandom(16)
        keyring.create(self.keys, store_id, recipients)
        files.sync_folder(self.folder)
        self.write_format(store_id)

    def _check_format(self, oldest: int) -> None:
        version = self._read_format()["version"]
        if oldest <= version <= VERSION:
            return
        older = _REINDEX if version >= LEDGERS else _OLDER
        raise Fault(
            "invalid",
            f"{self.folder}: store version {version}, this program reads {VERSION}",
            older if version < VERSION else "Use the version of spanvault that made it.",
        )

    def _read_format(self) -> dict[str, Any]:
        try:
            about = json.loads(self.format_file.read_text(encoding="utf-8"))
            if about["format"] != FORMAT or len(bytes.fromhex(about["store_id"])) != 16:
                raise ValueError("it names no spanvault store")
            return {"version": int(about["version"]), "store_id": str(about["store_id"])}
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise Fault(
                "corrupt",
                f"{self.format_file}: not readable as a store's format ({error})",
                "Restore format.json from a replica or a backup.",
            ) from None
