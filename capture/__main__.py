"""`python -m capture`: record an interface, or capture files (capture.live, capture.replay)."""

import argparse
import gc
import logging
import sys
from pathlib import Path
from typing import Final

import msgspec

from spanvault.daemon import config, journal, memory
from spanvault.daemon.config import CaptureConfig
from spanvault.daemon.lifecycle import Lifecycle

EX_IOERR, EX_CONFIG = 74, 78  # sysexits.h
KEPT_BYTES: Final = 256 << 20  # a second of 1 Gbit/s, read, ordered and cut
# Of Python's garbage collector. Looking through all that 5,000 calls hold stops us for 0.2 s and
# finds nothing, for what we make has no cycles: only the young are looked through (8 ms at most).
COLLECTED: Final = (2_000, 5, 1_000_000)


def main(arguments: list[str] | None = None) -> int:
    """Run; the exit status is 0, 1 (a capture file had a fault), 74 or 78 (see sysexits.h)."""
    options = _options(arguments)
    memory.keep_private()
    log = journal.set_up("capture")
    life = Lifecycle("capture")
    try:
        settings = config.load(options.config, CaptureConfig)
        run = _replay if options.files else _live
        return run(options, settings, life, log)
    except ValueError as error:
        log.error("cannot start", extra={"FAULT": str(error)})
        return EX_CONFIG
    except OSError as error:
        log.error("cannot go on", extra={"FAULT": str(error)})
        return EX_IOERR


# Each mode imports what it alone needs: a third of a short replay's time is its start.


def _replay(
    options: argparse.Namespace, settings: CaptureConfig, life: Lifecycle, log: logging.Logger
) -> int:
    with memory.loading():
        from capture.replay import Replay
        from capture.sources.files import captures, in_order

    _settle_memory()
    run = Replay(settings, options.report, life, log).run
    return 0 if run(in_order(captures(options.files))) else 1


def _live(
    options: argparse.Namespace, settings: CaptureConfig, life: Lifecycle, log: logging.Logger
) -> int:
    with memory.loading():
        import sipmessage  # noqa: F401 - now, and not by a SIP message while the ring fills

        from capture.live import Live

    interface = options.interface or settings.interface
    if not interface:
        raise ValueError("no interface: give --interface, or set it in capture.toml")
    _settle_memory()
    Live(_instance(settings, interface), interface, life, log).run()
    return 0


def _settle_memory() -> None:
    gc.freeze()
    gc.set_threshold(*COLLECTED)
    memory.keep_freed(KEPT_BYTES)


def _instance(settings: CaptureConfig, interface: str) -> CaptureConfig:
    """What one port's capture has for itself: several ports of a host share the settings file."""
    return msgspec.structs.replace(
        settings,
        name=f"{settings.name}/{interface}",
        state_dir=settings.state_dir / interface,
        runtime_dir=settings.runtime_dir / interface,
    )


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("capture", description="Record calls off the wire.")
    parser.add_argument("--config", type=Path, required=True, help="capture.toml")
    parser.add_argument("--interface", help="the interface that gets the mirrored traffic")
    parser.add_argument("--report", action="store_true", help="print calls as JSON once safe")
    parser.add_argument(
        "files",
        type=Path,
        nargs="*",
        metavar="FILE",
        help="pcap or pcapng files, or folders of them",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
