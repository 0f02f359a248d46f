"""`spanvault status`: what a daemon said, and what is said of one that says nothing."""

from typing import Any

import pytest
from rich.console import Console

from spanvault.commands.health import daemon_table

CAPTURE = {"daemon": "capture vm/eth1", "fields": {"interface": "eth1"}}
REPLICATOR = {"daemon": "replicator", "fields": {}}


def shown(health: dict[str, Any]) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(daemon_table(health))
    return " ".join(capture.get().split())


@pytest.mark.parametrize(
    ("health", "age_s", "said", "words"),
    [
        (CAPTURE, 1.9, "recording 3 calls on eth1", "state recording 3 calls on eth1"),
        (CAPTURE, 600, "recording 3 calls on eth1",
         "SILENT for 600 s, is it running? systemctl status spanvault-capture@eth1; "
         "the last it said: recording 3 calls on eth1"),
        (CAPTURE, 5, "stopped", "STOPPED 5 s ago: systemctl start spanvault-capture@eth1"),
        (REPLICATOR, 16, "up to date", "systemctl status spanvault-replicator; "),
    ],
)  # fmt: skip
def test_a_daemon_that_is_gone_is_not_shown_as_it_was(
    health: dict[str, Any], age_s: float, said: str, words: str
) -> None:
    assert words in shown({**health, "age_s": age_s, "state": said})
