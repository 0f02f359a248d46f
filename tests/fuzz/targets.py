"""What is fuzzed: each target takes any bytes, and may raise ValueError at most.

Seeds are real: torture messages, wrapped calls, capture files. Who mutates them: __main__.py (with
coverage, by atheris), test_targets.py (a little, in every test run).
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from capture.packets import hep
from capture.packets.offload import segments
from capture.recorder import Recorder
from capture.sources import files
from spanvault import wire
from spanvault.audio import red
from spanvault.daemon import config
from spanvault.daemon.config import CaptureConfig
from spanvault.media import chunk, digits, rtcp
from spanvault.messages import Hello, Status, StatusReply, Welcome
from tests.fuzz import (
    asked,
    dialogs,
    disk,
    films,
    frames,
    mutators,
    payloads,
    restored,
    rewriting,
    signalling,
    stores,
    swollen,
    tlsheard,
)
from tests.fuzz.capturefiles import call, captures
from tests.fuzz.choices import cut, joined
from tests.support.digits import press
from tests.support.frames import pcap, rtp
from tests.support.rtcpforge import Block, description, goodbye, packet, sender_report
from tests.support.wrapping import WRAPPINGS

DATA: Final = Path(__file__).parents[1] / "data"


class Target(NamedTuple):
    """run: takes any bytes.  seeds: real input to begin with.  longest: bytes of an input.

    mutate: makes another input of one; None: libFuzzer does, which knows no headers or packets.
    """

    run: Callable[[bytes], object]
    seeds: Callable[[], Iterable[bytes]]
    longest: int = 4_000
    mutate: mutators.Mutator | None = None


def _wire(data: bytes) -> None:
    parts = cut(data)
    for decode in (
        wire.decode_request, wire.decode_reply, wire.decode_to_ingest, wire.decode_from_ingest,
    ):  # fmt: skip
        with suppress(ValueError):
            decode(parts)


def _media(data: bytes) -> None:
    media = wire.decode_media(cut(data))
    media.check()
    for each in media.chunks():
        list(chunk.unpack(chunk.pack(each)))


def sent() -> list[bytes]:
    """A message of each kind of traffic."""
    return [
        joined(map(bytes, wire.encode(each)))
        for each in (
            Hello(capture="a"),
            Status(),
            StatusReply("s", "ready", {}, []),
            Welcome("s", "k", b"i", "1"),
        )
    ]


def media() -> list[bytes]:
    """What a short call gives."""
    recorder = Recorder(CaptureConfig(name="fuzz"), lambda: bytes(16))
    path = frames.written(pcap(call()))
    heard = [each for taken in files.blocks(path) for each in recorder.receive(taken).media]
    path.unlink()
    return [
        joined((each.table.tobytes(), each.frames.tobytes(), bytes(each.payload)))
        for each in [*heard, *recorder.finish().media]
        if len(each.table)
    ]


def _rtcp(data: bytes) -> None:
    assert 0 <= rtcp.sender_of(rtcp.parse(data, cut=True)) < 1 << 32
    rtcp.parse(data)


def _red(data: bytes) -> None:
    """A packet; parts of it as packets of one stream, of which each sound is taken once."""
    times = [(160 * (part or b"\0")[0], part[1:]) for part in cut(data)]
    for fresh in red.Recovery(lambda kind: kind == 101).unwrap(times):
        assert all(piece.payload for piece in fresh)
    red.parse(data)


def redundant() -> list[bytes]:
    """A packet with an older one in it, one without; both of a stream, the second heard twice."""
    both, alone = b"\x88\0\x28\x05\x08hello there", b"\x08plain"
    return [both, alone, joined([b"\1" + both, b"\2" + both, b"\2" + alone, b"\3\x80"])]


def _config(data: bytes) -> None:
    path = frames.written(data)
    for kind in set(config.FILES.values()):
        with suppress(ValueError):
            config.load(path, kind)


def settings() -> list[bytes]:
    """The samples."""
    return [path.read_bytes() for path in sorted((DATA.parents[1] / "etc").glob("*.toml"))]


def _digits(data: bytes) -> None:
    heard = digits.decode(
        [
            digits.Heard(int.from_bytes(part[:4], "big"), 0, part[4:5] > b"\x7f", part[5:])
            for part in cut(data)
        ],
        8000,
    )
    assert all(each.name for each in heard)


TARGETS: Final[dict[str, Target]] = {
    "sip": Target(signalling.read_sip, signalling.messages, mutate=mutators.message),
    "sdp": Target(signalling.read_sdp, signalling.descriptions, mutate=mutators.description),
    "calls": Target(signalling.hear_calls, signalling.dialogues, 8_000,
                    mutators.parts(mutators.message)),
    "swollen": Target(swollen.hear, swollen.seeds, 200),
    "peel": Target(frames.peel_one, frames.clothes, mutate=mutators.behind(1, rewriting.frame)),
    "frames": Target(frames.hear_frames, frames.parted, 8_000,
                     mutators.parts(rewriting.frame, head=1)),
    "hep": Target(lambda data: hep.packet(memoryview(data)), lambda: [
        outer.data[42:] for name in ("HEP2", "HEP3", "HEP3, compressed")
        for outer in WRAPPINGS[name].wrap(call()[0])
    ]),
    "digits": Target(_digits, lambda: [
        joined(bytes(4) + bytes((255 * marker,)) + payload for marker, payload in press("5"))
    ]),
    "rtcp": Target(_rtcp, lambda: [
        sender_report(1, [Block(2)]) + description((1, "name")) + goodbye(1, reason="gone"),
        packet(207, 0, bytes(12), padding=4),
    ]),
    "offload": Target(segments, lambda: [b"".join(rtp(n, 160 * n) for n in range(12))]),
    "siprec": Target(signalling.read_metadata, signalling.metadata),
    "sdes": Target(signalling.read_keys, signalling.secrets),
    "tls": Target(tlsheard.hear, tlsheard.heard, mutate=mutators.parts(mutators.message)),
    "red": Target(_red, redundant),
    "config": Target(_config, settings),
    "explain": Target(frames.explain, lambda: [b"fuzz" + each for each in captures()], 20_000,
                      mutators.behind(4, rewriting.capture)),
    "websocket": Target(signalling.read_websocket, lambda: [
        b"\x81\x05hello\x89\0", b"\x81\x85\1\2\3\4hello",
    ]),
    "capture": Target(frames.hear_file, captures, 20_000, rewriting.capture),
    "edited": Target(frames.hear_edited, frames.edits),
    "wire": Target(_wire, sent, mutate=mutators.parts()),
    "media": Target(_media, media, 8_000, mutators.parts()),
    "dialogs": Target(dialogs.tell, dialogs.stories, 400),
    "payloads": Target(payloads.unpack, payloads.spoken),
    "pictures": Target(payloads.show, payloads.pictures, mutate=mutators.parts(head=1)),
    "srtp": Target(payloads.open_srtp, payloads.packets),
    "srtcp": Target(payloads.open_srtcp, payloads.packets),
    "whole": Target(payloads.strip, payloads.whole, mutate=mutators.parts()),
    "places": Target(payloads.place, payloads.packets),
    "table": Target(signalling.read_table, signalling.tables, 8_000, mutators.packed),
    "object": Target(disk.read_object, disk.objects),
    "sealed": Target(disk.read_sealed, disk.plaintexts),
    "root": Target(disk.read_root, disk.roots),
    "page": Target(disk.read_page, disk.pages),
    "keyfile": Target(disk.read_key_file, disk.key_files),
    "rows": Target(disk.read_rows, disk.rows),
    "log": Target(disk.read_log, disk.logs),
    "store": Target(disk.store, disk.batches),
    "bundle": Target(disk.read_bundle, disk.bundles),
    "notes": Target(disk.read_notes, disk.notes),
    "packed": Target(frames.hear_packed, lambda: frames.compressed(captures()[:1]), 20_000,
                     mutators.behind(1, rewriting.capture)),
    "requests": Target(asked.request, asked.requests),
    "memories": Target(asked.memories, lambda: [bytes(20), bytes(range(1, 60))]),
    "replica": Target(stores.replica, stores.replicas),
    "intake": Target(stores.waiting, stores.batches),
    "ledger": Target(stores.entries, stores.ledgers),
    "reindex": Target(stores.reindex, lambda: [bytes(5), bytes([1, 0, 99, 3, 2, 1, 2])], 200),
    "restored": Target(restored.restore, restored.seeds, 400),
    "words": Target(asked.words, asked.phrases, 1_000),
    "answers": Target(asked.answers, asked.spoken),
    "decoded": Target(asked.decoded, asked.payloads),
    "filmed": Target(films.write, films.told, 1_000),
}  # fmt: skip


def survive(name: str, data: bytes) -> None:
    """Run a target. Raises whatever it raises but ValueError."""
    with suppress(ValueError):
        TARGETS[name].run(data)
