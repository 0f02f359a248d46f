"""A real systemd as PID 1, in a throw-away container over this machine's own root.

An overlay (this root below, a tmpfs above) is booted by systemd-nspawn to basic.target in about a
second; nothing outside the tmpfs is written. spanvault is installed into it as on a real machine:
under /opt/spanvault, by the repository's `make units`. Needs root and Debian's systemd-container.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.folders import REPOSITORY

PREFIX = Path("/opt/spanvault")
BOOT_S = 60.0
PACKAGES = ("spanvault", "capture", "storaged", "replicator")
# Units of this machine that have nothing to do in the container.
MASKED = (
    "systemd-networkd-wait-online.service", "systemd-resolved.service",
    "systemd-random-seed.service", "systemd-update-utmp.service", "run-rpc_pipefs.mount",
    "rpc_pipefs.target", "e2scrub_all.timer", "apt-daily.timer", "apt-daily-upgrade.timer",
    "fstrim.timer", "dpkg-db-backup.timer", "man-db.timer", "logrotate.timer",
)  # fmt: skip
TARGET = "[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n"
JOURNALD = "[Journal]\nStorage=persistent\nRateLimitIntervalSec=0\n"


class Container:
    """The booted container. network: the name of a network namespace it shares."""

    def __init__(self, network: str) -> None:
        self._network = network
        self._name = f"spanvault-test-{os.getpid()}"
        self._folder = Path(tempfile.mkdtemp(prefix=f"{self._name}-", dir="/var/tmp"))
        self.root = self._folder / "root"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> "Container":
        try:
            self._mount()
            self._prepare()
            self._boot()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command inside. Returns what it printed; raises OSError with it if it failed."""
        inside = ["nsenter", "-t", str(self._leader), "-a", "-r", "--", "env", "-i", *_ENVIRONMENT]
        done = subprocess.run(
            [*inside, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if check and done.returncode:
            raise OSError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def path(self, inside: str) -> Path:
        """How a path of the container is reached from here, mounts and sockets included."""
        return Path(f"/proc/{self._leader}/root{inside}")

    def pid(self, inside: int) -> int:
        """The process id out here of one in there."""
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                text = status.read_text()
            except OSError:
                continue
            ids = next((line for line in text.splitlines() if line.startswith("NSpid:")), "")
            if ids.split()[1:] and ids.split()[-1] == str(inside) and self._ours(status.parent):
                return int(status.parent.name)
        raise OSError(f"no process {inside} in the container")

    def _ours(self, process: Path) -> bool:
        try:
            theirs = (process / "ns/pid").readlink()
        except OSError:
            return False
        return theirs == Path(f"/proc/{self._leader}/ns/pid").readlink()

    def _mount(self) -> None:
        _run("mount", "-t", "tmpfs", "-o", "mode=755,size=2g", "tmpfs", str(self._folder))
        for name in ("upper", "work", "root"):
            (self._folder / name).mkdir()
        layers = f"lowerdir=/,upperdir={self._folder}/upper,workdir={self._folder}/work"
        _run("mount", "-t", "overlay", "overlay", "-o", layers, str(self.root))

    def _prepare(self) -> None:
        units = self.root / "etc/systemd/system"
        units.mkdir(parents=True, exist_ok=True)
        (units / "test.target").write_text(TARGET)
        for name in MASKED:
            link = units / name
            link.unlink(missing_ok=True)
            link.symlink_to("/dev/null")
        settings = self.root / "etc/systemd/journald.conf.d"
        settings.mkdir(parents=True, exist_ok=True)
        (settings / "test.conf").write_text(JOURNALD)
        (self.root / "var/log/journal").mkdir(parents=True, exist_ok=True)
        for name in ("etc/machine-id", "etc/fstab"):
            (self.root / name).write_text("")
        self._install()

    def _install(self) -> None:
        """A virtual environment at PREFIX with our packages, on the libraries of ours here."""
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        home = self.root / str(PREFIX).lstrip("/")
        shutil.rmtree(home, ignore_errors=True)
        site = home / "lib" / version / "site-packages"
        for folder in (site, home / "bin", home / "libraries", home / "python"):
            folder.mkdir(parents=True)
        for package in PACKAGES:
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / package, site / package, ignore=ignore)
        (site / "libraries.pth").write_text(f"{PREFIX}/libraries\n")
        shutil.copytree(REPOSITORY / "etc", home / "share/spanvault/etc")
        (home / "pyvenv.cfg").write_text(f"home = {PREFIX}/python/bin\n")
        (home / "bin/python").symlink_to(f"{PREFIX}/python/bin/{version}")
        command = home / "bin/spanvault"
        command.write_text(f"#!{PREFIX}/bin/python\nfrom spanvault.cli import main\nmain()\n")
        command.chmod(0o755)
        _run("make", "-s", "-C", str(REPOSITORY), "units", f"DESTDIR={self.root}")

    def _boot(self) -> None:
        binds = {sys.base_prefix: "python", _site_packages(): "libraries"}
        command = [
            "systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit",
            "--console=pipe", "--link-journal=no", "--resolv-conf=off", "--timezone=off",
            "--capability=all", f"--directory={self.root}", f"--machine={self._name}",
            f"--network-namespace-path=/run/netns/{self._network}",
            *(f"--bind-ro={source}:{PREFIX}/{name}" for source, name in binds.items()),
            "systemd.unit=test.target", "systemd.show_status=0",
        ]  # fmt: skip
        environment = {
            **os.environ,
            # Our units filter system calls themselves; nspawn's own filter may not be nestable.
            "SYSTEMD_SECCOMP": "0",
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
            "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
        }
        with (self._folder / "console.log").open("wb") as console:
            self._nspawn = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=environment,
                start_new_session=True,
            )
        self._until(self._find_leader, "boot")
        self._until(self._is_running, "reach its target")

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        assert self._nspawn is not None
        end = time.monotonic() + BOOT_S
        while not condition():
            if self._nspawn.poll() is not None or time.monotonic() > end:
                console = (self._folder / "console.log").read_text(errors="replace")
                raise OSError(f"the container did not {what}\n{console[-2000:]}")
            time.sleep(0.05)

    def _find_leader(self) -> bool:
        """PID 1 of the container is nspawn's child that has that number in there."""
        assert self._nspawn is not None
        pid = self._nspawn.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if "\t1\n" in Path(f"/proc/{child}/status").read_text().partition("NSpid:")[2][:40]:
                self._leader = int(child)
        return self._leader > 0

    def _is_running(self) -> bool:
        state = self.run("systemctl", "is-system-running", check=False).strip()
        return state in ("running", "degraded")

    def _end(self) -> None:
        if self._nspawn is not None:
            if self._nspawn.poll() is None and self._leader:
                self.run("systemctl", "--no-block", "--force", "poweroff", check=False)
            try:
                self._nspawn.wait(10)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()
        for mount in (self.root, self._folder):
            subprocess.run(["umount", "--lazy", "--recursive", mount], capture_output=True)
        self._folder.rmdir()


_ENVIRONMENT = (
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG=C.UTF-8", "HOME=/root", "TERM=dumb", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0",
)  # fmt: skip


def _site_packages() -> str:
    import numpy

    return str(Path(numpy.__file__).parents[1])


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
