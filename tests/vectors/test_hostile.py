"""Sealed files cut at every byte and with flipped bits: never another plaintext, always a code.

Both readers, the product's and the one that shares nothing with it, must hear the same of what is
left. The codes are those of FORMAT.md §4.5 and §14.
"""

import random
from collections.abc import Iterator

import pytest

from spanvault import spool
from storaged.format import keypage, ledger, walk
from storaged.format.sealing import LAST
from tests.vectors import make
from tests.vectors.reader import Fault, intake, ledgers, objects, rootfile
from tests.vectors.test_key_vectors import load

CODES = {"cut", "magic", "version", "suite", "reserved", "commitment", "frame", "structure",
         "chunk", "segment", "other recording", "trailer", "locator"}  # fmt: skip
Heard = list[tuple[int, int, bytes]]  # stream, start, payload
WHOLE = {
    one["name"]: (bytes.fromhex(one["object"]), bytes.fromhex(one["dek"]))
    for one in load("objects")
    if not one["error"]
}


def cuts(data: bytes) -> Iterator[bytes]:
    return (data[:size] for size in range(len(data)))


def flips(data: bytes, count: int = 400) -> Iterator[bytes]:
    rolled = random.Random(len(data))
    for _ in range(count):
        hurt = bytearray(data)
        hurt[rolled.randrange(len(data))] ^= 1 << rolled.randrange(8)
        yield bytes(hurt)


def independent(data: bytes, dek: bytes) -> tuple[Heard, list[str], bool]:
    """What the other reader hears, the codes that it gives, and whether it holds it for sealed."""
    try:
        found = objects.open_object(data, dek)
    except Fault as fault:
        return [], [fault.code], False
    heard = [(one.stream, one.start_ns, b"".join(one.payloads)) for one in found.chunks]
    return heard, found.faults, found.sealed


def product(data: bytes, dek: bytes) -> tuple[Heard, list[str]]:
    """What the product hears, and its faults."""
    try:
        layout = walk.walk(data)
        checked = walk.check(data, lambda _: dek)
    except ValueError as error:
        return [], [str(error)]
    opener, heard = walk.Opener(data, layout, lambda _: dek), Heard()
    for place in layout.places:
        try:
            if place.flag != LAST:
                chunks = list(walk.chunks_of(opener.open(place), make.RECORDING))
                heard += [(int(c.header["stream"]), int(c.header["start_ns"]), bytes(c.payload))
                          for c in chunks]  # fmt: skip
        except ValueError:
            continue
    return heard, checked.faults


@pytest.mark.parametrize("name", WHOLE)
def test_object_cut_anywhere_gives_what_lies_before_and_nothing_else(name):
    data, dek = WHOLE[name]
    truth, faults, _ = independent(data, dek)
    assert (truth, faults) != ([], [])
    assert product(data, dek) == (truth, faults)
    for left in cuts(data):
        heard, codes, _ = independent(left, dek)
        assert heard == truth[: len(heard)]
        assert set(codes) <= CODES
        assert product(left, dek)[0] == heard, len(left)


@pytest.mark.parametrize("name", WHOLE)
def test_flipped_bits_are_told_and_give_no_other_sound(name):
    data, dek = WHOLE[name]
    truth, _, sealed = independent(data, dek)
    for hurt in flips(data[: walk.walk(data).end]):
        heard, codes, whole = independent(hurt, dek)
        ours, faults = product(hurt, dek)
        assert [one for one in (*heard, *ours) if one not in truth] == []
        assert set(codes) <= CODES
        # A length that leads behind the end is a torn tail: no fault, and nothing is sealed.
        assert codes or whole != sealed or (heard != truth and not sealed)
        assert heard == ours
        assert bool(faults) == bool(codes)


def refused(read, data: bytes) -> str:
    """The code with which another reader refuses it."""
    with pytest.raises(Fault) as fault:
        read(data)
    return fault.value.code


@pytest.mark.parametrize("vector", [one for one in load("root") if not one["error"]][:2])
def test_root_cut_or_flipped_anywhere_opens_nothing(vector):
    data, unlock = bytes.fromhex(vector["root"]), bytes.fromhex(vector["unlock"])
    codes = {"cut", "magic", "digest"}
    for hurt in (*cuts(data), *flips(data)):
        assert refused(lambda data: rootfile.open_root(data, unlock, None), hurt) in codes
        with pytest.raises(ValueError, match="root"):
            keypage.open_root(hurt, unlock, None)


@pytest.mark.parametrize("vector", [one for one in load("batch") if not one["error"]])
def test_waiting_batch_cut_or_flipped_anywhere_opens_nothing(vector):
    data, private = bytes.fromhex(vector["batch"]), bytes.fromhex(vector["private"])
    for hurt in (*cuts(data), *flips(data)):
        code = refused(lambda data: intake.open_batch(vector["file"], data, private), hurt)
        assert code in {"sealed", "removed"}
        with pytest.raises(ValueError, match="spooled batch"):
            spool.open_batch(hurt, private)


def test_ledger_cut_or_flipped_anywhere_gives_only_its_entries():
    vector = next(one for one in load("ledger") if not one["faults"])
    data, key = bytes.fromhex(vector["ledger"]), bytes.fromhex(vector["index_key"])
    truth, _ = ledgers.read_ledger(data, make.STORE_ID, vector["tier"], key)
    for hurt in (*cuts(data), *flips(data)):
        try:
            entries, faults = ledgers.read_ledger(hurt, make.STORE_ID, vector["tier"], key)
        except Fault:
            continue  # it says itself that it is none of this pool
        assert [one for one in entries if one not in truth] == []
        assert len(entries) < len(truth)
        assert faults or len(hurt) < len(data)
        head = ledger.check_head(hurt, make.STORE_ID, vector["tier"])
        ours = list(ledger.walk(hurt, head, ledger.key_of(key)))
        assert [tuple(one.entry) for one in ours if one.entry] == entries
        assert any(one.fault for one in ours) == bool(faults)
