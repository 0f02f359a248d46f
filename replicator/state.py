"""What the replicator keeps on its own disk: a mark for each target, and every receipt.

A mark is replaced whole (temporary name, fsync, rename, fsync folder); receipts are only appended.
Both are caches of the truth at the targets: lost, everything is compared and receipted again.
"""

import contextlib
import errno
import fcntl
import os
import threading
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from replicator.plan import Mark
from spanvault.daemon import disks, durable
from spanvault.messages import Receipt

RECEIPTS: Final = "receipts.jsonl"
SIGNING_KEY: Final = "signing.key"  # Ed25519, private: 32 bytes
# Of a disk, not of the settings.
PASSING: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class StateFolder:
    """The folder `state_dir`, held by one replicator at a time."""

    def __init__(self, folder: Path) -> None:
        """Make and lock it, naming the folder and the remedy if that cannot be.

        Raises ValueError, and OSError for a disk that fails: a later start may find it mended.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another replicator uses this state_dir; stop it") from None
        except OSError as error:
            text = f"state_dir cannot be used: {disks.line(error, folder)}"
            raise (OSError if error.errno in PASSING else ValueError)(text) from None
        self.folder = folder
        self._signing = threading.Lock()
        self._signing_key: Ed25519PrivateKey | None = None
        self._appending = threading.Lock()
        self._torn = self._ends_torn()

    def mark_path(self, target: str) -> Path:
        """Where the mark of a target lies; removing it makes the replicator begin again."""
        return self.folder / f"{target}.position"

    def load_mark(self, target: str) -> Mark:
        """The mark of a target, or a fresh one. Raises ValueError on a damaged one."""
        path = self.mark_path(target)
        try:
            return msgspec.json.decode(path.read_bytes(), type=Mark)
        except FileNotFoundError:
            return Mark()
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OSError) as error:
            raise ValueError(
                f"{path}: cannot be read ({error}). Remove it: "
                "what the target holds is then compared from the beginning, nothing is lost"
            ) from None

    def save_mark(self, target: str, mark: Mark) -> None:
        """Replace the mark of a target, durably."""
        durable.replace(self.mark_path(target), msgspec.json.encode(mark))

    def signing_key(self) -> Ed25519PrivateKey:
        """What receipts of erasures are signed with; made when it is first needed.

        Raises OSError.
        """
        with self._signing:
            if self._signing_key is None:
                self._signing_key = self._load_signing_key()
            return self._signing_key

    def _load_signing_key(self) -> Ed25519PrivateKey:
        path = self.folder / SIGNING_KEY
        if not path.exists():
            durable.replace(path, Ed25519PrivateKey.generate().private_bytes_raw())
        try:
            return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
        except ValueError as error:
            raise OSError(f"{path}: no Ed25519 key ({error}); remove it") from None

    def append_receipt(self, receipt: Receipt) -> None:
        """Add a line to receipts.jsonl, durably."""
        line = msgspec.json.encode(
            {
                "id": receipt.id.hex(),
                "target": receipt.target,
                "sha256": receipt.sha256,
                "size": receipt.size,
                "verified_ns": receipt.verified_ns,
            }
        )
        self._append(line + b"\n")

    def _append(self, line: bytes) -> None:
        """On a line of its own, whatever a power cut or a full disk left of the last one."""
        with self._appending:
            file = os.open(self.folder / RECEIPTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                data = b"\n" + line if self._torn else line
                self._torn = True  # unless all of it gets there; readers skip what is torn
                while data:  # a disk that is nearly full takes a part, and says so the next time
                    data = data[os.write(file, data) :]
                os.fsync(file)
                self._torn = False
            finally:
                os.close(file)

    def _ends_torn(self) -> bool:
        path = self.folder / RECEIPTS
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                return file.read(1) != b"\n"
        return False
