"""`spanvault log`: was the access log changed? Alone, and against what replicas were told of it.

Works on files, without storaged: who has root on its host could have it say anything. Run it where
a target is, on a copy of the log. The check: spanvault.logchain.
"""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from spanvault import logchain
from spanvault.commands.access import JsonOption
from spanvault.commands.output import FAILED, CommandFailed, complain, document, say
from spanvault.logchain import Finding, Head


def log(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A copy of STORE/log/access.log.")],
    replica: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="A target that was told of it.")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="HEX", help="The store's public signing key.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check the access log: what a crash tore, what somebody changed, cut short or wrote anew."""
    lines = file.read_bytes()
    heads = _heads(replica) if replica else []
    findings = [*logchain.check(lines, heads), *_signers(heads, key)]
    for finding in findings:
        _report(finding, json=json)
    changed = [finding for finding in findings if finding.what != "torn"]
    told = (
        f"held against {len(heads)} heads of {replica}" if replica else "held against itself alone"
    )
    say(f"{lines.count(bytes([10]))} lines, {told}: {len(changed)} faults",
        "red" if changed else "green")  # fmt: skip
    if changed:
        raise typer.Exit(FAILED)


def _heads(replica: Path) -> list[Head]:
    """What a target was told of. Raises CommandFailed."""
    done = subprocess.run(
        [sys.executable, "-m", "replicator", "heads", str(replica.absolute())],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        fault = done.stderr.strip().splitlines()[-1:] or ["it cannot be read"]
        raise CommandFailed(f"{replica}: {fault[0]}", "Name a directory that holds a replica.")
    return [msgspec.json.decode(line, type=Head) for line in done.stdout.splitlines()]


def _signers(heads: list[Head], key: str | None) -> list[Finding]:
    """Heads that another key than the store's signed; its own may be given, else the first's."""
    wanted = key.lower() if key else heads[0].signer.hex() if heads else ""
    return [
        Finding("not signed", 0, f"the head of {head.at_ns} ns bears key {head.signer.hex()}")
        for head in heads if head.signer.hex() != wanted
    ]  # fmt: skip


def _report(finding: Finding, *, json: bool) -> None:
    if json:
        document(finding._asdict())
        return
    place = f"line {finding.line}: " if finding.line else ""
    if finding.what == "torn":
        say(f"{place}{finding.text}; nothing of it was answered")
    else:
        complain(f"{place}{finding.what}: {finding.text}")
