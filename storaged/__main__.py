"""`python -m storaged --config FILE`: the daemon that keeps, opens and gives out recordings.

Exit codes: 0 stopped as asked, 1 it cannot run here, 2 usage, 74 I/O error, 78 wrong settings or
keys (sysexits(3); systemd does not restart on 78).
"""

import argparse
import sys
from pathlib import Path
from typing import Final

import lmdb
import zmq

from spanvault import config, journal, memory
from spanvault.lifecycle import Lifecycle
from storaged import daemon
from storaged.faults import Fault

_KEPT_BYTES: Final = 768 << 20  # a group being gathered, one being committed, and what lies between
CANNOT_RUN, IO_ERROR, CONFIG_ERROR = 1, 74, 78
_EXIT = {"locked": CONFIG_ERROR, "invalid": CONFIG_ERROR, "corrupt": IO_ERROR}


def main() -> int:
    """Run until SIGTERM. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="storaged", description="Keeps recordings, encrypted.")
    parser.add_argument("--config", type=Path, default=config.FOLDER / "storaged.toml")
    arguments = parser.parse_args()
    memory.keep_freed(_KEPT_BYTES)
    log = journal.set_up("storaged")
    try:
        settings = config.load(arguments.config, config.StoragedConfig)
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
        log.critical(f"storaged must end: {error}")
        return IO_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
