"""Which tables of the index have rows that cannot be: told once each, and passed over from then on.

LMDB has no checksums. A row of another length, or that is no MessagePack, is of nobody who can be
named: the others are served without it, and the remedy is an index made anew. Who meets such a row
raises storaged.index.rows.DamagedRow; who can go on without it hands that to View.passing().
Damaged recordings, key files, ledgers and call records: storaged.index.damage.
"""

import logging
import threading
from types import TracebackType

from storaged.index.rows import DamagedRow

log = logging.getLogger(__name__)


class Hurt:
    """The tables, as far as this process met their rows. Any thread."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def tables(self) -> list[str]:
        """Their names."""
        return sorted(self._told)

    def tell(self, fault: DamagedRow) -> None:
        """Say of a table, once, that a row of it cannot be read."""
        with self._lock:
            if fault.table in self._told:
                return
            self._told[fault.table] = fault.error
        log.error(
            "A table of the index is damaged, its other rows are served",
            extra={"TABLE": fault.table, "FAULT": fault.error, "REMEDY": fault.hint},
        )


class Passing:
    """A `with` that ends early at a row that cannot be, and goes on behind it."""

    __slots__ = ("_hurt",)

    def __init__(self, hurt: Hurt) -> None:
        self._hurt = hurt

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:  # fmt: skip
        if isinstance(error, DamagedRow):
            self._hurt.tell(error)
            return True
        return False
