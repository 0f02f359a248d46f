"""What was dialled, through the command: in the clear, under SRTP, and for whom it is not."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spanvault import messages as m
from spanvault import wire
from spanvault.media import chunk
from spanvault.private import toml
from tests.conformance.recorded import Recorded
from tests.support.callgen import (
    ANSWERED_NS,
    SECOND,
    START_NS,
    Frame,
    around,
    phones,
    sdp,
    talk,
    udp_frame,
    write_pcap,
)
from tests.support.command import spanvault
from tests.support.digits import dial
from tests.support.srtpsender import Sender, secure_sdp
from tests.support.vault import Rig, call_id, make_call, make_media

SECONDS = 3.0
KEYS = {20: "4", 45: "#", 60: "4"}  # by the packet at which the caller presses them
PACKETS_OF_KEYS = 24
HEADERS = 42  # Ethernet, IP and UDP


def call(name: str, place: int, keys: dict[int, str], suite: str = "") -> list[Frame]:
    """The same two voices each time; the caller presses keys."""
    caller, callee = phones(SECONDS)
    start_ns = START_NS + 20 * place * SECOND
    media, bodies = [], []
    for speaker, listener, pressed in ((caller, callee, keys), (callee, caller, {})):
        said = talk(start_ns + ANSWERED_NS, speaker, listener)
        said = dial(said, speaker, listener, pressed)
        body = sdp(speaker)
        if suite:
            sender = Sender(suite)
            ends = (speaker.address, speaker.rtp_port), (listener.address, listener.rtp_port)
            said = [udp_frame(one.time_ns, *ends, sender.seal(one.data[HEADERS:])) for one in said]
            body = secure_sdp(speaker, sender)
        media += said
        body = body.replace("AVP 8", "AVP 8 101").replace("SAVP 8\r", "SAVP 8 101\r")
        bodies.append(body + "a=rtpmap:101 telephone-event/8000\r\n")
    return around(media, start_ns, caller, callee, name, (bodies[0], bodies[1]), SECONDS)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("digits")
    calls = [
        call("silent", 0, {}),
        call("dialled", 1, KEYS),
        call("secure", 2, KEYS, "AES_CM_128_HMAC_SHA1_80"),
        call("sealed", 3, KEYS, "AEAD_AES_256_GCM"),
    ]
    write_pcap(folder / "calls.pcap", [frame for frames in calls for frame in frames])
    return Recorded(folder / "calls.pcap", folder)


def named(recorded: Recorded, name: str) -> dict[str, Any]:
    (found,) = [one for one in recorded.calls if one["call_ids"] == [name]]
    return found


def show(recorded: Recorded, name: str, *options: str) -> str:
    folder = recorded._folder
    done = spanvault(
        "show", named(recorded, name)["id"], "--store", folder / "store", *options, home=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["dialled", "secure", "sealed"])
def test_keys_are_told_with_party_time_and_length(recorded, name):
    said = json.loads(show(recorded, name, "--digits", "--json"))["digits"]
    assert [(one["party"], one["event"], one["seconds"], one["ended"]) for one in said] == [
        ("caller", "4", 0.1, True), ("caller", "#", 0.1, True), ("caller", "4", 0.1, True),
    ]  # fmt: skip
    assert said[0]["code"] == 4
    answered = named(recorded, name)["answered_at"]
    assert answered < said[0]["at"] < said[1]["at"] < said[2]["at"]


def test_people_read_them_in_a_line(recorded):
    (line,) = [one for one in show(recorded, "dialled", "--digits").splitlines() if "digits" in one]
    assert line.split() == ["digits", "of", "caller", "4#4"]
    assert "–" in next(
        one for one in show(recorded, "silent", "--digits").splitlines() if "digits" in one
    )
    assert "4#4" not in show(recorded, "dialled")
    assert "digits" not in json.loads(show(recorded, "dialled", "--json"))


def test_encrypted_keys_are_kept_apart_by_their_payload_type(recorded):
    for name in ("dialled", "secure", "sealed"):
        events = [channel["events"] for channel in named(recorded, name)["channels"]]
        assert events == [PACKETS_OF_KEYS, 0]


@pytest.mark.parametrize("name", ["dialled", "secure"])
def test_counts_and_offsets_are_those_of_the_call_without_keys(recorded, name):
    with_keys, without = named(recorded, name), named(recorded, "silent")
    for mine, other in zip(with_keys["channels"], without["channels"], strict=True):
        for count in ("packets", "lost", "duplicates", "seconds"):
            assert mine[count] == other[count]
    (_, sound), (_, plain) = (recorded.sound(one["recording_id"]) for one in (with_keys, without))
    assert sound.shape == plain.shape
    assert np.array_equal(sound[:, 1], plain[:, 1])
    kept = np.ones(len(sound), bool)
    for at in KEYS:
        kept[160 * at : 160 * (at + 8) + 800] = False  # the key, and what conceals it
    assert np.array_equal(sound[kept, 0], plain[kept, 0])


# --- who may --------------------------------------------------------------------------------------


@pytest.fixture
def rig() -> Iterator[Rig]:
    folder = Path(tempfile.mkdtemp(prefix="sv-"))  # an ipc path holds 107 bytes
    made = Rig(folder)
    yield made
    made.close()
    shutil.rmtree(folder)


def test_who_has_not_the_right_is_told_where_it_is_given(rig):
    rig.start()
    one, capture = call_id(1), rig.capture()
    capture.send(m.Hello("test"))
    capture.receive(wire.decode_from_ingest)
    media = make_media([(one, 1, 0), (one, chunk.EVENTS + 1, 0)])
    capture.send(m.Batch("test", 1, [make_call(1)]), media)
    capture.receive(wire.decode_from_ingest)
    secret = rig.folder / "secret"
    config = rig.folder / "spanvault.toml"
    settings = {
        "storaged": rig.requests, "certificate": str(secret / "operator.key_secret"),
        "storaged_certificate": str(secret / "storaged.key"),
    }  # fmt: skip
    config.write_text(toml(settings))
    for options in ((), ("--json",)):
        done = spanvault(
            "show", one.hex(), "--config", config, "--digits", *options, home=rig.folder
        )
        assert (done.returncode != 0, done.stdout) == (True, "")
        assert "may not have digits" in done.stderr
        assert "rights = digits" in done.stderr
    assert spanvault("show", one.hex(), "--config", config, home=rig.folder).returncode == 0
