"""Calls in any codec: forged with their signalling, recorded, exported, heard.

What is spoken: tests.support.encoded.
"""

import json
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spanvault.media.payloadtypes import STATIC
from spanvault.messages import Codec
from tests.support.callgen import (
    ANSWERED_NS,
    SECOND,
    START_NS,
    Frame,
    Phone,
    around,
    phones,
    rtp,
    udp_frame,
    write_pcap,
)
from tests.support.command import spanvault
from tests.support.encoded import SECONDS, Spoken, heard_at_8000, said
from tests.support.voices import likeness


def description(phone: Phone, *codecs: tuple[int, Codec]) -> str:
    """An SDP body of these payload types."""
    numbers = " ".join(str(number) for number, _ in codecs)
    lines = [
        "v=0", f"o=- 1 1 IN IP4 {phone.address}", "s=-", f"c=IN IP4 {phone.address}", "t=0 0",
        f"m=audio {phone.rtp_port} RTP/AVP {numbers}",
    ]  # fmt: skip
    for number, codec in codecs:
        if number not in STATIC:
            name = f"{codec.name}/{codec.clock_rate}"
            channels = f"/{codec.channels}" if codec.channels > 1 else ""
            lines.append(f"a=rtpmap:{number} {name}{channels}")
        if codec.parameters:
            lines.append(f"a=fmtp:{number} {codec.parameters}")
    return "\r\n".join([*lines, ""])


def flow(start_ns: int, speaker: Phone, listener: Phone, spoken: Spoken) -> Iterator[Frame]:
    """RTP of what is spoken. The first packet's place is known even where later ones are lost."""
    for number, payload in enumerate(spoken.payloads):
        if payload is not None:
            ticks = number * spoken.ticks
            packet = rtp(number, 7_000 + ticks, speaker.ssrc, payload, spoken.payload_type)
            time_ns = start_ns + round(ticks / spoken.codec.clock_rate * SECOND)
            ends = (speaker.address, speaker.rtp_port), (listener.address, listener.rtp_port)
            yield udp_frame(time_ns, *ends, packet)


def meanings(spoken: Spoken) -> list[tuple[int, Codec]]:
    found = [(spoken.payload_type, spoken.codec)]
    if spoken.inner is not None:
        found.append((int(spoken.codec.parameters.partition("/")[0]), spoken.inner))
    return found


def call(number: int, name: str, by_caller: Spoken, by_callee: Spoken) -> list[Frame]:
    """A call of which each side describes what it receives."""
    caller, callee = phones(0.1, number)
    start_ns = START_NS + 10 * number * SECOND
    media = [
        *flow(start_ns + ANSWERED_NS, caller, callee, by_caller),
        *flow(start_ns + ANSWERED_NS, callee, caller, by_callee),
    ]
    bodies = description(caller, *meanings(by_callee)), description(callee, *meanings(by_caller))
    return around(media, start_ns, caller, callee, f"{number}@codecs", bodies, SECONDS + 0.2)


class Heard(NamedTuple):
    """A call's line, and its sound: rate, int16[n, 2]."""

    line: dict[str, Any]
    rate: int
    sound: NDArray[np.int16]

    def like(self, side: int) -> float:
        """How alike one side is to the voice."""
        return likeness(heard_at_8000(self.sound[:, side], self.rate), said())[0]


def record(folder: Path, calls: list[list[Frame]]) -> list[Heard]:
    """Replay the calls into a store and export all of them."""
    capture, store, sounds = folder / "calls.pcap", folder / "store", folder / "sounds"
    write_pcap(capture, [frame for frames in calls for frame in frames])
    done = spanvault("replay", capture, "--store", store, "--json", home=folder)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    sounds.mkdir()
    ids = [line["id"] for line in lines]
    done = spanvault("export", *ids, "-o", sounds, "--store", store, home=folder)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    return [_heard(line, sounds) for line in lines]


def _heard(line: dict[str, Any], sounds: Path) -> Heard:
    (path,) = sounds.glob(f"{line['id']}*") if sounds.is_dir() else [sounds]
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        return Heard(line, file.getframerate(), samples.reshape(-1, 2))
