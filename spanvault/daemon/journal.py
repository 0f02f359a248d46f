"""Logging as constant messages with fields, to journald or to a terminal.

    log = journal.set_up("capture")
    log.warning("RTP gap", extra={"SSRC": f"{ssrc:#010x}", "LOST_PACKETS": 3})

Under systemd the upper-case fields reach journald (`journalctl LOST_PACKETS=3`); what is wrong and
what to do (FAULT, HINT) is shown behind the message, too, for who reads plain `journalctl`, and
EVENT is the message alone. Elsewhere one line goes to stderr. Never log audio, keys, phone
numbers, dialled digits or Call-IDs.
Source: systemd.journal-fields(7); JOURNAL_STREAM in systemd.exec(5).
The socket: spanvault.daemon.journald.
"""

import logging
import os
import sys
import traceback
from typing import Any, Final

from spanvault.daemon.journald import Journald

PRIORITY: Final = {
    logging.CRITICAL: 2,
    logging.ERROR: 3,
    logging.WARNING: 4,
    logging.INFO: 6,
    logging.DEBUG: 7,
}  # syslog(3)
READ: Final = ("FAULT", "HINT")  # fields without which a message helps nobody


def set_up(daemon: str, level: int = logging.INFO) -> logging.Logger:
    """The logger of a daemon; modules below it (`logging.getLogger(__name__)`) share it.

    Libraries are heard from WARNING on.
    """
    handler = JournalHandler(f"spanvault-{daemon}") if under_systemd() else StderrHandler()
    root = logging.getLogger()
    for old in list(root.handlers):
        if isinstance(old, JournalHandler | StderrHandler):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in (daemon, "spanvault"):
        logging.getLogger(name).setLevel(level)
    return logging.getLogger(daemon)


def under_systemd() -> bool:
    """Whether stderr is the stream that systemd connected to journald, and no redirection of it."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What the caller gave as `extra`: the upper-case keys, journald's own form of a field."""
    return {key: value for key, value in vars(record).items() if key.isupper()}


class JournalHandler(logging.Handler):
    """Writes records with their fields to journald."""

    # systemd-python's own handler sends every attribute of the record, arguments included, and
    # stops the whole process while journald hangs; here only what was meant for the journal may get
    # there, and what it does not take is counted.
    def __init__(self, identifier: str, journald: Journald | None = None) -> None:
        super().__init__()
        self._identifier, self._journald = identifier, journald or Journald()

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record. A journal that cannot be reached never stops a daemon."""
        try:
            self._journald.send(self._line(record))
        except Exception:  # logging's own rule: what is said must not stop who says it
            self.handleError(record)

    def _line(self, record: logging.LogRecord) -> dict[str, str]:
        fields = {key: str(value) for key, value in fields_of(record).items()}
        if record.exc_info:
            fields["TRACEBACK"] = "".join(traceback.format_exception(*record.exc_info))
        message = record.getMessage()
        told = [" ".join(fields[name].split()) for name in READ if fields.get(name)]
        if told:
            fields["EVENT"] = message
        own = {
            "MESSAGE": ": ".join([message, ". ".join(told)] if told else [message]),
            "PRIORITY": str(PRIORITY.get(record.levelno, 6)),
            "SYSLOG_IDENTIFIER": self._identifier,
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName or "",
        }
        return {**fields, **own}


class StderrHandler(logging.StreamHandler[Any]):
    """Writes `level: message KEY=value` lines to stderr."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the values hold; a traceback follows on its own lines."""
        fields = "".join(f" {key}={_shown(value)}" for key, value in fields_of(record).items())
        text = f"{record.levelname.lower()}: {record.getMessage()}{fields}"
        if record.exc_info:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        return text


def _shown(value: object) -> str:
    """A value as one word, or quoted: a field must not be able to forge a line."""
    text = str(value)
    plain = text.isprintable() and text and not any(mark in text for mark in " \"'=")
    return text if plain else repr(text)
