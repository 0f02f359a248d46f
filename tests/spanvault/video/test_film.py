"""A film of hand-made streams: which tracks it has, and what happens when something is wrong."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Final

import av
import pytest

from spanvault.audio.render import Renderer
from spanvault.media.chunk import Chunk
from spanvault.messages import Codec, Stream
from spanvault.sandbox import SandboxDied
from spanvault.video.film import Film
from tests.support.chunks import START_NS, Packet, chunk, seconds, stream
from tests.support.pictures import CLOCK, STEP, bar, encoded, packetised, shown, turned

H264 = Codec("H264", CLOCK)
PICTURES = encoded("H264", 15)


def video(number: int, party: str = "caller", at_ms: float = 0, codec: Codec = H264) -> Stream:
    """A second of pictures."""
    one = stream(number, party, codec, 97, at_ms)
    one.media, one.packets, one.payload_types = "video", 1, {97: 60}
    one.last_ns = one.first_ns + 1_000_000_000
    return one


def sent(
    number: int, at_ms: float = 0, pictures: list[bytes] | None = None, codec: Codec = H264
) -> list[Chunk]:
    packets = [
        Packet(at_ms + one.picture * STEP / 90, n, one.picture * STEP, one.payload, 97, one.marker)
        for n, one in enumerate(packetised(codec, pictures or PICTURES))
    ]
    return list(seconds(packets, number))


MS: Final = STEP / 90  # from one picture to the next
# When a picture arrives, by its place in the order of sending and those shown up to it.
ARRIVALS: Final[dict[str, Callable[[list[int]], float]]] = {
    "evenly": lambda sent: MS * len(sent),
    "as soon as they were seen": lambda sent: MS * max(sent),
}


def sent_turned(name: str, arrives: Callable[[list[int]], float]) -> list[Chunk]:
    """Six seconds of pictures that are sent in another order than shown."""
    film = turned(name, 90)
    packets = [
        Packet(
            arrives(film.shown[: one.picture + 1]) + n / 100, n,
            5_000 + film.shown[one.picture] * STEP, one.payload, 97, one.marker,
        )
        for n, one in enumerate(packetised(Codec(name, CLOCK), film.pictures))
    ]  # fmt: skip
    return list(seconds(packets))


def write(path: Path, streams: list[Stream], chunks: Iterable[Chunk]) -> Film:
    film = Film(streams)
    ordered = sorted(chunks, key=lambda one: int(one.header["start_ns"]))
    film.survey(ordered)
    renderer = Renderer(streams, 8000, watch=film.watch)
    with path.open("wb") as file:
        film.write(renderer.render(ordered), 8000, path.suffix[1:], file, heard=False)
    return film


def counts(path: Path) -> list[int]:
    """Pictures of each track."""
    with av.open(str(path)) as file:
        found = [0] * len(file.streams)
        for packet in file.demux():
            found[packet.stream_index] += packet.size > 0
        return found


def test_streams_of_a_party_that_follow_each_other_are_one_track(tmp_path: Path):
    streams = [video(0), video(1, at_ms=1000), video(2, "callee")]
    chunks = [*sent(0), *sent(1, 1000), *sent(2)]
    write(tmp_path / "x.mp4", streams, chunks)
    assert counts(tmp_path / "x.mp4") == [30, 15]


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_vp9_is_seen_as_it_was_sent(tmp_path: Path, ending: str):
    codec, path = Codec("VP9", CLOCK), tmp_path / f"x.{ending}"
    film = write(path, [video(0, codec=codec)], sent(0, 0, encoded("VP9", 15), codec))
    with av.open(str(path)) as file:
        assert [shown(one.to_ndarray()) for one in file.decode(video=0)] == list(
            map(bar, range(15))
        )
    assert not film.warnings


@pytest.mark.parametrize("arrives", ARRIVALS)
@pytest.mark.parametrize(("name", "ending"), [("H264", "mp4"), ("H264", "mkv"), ("H265", "mp4")])
def test_pictures_that_hang_on_later_ones_are_shown_in_turn(
    tmp_path: Path, name: str, ending: str, arrives: str
):
    path, stream_ = tmp_path / f"x.{ending}", video(0, codec=Codec(name, CLOCK))
    film = write(path, [stream_], sent_turned(name, ARRIVALS[arrives]))
    with av.open(str(path)) as file:
        # Matroska has no times of decoding.
        packets = [(one.dts, one.pts) for one in file.demux(video=0) if one.dts is not None]
        file.seek(0)
        shown_ = [(one.time, shown(one.to_ndarray())) for one in file.decode(video=0)]
    assert [place for _, place in shown_] == [bar(number) for number in range(90)]
    assert all(abs(b - a - STEP / CLOCK) < 0.002 for (a, _), (b, _) in pairwise(shown_))
    assert 0 <= shown_[0][0] < 0.3
    assert all(a < b for (a, _), (b, _) in pairwise(packets))
    assert all(dts <= pts for dts, pts in packets if pts is not None)
    assert not film.warnings


def test_streams_of_a_party_at_once_are_tracks_of_their_own(tmp_path: Path):
    write(tmp_path / "x.mkv", [video(0), video(1, at_ms=500)], [*sent(0), *sent(1, 500)])
    assert counts(tmp_path / "x.mkv") == [15, 15]


def test_pictures_that_no_file_can_begin_with_cost_their_own_track(tmp_path: Path):
    # Parameter sets of nonsense, and a key slice: all that a muxer reads of a picture.
    nonsense = [b"\0\0\0\1\x67\xff\xff\xff\0\0\0\1\x68\xff\0\0\0\1\x65\x88\x84\x00"] * 15
    streams = [video(0), video(1, "callee")]
    film = write(tmp_path / "x.mkv", streams, [*sent(0, 0, nonsense), *sent(1)])
    assert counts(tmp_path / "x.mkv") == [15]
    assert dict(film.warnings) == {"packets of H264 that FFmpeg makes nothing of: not shown": 1}


@pytest.mark.parametrize("name", ["H261", "H263", "H263-1998", "H263-2000", "AV1", "JPEG"])
def test_what_cannot_be_shown_is_named(name: str):
    other = video(0, codec=Codec(name, CLOCK))
    assert dict(Film([other]).warnings) == {f"packets of video codec {name} cannot be shown": 1}


def test_what_is_encrypted_is_not_shown():
    assert "are encrypted" in next(iter(Film([video(0)], encrypted=True).warnings))


def test_without_a_key_picture_there_is_nothing_to_show():
    film = Film([video(0)])
    film.survey(sent(0, 0, PICTURES[1:]))
    assert film.codecs == set()
    assert "without a picture to begin with" in next(iter(film.warnings))


def test_a_muxer_that_dies_is_an_exception_and_leaves_no_process(tmp_path: Path):
    streams, chunks = [video(0)], sent(0)
    film = Film(streams)
    film.survey(chunks)

    def blocks():
        assert film._sandbox is not None
        film._sandbox.process.kill()
        yield from Renderer(streams, 8000, watch=film.watch).render(chunks)

    with (tmp_path / "x.mkv").open("wb") as file, pytest.raises(SandboxDied, match="SIGKILL"):
        film.write(blocks(), 8000, "mkv", file, heard=False)
    assert film._sandbox is None


def test_a_full_disk_is_told(tmp_path: Path):
    streams, chunks = [video(0)], sent(0)
    film = Film(streams)
    film.survey(chunks)
    blocks = Renderer(streams, 8000, watch=film.watch).render(chunks)
    with Path("/dev/full").open("wb") as file, pytest.raises(OSError, match="no space left"):
        film.write(blocks, 8000, "mkv", file, heard=False)


def test_a_chunk_that_splits_a_picture_splits_nothing(tmp_path: Path):
    packets = [
        Packet(one.picture * STEP / 90, n, one.picture * STEP, one.payload, 97, one.marker)
        for n, one in enumerate(packetised(H264, PICTURES))
    ]
    parts = [chunk([one]) for one in packets]
    write(tmp_path / "x.mkv", [video(0)], parts)
    assert counts(tmp_path / "x.mkv") == [15]
    assert int(parts[0].header["start_ns"]) == START_NS


def test_a_picture_lasts_until_the_next_one(tmp_path: Path):
    chunks = sent(0)
    write(tmp_path / "x.mkv", [video(0)], chunks)
    with av.open(str(tmp_path / "x.mkv")) as file:
        lengths = [float(p.duration * p.time_base) for p in file.demux() if p.size]
    assert lengths == pytest.approx([STEP / CLOCK] * 15, abs=0.002)
