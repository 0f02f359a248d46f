"""A disk whose every write and flush is logged, and which can be told to fail, or to be slow.

A FUSE filesystem that is one file, served by a process of its own in plain Python; a loop device
over it is a disk, and ext4, xfs or btrfs on that is a filesystem as any. What reaches the disk
between two flushes may be lost or torn by a power cut: tests/support/powercut.py makes such disks
of the log. Needs root and /dev/fuse. Source: linux/fuse.h, protocol 7.31.

    python -m tests.support.fusedisk FOLDER BYTES      serve FOLDER/disk (started by Disk)
"""

import contextlib
import ctypes
import errno
import mmap
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

WRITTEN, FLUSHED = b"W", b"F"
ENTRY: Final = struct.Struct("<cQIQ")  # what, offset, bytes, monotonic ns; then the bytes
WORKS, WRITES_FAIL = 0, 1  # what the disk does, as the byte in FOLDER/mood
SLOW = 5  # from WRITES_FAIL on: a flush takes so many tenths of a second

_IN: Final = struct.Struct("<IIQQIIIHH")
_OUT: Final = struct.Struct("<IiQ")
_ATTR: Final = struct.Struct("<QII6Q3IIIIIIII")
_READ: Final = struct.Struct("<QQI")
_WRITE_HEAD: Final = 40
_MAX_WRITE: Final = 1 << 20
GETATTR, SETATTR, OPEN, READ, WRITE, STATFS = 3, 4, 14, 15, 16, 17
RELEASE, FSYNC, FLUSH, INIT, FORGET, DESTROY, INTERRUPT = 18, 20, 25, 26, 2, 38, 36
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22


class Kind(NamedTuple):
    """A file system. make: all of it is written at once, nothing later in the background."""

    make: tuple[str, ...]
    repair: tuple[str, ...]  # what a start after a power cut runs where mounting fails
    options: tuple[str, ...] = ()  # of mount
    megabytes: int = 48  # that it takes at least

    @property
    def lacking(self) -> str:
        """Why it cannot be tried here; empty if it can."""
        name = self.make[0].removeprefix("mkfs.")
        if shutil.which(self.make[0]) is None:
            return f"needs {self.make[0]}"
        if shutil.which("modprobe"):  # a module that nobody needed yet is not in the list
            subprocess.run(["modprobe", "-q", name], check=False, capture_output=True)
        known = Path("/proc/filesystems").read_text().split()
        return "" if name in known else f"this kernel has no {name}"


EXT4: Final = Kind(
    ("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"),
    ("e2fsck", "-f", "-y"),
)
WRITEBACK: Final = EXT4._replace(options=("-o", "data=writeback"))
XFS: Final = Kind(("mkfs.xfs", "-q", "-f", "-K"), ("xfs_repair", "-L"), megabytes=300)
BTRFS: Final = Kind(
    ("mkfs.btrfs", "-q", "-f", "-K", "--mixed"), ("btrfs", "rescue", "super-recover", "-y"),
    megabytes=160,
)  # fmt: skip


class Disk:
    """The file, the loop device over it, and a file system on it, mounted at `mounted`."""

    def __init__(
        self, folder: Path, megabytes: int, mounted: Path, kind: "Kind | None" = None
    ) -> None:
        """kind: ext4 if it is not said."""
        self.folder, self.log, self.mounted = folder, folder / "log", mounted
        self.kind = kind or EXT4
        folder.mkdir()
        mounted.mkdir(exist_ok=True)
        size = megabytes << 20
        (folder / "mood").write_bytes(bytes(1))
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fusedisk", folder, str(size)],
            cwd=Path(__file__).parents[2],
        )
        end = time.monotonic() + 20
        while not (folder / "disk").exists() or (folder / "disk").stat().st_size != size:
            assert time.monotonic() < end, "the disk is not served"
            assert self._server.poll() is None, "the disk's server ended"
            time.sleep(0.01)
        subprocess.run([*self.kind.make, folder / "disk"], check=True, capture_output=True)
        self.mount()

    def __enter__(self) -> "Disk":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self.mood(WORKS)
        with contextlib.suppress(subprocess.CalledProcessError):
            self.unmount()
        subprocess.run(["umount", "-l", self.folder / "disk"], check=True)
        # Not by itself: a mount namespace that another test made meanwhile still has our mounts.
        self._server.kill()
        self._server.wait()
        shutil.rmtree(self.folder)

    def mount(self) -> None:
        """As after a repair: the journal is replayed.

        By a device of its own each time: a mount namespace that another test made meanwhile
        may still hold the last one, and with it a filesystem that stopped at an error.
        """
        self._device = attach(self.folder / "disk")
        subprocess.run(["mount", *self.kind.options, self._device, self.mounted], check=True)
        with contextlib.suppress(OSError):
            (self.mounted / "lost+found").rmdir()  # a store begins in an empty folder

    def unmount(self) -> None:
        """Raises CalledProcessError while it is in use."""
        subprocess.run(["umount", self.mounted], check=True)
        subprocess.run(["losetup", "-d", self._device], check=True)

    def vanish(self) -> None:
        """Away from its place, though in use."""
        subprocess.run(["umount", "-l", self.mounted], check=True)

    def come_back(self) -> None:
        """Behind vanish(): there again, as it was."""
        subprocess.run(["mount", self._device, self.mounted], check=True)

    def mood(self, mood: int) -> None:
        """From now on it does that."""
        (self.folder / "mood").write_bytes(bytes((mood,)))

    @property
    def position(self) -> int:
        """Bytes of the log so far."""
        return self.log.stat().st_size


