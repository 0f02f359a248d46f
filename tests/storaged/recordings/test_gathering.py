"""Batches that become a group: whole or not at all, by recording, in order of arrival."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault import messages as m
from spanvault import wire
from spanvault.media import chunk
from spanvault.media.chunk import NO_MEDIA, Media
from storaged.recordings.gathering import Gathered, Group, Have
from tests.support.vault import SECOND, START, call_id, make_call, make_media

ONE, TWO = call_id(1), call_id(2)


def test_batch_is_taken_whole_or_not_at_all():
    group = Group()
    with pytest.raises(ValueError, match="id has 16 bytes"):
        group.add(b"x", m.Batch("test", 1, [make_call(1, id=b"short")]), make_media([(ONE, 1, 0)]))
    assert not group
    assert not group.batches


def packed(chunks: Gathered, rows: Sequence[int]) -> bytes:
    return b"".join(chunks.parts(rows))


def test_chunks_of_many_batches_lie_by_recording_in_order_of_arrival():
    batches = [
        make_media([(ONE, 1, 0), (TWO, 1, 5), (ONE, 2, 0)]),
        make_media([(TWO, 1, 4), (ONE, 1, 1)], 200),
    ]
    chunks = Gathered(batches)
    assert chunks.rows.keys() == {ONE, TWO}
    for recording in (ONE, TWO):
        came = [
            chunk.pack(piece)
            for media in batches
            for piece in media.chunks()
            if piece.recording_id == recording
        ]
        rows = chunks.rows[recording]
        assert [packed(chunks, [row]) for row in rows] == came
        assert [chunks.sizes[row] for row in rows] == [len(one) for one in came]
    keys = [(chunks.streams[row], chunks.starts_ns[row]) for row in chunks.rows[ONE]]
    assert keys == [(1, START), (2, START), (1, START + SECOND)]


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=12), max_size=5))
def test_gathering_loses_nothing_and_keeps_the_order(batches):
    """Ids that differ in one byte anywhere are other recordings; empty batches do no harm."""
    name = [bytes(n) + b"\1" + bytes(15 - n) for n in range(10)]
    media = [
        make_media([(name[n], s, i) for i, (n, s) in enumerate(batch)], 2 * i + 2)
        for i, batch in enumerate(batches)
    ]
    chunks = Gathered(media)
    came: dict[bytes, bytes] = {}
    for one in media:
        for piece in one.chunks():
            came[piece.recording_id] = came.get(piece.recording_id, b"") + chunk.pack(piece)
    assert {one: packed(chunks, rows) for one, rows in chunks.rows.items()} == came


def test_nothing_gathers_to_nothing():
    assert Gathered([]).rows == Gathered([NO_MEDIA]).rows == {}


def test_runs_fit_into_frames():
    chunks = Gathered([make_media([(ONE, 1, second) for second in range(7)])])
    rows = chunks.rows[ONE]
    size = chunks.sizes[0]
    assert [list(run) for run in chunks.runs(rows, 3 * size)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [list(run) for run in chunks.runs([0, 2, 5], 2 * size)] == [[0, 2], [5]]
    assert [len(run) for run in chunks.runs(rows, 1)] == [1] * 7


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20))))
def test_have_is_a_set(keys):
    have, truth = Have(), set()
    for key in keys:
        assert have.add(*key) == (key not in truth)
        truth.add(key)


@given(st.binary(max_size=200), st.binary(max_size=100), st.binary(max_size=100))
def test_arbitrary_media_raise_only_value_error(table, frames, payload):
    try:
        media: Media = wire.decode_media([table, frames, payload])
        Group().add(b"x", m.Batch("test", 1), media)
    except ValueError:
        pass
