"""`python -m storaged --config FILE`: the daemon that keeps, opens and gives out recordings.

`python -m storaged --config FILE reindex`: its index made anew, while it does not run.

Exit codes: 0 stopped as asked, 1 it cannot run here, 2 usage, 74 I/O error, 78 wrong settings or
keys (sysexits(3); systemd does not restart on 78).
"""

import argparse
import faulthandler
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import lmdb
import msgspec
import zmq

from spanvault.daemon import config, journal, memory
from spanvault.daemon.lifecycle import Lifecycle
from storaged import diskfaults
from storaged.faults import Fault

_KEPT_BYTES: Final = 768 << 20  # a group being gathered, one being committed, and what lies between
CANNOT_RUN, IO_ERROR, CONFIG_ERROR = 1, 74, 78
_EXIT = {"locked": CONFIG_ERROR, "invalid": CONFIG_ERROR, "corrupt": IO_ERROR}


def main() -> int:
    """Run until SIGTERM. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="storaged", description="Keeps recordings, encrypted.")
    parser.add_argument("--config", type=Path, default=config.FOLDER / "storaged.toml")
    parser.add_argument(
        "--pool-key", action="append", default=[], metavar="POOL=FILE", help="for reindex"
    )
    parser.add_argument("task", nargs="?", choices=["reindex"], help="the daemon if none is named")
    arguments = parser.parse_args()
    memory.keep_private()
    memory.keep_freed(_KEPT_BYTES)
    log = journal.set_up("storaged")
    faulthandler.enable()  # a page of the index that its disk does not give is SIGBUS
    try:
        settings = config.load(arguments.config, config.StoragedConfig)
        if arguments.task == "reindex":
            return _reindex(settings, arguments.pool_key)
        with memory.loading():
            from storaged import daemon
        daemon.run(settings, Lifecycle("storaged"))
    except Fault as fault:
        log.critical(str(fault))
        return _EXIT.get(fault.code, CANNOT_RUN)
    except ValueError as error:
        log.critical(str(error))
        return CONFIG_ERROR
    except zmq.ZMQError as error:
        log.critical(f"a socket cannot be opened: {error}. Check `ingest` and `requests`.")
        return CANNOT_RUN
    except (OSError, lmdb.Error) as error:
        log.critical(f"storaged must end: {diskfaults.line(error)}")
        return IO_ERROR
    return 0


def _reindex(settings: config.StoragedConfig, pool_keys: Sequence[str]) -> int:
    """Make the index anew; says on stdout how far it is, as JSON a line. Returns the exit code."""
    with memory.loading():
        from storaged.integrity import reindexing
    for each in pool_keys:
        pool, _, path = each.partition("=")
        about = settings.pools.get(pool, config.PoolConfig())  # type: ignore[call-overload]
        about = msgspec.structs.replace(about, unlock_key=Path(path))
        settings = msgspec.structs.replace(settings, pools={**settings.pools, pool: about})
    report = reindexing.reindex(settings, _tell, time.time_ns)
    print(json.dumps({"calls": report.calls, "faults": report.faults}), flush=True)
    return CANNOT_RUN if report.faults else 0


def _tell(phase: str, done: int) -> None:
    print(json.dumps({"phase": phase, "done": done}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
