"""What a SIP message costs the capture, and what parts of that: calls without any media.

The messages of generated calls (INVITE, 180, 200, ACK, BYE, 200) go through the call table as the
recorder hands them on; the parts are some of what they go through, by itself. Each as the best of
some turns, in us of CPU a message. Prints a table and one JSON line.

    python bench/signalling.py [--calls N] [--turns N]
"""

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable, Iterable
from typing import Any

import calls
import numpy as np
from traffic import EPOCH

from capture.__main__ import COLLECTED
from capture.calls.calls import Calls
from capture.ids import new_id
from capture.model import Datagram, Endpoint, StreamTotals
from capture.signalling import sdp, sip
from capture.signalling.siptls import SipTls
from spanvault.daemon.config import CaptureConfig

TALK_S = 3
SECOND_NS = 1_000_000_000
NO_TOTALS = StreamTotals(0, 0, 0, 0, 0.0, 0, 0, {})


def messages(count: int) -> list[Datagram]:
    """The signalling of so many calls, 100 a second, in order of time."""
    begin_us = np.arange(count) * 10_000
    said = sorted(calls.dialogs(begin_us, TALK_S), key=lambda each: each.time_us)
    return [
        Datagram(
            EPOCH * SECOND_NS + each.time_us * 1000,
            *(Endpoint(end.packed, 5060) for end in calls.ends(each.call, each.from_caller)[:2]),
            each.text, "udp",
        )
        for each in said
    ]  # fmt: skip


def no_totals(_: int) -> StreamTotals:
    """No media is heard."""
    return NO_TOTALS


def whole(heard: list[Datagram]) -> None:
    """Through the call table, with a tick a second and the records that leave."""
    table = Calls(CaptureConfig(), no_totals, new_id)
    tick_ns = heard[0].time_ns
    for datagram in heard:
        table.receive(datagram)
        if datagram.time_ns >= tick_ns:
            tick_ns = datagram.time_ns + SECOND_NS
            table.tick(datagram.time_ns)
            table.settled(call.id for call in table.records() if call.final)


def parsing(heard: list[Datagram]) -> None:
    """Start line and headers, and the parties that every message is told by."""
    for datagram in heard:
        message = sip.parse(datagram.payload)
        _ = message.from_, message.to


def describing(heard: list[Datagram]) -> None:
    """Session descriptions: of two in six messages."""
    for datagram in heard:
        _, _, body = datagram.payload.partition(b"\r\n\r\n")
        if body:
            sdp.parse(body)


def over_tls(heard: list[Datagram]) -> None:
    """Whom the messages name for SIP over TLS."""
    known = SipTls()
    for datagram in heard:
        known.heard(datagram)


PARTS: dict[str, Callable[[list[Datagram]], None]] = {
    "whole": whole, "parsing": parsing, "descriptions": describing, "SIP over TLS": over_tls,
}  # fmt: skip


def best_us(part: Callable[[list[Datagram]], None], heard: list[Datagram], turns: int) -> float:
    """CPU a message, of the best turn."""

    def once() -> float:
        began = time.process_time()
        part(heard)
        return time.process_time() - began

    return min(once() for _ in range(turns)) / len(heard) * 1e6


def table(rows: Iterable[tuple[str, float]], whole_us: float) -> None:
    print(f"{'part':>14} {'us a message':>13} {'of the whole':>13}")
    for name, each_us in rows:
        print(f"{name:>14} {each_us:>13.1f} {each_us / whole_us:>13.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    heard = messages(given.calls)
    gc.freeze()
    gc.set_threshold(*COLLECTED)  # as the daemon does
    found: dict[str, Any] = {
        name: round(best_us(part, heard, given.turns), 2) for name, part in PARTS.items()
    }
    print(f"{platform.machine()}, Python {platform.python_version()}; {len(heard):,} messages\n")
    table(found.items(), found["whole"])
    print(json.dumps({"bench": "signalling", "messages": len(heard), "us": found}))


if __name__ == "__main__":
    main()
