"""A day of calls whose search rows come under another key: what a test asks of it."""

import json
from typing import Any

from spanvault import messages as m
from storaged.faults import Fault
from storaged.index import labels
from tests.storaged.requests.test_desk import Counter
from tests.support.vault import START, call_id, make_call

ONE, TWO = call_id(1), call_id(2)
CALLEE = make_call(1).callee
CALLS = 12
OTHERS = sorted(call_id(number) for number in range(CALLS) if number != 1)


def erase(counter: Counter, *numbers: int) -> m.EraseReply:
    return counter.ask(m.Erase([call_id(number) for number in numbers], "asked for"))


def found(counter: Counter, **wanted: Any) -> list[bytes]:
    return sorted(call.id for call in counter.ask(m.Search(**wanted)).calls)


def day_key(counter: Counter, day: int = labels.day_of(START)) -> int:
    with counter.parts.index.reading() as view:
        return labels.key_ids(view, day, 0)[0]


def day_keys(counter: Counter) -> tuple[int, ...]:
    with counter.parts.index.reading() as view:
        return labels.key_ids(view, labels.day_of(START), 0)


def rows(counter: Counter) -> list[tuple[int, bytes]]:
    """Key id and call of every search row."""
    with counter.parts.index.reading() as view:
        return [(labels.parse_slot(bytes(key))[1], bytes(value)[8:])
                for key, value in view.cursor(b"label")]  # fmt: skip


def facts(counter: Counter, call: bytes) -> dict[str, Any]:
    return json.loads(counter.ask(m.Certify(call)).document)["certificate"]["search_rows"]


def again(counter: Counter) -> Counter:
    """After a crash and a restart."""
    counter.access.close()
    made = Counter(counter.parts.again())
    made.eraser.finish()
    return made


def is_gone(counter: Counter, key_id: int) -> bool:
    try:
        counter.parts.keyring.dek(key_id)
    except Fault as fault:
        return fault.code == "not_found"
    return False


def labelled(counter: Counter) -> dict[bytes, bytes]:
    with counter.parts.index.reading() as view:
        return {bytes(key): bytes(value) for key, value in view.cursor(b"label")}


def keys_of(labels_and_calls: dict[bytes, bytes]) -> set[int]:
    return {labels.parse_slot(key)[1] for key in labels_and_calls}
