"""`python -m replicator`: the daemon; `restore`, the way back; `heads`, what an auditor asks.

Exit codes of the daemon: 0 stopped as asked, 1 broke off, 74 the disk of its state_dir fails,
78 settings that cannot work.
Of restore: 0 all is back, 1 something was damaged or missing and is named, 2 bad usage or
settings, 74 the target or storaged cannot be reached.
"""

import argparse
import logging
import sys
import threading
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq

from replicator.daemon import Daemon, check_targets
from replicator.replica import Replica
from replicator.restore import Restore, Tell
from replicator.source import Refused, Source, StoreError
from replicator.targets import Target, TargetError, make_target
from spanvault.daemon import journal, memory
from spanvault.daemon.config import FOLDER, ReplicatorConfig, TargetConfig, load
from spanvault.daemon.lifecycle import Lifecycle
from spanvault.logchain import Head

EX_FAILED, EX_USAGE, EX_IOERR, EX_CONFIG = 1, 2, 74, 78  # the latter two: sysexits.h
CONFIG: Final = FOLDER / "replicator.toml"
log = logging.getLogger("replicator")


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon, or a restore. Gives the exit code."""
    chosen = _parser().parse_args(arguments)
    journal.set_up("replicator")
    if chosen.job == "restore":
        return _restore(chosen)
    memory.keep_private()
    if chosen.job == "heads":
        return _heads(chosen.folder)
    try:
        daemon = Daemon(load(chosen.config, ReplicatorConfig))
    except ValueError as error:
        log.error("Settings cannot work", extra={"FAULT": str(error)})
        return EX_CONFIG
    except OSError as error:
        log.error("Cannot start", extra={"FAULT": str(error)})
        return EX_IOERR
    return daemon.run(Lifecycle("replicator"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("replicator", description="Copies a store's ciphertext.")
    parser.add_argument("--config", type=Path, default=CONFIG, metavar="FILE")
    jobs = parser.add_subparsers(dest="job")
    restore = jobs.add_parser("restore", help="bring a replica back into an empty store")
    # SUPPRESS: else the sub-command's default would hide what was given before it.
    restore.add_argument("--config", type=Path, default=argparse.SUPPRESS, metavar="FILE")
    restore.add_argument("--target", required=True, metavar="NAME")
    restore.add_argument(
        "--json-progress", action="store_true", help="progress on stdout, one document a line"
    )
    heads = jobs.add_parser("heads", help="what a replica was told of the store's access log")
    heads.add_argument("folder", type=Path, metavar="DIR")
    return parser


def _heads(folder: Path) -> int:
    """Print each head of the access log in a replica's bundles, one JSON document a line."""
    replica = Replica(make_target(TargetConfig("replica", "directory", folder)))
    try:
        if replica.label() is None:
            raise ValueError("it holds no replica")
        bundles = [replica.load_bundle(each.name) for each in replica.bundles()]
        told = [change.data for changes in bundles for change in changes if change.kind == "log"]
        heads = [msgspec.msgpack.decode(data, type=Head) for data in dict.fromkeys(told)]
    except (TargetError, ValueError) as error:
        log.error("The replica cannot be read", extra={"FAULT": str(error)})
        return EX_IOERR
    for head in heads:
        print(msgspec.json.encode(head).decode())
    return 0


def _restore(chosen: argparse.Namespace) -> int:
    tell = _told(json=chosen.json_progress or not sys.stdout.isatty())
    with zmq.Context() as context:
        try:
            settings = load(chosen.config, ReplicatorConfig)
            target = _named(settings, chosen.target)
            source = Source(context, settings, threading.Event())
        except ValueError as error:
            log.error("Settings cannot work", extra={"FAULT": str(error)})
            return EX_USAGE
        try:
            faults = Restore(Replica(target), source, tell).run()
        except Refused as error:
            log.error("The store takes no restore", extra={"FAULT": str(error), "HINT": error.hint})
            return EX_FAILED
        except (TargetError, StoreError) as error:
            log.error("Restore broke off", extra={"FAULT": str(error), "HINT": error.hint})
            return EX_IOERR
        finally:
            source.close()
    return EX_FAILED if faults else 0


def _named(settings: ReplicatorConfig, name: str) -> Target:
    check_targets(settings)
    for target in settings.targets:
        if target.name == name:
            return make_target(target)
    known = ", ".join(target.name for target in settings.targets) or "none"
    raise ValueError(f"no target is named '{name}'. Configured: {known}")


def _told(*, json: bool) -> Tell:
    """What a restore tells: progress on stdout, each fault on stderr as the daemons log."""

    def tell(event: dict[str, Any]) -> None:
        if "fault" in event:
            log.error("Left out", extra={"FILE": event["fault"], "FAULT": event["error"]})
        if json:
            print(msgspec.json.encode(event).decode(), flush=True)
        elif event.get("phase") == "end":
            counts = ", ".join(f"{event[key]} {key}" for key in ("objects", "records", "keys"))
            print(f"brought back {counts}; {event['faults']} faults")

    return tell


if __name__ == "__main__":
    sys.exit(main())
