"""`spanvault erase`, `move`, `erasures`, `certificate`: calls that nobody, or fewer, hear again.

What is destroyed, in which order, and what a certificate proves: storaged/FORMAT.md §12.
"""

import sys
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from spanvault import certificate as certificates
from spanvault.callline import iso_utc
from spanvault.client import Client, RequestFailed
from spanvault.commands.access import (
    CONFIG,
    ConfigOption,
    JsonOption,
    StoreOption,
    UnlockOption,
    find_call,
    reach,
)
from spanvault.commands.output import (
    FAILED,
    USAGE,
    CommandFailed,
    document,
    fields_table,
    people,
    say,
    visible,
)
from spanvault.commands.times import local_time
from spanvault.messages import Erasure

_TAKEN_S: Final = 10.0
_ROWS_S: Final = 10.0  # for search rows to go before the command ends all the same
certificate = typer.Typer(no_args_is_help=True, help="Proofs that calls were erased.")
_FOLLOWS: Final = {  # in a certificate
    "search_rows": "Search rows of its day are still to go",
    "ingest_keys": "Copies of a spool, if there are any, open until their ingest keys have gone",
}
_ID_HELP = "Ids, or their beginnings; - reads them from stdin, one a line."


def erase(
    ids: Annotated[list[str], typer.Argument(metavar="ID…", help=_ID_HELP)],
    reason: Annotated[str, typer.Option(help="Why. It stays for ever, so it should name nobody.")],
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Also calls whose end has not come.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    store: StoreOption = None,
    unlock_key: UnlockOption = None,
    config: ConfigOption = CONFIG,
    json: JsonOption = False,
) -> None:
    """Destroy the keys of calls and their recordings, for good: all that are named, or none."""
    given = _given(ids)
    if not given:
        raise CommandFailed("no ids were given", code=USAGE)
    if not yes:
        _confirm(len(given))
    with reach(store, unlock_key, config) as client:
        wanted = [_id(client, one) for one in given]
        reply = client.erase(wanted, reason, unfinished=unfinished)
        gone = not reply.days or _until_gone(client, wanted[0], time.monotonic() + _ROWS_S)
    if json:
        document(
            {
                "erasure": reply.erasure.hex(), "erased": reply.erased,
                "already": [one.hex() for one in reply.already], "pending": reply.pending,
                "search_rows_gone": gone, "ingest_keys_to_go": reply.ingest_keys,
            }
        )  # fmt: skip
        return
    say(f"{reply.erased} calls erased, {len(reply.already)} had been before", "green")
    if not gone:
        say(f"Search rows of {reply.days} days follow by and by: see spanvault erasures.")
    if reply.ingest_keys:
        say("Copies of a capture's spool open until it has a new key: see spanvault keys status.")
    if reply.pending:
        say(f"Pending at {', '.join(reply.pending)}: see spanvault erasures.")


def move(
    ids: Annotated[list[str], typer.Argument(metavar="ID…", help=_ID_HELP)],
    pool: Annotated[str, typer.Argument(metavar="POOL", help="core or sensitive.")],
    reason: Annotated[str, typer.Option(help="Why. It stays for ever, so it should name nobody.")],
    store: StoreOption = None,
    unlock_key: UnlockOption = None,
    config: ConfigOption = CONFIG,
    json: JsonOption = False,
) -> None:
    """Move calls up into a higher pool, and erase the lower copies: all that are named, or none."""
    given = _given(ids)
    if not given:
        raise CommandFailed("no ids were given", code=USAGE)
    with reach(store, unlock_key, config) as client:
        wanted = [find_call(client, one).id for one in given]
        reply = client.move(wanted, pool, reason)
        _until_taken(client, wanted, time.monotonic() + _TAKEN_S)
    if json:
        already = [one.hex() for one in reply.already]
        document({"erasure": reply.erasure.hex(), "moved": reply.moved, "already": already,
                  "pending": reply.pending})  # fmt: skip
        return
    say(f"{reply.moved} calls moved to {pool}, {len(reply.already)} were there", "green")
    if reply.pending:
        say(f"Lower copies pending at {', '.join(reply.pending)}: see spanvault erasures.")


def erasures(
    store: StoreOption = None,
    unlock_key: UnlockOption = None,
    config: ConfigOption = CONFIG,
    json: JsonOption = False,
) -> None:
    """List erasures, newest first, and where they are still to be carried out."""
    table = Table("erasure", "when", "calls", "by", "reason", "state", box=None)
    with reach(store, unlock_key, config) as client:
        for one in client.erasures():
            if json:
                document(_document(one))
            table.add_row(
                one.id.hex()[:16], local_time(one.at_ns), str(len(one.recordings)),
                visible(one.who), visible(one.reason), visible(_state(one)),
            )  # fmt: skip
    if not json:
        people().print(table) if table.row_count else say("Nothing was ever erased.")


@certificate.command("get")
def certificate_get(
    id: Annotated[str, typer.Argument(metavar="ID", help="An erased call: all 32 digits.")],  # noqa: A002
    output: Annotated[
        Path | None, typer.Option("-o", metavar="FILE", help="Where to; else stdout.")
    ] = None,
    store: StoreOption = None,
    unlock_key: UnlockOption = None,
    config: ConfigOption = CONFIG,
) -> None:
    """The certificate of an erased call: JSON, signed by the store."""
    with reach(store, unlock_key, config) as client:
        text = client.certificate(_whole_id(id))
    if output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text, encoding="utf-8")


