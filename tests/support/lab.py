"""A switch with a mirror port, in network namespaces: phones on a bridge, and where it is heard.

    a ── eth0 ═ pa ┐                       every port's ingress is mirrored (tc), so that each
    b ── eth0 ═ pb ┴ bridge ── mon ═ span0 frame is heard once, as a SPAN port gives it

Needs root. Nothing outside the namespaces is touched; they are named after our process, and those
of one that was killed are swept away by the next.
"""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ADDRESSES = {"a": "10.77.0.11", "b": "10.77.0.12"}


class Lab:
    """The namespaces, for as long as the context lasts, and the processes started in them."""

    def __init__(self) -> None:
        self._prefix = f"sv{os.getpid()}"
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Lab":
        sweep()
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def network(self, place: str) -> str:
        """The network namespace of `a`, `b`, `switch` or `span`."""
        return f"{self._prefix}-{place}"

    def within(self, place: str) -> list[str]:
        """What goes before a command that is to run there."""
        return ["ip", "netns", "exec", self.network(place)]

    def start(
        self, place: str, command: Sequence[str | Path], log: Path, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Run a command there; it ends with the lab at the latest. log: gets what it prints."""
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*self.within(place), *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                **options,
            )
        self._running.append(process)
        return process

    def _build(self) -> None:
        for place in ("switch", "span", *ADDRESSES):
            _ip(f"netns add {self._prefix}-{place}")
            self._at(place, "ip link set lo up")
        self._at("switch", "ip link add bridge type bridge stp_state 0 mcast_snooping 0")
        self._at("switch", "ip link set bridge up")
        self._cable("switch", "mon", "span", "span0")
        for name, address in ADDRESSES.items():
            self._cable("switch", f"p{name}", name, "eth0")
            self._at(name, f"ip addr add {address}/24 dev eth0")
            self._at("switch", f"ip link set p{name} master bridge")
            self._mirror(f"p{name}")

    def _cable(self, place: str, port: str, other_place: str, other_port: str) -> None:
        """A veth pair without IPv6 chatter, and without merged frames, which no wire has."""
        self._at(
            place,
            f"ip link add {port} type veth peer name {other_port} "
            f"netns {self._prefix}-{other_place}",
        )
        for where, which in ((place, port), (other_place, other_port)):
            off = f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6"  # where the kernel has IPv6
            self._at(where, f"sh -c 'test ! -e {off} || echo 1 > {off}'")
            self._at(where, f"ethtool -K {which} tx off rx off tso off gso off gro off")
            self._at(where, f"ip link set {which} up")

    def _mirror(self, port: str) -> None:
        # `u32 match u32 0 0` matches everything, also on kernels without the matchall classifier.
        self._at("switch", f"tc qdisc add dev {port} clsact")
        self._at(
            "switch",
            f"tc filter add dev {port} ingress protocol all prio 1 u32 match u32 0 0 "
            "action mirred egress mirror dev mon",
        )

    def _at(self, place: str, command: str, check: bool = True) -> None:
        _run([*self.within(place), *shlex.split(command)], check)

    def _remove(self) -> None:
        for process in reversed(self._running):
            if process.poll() is None:
                process.kill()
            process.wait()
        for place in ("switch", "span", *ADDRESSES):
            _run(["ip", "netns", "del", f"{self._prefix}-{place}"], check=False)


def sweep() -> None:
    """Remove the namespaces of labs whose process is gone, and end what runs in them."""
    listing = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    for name, pid in re.findall(r"^(sv(\d+)-\w+)", listing.stdout, re.MULTILINE):
        if not Path("/proc", pid).exists():
            left = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
            for running in left.stdout.split():
                with suppress(OSError):
                    os.kill(int(running), signal.SIGKILL)
            _run(["ip", "netns", "del", name], check=False)


def _ip(command: str) -> None:
    _run(["ip", *shlex.split(command)], check=True)


def _run(command: Sequence[str], check: bool) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise OSError(f"{shlex.join(command)}: {(done.stderr or done.stdout).strip()}")
