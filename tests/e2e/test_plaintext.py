"""Nothing that was said, dialled or kept secret lies in the clear on any disk or in any log.

Calls go through the real daemons, with storaged away for a while so that the spool is used; then
every file of store, spool, replica, state and log is searched for what was put in, in the forms
it could have: payload, linear samples, numbers, Call-IDs, keys. So is what daemons tell of
themselves, and what they were started with. One call dials and has headers that are kept, one is
encrypted by keys that its signalling tells, and some SIP is broken just where its numbers are.
"""

import base64
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from spanvault.keys import keyfile
from spanvault.transport import load_certificate
from storaged.keys.keyring import Keyring
from tests.support import callgen, digits
from tests.support.appliance import Appliance
from tests.support.privileges import sees_into_daemons
from tests.support.srtpsender import Sender, secure_sdp
from tests.support.voices import FRAME, alaw, heard

CALLS = 6
TALK_S = 12.0  # 6 calls of 12 s do not fit in a capture's memory of 1 MiB
CALL_ID = "secret-{}@pbx.example"


def forge(path: Path, numbers: range) -> None:
    """A capture file of calls, each between numbers and voices of its own."""
    frames = []
    for number in numbers:
        start_ns = callgen.START_NS + number * callgen.SECOND
        pair = callgen.phones(TALK_S, number)
        frames += callgen.answered(start_ns, *pair, CALL_ID.format(number))
    callgen.write_pcap(path, sorted(frames))


DIALLING, SECURE, BROKEN = 90, 91, 92
DIALLED = {20: "7", 60: "3", 100: "#"}  # by packet
CLASS, DIVERTED = "secret-class-of-callers", "+4955512399123"
MASTER = tuple(bytes(range(at, at + 30)) for at in (0x31, 0xC1))  # key and salt of each side


def forge_others(path: Path) -> None:
    """Calls that hold what ordinary ones do not; and SIP that cannot be read."""
    start_ns = callgen.START_NS + CALLS * callgen.SECOND
    pair = callgen.phones(3.0, DIALLING)
    talk_ns = start_ns + callgen.ANSWERED_NS
    bodies = [callgen.sdp(one).replace("AVP 8", "AVP 8 101") + EVENTS for one in pair]
    speech = digits.dial(callgen.talk(talk_ns, *pair), *pair, DIALLED)
    frames = callgen.around(
        speech, start_ns, *pair, CALL_ID.format(DIALLING), (bodies[0], bodies[1]), 3.0
    )
    frames = [more_headers(frame) for frame in frames]
    pair = callgen.phones(3.0, SECURE)
    senders = [Sender("AES_CM_128_HMAC_SHA1_80", key=key) for key in MASTER]
    bodies = [secure_sdp(*each) for each in zip(pair, senders, strict=True)]
    media = [
        changed(frame, sender.seal(frame.data[HEADS:]))
        for sender, ends in zip(senders, (pair, pair[::-1]), strict=True)
        for frame in callgen.talk(talk_ns, *ends)
    ]
    frames += callgen.around(
        sorted(media), start_ns, *pair, CALL_ID.format(SECURE), (bodies[0], bodies[1]), 3.0
    )
    frames += broken(start_ns)
    callgen.write_pcap(path, sorted(frames))


EVENTS: Final = "a=rtpmap:101 telephone-event/8000\r\n"
HEADS: Final = 42  # Ethernet, IPv4, UDP


def changed(frame: callgen.Frame, payload: bytes) -> callgen.Frame:
    """The same datagram with something else in it."""
    ends = [
        (".".join(map(str, frame.data[at : at + 4])), int.from_bytes(frame.data[port : port + 2]))
        for at, port in ((26, 34), (30, 36))
    ]
    return callgen.udp_frame(frame.time_ns, ends[0], ends[1], payload)


def more_headers(frame: callgen.Frame) -> callgen.Frame:
    head = f"X-Class: {CLASS}\r\nDiversion: <sip:{DIVERTED}@pbx.example>\r\nMax-".encode()
    text = frame.data[HEADS:]
    return changed(frame, text.replace(b"Max-", head, 1)) if b"\nMax-" in text else frame


