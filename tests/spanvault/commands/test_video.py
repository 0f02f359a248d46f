"""Video through the real path: sent, replayed, exported as a film that players take."""

import json
import shutil
import subprocess
import wave
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
import pytest
from numpy.typing import NDArray

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
    sdp,
    talk,
    udp_frame,
    write_pcap,
)
from tests.support.command import spanvault
from tests.support.pictures import CLOCK, STEP, bar, encoded, packetised, shown, turned
from tests.support.rtcpforge import sender_report
from tests.support.voices import likeness

COUNT = 60  # pictures: 4 s
PICTURES = {name: encoded(name, COUNT) for name in ("H264", "H265", "VP8")}
IN_TURN: Final = list(range(COUNT))
TURNED = turned("H264", COUNT)
CVO = 4  # the header extension that tells how a camera is held
VIDEO_PORT = 1000  # above that of the sound


def offer(phone: Phone, name: str, *more: str) -> str:
    """An SDP body of A-law and one video codec."""
    port = phone.rtp_port + VIDEO_PORT
    lines = (f"m=video {port} RTP/AVP 97", f"a=rtpmap:97 {name}/90000", *more, "")
    return sdp(phone) + "\r\n".join(lines)


def film(
    start_ns: int, speaker: Phone, listener: Phone, name: str, lost: Sequence[int] = (),
    shown: Sequence[int] = IN_TURN, held: Sequence[int] = (),
) -> Iterator[Frame]:  # fmt: skip
    """Pictures every 66.7 ms. lost: those of which one packet does not arrive. shown: in turn.

    held: how the camera is, by the number of a second, told with each picture's last packet.
    """
    before = -1
    pictures = PICTURES[name] if shown is IN_TURN else TURNED.pictures
    for number, sent in enumerate(packetised(Codec(name, CLOCK), pictures)):
        first, before = sent.picture != before, sent.picture
        if first and sent.picture in lost:
            continue
        packet = rtp(
            number, 50_000 + shown[sent.picture] * STEP, speaker.ssrc + 8, sent.payload, 97
        )
        packet = packet[:1] + bytes([97 | sent.marker << 7]) + packet[2:]
        if held and sent.marker:
            turn = held[sent.picture * STEP // CLOCK]
            words = bytes.fromhex("bede0001 10ff") + bytes([CVO << 4, turn])
            packet = bytes([packet[0] | 0x10]) + packet[1:12] + words + packet[12:]
        time_ns = start_ns + sent.picture * STEP * SECOND // CLOCK + number * 1000
        ends = (speaker.address, speaker.rtp_port), (listener.address, listener.rtp_port)
        yield udp_frame(time_ns, *((host, port + VIDEO_PORT) for host, port in ends), packet)


CAMERA_NS = 240_000_000  # a picture takes so much longer to be sent than what was said with it


def reports(start_ns: int, speaker: Phone, listener: Phone, seen_ns: int) -> Iterator[Frame]:
    """Sender reports of sound and picture, by a clock that nobody set: RFC 3550 §6.4.1.

    seen_ns: when the camera began, by the sound's first sample.
    """
    for at_ns in (SECOND, 3 * SECOND):
        ntp = (77 << 32) + (at_ns << 32) // SECOND
        heard = sender_report(speaker.ssrc, (), ntp, 70_000 + at_ns * 8000 // SECOND)
        stamp = 50_000 + (at_ns - seen_ns) * CLOCK // SECOND
        seen = sender_report(speaker.ssrc + 8, (), ntp, stamp)
        for above, report in ((1, heard), (VIDEO_PORT + 1, seen)):
            source = speaker.address, speaker.rtp_port + above
            yield udp_frame(
                start_ns + at_ns, source, (listener.address, listener.rtp_port + above), report
            )


def video_call(
    number: int, name: str, lost: Sequence[int] = (), sound: bool = True, reported: bool = False,
    shown: Sequence[int] = IN_TURN, held: Sequence[int] = (),
) -> list[Frame]:  # fmt: skip
    """Both speak for four seconds; both are seen, the callee half a second later.

    reported: pictures come CAMERA_NS later, and sender reports say so.
    """
    caller, callee = phones(4.0, number)
    start_ns = START_NS + 20 * number * SECOND
    media_ns = start_ns + ANSWERED_NS
    later_ns = media_ns + (CAMERA_NS if reported else 0)
    media = [
        *film(later_ns, caller, callee, name, lost, shown, held),
        *film(later_ns + SECOND // 2, callee, caller, name, lost, shown),
    ]
    if reported:
        media += [
            *reports(media_ns, caller, callee, 0),
            *reports(media_ns, callee, caller, SECOND // 2),
        ]
    if sound:
        media += [*talk(media_ns, caller, callee), *talk(media_ns, callee, caller)]
    more = [f"a=extmap:{CVO}/sendrecv urn:3gpp:video-orientation"] if held else []
    bodies = offer(caller, name, *more), offer(callee, name, *more)
    return around(media, start_ns, caller, callee, f"{number}@video", bodies, 4.6)


class Store:
    """Calls in a store, to be exported."""

    def __init__(self, folder: Path, *calls: list[Frame]) -> None:
        self.folder = folder
        write_pcap(folder / "calls.pcap", [frame for call in calls for frame in call])
        done = self.run("replay", folder / "calls.pcap", "--json")
        assert done.returncode == 0, done.stderr
        self.calls: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]

    def run(self, *arguments: object) -> "subprocess.CompletedProcess[str]":
        return spanvault(*arguments, "--store", self.folder / "store", home=self.folder)

    def export(self, row: int, name: str) -> tuple[Path, str]:
        """The file of one call, and what was said."""
        path = self.folder / name
        done = self.run("export", self.calls[row]["id"], "-o", path)
        assert done.returncode == 0, done.stderr
        return path, done.stderr


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("video")
    calls = [video_call(n, name) for n, name in enumerate(PICTURES)]
    silent = video_call(3, "H264", sound=False)
    lossy = video_call(4, "H264", lost=(0, 20, 33))
    synchronous = video_call(5, "H264", reported=True)
    turned_ = video_call(6, "H264", reported=True, shown=TURNED.shown)
    held = [video_call(7, "H264", held=(1, 1, 1, 1)), video_call(8, "H265", held=(2, 7, 7, 7))]
    return Store(folder, *calls, silent, lossy, synchronous, turned_, *held)


def pictures(path: Path, track: int) -> tuple[list[float], list[int]]:
    """When each picture of a track is shown, and where its bar is."""
    with av.open(str(path)) as file:
        frames = list(file.decode(video=track))
    return [frame.time for frame in frames], [shown(frame.to_ndarray()) for frame in frames]


def sound(path: Path) -> NDArray[np.int16]:
    """int16[n, 2]"""
    resampler = av.AudioResampler("s16", "stereo", 8000)
    with av.open(str(path)) as file:
        frames = [part for frame in file.decode(audio=0) for part in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray().reshape(-1, 2) for frame in frames])


@pytest.mark.parametrize(
    ("row", "ending"), [(0, "mp4"), (0, "mkv"), (1, "mp4"), (1, "mkv"), (2, "mkv")]
)
def test_both_are_seen_and_heard_at_their_times(store: Store, row: int, ending: str):
    path, said = store.export(row, f"{row}.{ending}")
    assert "warning" not in said
    caller, callee = phones(4.0, row)
    with av.open(str(path)) as file:
        assert [stream.type for stream in file.streams] == ["video", "video", "audio"]
        assert file.duration is not None
        assert abs(file.duration / 1e6 - 4.5) < 0.12
    for track, begins_s in ((0, 0.0), (1, 0.5)):
        times, bars = pictures(path, track)
        assert bars == [bar(number) for number in range(COUNT)]
        assert abs(times[0] - begins_s) < 0.01
        assert all(abs(b - a - STEP / CLOCK) < 0.002 for a, b in pairwise(times))
    heard = sound(path)
    for side, phone in enumerate((caller, callee)):
        like, late_s = likeness(heard[:, side], phone.samples)
        assert like > 0.9
        assert abs(late_s) < 0.03


@pytest.mark.parametrize("row", [5, 6])
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_pictures_are_seen_when_what_belongs_to_them_is_said(store: Store, row: int, ending: str):
    """Sender reports tell that the cameras took longer; arrival alone would show them late.

    In call 6 the pictures come in another order than they are shown in.
    """
    path, said = store.export(row, f"synchronous-{row}.{ending}")
    assert "warning" not in said
    for track, begins_s in ((0, 0.0), (1, 0.5)):
        times, bars = pictures(path, track)
        assert bars == [bar(number) for number in range(COUNT)]
        assert abs(times[0] - begins_s) < 0.01
        assert all(abs(b - a - STEP / CLOCK) < 0.002 for a, b in pairwise(times))


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_pictures_of_a_camera_that_was_turned_are_shown_upright(store: Store, ending: str):
    """As sent they lie on their left side: a quarter clockwise, or minus 90 degrees."""
    path, said = store.export(7, f"held.{ending}")
    with av.open(str(path)) as file:
        turned_ = [next(file.decode(video=track)).rotation for track in (0, 1) if not file.seek(0)]
    assert turned_ == [-90, 0]
    assert pictures(path, 0)[1] == [bar(number) for number in range(COUNT)]
    assert "warning" not in said


def test_a_camera_that_is_turned_meanwhile_is_told_of(store: Store):
    path, said = store.export(8, "held.mp4")
    with av.open(str(path)) as file:
        picture = next(file.decode(video=0))
    assert picture.rotation in (90, -90)
    assert "a camera that was turned meanwhile: shown as it mostly was held (15)" in said


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="needs ffprobe (Debian: ffmpeg)")
@pytest.mark.parametrize(("row", "ending", "codec"), [
    (0, "mp4", "h264"), (1, "mkv", "hevc"), (2, "mkv", "vp8"), (6, "mp4", "h264"),
])  # fmt: skip
def test_ffprobe_accepts_it(store: Store, row: int, ending: str, codec: str):
    """Every packet is read and decoded, by a program that is none of ours; it objects to none."""
    path, _ = store.export(row, f"probed-{row}.{ending}")
    command = ["ffprobe", "-v", "warning", "-count_frames", "-show_streams", "-of", "json", path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    streams = json.loads(done.stdout)["streams"]
    assert [stream["codec_name"] for stream in streams][:2] == [codec, codec]
    assert [int(stream["nb_read_frames"]) for stream in streams[:2]] == [COUNT, COUNT]
    assert streams[2]["codec_type"] == "audio"


def test_each_track_says_whose_it_is(store: Store):
    with av.open(str(store.export(0, "named.mkv")[0])) as file:
        assert [stream.metadata["title"] for stream in file.streams.video] == ["caller", "callee"]


def test_without_sound_it_is_a_silent_film(store: Store):
    path, _ = store.export(3, "silent.mkv")
    with av.open(str(path)) as file:
        assert [stream.type for stream in file.streams] == ["video", "video"]
    assert len(pictures(path, 0)[1]) == COUNT
    done = store.run("export", store.calls[3]["id"], "-o", store.folder / "silent.wav")
    assert done.returncode == 1
    assert "It has video: -o x.mkv" in done.stderr


def test_pictures_that_lost_a_packet_are_left_out(store: Store):
    path, said = store.export(4, "lossy.mp4")
    _, bars = pictures(path, 0)
    whole = [number for number in range(15, COUNT) if number not in (20, 33)]
    # Behind a lost picture, a decoder shows what it can make of those that build on it.
    assert len(bars) == len(whole)
    assert bars[:5] == [bar(number) for number in whole[:5]]
    assert "pictures of H264 that lost packets: left out (6)" in said
    assert "before the first key picture: left out (28)" in said


def test_a_wave_has_the_sound_and_a_word_that_there_is_video(store: Store):
    path, said = store.export(0, "call.wav")
    with wave.open(str(path)) as file:
        assert file.getnframes() >= 32_000
    assert "The call has video too: spanvault export" in said


@pytest.mark.parametrize(
    ("row", "output", "message"),
    [(2, "x.mp4", "mp4 takes no vp8"), (0, "-", "is written back and forth")],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    store: Store, row: int, output: str, message: str
):
    path = store.folder / output if output != "-" else output
    arguments = ["--format", "mkv"] if output == "-" else []
    done = store.run("export", store.calls[row]["id"], "-o", path, *arguments)
    assert (done.returncode, message in done.stderr) == (2, True)
    assert not (store.folder / output).exists()


def test_a_call_without_video_is_a_film_of_its_sound(tmp_path: Path):
    caller, callee = phones(2.0, 9)
    media = talk(START_NS + ANSWERED_NS, caller, callee)
    bodies = sdp(caller), sdp(callee)
    plain = Store(tmp_path, around(media, START_NS, caller, callee, "9@plain", bodies, 2.0))
    path, _ = plain.export(0, "call.mp4")
    assert likeness(sound(path)[:, 0], caller.samples)[0] > 0.9
