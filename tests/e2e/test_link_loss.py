"""A call goes on while its mirror's link is lost in every way there is: one recording, marked gaps.

Frames leave as fast as they can: their sequence numbers say when they were sent. What is said while
the link is away is heard by nobody, and is missing by number as if the network had lost it.
"""

import os
import socket
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from spanvault.client import Client
from spanvault.media.chunk import CAPTURE_LOSS
from spanvault.messages import Call, Search
from tests.support.appliance import Appliance
from tests.support.callgen import Frame, answered, phones
from tests.support.stored import streams_of
from tests.support.veth import ip, plug_in, veth
from tests.support.voices import payloads

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="a ring needs root"),
    pytest.mark.timeout(180),
]
HEARD, UNHEARD = 40, 10  # packets of a direction between two losses, and in each
FIRST = 1000  # sequence number


class Loss(NamedTuple):
    """A way to lose the link. said: by status, and what is to be done."""

    loses: str
    said: str
    mends: str


LOSSES = [
    Loss("link set far down", "far is down: ip link set far up", "link set far up"),
    Loss("link set near down", "far has no carrier: is the cable in", "link set near up"),
    Loss("link del far", "far has gone: see to the card", ""),
]
PARTS = len(LOSSES) + 1
TALK_S = (PARTS * HEARD + len(LOSSES) * UNHEARD) / 50


@pytest.mark.parametrize("workers", [1, 2])
def test_a_call_over_lost_links_is_one_recording_with_marked_gaps(tmp_path: Path, workers: int):
    with veth(), Appliance(tmp_path / "a", "far", workers=workers) as appliance:
        for name in ("storaged", "capture"):
            appliance.start(name)
        send(frames("before"))
        with appliance.client() as client:
            appliance.wait(lambda: ended(client) == {"before"})
            speak_over_losses(appliance, list(parts(frames("during"))))
            appliance.wait(lambda: ended(client) == {"before", "during"})
            send(frames("after"))
            appliance.wait(lambda: ended(client) == {"before", "during", "after"})
            compare(client, workers)
        told = appliance.spanvault("status").stdout
        assert not any(loss.said.partition(":")[0] in told for loss in LOSSES)
        assert appliance.log("capture", 100).count("the link is lost") == len(LOSSES)


def speak_over_losses(appliance: Appliance, spoken: list[list[Frame]]) -> None:
    """Each part of a call is heard; between two of them the link is lost, told of, and mended."""
    for loss, part in zip(LOSSES, spoken, strict=False):
        send(part)
        ip(loss.loses)
        appliance.wait(lambda said=loss.said: says(appliance, said, "; recording 1 calls on far"))
        ip(loss.mends) if loss.mends else plug_in()
        appliance.wait(lambda: says(appliance, "", "recording 1 calls on far"))
    send(spoken[-1])


def says(appliance: Appliance, begin: str, end: str) -> bool:
    """Whether the line of status is this, but for what lies between."""
    line = appliance.statuses["capture"]
    return line.startswith(begin or end) and line.endswith(end)


def compare(client: Client, workers: int) -> None:
    """Counts, flags, and which chunks bear the mark."""
    calls = {call.call_ids[0]: call for call in client.search(Search(limit=10))}
    assert len(list(client.search(Search(limit=10)))) == 3
    assert {name: call.flags for name, call in calls.items()} == {
        "before": [], "during": ["capture_loss"], "after": [],
    }  # fmt: skip
    assert marked(client, calls["before"]) == marked(client, calls["after"]) == set()
    gaps = marked(client, calls["during"])
    spoken = {phone.ssrc: payloads(phone.samples) for phone in phones(TALK_S)}
    heard = streams_of(client, calls["during"].id)
    assert sum(map(len, heard.values())) == 2 * PARTS * HEARD
    # Of several workers another may hear a flow, where the interface was made anew: the call's
    # stream then goes on as another stream of it.
    assert len(heard) == 2 or workers > 1
    for stream in calls["during"].streams:
        numbers = sorted(frame.number for frame in heard[stream.number])
        lost = [before + 1 for before, after in pairwise(numbers) if after != before + 1]
        assert (stream.packets, stream.duplicates) == (len(numbers), 0)
        assert stream.lost == len(lost) * UNHEARD
        assert {number + UNHEARD for number in lost} <= gaps
        assert FIRST not in gaps
        said = spoken[stream.ssrc]
        assert all(frame.payload == said[frame.number - FIRST] for frame in heard[stream.number])


def marked(client: Client, call: Call) -> set[int]:
    """The sequence numbers of frames in chunks that say that the capture lost something."""
    numbers: set[int] = set()
    cursor: int | None = 0
    while cursor is not None:
        page = client.fetch(call.id, cursor)
        for chunk in page.media.chunks():
            if int(chunk.header["flags"]) & CAPTURE_LOSS:
                numbers |= {int(frame["sequence"]) & 0xFFFF for frame in chunk.frames}
        cursor = page.next
    return numbers


def ended(client: Client) -> set[str]:
    return {call.call_ids[0] for call in client.search(Search(limit=10)) if call.final}


def frames(call_id: str) -> list[Frame]:
    return answered(0, *phones(TALK_S), call_id)


def parts(every: list[Frame]) -> Iterator[list[Frame]]:
    """A call's frames between the losses: INVITE in the first part, BYE in the last."""
    for part in range(PARTS):
        begin = part * (HEARD + UNHEARD)
        yield [
            frame
            for frame in every
            if begin <= place(frame, every) < begin + HEARD
        ]  # fmt: skip


def place(frame: Frame, every: list[Frame]) -> int:
    """Which packet of its direction; of signalling, the one that it is sent before or behind."""
    if b"SIP/2.0" not in frame.data:
        return int.from_bytes(frame.data[44:46], "big") - FIRST
    return 0 if every.index(frame) < len(every) // 2 else PARTS * (HEARD + UNHEARD) - UNHEARD - 1


def send(spoken: list[Frame]) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind(("near", 0))
        for frame in spoken:
            sender.send(frame.data)
