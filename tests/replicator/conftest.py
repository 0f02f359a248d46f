"""What several of the replicator's tests stand on: the real daemons, and a disk that fills up."""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from replicator import bundle, layout
from spanvault.client import Client
from spanvault.daemon.config import OperatorConfig, load
from spanvault.messages import GetReply
from spanvault.private import toml
from tests.support.appliance import Appliance
from tests.support.ingest import Ingest, identity, payload


class House:
    """storaged and replicator as processes, calls for them, and a look at what they did."""

    def __init__(self, folder: Path) -> None:
        self.appliance = Appliance(folder)
        self.etc, self.replica, self.store = folder / "etc", folder / "replica", folder / "store"
        self.state = folder / "replicator"
        with (self.etc / "storaged.toml").open("a") as file:
            file.write("commit_interval_s = 0.2\n")
        self.target(siteb=self.replica)

    def target(self, retry_s: float = 0.2, **places: Path) -> None:
        """Write replicator.toml with these targets."""
        text = (self.etc / "replicator.toml").read_text().partition("retry_s")[0]
        targets = [{"name": n, "kind": "directory", "path": p} for n, p in places.items()]
        rest = toml({"retry_s": retry_s, "targets": targets})
        (self.etc / "replicator.toml").write_text(text + rest)

    def move_state(self, place: Path) -> None:
        """Have the replicator keep its own state there."""
        config = self.etc / "replicator.toml"
        config.write_text(config.read_text().replace(str(self.state), str(place)))
        self.state = place

    def start(self, *names: str) -> None:
        for name in names or ("storaged", "replicator"):
            self.appliance.start(name)

    def record(self, numbers: Iterable[int], seconds: int = 3, size: int = 8000) -> None:
        """Have calls recorded and sealed."""
        with Ingest(self.etc / "capture.toml") as ingest:
            ingest.store(list(numbers), seconds, size)

    def client(self) -> Client:
        return Client.of(load(self.etc / "spanvault.toml", OperatorConfig))

    def get(self, number: int) -> GetReply:
        with self.client() as client:
            return client.get(identity(number))

    def status(self) -> dict[str, Any]:
        """What storaged heard of the replicator."""
        with self.client() as client:
            found = [d for d in client.status().daemons if d["daemon"] == "replicator"]
        return found[0] if found else {"state": "", "fields": {"targets": {}}}

    def reported(self, target: str) -> dict[str, Any]:
        """What storaged heard of one target; nothing at first."""
        found: dict[str, Any] = self.status()["fields"]["targets"].get(target, {})
        return found

    def receipts(self, target: str = "siteb") -> dict[bytes, dict[str, Any]]:
        """The last receipt of each recording, from the replicator's own file."""
        path = self.state / "receipts.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return {bytes.fromhex(one["id"]): one for one in found if one["target"] == target}

    def position(self, target: str = "siteb") -> int:
        path = self.state / f"{target}.position"
        return int(json.loads(path.read_text())["position"]) if path.exists() else 0

    def original(self, number: int) -> Path:
        (path,) = self.store.glob(f"pools/*/objects/*/{identity(number).hex()}.svr")
        return path

    def copy(self, number: int, replica: Path | None = None) -> Path:
        return (replica or self.replica) / layout.object_name(identity(number))

    def copied(self, numbers: Iterable[int], target: str = "siteb") -> bool:
        """Whether the store has a receipt of each."""
        return all(
            target in {one.target for one in self.get(number).receipts} for number in numbers
        )

    def check_replica(self, numbers: Iterable[int], replica: Path | None = None) -> None:
        """Every copy equals its original, byte for byte, and some bundle vouches for it."""
        known: dict[bytes, set[str]] = {}
        for path in sorted((replica or self.replica).glob("records/*.bundle")):
            for change in bundle.parse(path.read_bytes()):
                if change.kind == "object":
                    known.setdefault(change.id, set()).add(change.sha256)
        for number in numbers:
            digest = sha256(self.original(number))
            assert sha256(self.copy(number, replica)) == digest
            assert digest in known[identity(number)]

    def said(self, number: int, seconds: int = 3, size: int = 8000) -> bool:
        """Whether the store plays exactly what was said."""
        heard, cursor = b"", 0
        with self.client() as client:
            while cursor is not None:
                page = client.fetch(identity(number), cursor)
                assert page.faults == []
                heard += b"".join(bytes(chunk.payload) for chunk in page.media.chunks())
                cursor = page.next
        return heard == b"".join(payload(number, second, size) for second in range(seconds))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def until() -> Callable[..., None]:
    def wait(condition: Callable[[], Any], timeout_s: float = 30.0) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"not within {timeout_s:g} s"
            time.sleep(0.1)

    return wait


@pytest.fixture
def make_house(tmp_path: Path) -> Iterator[Callable[[str], House]]:
    made: list[House] = []

    def make(name: str) -> House:
        made.append(House(tmp_path / name))
        return made[-1]

    yield make
    for house in made:
        with house.appliance:
            pass  # ends what still runs


@pytest.fixture
def house(make_house: Callable[[str], House]) -> House:
    return make_house("house")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, mounted."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small disk")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=False)
