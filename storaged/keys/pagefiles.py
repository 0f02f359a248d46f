"""A pool's key pages on disk: opened ones kept at hand, new ones made, DEKs taken out of one.

Which generation of a page counts, and under which key, the root says: both are handed in. FORMAT.md
§5.2, §5.3. Bytes: storaged.format.keypage. Order of writing, slots: storaged.keys.keyring.
"""

import logging
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from storaged import files
from storaged.faults import Fault
from storaged.format import keypage
from storaged.format.keypage import DEK_BYTES, SLOTS

log = logging.getLogger(__name__)
_ASIDE: Final = ".damaged"  # behind the name of a page that a copy has replaced
_KEPT: Final = 64  # opened pages in memory, 128 KiB each
_FILE: Final = re.compile(r"page-([0-9]{6,})\.([0-9]+)")


def page_name(page: int, generation: int) -> str:
    """The file name of a key page."""
    return f"page-{page:06d}.{generation}"


def of_name(name: str) -> tuple[int, int] | None:
    """Page and generation of a file's name; None if it is no key page's."""
    found = _FILE.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


class Rekeying(NamedTuple):
    """What becomes of a page: these slots go, the rest is sealed anew as the next generation."""

    generation: int  # now
    key: bytes
    slots: list[int]
    next_key: bytes


class PageFiles:
    """The pages of one pool's folder. One thread at a time: keyring.py sees to it."""

    def __init__(self, folder: Path, store_id: bytes, tier: int) -> None:
        self._folder, self._store_id, self._tier = folder, store_id, tier
        self._opened: OrderedDict[int, bytes] = OrderedDict()

    def deks(self, page: int, generation: int, key: bytes) -> bytes:
        """All DEKs of a page. Raises Fault: missing or damaged."""
        if page in self._opened:
            self._opened.move_to_end(page)
            return self._opened[page]
        path = self._folder / page_name(page, generation)
        try:
            deks = keypage.open_page(path.read_bytes(), page, generation, self._store_id, key)
        except (OSError, ValueError) as error:
            raise Fault(
                "locked", f"{path}: {error}", "Restore the keys folder from a replica."
            ) from None
        self._opened[page] = deks
        if len(self._opened) > _KEPT:
            self._opened.popitem(last=False)
        return deks

    def add(self, page: int) -> bytes:
        """Make a page of new DEKs, durable. Returns its key. Raises OSError."""
        key, deks = os.urandom(32), os.urandom(SLOTS * DEK_BYTES)
        files.replace(self._folder / page_name(page, 0), self._sealed(page, 0, deks, key))
        return key

    def rekey(self, pages: Mapping[int, Rekeying]) -> None:
        """Write each page's next generation, durable; it does not count before the root says so.

        Raises Fault, OSError.
        """
        files.replace_all(self._folder, self._next(pages))

    def put_back(self, page: int, generation: int, key: bytes, data: bytes) -> None:
        """Put a copy of a page in place of a damaged one, which is overwritten.

        Raises ValueError unless it is this page, of this generation, under this key; OSError.
        """
        keypage.open_page(data, page, generation, self._store_id, key)
        path = self._folder / page_name(page, generation)
        aside = path.with_name(path.name + _ASIDE)
        self._destroy_aside(aside)
        if path.exists():
            os.link(path, aside)  # else its blocks would be free before they are overwritten
        files.replace(path, data)
        self.forget([page])
        self._destroy_aside(aside)

    def forget(self, pages: Iterable[int]) -> None:
        """Let opened pages go: another generation counts now."""
        for page in pages:
            self._opened.pop(page, None)

    def destroy_others(self, generations: Mapping[int, int]) -> None:
        """Overwrite and remove what a crash left: files on their way, generations that are past."""
        names = [path.name for path in self._folder.iterdir()]
        old = [name for name in names if name.endswith(".new")]
        for name in names:
            if name.endswith(_ASIDE):
                self._destroy_aside(self._folder / name)
            found = of_name(name)
            # A page that the root does not know at all may be an import's, whose root comes later.
            if found and generations.get(found[0], found[1]) != found[1]:
                old.append(name)
        files.destroy(self._folder, old)

    def _destroy_aside(self, aside: Path) -> None:
        """Destroy a damaged page that was replaced. Its blocks may be bad: no need to stop at."""
        # Linked, and the copy not in place: it is the page, and must not be overwritten.
        if files.same(aside, aside.with_suffix("")):
            aside.unlink()
        try:
            files.destroy(self._folder, [aside.name])
        except OSError as error:
            log.error(
                "A damaged key page that was replaced cannot be overwritten",
                extra={"KEY_FILE": aside.name, "FAULT": str(error)},
            )

    def _next(self, pages: Mapping[int, Rekeying]) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of each page's next generation; one after the other: there may be many."""
        for page, (generation, key, slots, next_key) in pages.items():
            deks = bytearray(self.deks(page, generation, key))
            for slot in slots:
                deks[slot * DEK_BYTES : (slot + 1) * DEK_BYTES] = bytes(DEK_BYTES)
            sealed = self._sealed(page, generation + 1, bytes(deks), next_key)
            yield page_name(page, generation + 1), sealed

    def _sealed(self, page: int, generation: int, deks: bytes, key: bytes) -> bytes:
        return keypage.seal_page(
            page, generation, self._tier, self._store_id, deks, key, os.urandom(12)
        )
