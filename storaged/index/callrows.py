"""The rows of one call: its record, what a search finds it by, and all of them removed.

Its search rows lead to it until their day is under another key (storaged.erasing.converting), but
not to anything: a search needs the row in `time` as well. Tables: storaged.index. FORMAT.md §7.
"""

from collections.abc import Iterator
from typing import Any

from spanvault.messages import Call
from storaged.format import record
from storaged.index import damage
from storaged.index.labels import Labels
from storaged.index.rows import MULTIPLE, OBJECT_CHANGED, RECORD_CHANGED, TIME, time_key
from storaged.index.writing import Writing


def put_record(
    writing: Writing, labels: Labels, call: Call, sealed: bytes, old: Call | None
) -> None:
    """Set a call's record and its search rows, in place of the old revision's."""
    if old is None or _searched_by(old) != _searched_by(call):
        labels.lead(writing, call, old)
    if old is not None and old.started_ns != call.started_ns:
        writing.delete(b"time", time_key(old.started_ns, old.id))
    if old is not None and old.expires_ns is not None:
        writing.delete(b"expires", time_key(old.expires_ns, old.id))
    for recording_id in (record.recordings_of(old) if old else set()) - record.recordings_of(call):
        writing.delete(b"shared", recording_id, call.id)
    for row in rows_of(call):
        writing.put(*row)
    writing.put(b"record", call.id, sealed)
    writing.delete(damage.RECORDS.table, call.id.hex().encode())
    writing.announce(RECORD_CHANGED, call.id)


def rows_of(call: Call) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Table, key and value of what the record says besides its search rows."""
    outcome = record.OUTCOMES.index(call.outcome)
    value = TIME.pack(record.duration_ms(call), outcome, int(call.final), 0)
    yield b"time", time_key(call.started_ns, call.id), value
    if call.expires_ns is not None:
        yield b"expires", time_key(call.expires_ns, call.id), b""
    for recording_id in record.recordings_of(call):
        yield b"shared", recording_id, call.id


def remove_call(writing: Writing, call_id: bytes, call: Call | None) -> None:
    """Remove every row that tells of a call, but for its search rows.

    call: its record; None if that does not open.
    """
    if call is not None:
        writing.delete(b"time", time_key(call.started_ns, call.id))
        if call.expires_ns is not None:
            writing.delete(b"expires", time_key(call.expires_ns, call_id))
        for recording_id in record.recordings_of(call):
            writing.delete(b"shared", recording_id, call_id)
    else:
        _delete_by_scan(writing, call_id)
    for table in (b"record", b"state", b"open", b"damaged", b"follow", b"former", b"strayed"):
        writing.delete(table, call_id)
    writing.delete(damage.RECORDS.table, call_id.hex().encode())
    for key in writing.receipt_keys(call_id):
        writing.delete(b"receipt", key)
    for kind in (OBJECT_CHANGED, RECORD_CHANGED):
        writing.withdraw(kind, call_id)


def _searched_by(call: Call) -> tuple[Any, ...]:
    """What a call's search rows are made of, and what they lead to."""
    return call.started_ns, call.caller, call.callee, call.call_ids


def _delete_by_scan(writing: Writing, call_id: bytes) -> None:
    """Remove what leads to a call whose record cannot be opened: all rows are looked at."""
    for table, part in ((b"time", 0), (b"expires", 0), (b"shared", 1)):
        rows = [
            row
            for item in writing.cursor(table)
            if (row := tuple(map(bytes, item)))[part].endswith(call_id)
        ]
        for key, value in rows:
            writing.delete(table, key, value if table in MULTIPLE else b"")
