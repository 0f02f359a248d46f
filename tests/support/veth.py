"""A veth pair in a network namespace of its own: what is sent into `near` is received by `far`."""

import ctypes
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from capture.sources.interface import Link, link

CLONE_NEWNET = 0x40000000
CARRIER_S = 10.0


@contextmanager
def veth() -> Iterator[socket.socket]:
    """This thread, and what it starts, is in the namespace; gives a socket that sends into near.

    Raises OSError where the kernel lets us make no namespace.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no network namespace can be made here")
    try:
        plug_in()
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
            sender.bind(("near", 0))
            yield sender
    finally:
        libc.setns(home, CLONE_NEWNET)
        os.close(home)


def plug_in() -> None:
    """Make the pair, up, and without merged frames; the kernel sees a carrier a moment later."""
    ip("link add near type veth peer name far")
    for name in ("near", "far"):
        with suppress(OSError):  # no router solicitations between our frames
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        subprocess.run(["ethtool", "-K", name, "gro", "off"], check=True)
        ip(f"link set {name} up")
    end = time.monotonic() + CARRIER_S
    while link("near") is not Link.UP or link("far") is not Link.UP:
        if time.monotonic() > end:
            raise OSError(f"no carrier within {CARRIER_S:g} s")
        time.sleep(0.01)


def ip(words: str) -> None:
    """iproute2."""
    subprocess.run(["ip", *words.split()], check=True)
