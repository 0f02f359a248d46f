"""What a store holds, held against what it was given: what is lost, there twice, or left over.

Who asks: tests/support/crashing.py, the power cuts, the disks that fail.
"""

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from spanvault import messages as m
from spanvault import wire
from storaged.index.environment import Index
from tests.support.forked import Forked
from tests.support.loads import Load, Sent
from tests.support.vault import Client, chunk_keys, make_media


def drained(operator: Client) -> None:
    """Wait until nothing is kept for an open pool elsewhere."""
    end = time.monotonic() + 20
    while any(pool["waiting"] for pool in operator.ask(m.Status())[0].fields["pools"].values()):
        assert time.monotonic() < end, "the intake is not sorted into the store"
        time.sleep(0.005)


def unconverted(operator: Client) -> Iterator[str]:
    """Wait until no key opens search rows of erased calls, which follows; say why they stay."""
    end = time.monotonic() + 20
    while (told := operator.ask(m.Status())[0].fields["erasing"])["days_due"]:
        if told["state"] != "converts" or time.monotonic() > end:
            yield f"search rows of erased calls stay: {told['state']}"
            return
        time.sleep(0.005)


def unretired(rig: Forked, operator: Client) -> Iterator[str]:
    """Have a capture greet until the ingest keys of erased calls are gone; say why they stay."""

    def due() -> list[str]:
        found: list[str] = operator.ask(m.Status())[0].fields["erasing"]["ingest_keys"]
        return found

    greet(rig, lambda: not due())
    yield from (f"an ingest key of erased calls stays: {one}" for one in due())
    keys = operator.ask(m.Keys())[0].pools[0].ingest_keys
    if keys != 1:
        yield f"{keys} ingest keys are left"
    for one in operator.ask(m.Erasures())[0].erasures:
        if not one.spools_gone_ns:
            yield "an erasure does not know that copies of spools open no more"


def greet(rig: Forked, done: Callable[[], bool]) -> None:
    """As a capture that holds nothing and seals to the key that it is told."""
    capture, end = Client(rig, "capture", rig.ingest), time.monotonic() + 20
    while not done() and time.monotonic() < end:
        capture.send(m.Hello("test"))
        if answer := capture.receive(wire.decode_from_ingest, 0.2):
            said = {"sealed_to": [answer[0].key_id]}
            capture.send(m.Health("capture test", "recording", said))
        time.sleep(0.02)
    capture.socket.close(linger=0)
    capture.context.term()


Found = dict[bytes, tuple[m.GetReply, list[tuple[bytes, int, int, bytes]]]]


def stored(operator: Client, load: Load) -> Found:
    """Record and chunks of every call of a load that is there."""
    found: Found = {}
    for recording in sorted({one for sent in (*load.kept, *load.sent) for one in _ids(sent)}):
        reply, _ = operator.ask(m.Get(recording))
        if not isinstance(reply, m.GetReply):
            continue
        chunks: list[tuple[bytes, int, int, bytes]] = []
        cursor: int | None = 0
        while cursor is not None and reply.size:
            page, bulk = operator.ask(m.Fetch(recording, cursor))
            if not isinstance(page, m.FetchReply):
                break  # so these chunks are lost
            chunks += chunk_keys(wire.decode_media(bulk))
            cursor = page.cursor
        found[recording] = reply, chunks
    return found


def lost(load: Load, acknowledged: set[int], found: Found) -> Iterator[str]:
    """What was acknowledged, and is not there as it was sent; what was erased, and is there."""
    done = [load.sent[number] for number in sorted(acknowledged)]
    gone = load.erased - found.keys()  # all of such a call, or nothing
    for sent in (*load.kept, *done):
        for chunk in sent.chunks:
            said = chunk_keys(make_media([chunk]))[0]
            if chunk[0] not in gone and (chunk[0] not in found or said not in found[chunk[0]][1]):
                yield f"chunk {chunk[1:]} of {chunk[0].hex()[:8]}"
        for call in sent.message.calls if isinstance(sent.message, m.Batch) else ():
            if call.id not in gone and (
                call.id not in found or found[call.id][0].call.revision < call.revision
            ):
                yield f"record {call.revision} of {call.id.hex()[:8]}"
        if isinstance(sent.message, m.Import):
            change = sent.message.change
            if change.kind == "record" and change.id not in found:
                yield f"record of {change.id.hex()[:8]}"
        if isinstance(sent.message, m.Erase):
            yield from (f"erasure of {one.hex()[:8]}" for one in sent.message.ids if one in found)
        if isinstance(sent.message, m.Move):
            yield from (
                f"move of {one.hex()[:8]}"
                for one in sent.message.ids
                if one not in found or found[one][0].pool != sent.message.pool
            )