def broken(start_ns: int) -> list[callgen.Frame]:
    """Numbers where SIP has lengths, ports and sequence numbers, and a message that breaks off."""
    pair = callgen.phones(0.1, BROKEN)
    invite = callgen.Dialogue(*pair, CALL_ID.format(BROKEN)).request(start_ns, "INVITE", body="v=0")
    text, number = invite.data[HEADS:], pair[0].number.encode()
    texts = [
        text.replace(b"CSeq: 1 ", b"CSeq: " + number * 4 + b"x "),
        text.replace(b"Content-Length: 3", b"Content-Length: " + number + b"x"),
        text.replace(b":5060", b":" + number), text.replace(b"SIP/2.0", b"SIP/" + number),
        text.replace(b"INVITE", b"\xff" + number), text[: text.index(number) + len(number)],
        text.replace(b"v=0", b"v=0\r\nm=audio " + number + b" RTP/AVP x\r\nc=" + number),
    ]  # fmt: skip
    return [changed(invite, each) for each in texts]


SPOOLED = 20_000  # bytes: more than a second of a call


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """An appliance that has recorded, spooled and copied; its daemons are stopped."""
    folder = tmp_path_factory.mktemp("plain")
    forge(folder / "first.pcap", range(1))
    forge(folder / "more.pcap", range(1, CALLS))
    forge_others(folder / "others.pcap")
    with Appliance(folder / "a", outbox_mb=1) as appliance:
        settings = appliance.etc / "capture.toml"
        settings.write_text('headers = ["X-Class", "Diversion"]\n' + settings.read_text())
        for name in ("storaged", "replicator"):
            appliance.start(name)
        appliance.start("capture", str(folder / "first.pcap"), wait=False)
        assert appliance.finished("capture") == 0
        appliance.stop("storaged")
        appliance.start("capture", str(folder / "more.pcap"), wait=False)
        appliance.wait(lambda: spool_bytes(appliance) > SPOOLED)
        appliance.stop("capture")
        spooled = {path: path.read_bytes() for path in appliance.spool.rglob("*.sealed")}
        appliance.start("storaged")
        appliance.start("capture", str(folder / "first.pcap"), wait=False)
        assert appliance.finished("capture") == 0
        appliance.wait(lambda: copies(appliance) >= 2)
        appliance.start("capture", str(folder / "others.pcap"), wait=False)
        assert appliance.finished("capture") == 0
        # A question is written to the access log, too.
        assert appliance.spanvault("calls", "--number", "4930555000").stdout.count("answered") == 2
        ask(appliance)
        for name in ("storaged", "replicator"):
            appliance.stop(name)
        yield appliance, spooled, folder / "more.pcap"


def ask(appliance: Appliance) -> None:
    """What else is said of calls, where it is kept, and what is said of nobody's."""
    number = secret_number(DIALLING)
    shown = appliance.spanvault("calls", "--number", number, "--json").stdout
    assert '"outcome":"answered"' in shown
    one = shown.split('"id":"')[1][:32]
    with appliance.client() as client:
        call = client.get(bytes.fromhex(one)).call
    assert (CLASS in str(call.headers), DIVERTED in str(call.headers)) == (True, True)
    assert [stream.media for stream in call.beside] == ["events"]
    (temporary := appliance.folder / "tmp").mkdir()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TMPDIR", str(temporary))
        done = appliance.spanvault("export", one, "-o", str(appliance.folder / "call.flac"))
    assert done.returncode == 0, done.stderr
    (about := appliance.folder / "about").mkdir()
    for name in ("status", "erasures"):
        (about / name).write_text(appliance.spanvault(name, "--json").stdout)
    (about / "statuses").write_text(str(appliance.statuses))
    for name, process in appliance.processes.items():
        # Its own user may not read the other of a daemon (spanvault.daemon.memory).
        for what in ("cmdline", "environ") if sees_into_daemons() else ("cmdline",):
            text = Path(f"/proc/{process.pid}/{what}").read_bytes()
            (about / f"{what} of {name}").write_bytes(text)


def secret_number(number: int) -> str:
    return callgen.phones(0.1, number)[0].number


def spool_bytes(appliance: Appliance) -> int:
    return sum(path.stat().st_size for path in appliance.spool.rglob("*.sealed"))


def copies(appliance: Appliance) -> int:
    return sum(path.stat().st_size > 10_000 for path in appliance.replica.rglob("*"))


