"""What a unit said last of what is wrong: read from the journal, for a daemon that does not speak.

Whoever may not read the journal (journalctl(1): root, or group systemd-journal) is told nothing.
Source: sd_journal_open(3), systemd.journal-fields(7). Who writes there: spanvault.daemon.journal.
"""

from typing import Any, Final

import systemd.journal as journal

MOST: Final = 400  # characters


def last_words(unit: str) -> str | None:
    """The newest error of this boot, what is wrong and what to do, as plain journalctl shows it.

    unit: without `.service`. None: there is none, or it may not be read.
    """
    try:
        with journal.Reader() as reader:
            reader.this_boot()
            reader.log_level(journal.LOG_ERR)
            reader.add_match(_SYSTEMD_UNIT=f"{unit}.service")
            reader.seek_tail()
            return one_line(reader.get_previous())
    except (OSError, ValueError):  # no journal, or a damaged one
        return None


def one_line(entry: dict[str, Any]) -> str | None:
    """An entry as systemd-python gives it, with when it was written; of none nothing."""
    if not entry:
        return None
    text = " ".join(str(entry.get("MESSAGE", "")).split())[:MOST]
    return f"{entry['__REALTIME_TIMESTAMP']:%Y-%m-%d %H:%M:%S} {text}"