@certificate.command("verify")
def certificate_verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A certificate.")],
    key: Annotated[
        str | None, typer.Option(help="The store's public key that is expected, in hex.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check a certificate's signatures; needs no store."""
    try:
        facts, signer = certificates.parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandFailed(f"{file}: {error.strerror}", code=USAGE) from None
    except ValueError as error:
        raise CommandFailed(f"{file}: {error}") from None
    if key is not None and signer.hex() != key.strip().lower():
        raise CommandFailed(f"{file}: signed with another key, {signer.hex()}")
    if json:
        document(facts | {"public_key": signer.hex()})
    else:
        people().print(fields_table(_rows(facts, signer)))
        say("The signatures fit." if key else "The signatures fit; compare the public key.")
    if facts.get("pending"):
        say(f"Pending at {', '.join(map(str, facts['pending']))}.", "yellow")
    for what in (_FOLLOWS[name] for name in _FOLLOWS if _is_to_go(facts.get(name))):
        say(f"{what}: get the certificate again later.", "yellow")
    # Of a spool there may be no copy at all, and the wait for a capture that is away is long.
    if facts.get("pending") or _is_to_go(facts.get("search_rows")):
        raise typer.Exit(FAILED)


def _is_to_go(keys: object) -> bool:
    return isinstance(keys, dict) and bool(keys.get("keys")) and not keys.get("gone_at")


def _rows(facts: dict[str, Any], signer: bytes) -> list[tuple[str, str]]:
    shown = ("recording", "sha256", "erased_at", "erased_by", "reason", "root_epoch", "grade")
    copies = [
        (f"copy at {copy.get('target')}", f"erased, {copy['grade']}" if "grade" in copy else "–")
        for copy in facts.get("copies", [])
    ]
    rows = [(name.replace("_", " "), str(facts.get(name))) for name in shown]
    if facts.get("moved_to"):
        rows.append(("lives on in", str(facts["moved_to"])))
    return [*rows, *copies, ("store", str(facts.get("store"))), ("public key", signer.hex())]


def _given(ids: list[str]) -> list[str]:
    """What was named, with the lines of stdin in place of a dash."""
    found: list[str] = []
    for one in ids:
        found += [one] if one != "-" else sys.stdin.read().split()
    return found


def _id(client: Client, text: str) -> bytes:
    """A whole id as it is, since it may be erased already; a beginning is looked up."""
    digits = text.strip().lower()
    if len(digits) == 32 and not set(digits) - set("0123456789abcdef"):
        return bytes.fromhex(digits)
    return find_call(client, text).id


def _whole_id(text: str) -> bytes:
    try:
        found = bytes.fromhex(text.strip())
    except ValueError:
        found = b""
    if len(found) != 16:
        raise CommandFailed(f"'{text}' is no erased call's id", "Give all 32 hex digits.", USAGE)
    return found


def _confirm(count: int) -> None:
    """Ask at a terminal; a script must say --yes."""
    if not sys.stdin.isatty():
        raise CommandFailed("nothing was erased", "Give --yes where nobody can be asked.", USAGE)
    say(f"{count} calls will be erased here and at every target. Nothing brings them back.", "bold")
    if not typer.confirm("Erase them?", err=True):
        raise CommandFailed("nothing was erased")


def _until_taken(client: Client, ids: list[bytes], until_s: float) -> None:
    """Until the pool has made recordings of them, or for a while: nothing is lost before."""
    for one in ids:
        while time.monotonic() < until_s:
            try:
                client.get(one)
                break
            except RequestFailed as error:
                if error.code != "unavailable":
                    raise
                time.sleep(0.1)


def _until_gone(client: Client, erased: bytes, until_s: float) -> bool:
    """Until no key opens search rows of what was erased, or for a while: it goes on by itself."""
    while not next(client.erasures(erased)).rows_gone_ns:
        if time.monotonic() >= until_s:
            return False
        time.sleep(0.25)
    return True


def _state(erasure: Erasure) -> str:
    moved = f"moved to {erasure.moved_to}; " if erasure.moved_to else ""
    return moved + _reach(erasure)


def _reach(erasure: Erasure) -> str:
    if not erasure.done:
        return "begun, not completed"
    if erasure.day_keys and not erasure.rows_gone_ns:
        return "search rows still to go"
    if erasure.ingest_keys and not erasure.spools_gone_ns:
        return "copies of spools still to be closed"
    return f"pending at {', '.join(erasure.pending)}" if erasure.pending else "everywhere"


def _document(erasure: Erasure) -> dict[str, Any]:
    return {
        "erasure": erasure.id.hex(),
        "at": iso_utc(erasure.at_ns),
        "by": erasure.who,
        "reason": erasure.reason,
        "ids": [one.id.hex() for one in erasure.recordings],
        "moved_to": erasure.moved_to or None,
        "done": erasure.done,
        "search_rows_gone_at": iso_utc(erasure.rows_gone_ns or None),
        "spools_gone_at": iso_utc(erasure.spools_gone_ns or None),
        "confirmed": [receipt.target for receipt in erasure.receipts],
        "pending": erasure.pending,
    }
