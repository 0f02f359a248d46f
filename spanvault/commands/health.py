"""`spanvault status`: how the store and the daemons are.

Each daemon says in one line what is wrong and what to do; one that says nothing is told of here,
with what it last said in the journal (lastwords.py).
"""

from collections.abc import Iterator
from typing import Any, Final

from rich import filesize
from rich.table import Table
from rich.text import Text

from spanvault.client import RequestFailed
from spanvault.commands.access import (
    CONFIG,
    ConfigOption,
    JsonOption,
    StoreOption,
    UnlockOption,
    reach,
)
from spanvault.commands.lastwords import last_words
from spanvault.commands.output import document, fields_table, people, say
from spanvault.messages import StatusReply

SILENT_S: Final = 15.0  # daemons speak every two
LAST: Final = "last error in the journal"
STOPPED: Final = "stopped"  # what a capture says last
NO_CAPTURE: Final = (
    "No capture has reported since storaged started: systemctl start spanvault-capture@INTERFACE"
)


def status(
    store: StoreOption = None,
    unlock_key: UnlockOption = None,
    config: ConfigOption = CONFIG,
    json: JsonOption = False,
) -> None:
    """How the store and the daemons are."""
    try:
        with reach(store, unlock_key, config) as client:
            reply = client.status()
    except RequestFailed as error:
        words = last_words("spanvault-storaged") if store is None else None
        if error.code != "unavailable" or words is None:
            raise
        raise RequestFailed(error.code, error.error, f"{error.hint}\n{LAST}: {words}") from None
    if json:
        document(_status_document(reply))
        return
    console = people()
    rows = [("store", reply.store_id), ("state", reply.state)]
    console.print(fields_table([*rows, *_pairs(reply.fields)]))
    for daemon in reply.daemons:
        gone = store is None and is_silent(daemon)
        console.print(daemon_table(daemon, last_words(_unit(daemon)) if gone else None))
    if store is None and not any(_name(daemon).startswith("capture") for daemon in reply.daemons):
        say(NO_CAPTURE, "yellow")


def _status_document(reply: StatusReply) -> dict[str, Any]:
    return {
        "store_id": reply.store_id,
        "state": reply.state,
        "fields": reply.fields,
        "daemons": [{**daemon, "silent": is_silent(daemon)} for daemon in reply.daemons],
    }


def _pairs(fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A row for each field; one that holds others is told in a row of its own, or several."""
    for name, value in fields.items():
        if not isinstance(value, dict):
            yield name.replace("_", " "), _shown(name, value)
        elif any(isinstance(inner, dict) for inner in value.values()):
            yield from _pairs({f"{name} {key}": inner for key, inner in value.items()})
        else:
            yield name.replace("_", " "), _counts(value) or "–"


def _counts(fields: dict[str, Any]) -> str:
    """What there is to say: a count of nothing, and what is not known, are left out."""
    told = {key: value for key, value in fields.items() if value not in (0, None, "", [])}
    return ", ".join(f"{key.replace('_', ' ')} {_shown(key, value)}" for key, value in told.items())


def _shown(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, int) and name.endswith("bytes"):
        return filesize.decimal(value)
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else str(value)


def daemon_table(health: dict[str, Any], words: str | None = None) -> Table:
    """What a daemon said last (its Health, and age_s), or that it says nothing any more.

    words: of one that says nothing, its last error in the journal.
    """
    silent = is_silent(health)
    title = Text(f"\n{_name(health)}", style="bold red" if silent else "bold")
    fields = {key: value for key, value in health.items() if key not in ("daemon", "fields")}
    if silent:
        fields["state"] = _of_silence(health)
    if words is not None:
        fields[LAST] = words
    counts = health.get("fields", {})
    inner = {key: value for key, value in counts.items() if isinstance(value, dict)}
    plain = {key: value for key, value in counts.items() if key not in inner}
    table = fields_table(_pairs({**fields, "counts": plain, **inner}))
    table.title, table.title_justify = title, "left"
    return table


def _name(health: dict[str, Any]) -> str:
    return str(health.get("daemon", "?"))


def _unit(health: dict[str, Any]) -> str:
    interface = health.get("fields", {}).get("interface")
    return f"spanvault-capture@{interface}" if interface else f"spanvault-{_name(health)}"


def is_silent(health: dict[str, Any]) -> bool:
    """Whether what it said last is no longer how it is."""
    return health.get("age_s", 0) > SILENT_S or health.get("state") == STOPPED


def _of_silence(health: dict[str, Any]) -> str:
    """That it says nothing, and how to go after it."""
    unit = _unit(health)
    if health.get("state") == STOPPED:
        return f"STOPPED {health['age_s']:.0f} s ago: systemctl start {unit}"
    return (
        f"SILENT for {health['age_s']:.0f} s, is it running? systemctl status {unit}; "
        f"the last it said: {health.get('state')}"
    )
