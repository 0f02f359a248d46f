"""Nothing that was said, dialled or kept secret lies in the clear on any disk or in any log.

Calls go through the real daemons, with storaged away for a while so that the spool is used; then
every file of store, spool, replica, state and log is searched for what was put in, in the forms
it could have: payload, linear samples, numbers, Call-IDs, keys.
"""

from pathlib import Path

import numpy as np
import pytest

from spanvault.keys import keyfile
from spanvault.transport import load_certificate
from storaged.keys.keyring import Keyring
from tests.support import callgen
from tests.support.appliance import Appliance
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


SPOOLED = 20_000  # bytes: more than a second of a call


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """An appliance that has recorded, spooled and copied; its daemons are stopped."""
    folder = tmp_path_factory.mktemp("plain")
    forge(folder / "first.pcap", range(1))
    forge(folder / "more.pcap", range(1, CALLS))
    with Appliance(folder / "a", outbox_mb=1) as appliance:
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
        # A question is written to the access log, too.
        assert appliance.spanvault("calls", "--number", "4930555000").stdout.count("answered") == 2
        for name in ("storaged", "replicator"):
            appliance.stop(name)
        yield appliance, spooled, folder / "more.pcap"


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


def test_everything_was_used(used):
    appliance, spooled, _ = used
    assert sum(map(len, spooled.values())) > SPOOLED
    assert sum(path.stat().st_size for path in appliance.store.rglob("*.*")) > 100_000
    assert copies(appliance) >= 2


@pytest.mark.parametrize("where", ["store", "replica", "spool", "replicator", "log"])
def test_nothing_said_dialled_or_secret_lies_in_the_clear(used, where):
    appliance, spooled, _ = used
    folder = {"replicator": appliance.folder / "replicator", "log": appliance.logs}.get(where)
    files = contents(folder or getattr(appliance, where))
    if where == "spool":
        files |= spooled
    assert files
    assert search(files, secrets(range(CALLS)) | keys(appliance)) == []
