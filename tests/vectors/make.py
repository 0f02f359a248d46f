"""Makes objects, ledger, labels and bodies.json: bytes of the format, each one fault each.

They come out the same each time: time and salts are fixed, nothing else is random. After a change:
python -m tests.vectors.make. What is not repeatable: tests.vectors.makekeys.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from spanvault.media import chunk
from storaged.format import ledger, record, walk
from storaged.format.ledger import Entry, Seal
from storaged.format.sealing import DATA, EVENTS, ObjectWriter
from storaged.index import labels
from tests.support.chunks import Packet
from tests.support.chunks import chunk as chunk_of
from tests.support.frames import rtp
from tests.support.srtpsender import Sender
from tests.support.vault import START, at, call_id, make_call, make_media
from tests.vectors.makebodies import bodies

HERE: Final = Path(__file__).parent
RECORDING, DEK, KEY_ID = call_id(1), bytes(range(32)), 4096 + 7
STORE_ID = bytes(range(16))
INDEX_KEY: Final = b"i" * 32
SRTP_KEY, SSRC = bytes(range(100, 130)), 0xCAFEBABE  # AES_CM_128_HMAC_SHA1_80, its salt behind
SAID: Final = [b"said %d" % number for number in range(5)]
# What a vector tells besides: of SRTP the key with its salt, and what is in the packets.
MORE: Final = {"whole packets of SRTP": {"srtp": SRTP_KEY.hex(), "carries": b"".join(SAID).hex()}}
Change = Callable[[bytes], bytes]


def packed(recording: bytes, second: int, stream: int = 1) -> list[bytes]:
    return [chunk.pack(one) for one in make_media([(recording, stream, second)], 32).chunks()]


def segment(writer: ObjectWriter, salt: int, seconds: range, *, sealed: bool,
            recording: bytes = RECORDING) -> bytes:  # fmt: skip
    """A segment of one chunk a frame."""
    parts = [writer.begin(DEK, START, bytes((salt,)) * 16)]
    parts += [writer.data(packed(recording, n), *at(n)) for n in seconds]
    if sealed:
        parts.append(writer.last(b"\x80"))
    return b"".join(parts)


def dialled(flag: int, stream: int = chunk.EVENTS + 1) -> bytes:
    """A second of sound, then one of telephone events, or another, in a frame of this flag."""
    writer = ObjectWriter(RECORDING, KEY_ID, 0)
    begun = segment(writer, 1, range(1), sealed=False)
    second = packed(RECORDING, 1, stream)
    return begun + writer.data(second, *at(1), flag) + writer.last(b"\x80")


def srtp() -> chunk.Chunk:
    """Packets of SRTP that say SAID, those with more in their headers kept whole."""
    sender = Sender("AES_CM_128_HMAC_SHA1_80", key=SRTP_KEY)
    more: list[dict[str, Any]] = [
        {}, {"csrcs": [1, 2]}, {"extension": b"word"}, {"padding": b"\0\0\3"},
        {"marker": True, "csrcs": [1], "extension": b"", "padding": b"\1"},
    ]  # fmt: skip
    packets = []
    for number, (payload, fields) in enumerate(zip(SAID, more, strict=True), 65533):
        sent = sender.seal(rtp(number, 160 * number, SSRC, payload, **fields))
        flags = (chunk.WHOLE if sent[0] != 0x80 else 0) | bool(fields.get("marker"))
        kept = sent if flags & chunk.WHOLE else sent[12:]
        packets.append(Packet(0, number, 160 * number, kept, 8, flags))
    made = chunk_of(packets, 1)
    made.header["recording_id"], made.header["ssrc"] = np.void(RECORDING), SSRC
    made.header["start_ns"] = START
    return made


def encrypted() -> bytes:
    """An object of it."""
    writer = ObjectWriter(RECORDING, KEY_ID, 0)
    begun = writer.begin(DEK, START, b"\1" * 16)
    return begun + writer.data([chunk.pack(srtp())], START, START) + writer.last(b"\x80")


def objects() -> dict[str, bytes]:
    """Those without a fault."""
    plain, both = ObjectWriter(RECORDING, KEY_ID, 0), ObjectWriter(RECORDING, KEY_ID, 0)
    cut = ObjectWriter(RECORDING, KEY_ID, 0)
    unsealed = segment(cut, 1, range(2), sealed=False)
    return {
        "sealed": segment(plain, 1, range(3), sealed=True),
        "unsealed": unsealed,
        "torn tail": unsealed[:-5],
        "gone on with": segment(both, 1, range(2), sealed=True)
        + segment(both, 2, range(2, 3), sealed=True),
        "telephone events": dialled(EVENTS),
        "whole packets of SRTP": encrypted(),
    }


def flipped(at: int, bit: int = 1) -> Change:
    return lambda data: data[:at] + bytes((data[at] ^ bit,)) + data[at + 1 :]


def faults() -> dict[str, tuple[str, bytes]]:
    """Name, code and bytes of each object with one fault."""
    whole = objects()
    sealed, two = whole["sealed"], whole["gone on with"]
    one, other, *_ = places = walk.walk(sealed).places
    second = walk.walk(two).headers[1][0]
    stranger = ObjectWriter(RECORDING, KEY_ID, 0)
    swapped = sealed[:104] + sealed[other.offset : other.end] + sealed[one.offset : one.end]
    changed: dict[str, tuple[str, Change]] = {
        "shorter than a header": ("cut", lambda data: data[:90]),
        "another file": ("magic", lambda data: b"RIFF" + data[4:]),
        "line ends changed": ("magic", lambda data: data.replace(b"\r\n", b"\n", 1)),
        "version 3": ("version", flipped(8, 2)),
        "unknown suite": ("suite", flipped(10, 2)),
        "reserved byte": ("reserved", flipped(13)),
        "reserved word": ("reserved", flipped(45)),
        "salt changed": ("commitment", flipped(56)),
        "commitment changed": ("commitment", flipped(103)),
        "another recording's id": ("commitment", flipped(16)),
        "tier changed": ("frame", flipped(12)),
        "key id changed": ("frame", flipped(32)),
        "time of creation changed": ("frame", flipped(48)),
        "ciphertext changed": ("frame", flipped(other.start)),
        "tag changed": ("frame", flipped(other.end - 1)),
        "frames swapped": ("frame", lambda data: swapped + data[other.end :]),
        "frame left out": ("frame", lambda data: data[: one.offset] + data[one.end :]),
        "frame repeated": ("frame", lambda data: data[: one.end] + data[one.offset :]),
        "LAST frame changed": ("frame", flipped(places[-1].start)),
        "unknown flag": ("structure", flipped(one.offset + 4, 64)),
        "impossible length": ("structure", flipped(one.offset + 3, 128)),
        "bytes behind the locator": ("structure", lambda data: data + b"more bytes"),
        "locator points elsewhere": ("locator", flipped(len(sealed) - 20)),
        "locator's magic": ("locator", flipped(len(sealed) - 2)),
    }
    made = {name: (code, change(sealed)) for name, (code, change) in changed.items()}
    made["segment left out"] = "segment", segment(ObjectWriter(RECORDING, KEY_ID, 0), 1, range(2),
                                                  sealed=False) + _third()  # fmt: skip
    made["another recording's segment"] = "other recording", flipped(second + 16)(two)
    made["a segment of another key"] = "other recording", flipped(second + 32)(two)
    earlier = walk.walk(two).places[2].end
    made["locator of the segment before"] = "locator", two[:-32] + two[earlier : earlier + 32]
    made["another recording's chunk"] = (
        "chunk",
        segment(stranger, 1, range(1), sealed=True, recording=call_id(2)),
    )
    made["telephone events among the sound"] = "chunk", dialled(DATA)
    made["sound among the telephone events"] = "chunk", dialled(EVENTS, 2)
    made["a length that leads over the next header"] = "structure", _leading_on()
    made["a frame behind the locator"] = "structure", _unasked()
    for name, change in LIES.items():
        liar = ObjectWriter(RECORDING, KEY_ID, 0)
        begun = segment(liar, 1, range(1), sealed=True) + segment(
            liar, 2, range(1, 3), sealed=False
        )
        change(liar)
        made[name] = "trailer", begun + liar.last(b"")
    return made


def _leading_on() -> bytes:
    """A segment whose second and last frame says that it is longer than the next one."""
    writer = ObjectWriter(RECORDING, KEY_ID, 0)
    begun = segment(writer, 1, range(2), sealed=False)
    length = int.from_bytes(writer.entries[32:40], "little") + 2
    return flipped(length)(begun + segment(writer, 2, range(2, 3), sealed=True))


def _unasked() -> bytes:
    """A frame of the next sequence, whole, in a segment that has ended."""
    writer = ObjectWriter(RECORDING, KEY_ID, 0)
    begun, key = segment(writer, 1, range(1), sealed=False), writer._key
    assert key is not None
    ended = begun + writer.last(b"\x80")
    return ended + key.seal(writer.sequence, DATA, b"".join(packed(RECORDING, 1)))


def _saying(field: int, change: int) -> Callable[[ObjectWriter], None]:
    """Say something else of the last frame. field: of its row, by the byte where it begins."""

    def say(writer: ObjectWriter) -> None:
        writer.entries[64 + field] ^= change

    return say


# Of two segments with frames 0; 0, 1: what their trailer says.
LIES: Final[dict[str, Callable[[ObjectWriter], None]]] = {
    "trailer lists too little": lambda writer: writer.entries.__delitem__(slice(32, 64)),
    "trailer lists another header": lambda writer: writer.segments.__setitem__(0, 104),
    "trailer lists another segment": _saying(8, 1),
    "trailer lists another sequence": _saying(12, 2),
    "trailer says that a frame begins at another time": _saying(20, 1),
    "trailer says that a frame ends at another time": _saying(28, 1),
}


def _third() -> bytes:
    """A segment that calls itself the third."""
    writer = ObjectWriter(RECORDING, KEY_ID, 0)
    writer.next_segment = 2
    return segment(writer, 3, range(2, 3), sealed=False)


def ledgers() -> dict[str, tuple[bytes, list[int]]]:
    """Files of a ledger, and where each has a fault; the heads of the last two do not fit."""
    call = make_call(1)
    head, key = ledger.head(STORE_ID, 1, b"s" * 16), ledger.key_of(INDEX_KEY)
    entries = [
        Entry(ledger.RECORD, call.id, record.seal_call(call, KEY_ID, DEK, b"n" * 12)),
        Entry(ledger.SEALED, call.id, Seal(KEY_ID, 1234, bytes(range(32))).serialize()),
        Entry(ledger.RECORD, call_id(2), b"SVLE, and no sealed record"),
    ]
    data = head + ledger.serialize(entries, head, len(head), key)
    first = len(head) + len(ledger.serialize(entries[:1], head, len(head), key))
    last = len(head) + len(ledger.serialize(entries[:2], head, len(head), key))
    inner = last + 28  # where that body begins like an entry
    return {
        "whole": (data, []),
        "empty": (head, []),
        "with the key of a day": (data + ledger.serialize(
            [ledger.DayKey(19_675, KEY_ID).entry()], head, len(data), key), []),
        "with an entry of a kind to come": (data + ledger.serialize(
            [Entry(200, call.id, b"what it says")], head, len(data), key), []),
        "torn": (data[:-1], [last, inner]),
        "byte changed": (flipped(first + 50)(data), [first]),
        "bytes between": (data[:last] + bytes(9), [last]),
        "entry repeated": (data + data[first:last], [len(data)]),
        "entry of another file": (
            data + ledger.serialize(entries[:1], b"h" * 48, len(data), key), [len(data)]
        ),
        "ledger of another pool": (ledger.head(STORE_ID, 2, b"s" * 16) + data[48:], [0]),
        "head cut": (data[:40], [0]),
    }  # fmt: skip


def labels_of() -> list[dict[str, Any]]:
    """Search rows: key of the table for a number or Call-ID, as the n-th of its calls that day."""
    slot = 9 * 4096 + 5
    cipher = Cipher(algorithms.AES(labels.label_key(DEK)), modes.ECB()).encryptor()
    found = []
    for kind, text, number in (
        ("n", "+49301234567", 0), ("n", "+49301234567", 1), ("n", "Mu\u0308ller", 300),
        ("c", "a84b4c76e66710@pc33.example.org", 0),
    ):  # fmt: skip
        token = int.from_bytes(record.token(INDEX_KEY, kind.encode(), text), "big")
        label = cipher.update(((token + number) % (1 << 128)).to_bytes(16, "big"))
        found.append({
            "error": "", "index_key": INDEX_KEY.hex(), "dek": DEK.hex(), "tier": 1, "key_id": slot,
            "kind": kind, "text": text, "number": number,
            "key": (labels.slot(1, slot) + label).hex(),
        })  # fmt: skip
    return found


def main() -> None:
    """Write the files."""
    table = [
        {"name": name, "error": code, "dek": DEK.hex(), "object": data.hex()}
        for name, (code, data) in (*((n, ("", d)) for n, d in objects().items()), *faults().items())
    ]
    for vector in table:
        vector |= MORE.get(vector["name"], {})
    write(HERE / "objects.json", table)
    write(HERE / "ledger.json", [
        {"name": name, "tier": 1, "faults": faults, "index_key": INDEX_KEY.hex(),
         "dek": DEK.hex(), "ledger": data.hex()}
        for name, (data, faults) in ledgers().items()
    ])  # fmt: skip
    write(HERE / "labels.json", labels_of())
    write(HERE / "bodies.json", bodies())


def write(path: Path, table: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
