"""`spanvault calls`: which calls there are. One in full: showing.py."""

from datetime import datetime
from typing import Annotated, get_args

import typer

from spanvault.callline import call_line
from spanvault.commands.access import (
    CONFIG,
    ConfigOption,
    JsonOption,
    StoreOption,
    UnlockOption,
    reach,
)
from spanvault.commands.exportable import exportable
from spanvault.commands.output import USAGE, CommandFailed, document, print_calls, say
from spanvault.commands.times import parse_moment, parse_seconds
from spanvault.messages import Outcome, Search


def calls(
    since: Annotated[
        str | None, typer.Option(help="Started then or later: 2026-11-22, -1h …")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Started before then.")] = None,
    number: Annotated[str | None, typer.Option(help="Caller or callee, exactly.")] = None,
    outcome: Annotated[str | None, typer.Option(help=", ".join(get_args(Outcome)))] = None,
    longer: Annotated[str | None, typer.Option(help="Lasted longer than 90s, 2m, 1h …")] = None,
    shorter: Annotated[str | None, typer.Option(help="Lasted shorter than that.")] = None,
    call_id: Annotated[str | None, typer.Option(help="SIP Call-ID, exactly.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 200,
    store: StoreOption = None,
    unlock_key: UnlockOption = None,
    config: ConfigOption = CONFIG,
    json: JsonOption = False,
) -> None:
    """List calls, newest first. What is given restricts; all of it must hold."""
    question = _question(since, until, number, outcome, longer, shorter, call_id, limit)
    with reach(store, unlock_key, config) as client:
        found = client.search(question)
        if json:
            for call in found:
                document(call_line(call, exportable))
            _say_locked(client.locked)
            return
        listed = list(found)
    print_calls(listed)
    _say_locked(client.locked)
    if len(listed) == limit:
        say(f"The newest {limit}; --limit shows more.")


def _say_locked(pools: list[str]) -> None:
    for pool in pools:
        say(f"Pool {pool} is locked: its calls are not listed. See: spanvault keys unlock {pool}")


def _question(
    since: str | None, until: str | None, number: str | None, outcome: str | None,
    longer: str | None, shorter: str | None, call_id: str | None, limit: int,
) -> Search:  # fmt: skip
    now = datetime.now()  # of no zone: parse_moment then knows summer time
    if outcome is not None and outcome not in get_args(Outcome):
        raise CommandFailed(
            f"'{outcome}' is no outcome", f"One of: {', '.join(get_args(Outcome))}.", USAGE
        )
    try:
        return Search(
            since_ns=None if since is None else parse_moment(since, now),
            until_ns=None if until is None else parse_moment(until, now),
            number=number,
            outcome=outcome,  # type: ignore[arg-type] # checked above
            longer_s=None if longer is None else parse_seconds(longer),
            shorter_s=None if shorter is None else parse_seconds(shorter),
            call_id=call_id,
            limit=limit,
        )
    except ValueError as error:
        raise CommandFailed(str(error), code=USAGE) from None
