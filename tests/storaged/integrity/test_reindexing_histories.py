"""Whatever happened in a store, an index that is made anew gives the answers of the old one."""

import contextlib
import shutil
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from spanvault import messages as m
from spanvault.daemon.config import StoragedConfig
from spanvault.media.chunk import EVENTS
from storaged.erasing.converting import Converter
from storaged.erasing.eraser import Eraser
from storaged.faults import Fault
from storaged.format import record
from storaged.format.walk import finish
from storaged.index import erasures
from storaged.index.binding import Binding
from storaged.index.labels import Labels
from storaged.index.search import search
from storaged.integrity.reindexing import reindex
from storaged.pools.layout import Store
from storaged.recordings.gathering import Group
from tests.support.vault import START, Parts, call_id, make_call, make_media

CALLS = range(1, 5)
NUMBERS = [*(f"+49{shift}" for shift in range(4)), make_call(1).callee, make_call(1).caller]
numbers = st.sampled_from(CALLS)
STEPS = st.one_of(
    st.tuples(st.just("record"), numbers, st.integers(0, 3), st.booleans(), st.sampled_from("ab")),
    st.tuples(st.just("media"), numbers, st.integers(0, 5), st.sampled_from([0, 1, EVENTS])),
    st.tuples(st.just("shares"), numbers, numbers),
    st.tuples(st.just("erase"), st.lists(numbers, min_size=1, max_size=2, unique=True)),
    st.tuples(st.just("convert"), st.integers(1, 12)),
    st.just(("restart",)),
)


class History:
    """A store, and what is done to it."""

    def __init__(self, folder: Path) -> None:
        self.parts, self.revision = Parts(folder), 0
        Store(folder).write_format(self.parts.keyring.store_id)
        Store(folder).refused.mkdir()
        self.bind()

    def bind(self) -> None:
        self.binding = Binding(self.parts.index, 14, time.time_ns)

    def do(self, step: tuple[Any, ...]) -> None:
        match step:
            case "record", number, shift, final, capture:
                self.revision += 1
                changed = {"caller": f"+49{shift}", "started_ns": START + shift, "final": final}
                self.commit([make_call(number, revision=self.revision, **changed)], (), capture)
            case "media", number, second, stream:
                self.commit([], [(call_id(number), stream, second)])
            case "shares", number, other:
                self.revision += 1
                held = m.Stream(0, "caller", "audio", 1, "", "", {}, stored_in=call_id(other))
                self.commit([make_call(number, revision=self.revision, streams=[held])])
            case "erase", ids:
                self.erase([call_id(number) for number in ids])
            case "convert", steps:
                self.convert(steps)
            case ("restart",):
                self.parts = self.parts.again()
                self.bind()

    def commit(self, calls: list[m.Call], chunks: Any = (), capture: str = "a") -> None:
        group = Group()
        batch = m.Batch("test", 1, calls)
        group.add(b"", *self.binding.bind(capture, batch, make_media(chunks)))
        self.parts.writer.commit(group)

    def erase(self, ids: list[bytes]) -> None:
        parts = self.parts
        store = Store(parts.folder)
        eraser = Eraser(store, parts.index, parts.vaults, parts.writer.forget, time.time_ns)
        # Refused where none of them is there, or a call outside has media in common with one.
        with contextlib.suppress(Fault):
            finish(eraser.erasing("test", m.Erase(ids, "asked for", unfinished=True)))

    def convert(self, steps: int | None = None) -> None:
        """Have search rows of erased calls go; after so many steps somebody gives it up."""
        converter = Converter(self.parts.index, self.parts.vaults, time.time_ns)
        under_way = converter.converting()
        for _ in islice(under_way, steps):
            pass
        under_way.close()
        assert converter.fault is None

    def known(self) -> dict[str, Any]:
        """All that an answer is made of, and the feed's things without their positions."""
        parts = self.parts
        with parts.index.reading() as view:
            ids = [bytes(key) for key in view.cursor(b"state").iternext(values=False)]
            tables = {
                name.decode(): sorted(
                    (bytes(key), bytes(value)) for key, value in view.cursor(name)
                )
                for name in (b"time", b"shared", b"erased", b"unfinished")
            }
            # Rows that were being brought under another key are not there any more.
            tables["due"] = sorted(erasures.due(view).items())  # type: ignore[arg-type]
            states = {one: view.state(one) for one in ids}
            names = {view.capture(name): name for name in ("a", "b")}
            return tables | {
                "found": {text: self.found(view, text) for text in NUMBERS},
                "calls": {one: self.call(view, one) for one in ids},
                "states": {one: row._replace(capture=0) for one, row in states.items() if row},
                "bound": {one: names.get(row.capture) for one, row in states.items()
                          if row and row.revision >= 0},
                "reach": {one: view.committed(one) for one in ids},
                "erasures": sorted(bytes(value) for _, value in view.cursor(b"erasure")),
                "feed": sorted(bytes(key) for key, _ in view.cursor(b"fed") if key[:1] in b"or"),
            }  # fmt: skip

    def found(self, view: Any, number: str) -> list[bytes]:
        """Search rows themselves are numbered anew, and what no record means any more is gone."""
        pools = [Labels(0, self.parts.keyring)]
        calls, _ = search(view, m.Search(number=number), pools, self.call)
        return [call.id for call in calls]

    def call(self, view: Any, one: bytes) -> m.Call:
        sealed = view.get(b"record", one)
        dek = self.parts.keyring.dek(record.parse_head(sealed).key_id)
        return record.open_call(one, sealed, dek)


@given(st.lists(STEPS, min_size=1, max_size=12))
@settings(max_examples=12, deadline=None)
def test_any_history_is_there_again(steps):
    with tempfile.TemporaryDirectory() as place:
        history = History(Path(place) / "store")
        for step in steps:
            history.do(step)
        before = history.known()
        history.parts.close()
        folder = history.parts.folder
        shutil.rmtree(folder / "index")
        asked = StoragedConfig(store=folder, unlock_key=folder / "unlock.key")
        report = reindex(asked, lambda *_: None, time.time_ns)
        assert report.faults == 0
        history.parts.__init__(folder)  # type: ignore[misc]
        after = history.known()
        assert after == before
        history.convert()
        settled = history.known()
        history.parts.close()
        assert (settled["due"], settled["found"]) == ([], before["found"])
