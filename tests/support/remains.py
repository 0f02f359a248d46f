"""What a store's files use of keys, salts and nonces: none of them may ever be used twice."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from storaged.format.record import parse_head
from storaged.index.environment import Index

MAGIC: Final = b"\x89SVR\r\n\x1a\n"


class Remains(NamedTuple):
    """What a store uses of keys: segments by salt, and whose each key is."""

    segments: list[tuple[bytes, bytes]]  # salt; all bytes of the segment, header and locator too
    owners: dict[tuple[int, int], set[bytes]]  # pool, key id: the recordings it seals

    @classmethod
    def of(cls, store: Path) -> "Remains":
        """Read it off the files, without a key."""
        segments: list[tuple[bytes, bytes]] = []
        owners: dict[tuple[int, int], set[bytes]] = {}
        for path in store.glob("pools/*/objects/*/*.svr*"):
            for part in path.read_bytes().split(MAGIC)[1:]:
                segment = MAGIC + part
                segments.append((segment[56:72], segment))
                if len(segment) >= 40:
                    key = segment[12], int.from_bytes(segment[32:40], "little")
                    owners.setdefault(key, set()).add(segment[16:32])
        for recording, key in _record_keys(store):
            owners.setdefault(key, set()).add(recording)
        return cls(segments, owners)

    def reused(self, after: "Remains") -> Iterator[str]:
        """Keys, salts and nonces that were used twice, before and after a crash together."""
        salts = [salt for salt, _ in after.segments if len(salt) == 16]
        if len(set(salts)) != len(salts):
            yield "a salt was used twice"
        kept = dict(after.segments)
        for salt, segment in self.segments:
            there = kept.get(salt, b"")
            if not (there.startswith(segment) or segment.startswith(there)):
                yield "a frame was sealed again under its nonce"
        for key_id in self.owners.keys() | after.owners.keys():
            whose = self.owners.get(key_id, set()) | after.owners.get(key_id, set())
            if len(whose) > 1:
                yield f"key {key_id[1]} was given to {len(whose)} recordings"


def _record_keys(store: Path) -> list[tuple[bytes, tuple[int, int]]]:
    """Pools and key ids of the sealed records; none if the store was not even made."""
    if not (store / "index" / "data.mdb").exists():
        return []
    tables = Index(store / "index")
    try:
        with tables.reading() as view:
            rows = [(bytes(key), parse_head(value).key_id) for key, value in view.cursor(b"record")]
            states = {call_id: view.state(call_id) for call_id, _ in rows}
    finally:
        tables.close()
    return [(one, (state.tier, key)) for one, key in rows if (state := states[one])]