def attach(path: Path) -> str:
    """A loop device over a file."""
    command = ["losetup", "-f", "--show", path]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


# --- the server ------------------------------------------------------------------------------


class Server:
    """Answers the kernel's requests about one file."""

    def __init__(self, folder: Path, size: int) -> None:
        self._size = size
        self._image = os.open(folder / "image", os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._image, size)
        self._log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with (folder / "mood").open("rb") as file:
            self._mood = mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_READ)
        self._kernel = os.open("/dev/fuse", os.O_RDWR)
        point = folder / "disk"
        point.touch()
        options = f"fd={self._kernel},rootmode=100600,user_id=0,group_id=0"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"disk", bytes(point), b"fuse", 0, options.encode()):
            raise OSError(ctypes.get_errno(), "the disk cannot be mounted")

    def serve(self) -> None:
        """Answer until it is unmounted."""
        while True:
            try:
                request = os.read(self._kernel, _MAX_WRITE + 4096)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                return  # ENODEV: unmounted
            _, code, unique, *_ = _IN.unpack_from(request)
            if code in (FORGET, INTERRUPT):
                continue
            try:
                body, error_number = self._answer(code, request[_IN.size :]), 0
            except OSError as error:
                body, error_number = b"", -(error.errno or errno.EIO)
            with contextlib.suppress(OSError):
                os.write(
                    self._kernel, _OUT.pack(_OUT.size + len(body), error_number, unique) + body
                )
            if code == DESTROY:
                return

    def _answer(self, code: int, body: bytes) -> bytes:
        if code == INIT:
            flags = _BIG_WRITES | _MAX_PAGES
            answer = struct.pack("<IIIIHHIIHH", 7, 31, 0, flags, 0, 0, _MAX_WRITE, 1, 256, 0)
            return answer.ljust(64, b"\0")
        if code in (GETATTR, SETATTR):
            times = 0, 0, 0, 0, 0, 0
            return _ATTR.pack(3600, 0, 0, 1, self._size, self._size // 512, *times,
                              0o100600, 1, 0, 0, 0, 4096, 0)  # fmt: skip
        if code == OPEN:
            return struct.pack("<QII", 1, 0, 0)
        if code == READ:
            _, offset, size = _READ.unpack_from(body)
            return os.pread(self._image, size, offset)
        if code == WRITE:
            _, offset, size = _READ.unpack_from(body)
            return self._write(offset, body[_WRITE_HEAD : _WRITE_HEAD + size])
        if code == FSYNC:
            self._fail_in_bad_mood()
            time.sleep(self._mood[0] / 10)  # 0, or a slow disk's
            os.write(self._log, ENTRY.pack(FLUSHED, 0, 0, time.monotonic_ns()))
            return b""
        if code in (RELEASE, FLUSH, DESTROY):
            return b""
        if code == STATFS:
            return bytes(80)
        raise OSError(errno.ENOSYS, "not needed by a disk")

    def _write(self, offset: int, data: bytes) -> bytes:
        self._fail_in_bad_mood()
        head = ENTRY.pack(WRITTEN, offset, len(data), time.monotonic_ns())
        os.write(self._log, head + data)
        os.pwrite(self._image, data, offset)
        return struct.pack("<II", len(data), 0)

    def _fail_in_bad_mood(self) -> None:
        if self._mood[0] == WRITES_FAIL:
            raise OSError(errno.EIO, "told to fail")


if __name__ == "__main__":
    Server(Path(sys.argv[1]), int(sys.argv[2])).serve()