def lost_for_good(operator: Client, load: Load, acknowledged: set[int]) -> list[str]:
    """What stays lost: a call that follows another into a higher pool waits there for a moment."""
    end = time.monotonic() + 5
    while faults := list(lost(load, acknowledged, stored(operator, load))):
        if time.monotonic() > end:
            break
        time.sleep(0.05)
    return faults


def not_rotated(operator: Client, load: Load, acknowledged: set[int]) -> Iterator[str]:
    """Keys that were acknowledged as new, and are not there."""
    done = [load.sent[number].message for number in acknowledged]
    whats = [one.what for one in done if isinstance(one, m.Rotate)]
    if whats:
        keys, _ = operator.ask(m.Keys())
        if keys.pools[0].epoch <= whats.count("root"):
            yield f"root of epoch {keys.pools[0].epoch}"
        if keys.pools[0].ingest_keys <= whats.count("ingest"):
            yield f"{keys.pools[0].ingest_keys} ingest keys"


def unnoted(operator: Client, load: Load, acknowledged: set[int]) -> Iterator[str]:
    """Damage that a check told of, and recipients that were added, which nobody knows of."""
    done = [load.sent[number].message for number in acknowledged]
    if any(isinstance(one, m.Verify) for one in done):
        status, _ = operator.ask(m.Status())
        if not status.fields["scrub"]["damaged"]:
            yield "what a check found damaged"
    for one in done:
        if isinstance(one, m.Receipt) and not operator.ask(m.Get(one.id))[0].receipts:
            yield f"receipt of {one.id.hex()[:8]}"
    added = [one for one in done if isinstance(one, m.Recipients)]
    keys = {pool.pool: pool for pool in operator.ask(m.Keys())[0].pools} if added else {}
    for one in added:
        if len(keys[one.pool].recipients) < 2:
            yield f"recipient of {one.pool}"


def untold(operator: Client, store: Path, template: Path) -> Iterator[str]:
    """A new root that a replica which had all there was before would not hear of."""
    before = template / "keys" / "root"
    if not before.exists() or before.read_bytes() == (store / "keys" / "root").read_bytes():
        return
    reply, _ = operator.ask(m.Feed(_position(template)))
    if not any(one.name == "root" for one in reply.changes):
        yield "the feed does not tell of the new root"


@functools.cache
def _position(store: Path) -> int:
    """The last position that a store's feed gave out."""
    tables = Index(store / "index")
    tables.close()
    return tables.position


def left_over(store: Path, load: Load) -> Iterator[str]:
    """Files that a crash left: keys that should be destroyed, objects of erased calls."""
    names = sorted(path.name for path in (store / "keys").iterdir() if path.is_file())
    pages = [name.split(".")[0] for name in names if name != "root"]
    if len(set(pages)) != len(pages) or any(not name.startswith("page-") for name in pages):
        yield f"key files are left: {names}"
    yield from (f"{path.name} is left" for path in store.glob("intake/*/*.*"))
    for one in load.erased:
        yield from (f"{path.name} is left" for path in store.rglob(f"{one.hex()}*"))
    for one, pool in load.moved.items():
        there = {path.parents[2].name for path in store.rglob(f"{one.hex()}*")}
        if there != {pool}:
            yield f"{one.hex()[:8]} lies in {sorted(there)}"


def not_clean(operator: Client, load: Load, found: Found) -> Iterator[str]:
    """Faults that a check finds, chunks that are there twice, recordings that should be sealed."""
    final = {
        call.id for sent in (*load.kept, *load.sent) if isinstance(sent.message, m.Batch)
        for call in sent.message.calls if call.final
    }  # fmt: skip
    for recording, (_, chunks) in found.items():
        name = recording.hex()[:8]
        if len(set(chunks)) != len(chunks):
            yield f"{name}: chunks twice"
        report, _ = operator.ask(m.Verify(recording))
        if chunks and not isinstance(report, m.VerifyReply):
            yield f"{name}: {report}"
        elif chunks:
            yield from (f"{name}: {fault}" for fault in report.faults)
            if recording in final and not report.sealed:
                yield f"{name}: not sealed"


def _ids(sent: Sent) -> set[bytes]:
    found = {chunk[0] for chunk in sent.chunks}
    if isinstance(sent.message, m.Batch):
        found |= {call.id for call in sent.message.calls}
    elif isinstance(sent.message, m.Erase):
        found |= set(sent.message.ids)
    elif isinstance(sent.message, m.Import) and sent.message.change.kind != "keys":
        found.add(sent.message.change.id)
    return found
