"""Search rows: chains without gaps, whatever is added or changed."""

from spanvault.messages import Search
from storaged.index import labels
from storaged.index.labels import Labels
from storaged.index.search import search
from tests.support.vault import SECOND, START, Parts, call_id, make_call

DAY = labels.day_of(START)
NUMBERS = ["+491", "+492", "+493"]


def found(parts: Parts, number: str) -> list[int]:
    with parts.index.reading() as view:
        calls, _ = search(
            view, Search(number=number), [Labels(0, parts.keyring)], parts.writer._stored_call
        )
    return sorted((call.started_ns - START) // SECOND for call in calls)


def rows(parts: Parts) -> dict[bytes, bytes]:
    with parts.index.reading() as view:
        return {bytes(key): bytes(value) for key, value in view.cursor(b"label")}


def test_rows_of_one_number_share_nothing(parts):
    parts.commit(calls=[make_call(number) for number in range(20)])
    keys = list(rows(parts))
    assert len(keys) == 60  # caller, callee and Call-ID of each
    parts_of_them = [
        {key[at : at + 6] for at in range(labels.SLOT_BYTES, len(key) - 5)} for key in keys
    ]
    assert len(set().union(*parts_of_them)) == sum(map(len, parts_of_them)) == 60 * 11
    assert len({key[: labels.SLOT_BYTES] for key in keys}) == 1


def test_a_day_takes_one_key_and_another_day_another(parts):
    parts.commit(calls=[make_call(number) for number in range(20)])
    before = parts.keyring._next
    parts.commit(calls=[make_call(30)])
    assert parts.keyring._next == before + 1  # the call's own alone
    parts.commit(calls=[make_call(31, started_ns=START + labels.DAY_NS)])
    assert parts.keyring._next == before + 3
    with parts.index.reading() as view:
        assert [one.day for one in labels.days(view)] == [DAY + 1, DAY]


def test_changed_record_is_found_by_what_it_says_now_alone(parts):
    parts.commit(calls=[make_call(number, caller="+491") for number in range(3)])
    changed = make_call(1, caller="+492", revision=1, started_ns=START + labels.DAY_NS)
    parts.commit(calls=[changed])
    assert found(parts, "+491") == [0, 2]
    assert found(parts, "+492") == [labels.DAY_NS // SECOND]
    with parts.index.reading() as view:
        assert labels.days_of(view, call_id(1), changed.started_ns) == {DAY, DAY + 1}


def test_search_that_is_asked_again_finds_what_came(parts):
    """What a day's chain held is remembered between the pages of a search."""
    pool = Labels(0, parts.keyring)

    def ids(*key_ids: int) -> list[bytes]:
        with parts.index.reading() as view:
            keys = key_ids or labels.key_ids(view, DAY, 0)
            return [key[8:] for key in pool.find(view, pool.token(b"n", "+491"), keys)]

    assert ids() == []
    for number in range(3):
        parts.commit(calls=[make_call(number, caller="+491")])
        assert ids() == ids() == [call_id(each) for each in range(number + 1)]


def test_day_whose_key_is_damaged_records_on(parts):
    parts.commit(calls=[make_call(1, caller="+491")])
    ids = [parts.writer._recordings.take_key(b"") for _ in range(5000)]
    for path in (parts.folder / "keys").glob("page-000000.*"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    again = parts.again()
    again.commit(calls=[make_call(2, caller="+491")])
    assert ids
    assert found(again, "+491") == [2]


def test_no_row_was_ever_two_calls(parts):
    """Else pages of before would tell that an erased call shares a number with one that is left."""
    seen: dict[bytes, set[bytes]] = {}
    for revision in range(4):
        parts.commit(calls=[
            make_call(number, revision=revision, caller=NUMBERS[(number + revision) % 3])
            for number in range(5)
        ])  # fmt: skip
        for key, value in rows(parts).items():
            seen.setdefault(key, set()).add(value)
    assert all(len(values) == 1 for values in seen.values())