def secrets(numbers: range) -> dict[str, bytes]:
    """What was said and dialled in these calls, by what it is."""
    found = {}
    for number in numbers:
        caller, callee = callgen.phones(TALK_S, number)
        found[f"Call-ID {number}"] = CALL_ID.format(number).encode()
        for phone in (caller, callee):
            found[f"number {phone.number}"] = phone.number.encode()
            found[f"address {phone.address}"] = f"{phone.number}@{phone.address}".encode()
            codes, samples = alaw(phone.samples), heard(phone.samples)
            loud = np.flatnonzero(np.abs(samples) > 8000)
            for sample in loud[:: max(1, len(loud) // 40)].tolist():
                at = sample - sample % FRAME + min(sample % FRAME, FRAME - 12)  # in one packet
                found[f"A-law {phone.number} at {at}"] = codes[at : at + 12]
                found[f"PCM {phone.number} at {at}"] = samples[at : at + 8].tobytes()
    return {what: secret for what, secret in found.items() if len(set(secret)) > 5}


def other_secrets() -> dict[str, bytes]:
    """What the other calls hold."""
    found = {
        f"{what} {number}": text.encode()
        for number in (DIALLING, SECURE, BROKEN)
        for what, text in (
            ("Call-ID", CALL_ID.format(number)), ("number", secret_number(number)),
            ("callee", callgen.phones(0.1, number)[1].number),
        )
    }  # fmt: skip
    for side, key in enumerate(MASTER):
        found |= {f"SRTP key {side}": key[:16], f"SRTP salt {side}": key[16:],
                  f"SRTP key {side} in SDP": base64.b64encode(key)}  # fmt: skip
    return found | {"header": CLASS.encode(), "diversion": DIVERTED.encode()}


def dialled() -> dict[str, bytes]:
    """Some packets of each key that was pressed, one behind the other as chunks have them."""
    return {
        f"digit {sign}": b"".join(payload for _, payload in digits.press(sign))[:16]
        for sign in DIALLED.values()
    }


def keys(appliance: Appliance) -> dict[str, bytes]:
    folder = appliance.etc / "keys"
    unlock = keyfile.load(folder / "unlock.key")
    ring = Keyring(appliance.store / "keys", unlock)
    found = {
        "unlock key": unlock,
        "recovery key": keyfile.load(folder / "recovery.key"),
        "ingest key": ring.ingest_private,
        "index key": ring.index_key,
        **{f"DEK {number}": ring.dek(number) for number in range(CALLS)},
    }
    found |= {f"{what} in hex": key.hex().encode() for what, key in found.items()}
    for role in ("storaged", "capture", "replicator", "operator"):
        secret = load_certificate(folder / f"{role}.key_secret").secret
        assert secret
        found[f"certificate {role}"] = secret
    return found


def search(contents: dict[Path, bytes], wanted: dict[str, bytes]) -> list[str]:
    """Where something wanted was found."""
    return [
        f"{what} in {path}"
        for path, data in contents.items()
        for what, secret in wanted.items()
        if secret in data
    ]


def contents(*folders: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for f in folders for path in f.rglob("*") if path.is_file()}


def test_the_search_finds_what_lies_in_the_clear(used):
    _, _, capture = used
    wanted = {what: s for what, s in secrets(range(1, CALLS)).items() if "PCM" not in what}
    assert len(wanted) > 300
    assert len(search({capture: capture.read_bytes()}, wanted)) == len(wanted)
    others = capture.with_name("others.pcap").read_bytes()
    in_sdp = {what: s for what, s in other_secrets().items() if "SRTP" not in what or "SDP" in what}
    assert len(search({capture: others}, in_sdp)) == len(in_sdp)


def test_everything_was_used(used):
    appliance, spooled, _ = used
    assert sum(map(len, spooled.values())) > SPOOLED
    assert sum(path.stat().st_size for path in appliance.store.rglob("*.*")) > 100_000
    assert copies(appliance) >= 2


@pytest.mark.parametrize("where", ["store", "replica", "spool", "replicator", "log", "about"])
def test_nothing_said_dialled_or_secret_lies_in_the_clear(used, where):
    appliance, spooled, _ = used
    folder = {"log": appliance.logs}.get(where) or getattr(appliance, where, None)
    files = contents(folder or appliance.folder / where)
    if where == "spool":
        files |= spooled
    assert files
    wanted = secrets(range(CALLS)) | keys(appliance) | other_secrets() | dialled()
    assert search(files, wanted) == []


def test_an_export_leaves_nothing_behind_but_what_was_asked_for(used):
    appliance, _, _ = used
    assert (appliance.folder / "call.flac").stat().st_size > 10_000
    assert list((appliance.folder / "tmp").rglob("*")) == []
