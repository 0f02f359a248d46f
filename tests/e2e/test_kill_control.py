"""The comparison of the kill test can fail: it is shown stores that lost, altered or made up.

Without daemons, on a made-up store; and with the real ones, where storaged acknowledges too early.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spanvault.client import Page
from spanvault.media.chunk import Chunk, Media
from spanvault.messages import Call, Stream
from tests.support import hasty_storaged
from tests.support.appliance import Appliance
from tests.support.chunks import PCMA, START_NS, Packet, seconds
from tests.support.killing import SECOND, Kill, Report, deaf_twice, sip_times, wait_until_settled
from tests.support.killing import Witness as RealWitness
from tests.support.lab import Lab
from tests.support.phones import SSRC, Phones
from tests.support.voices import payloads, voice

LACKING = [name for name in ("sipp", "tcpdump", "tshark", "tc") if shutil.which(name) is None]
SAID = {"a": payloads(voice(5.0, 190, 1)), "b": payloads(voice(5.0, 105, 2))}
HASTY = Path(hasty_storaged.__file__)


class Store:
    """What storaged would give of two calls: chunks of both voices, to be tampered with."""

    def __init__(self) -> None:
        self.calls = [self._call(number) for number in (1, 2)]
        self.chunks = {
            call.id: [
                chunk
                for number, said in enumerate(SAID.values())
                for chunk in seconds(self._packets(said), number)
            ]
            for call in self.calls
        }

    def fetch(self, call_id: bytes, cursor: int) -> Page:
        """All of a recording at once."""
        del cursor
        chunks = self.chunks[call_id]
        media = Media(
            np.array([one.header for one in chunks]),
            np.concatenate([one.frames for one in chunks]),
            memoryview(b"".join(bytes(one.payload) for one in chunks)),
        )
        return Page(media, None, [])

    @staticmethod
    def _packets(said: list[bytes]) -> list[Packet]:
        return [Packet(500 + 20 * n, n, 160 * n, payload) for n, payload in enumerate(said)]

    @staticmethod
    def _call(number: int) -> Call:
        streams = [
            Stream(n, party, "audio", SSRC[phone], "10.0.0.1:4000", "10.0.0.2:4000", {8: PCMA},
                   packets=250)
            for n, (party, phone) in enumerate((("caller", "a"), ("callee", "b")))
        ]  # fmt: skip
        name = [f"{number}@control"]
        return Call(bytes([number]) * 16, "span", name, "a", "b", START_NS, streams=streams)


# INVITE, 180, 200, ACK, BYE, 200
SIP_MS = (0, 10, 210, 220, 6000, 6010)
SIGNALLING = {f"{n}@control": [START_NS + ms * 1_000_000 for ms in SIP_MS] for n in (1, 2)}


def compared(store: Store, *kills: Kill) -> list[str]:
    """The faults found in a store, by the words of their kind."""
    report = Report(kills, SIGNALLING, SAID)
    report.compare(store, store.calls)
    return report.faults


def test_a_whole_store_has_no_fault():
    report = Report([], SIGNALLING, SAID)
    store = Store()
    report.compare(store, store.calls)
    assert (report.faults, report.checked, report.frames) == ([], 2, 1000)


def without_a_chunk(store: Store) -> None:
    store.chunks[store.calls[0].id].pop(3)


def without_the_last_chunk(store: Store) -> None:
    store.chunks[store.calls[1].id].pop()


def with_a_byte_altered(store: Store) -> None:
    chunk = store.chunks[store.calls[0].id][2]
    payload = bytearray(chunk.payload)
    payload[777] ^= 1
    store.chunks[store.calls[0].id][2] = Chunk(chunk.header, chunk.frames, memoryview(payload))


def with_a_frame_doubled(store: Store) -> None:
    chunks = store.chunks[store.calls[0].id]
    frames, header = chunks[1].frames[:1], chunks[1].header.copy()
    header["frames"], header["payload_bytes"] = 1, 160
    chunks.append(Chunk(header, frames, chunks[1].payload[:160]))


def with_a_chunk_of_another_call(store: Store) -> None:
    chunk = store.chunks[store.calls[0].id][0]
    header, frames = chunk.header.copy(), chunk.frames.copy()
    frames["sequence"] += 5000
    store.chunks[store.calls[1].id].append(Chunk(header, frames, chunk.payload))


def with_the_voices_exchanged(store: Store) -> None:
    for stream in store.calls[0].streams:
        stream.party = "caller" if stream.party == "callee" else "callee"


def without_a_call(store: Store) -> None:
    del store.calls[1]


def with_a_call_twice(store: Store) -> None:
    store.calls.append(store.calls[0])


def with_a_call_nobody_made(store: Store) -> None:
    store.calls[1].call_ids = ["3@control"]


def without_any_media(store: Store) -> None:
    empty = store.chunks[store.calls[0].id][0]
    header = empty.header.copy()
    header["frames"] = header["payload_bytes"] = 0
    store.chunks[store.calls[0].id] = [Chunk(header, empty.frames[:0], empty.payload[:0])]


@pytest.mark.parametrize(
    ("tamper", "fault"),
    [
        (without_a_chunk, "frames lost"),
        (without_the_last_chunk, "frames lost"),
        (with_a_byte_altered, "1 frames changed, from number"),
        (with_a_frame_doubled, "1 frames twice"),
        (with_a_chunk_of_another_call, "frames made up"),
        (with_the_voices_exchanged, "parties"),
        (without_a_call, "0 records"),
        (with_a_call_twice, "2 records"),
        (with_a_call_nobody_made, "was never made"),
        (without_any_media, "nothing"),
    ],
)
def test_a_store_that_is_not_whole_is_found_out(tamper: Callable[[Store], None], fault: str):
    store = Store()
    tamper(store)
    faults = compared(store)
    assert any(fault in text for text in faults), faults


def at(seconds: float) -> int:
    return START_NS + round(seconds * SECOND)


def test_only_what_a_dead_capture_missed_is_excused():
    dead = Kill("capture", at(9.5), at(9.6))  # what came from 3.5 s on may have been in memory
    store = Store()
    store.chunks[store.calls[0].id].pop(4)  # 3.5 to 4.5 s and 4.5 to 5.5 s
    assert compared(store, dead) == []
    store.chunks[store.calls[0].id].pop(1)  # 1.5 to 2.5 s
    assert any("frames lost" in text for text in compared(store, dead))


@pytest.mark.parametrize("name", ["storaged", "replicator"])
def test_the_death_of_others_excuses_nothing(name: str):
    store = Store()
    without_a_chunk(store)
    assert any("lost" in text for text in compared(store, Kill(name, at(4.0), at(5.0))))


def test_a_call_without_an_end_needs_a_capture_dead_at_answer_and_end():
    twice = [Kill("capture", at(0.3), at(0.4)), Kill("capture", at(6.005), at(6.2))]
    assert Report(twice, SIGNALLING, SAID).unended == set(SIGNALLING)
    assert Report(twice[:1], SIGNALLING, SAID).unended == set()
    assert Report(twice[1:], SIGNALLING, SAID).unended == set()
    others = [kill._replace(name="storaged") for kill in twice]
    assert Report(others, SIGNALLING, SAID).unended == set()


def test_how_many_calls_may_lack_their_end_is_told_by_the_kills_alone():
    deaf = [(at(10), at(14)), (at(31), at(33.5)), (at(100), at(104))]
    assert deaf_twice(deaf, 20.0, 1.0) == 4  # answered from 10.5 to 13.5 s
    assert deaf_twice(deaf[:1], 20.0, 1.0) == 0
    assert deaf_twice(deaf[1:], 20.0, 1.0) == 0


def test_what_was_handed_out_and_is_gone_is_found_out():
    store, witness = Store(), RealWitness.__new__(RealWitness)
    witness._seen, witness._faults, witness.readings = {}, [], 0
    witness.read(store, store.calls[0].id)
    assert witness.forgotten(store) == []
    without_a_chunk(store)
    assert any("frames seen, and now gone" in text for text in witness.forgotten(store))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and a raw socket need root")
@pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("script", [None, HASTY], ids=["storaged", "too early"])
def test_an_acknowledgement_before_the_commit_is_found_out(tmp_path: Path, script: Path | None):
    with (
        Lab() as lab,
        Appliance(tmp_path / "a", "span0", lab.within("span"), silence_s=8.0) as appliance,
    ):
        report = killed_twice(lab, appliance, tmp_path, script)
    assert report.checked == 4
    if script is None:
        assert report.faults == []
    else:
        assert report.faults
        assert all("frames lost" in text for text in report.faults)


def killed_twice(lab: Lab, appliance: Appliance, folder: Path, script: Path | None) -> Report:
    """Four calls; storaged dies twice while they talk, and ends up as it should be."""
    appliance.start("storaged", script=script)
    appliance.start("replicator")
    appliance.start("capture")
    command = ["tcpdump", "-U", "-i", "span0", "-w", folder / "sip.pcap", "port", "5060"]
    dump = lab.start("span", command, folder / "tcpdump.log")
    time.sleep(1)
    phones = Phones(lab, folder / "phones", 14.0)
    calling = phones.call(4, 4, a_second=4)
    killed = []
    for pause_s, following in ((6.3, script), (3.9, None)):
        time.sleep(pause_s)
        appliance.kill("storaged")
        killed.append(time.time_ns())
        appliance.start("storaged", script=following)
    assert calling.wait(60) == 0
    dump.send_signal(signal.SIGINT)
    dump.wait()
    kills = [Kill("storaged", at_ns, at_ns) for at_ns in killed]
    said = {name: payloads(sound) for name, sound in phones.voices.items()}
    report = Report(kills, sip_times(folder / "sip.pcap"), said)
    with appliance.client() as client:
        report.compare(client, wait_until_settled(client, set(report.signalling)))
    return report
