"""Prints what is in an object as JSON; exit code 1 if something does not fit."""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from reader import objects, rootfile


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Opens a sealed recording.")
    parser.add_argument("object", type=Path)
    parser.add_argument("--dek")
    parser.add_argument("--keys", type=Path)
    parser.add_argument("--unlock", type=Path)
    asked = parser.parse_args()
    data = asked.object.read_bytes()
    if asked.dek:
        dek = bytes.fromhex(asked.dek)
    else:
        lines = asked.unlock.read_text().splitlines()
        (key,) = (line for line in lines if line and not line.startswith("#"))
        dek = rootfile.find_dek(asked.keys, bytes.fromhex(key), objects.key_id_of(data))
    found = objects.open_object(data, dek)
    about: dict[str, Any] = {"sealed": found.sealed, "faults": found.faults}
    about["chunks"] = [
        {"stream": chunk.stream, "ssrc": chunk.ssrc, "start_ns": chunk.start_ns,
         "frames": len(chunk.frames), "bytes": sum(map(len, chunk.payloads)),
         "sha256": hashlib.sha256(b"".join(chunk.payloads)).hexdigest()}
        for chunk in found.chunks
    ]  # fmt: skip
    print(json.dumps(about))
    return int(bool(found.faults))


if __name__ == "__main__":
    sys.exit(main())
