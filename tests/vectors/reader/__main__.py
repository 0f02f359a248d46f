"""Prints what is in an object, or in a whole store, as JSON; exit code 1 if something does not fit.

Of a store a line a call, and at last one of the store.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from reader import Fault, keyfiles, objects, rootfile
from reader.store import Store


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Opens a sealed recording, or a store.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--dek")
    parser.add_argument("--keys", type=Path)
    parser.add_argument("--unlock", type=Path)
    parser.add_argument("--passphrase", default="")
    asked = parser.parse_args()
    if asked.dek:
        return _object(asked.path.read_bytes(), bytes.fromhex(asked.dek))
    unlock = keyfiles.open_keyfile(asked.unlock.read_text(), asked.passphrase, _no_token)
    if asked.path.is_dir():
        return _store(Store(asked.path, unlock))
    data = asked.path.read_bytes()
    store_id, secrets = rootfile.open_root((asked.keys / "root").read_bytes(), unlock)
    return _object(data, rootfile.find_dek(asked.keys, store_id, secrets, objects.key_id_of(data)))


def _object(data: bytes, dek: bytes) -> int:
    found = objects.open_object(data, dek)
    print(json.dumps({"sealed": found.sealed, "faults": found.faults, "chunks": _chunks(found)}))
    return int(bool(found.faults))


def _store(store: Store) -> int:
    for call_id, call in sorted(store.calls().items()):
        about: dict[str, Any] = {"id": call_id.hex(), "pool": call.pool, "sha256": call.sha256,
                                 "waiting": call.waiting, "chunks": []}  # fmt: skip
        if call.record:
            about |= {name: call.record[name] for name in ("caller", "callee", "started_ns")}
        if call.opened:
            about |= {"sealed": call.opened.sealed, "chunks": _chunks(call.opened)}
        print(json.dumps(about))
    log = [line["kind"] for line in store.log()]
    print(json.dumps({"locked": store.locked, "faults": store.faults, "log": log}))
    return int(bool(store.faults))


def _chunks(found: objects.Opened) -> list[dict[str, Any]]:
    return [
        {"stream": chunk.stream, "ssrc": chunk.ssrc, "start_ns": chunk.start_ns,
         "frames": len(chunk.frames), "bytes": sum(map(len, chunk.payloads)),
         "sha256": hashlib.sha256(b"".join(chunk.payloads)).hexdigest()}
        for chunk in found.chunks
    ]  # fmt: skip


def _no_token(uri: str, _: bytes) -> bytes:
    raise Fault("token")


if __name__ == "__main__":
    sys.exit(main())
