"""A whole store without its index: what its keys, ledgers, objects, intakes and log give.

FORMAT.md §3, §5.4, §5.5, §7.1, §7.2, §10, §12. LMDB is not read: nothing is lost with it (§7.2).
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from . import Fault, bodies, intake, ledgers, objects, rootfile, rows, signed

TIERS = {"base": 0, "core": 1, "sensitive": 2}
PAGE, INGEST, INDEX, SIGNING, VOUCHED = 1, 2, 3, 4, 5  # kinds of secrets
RECORD, SEALED, ERASURE = 1, 2, 3  # kinds of entries


class Call(NamedTuple):
    """What is left of a call. record: None if none opens; opened: None without an object."""

    pool: str
    record: dict[str, Any] | None
    opened: objects.Opened | None
    sha256: str | None  # of the object; None if it is not the one that was sealed
    waiting: int = 0  # batches of an intake that hold it


class Store:
    """A store's folder, opened with a private key. Raises Fault if that opens not even base."""

    def __init__(self, folder: Path, unlock: bytes) -> None:
        about = json.loads((folder / "format.json").read_text())
        if (about["format"], about["version"]) != ("spanvault store", 3):
            raise Fault("version")
        self.folder, self.id = folder, bytes.fromhex(about["store_id"])
        self.faults, self.locked = list[str](), list[str]()
        self.secrets: dict[str, dict[tuple[int, int, int], bytes]] = {}
        for pool, tier in TIERS.items():
            self._open_pool(pool, tier, unlock)
        base = self.secrets["base"]
        self.signer = Ed25519PrivateKey.from_private_bytes(base[SIGNING, 0, 0]).public_key()

    def calls(self) -> dict[bytes, Call]:
        """Every call that opens, by its id."""
        entries = {pool: list(self._entries(pool)) for pool in self.secrets}
        erased, moved = self._gone(entries["base"])
        found = dict[bytes, Call]()
        for pool, some in entries.items():
            of_call: dict[bytes, list[tuple[int, bytes]]] = {}
            for kind, call, body in some:
                if kind in (RECORD, SEALED):
                    of_call.setdefault(call, []).append((kind, body))
            there = {bytes.fromhex(path.stem): path for path in self._objects(pool)}
            for call in {*of_call, *there} - {one for one, name in erased | moved if name == pool}:
                made = self._call(pool, call, of_call.get(call, []), there.get(call))
                if made is not None and (
                    call not in found or TIERS[found[call].pool] < TIERS[pool]
                ):
                    found[call] = made
        self._add_waiting(found, {one for one, _ in erased})
        return found

    def log(self) -> list[dict[str, Any]]:
        """The lines of the access log. Raises Fault where they do not follow."""
        data = (self.folder / "log/access.log").read_bytes().rstrip(b"\0")
        signed.check_log(data)
        return [json.loads(line) for line in data.splitlines()]

    def check_head(self, head: bytes) -> dict[str, Any]:
        """A head of the access log, as a replica has it. Raises Fault."""
        data = (self.folder / "log/access.log").read_bytes().rstrip(b"\0")
        return signed.check_head(head, data, self.signer.public_bytes_raw())

    def _open_pool(self, pool: str, tier: int, unlock: bytes) -> None:
        keys = self._keys(pool)
        if tier and not (keys / "root").exists():
            return
        try:
            store_id, secrets = rootfile.open_root((keys / "root").read_bytes(), unlock)
        except Fault as fault:
            if not tier or fault.code != "other key":
                raise
            self.locked.append(pool)
            return
        own = {intake.public_of(key) for (kind, *_), key in secrets.items() if kind == INGEST}
        if store_id != self.id or (
            tier and self.secrets["base"].get((VOUCHED, 0, tier)) not in own
        ):
            raise Fault("other pool")
        self.secrets[pool] = secrets

    def _entries(self, pool: str) -> Iterator[tuple[int, bytes, bytes]]:
        key = self.secrets[pool][INDEX, 0, 0]
        for path in sorted((self.folder / "pools" / pool / "ledger").glob("*.svl")):
            entries, faults = ledgers.read_ledger(path.read_bytes(), self.id, TIERS[pool], key)
            self.faults += [f"{path.name}: {at}" for at in faults]
            yield from entries

    def _gone(
        self, entries: list[tuple[int, bytes, bytes]]
    ) -> tuple[set[tuple[bytes, str]], set[tuple[bytes, str]]]:
        """Call and pool of each that was erased, and of each that was moved up from there."""
        erased, moved = set[tuple[bytes, str]](), set[tuple[bytes, str]]()
        for body in (body for kind, _, body in entries if kind == ERASURE):
            told = bodies.read_body("erasure", body)
            for one in told["recordings"]:
                (moved if told["moved_to"] else erased).add((one["id"], one["pool"]))
        return erased, moved

    def _call(
        self, pool: str, call: bytes, entries: list[tuple[int, bytes]], path: Path | None
    ) -> Call | None:
        records = list[dict[str, Any]]()
        for kind, body in entries:
            if kind == RECORD:
                records += self._record(pool, call, body)
        opened, sha256 = None, None
        if path is not None:
            data = path.read_bytes()
            try:
                opened = objects.open_object(data, self._dek(pool, objects.key_id_of(data)))
                self.faults += [f"{path.name}: {code}" for code in opened.faults]
                if opened.record:
                    records.append(bodies.read_body("call", opened.record))
            except Fault as fault:
                self.faults.append(f"{path.name}: {fault}")
            seals = [body for kind, body in entries if kind == SEALED]
            digest = hashlib.sha256(data).hexdigest()
            if seals and rows.read_row("entry sealed", call, seals[-1])["sha256"] == digest:
                sha256 = digest
        best = max(records, key=lambda one: int(one["revision"]), default=None)
        return Call(pool, best, opened, sha256) if best or opened else None

    def _record(self, pool: str, call: bytes, sealed: bytes) -> list[dict[str, Any]]:
        """A record; none if its DEK is gone."""
        try:
            dek = self._dek(pool, ledgers.key_id_of(sealed))
        except Fault:
            return []
        return [bodies.read_body("call", ledgers.open_record(call, sealed, dek))]

    def _add_waiting(self, found: dict[bytes, Call], gone: set[bytes]) -> None:
        """Of each intake what was taken in and not committed yet."""
        for pool, secrets in self.secrets.items():
            keys = {intake.id_of(key): key for (kind, *_), key in secrets.items() if kind == INGEST}
            for path in sorted((self.folder / "intake" / pool).glob("*.sealed")):
                key = keys.get(intake.key_named(path.name), bytes(32))
                try:
                    batch = intake.open_batch(path.name, path.read_bytes(), key)
                except Fault as fault:
                    if fault.code != "removed":
                        self.faults.append(f"{path.name}: {fault.code}")
                    continue
                for record in intake.calls_of(batch):
                    if record["id"] not in gone:
                        known = found.get(record["id"], Call(pool, record, None, None))
                        found[record["id"]] = known._replace(waiting=known.waiting + 1)

    def _dek(self, pool: str, key_id: int) -> bytes:
        return rootfile.find_dek(self._keys(pool), self.id, self.secrets[pool], key_id)

    def _keys(self, pool: str) -> Path:
        return self.folder / "keys" / (pool if TIERS[pool] else "")

    def _objects(self, pool: str) -> list[Path]:
        return sorted((self.folder / "pools" / pool / "objects").glob("*/*.svr"))
