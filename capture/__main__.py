"""`python -m capture`: record an interface, or capture files (capture.live, capture.replay)."""

import argparse
import sys
from pathlib import Path

import msgspec

from capture.live import Live
from capture.replay import Replay
from capture.sources.files import in_order
from spanvault import config, journal
from spanvault.lifecycle import Lifecycle

EX_IOERR, EX_CONFIG = 74, 78  # sysexits.h


def main(arguments: list[str] | None = None) -> int:
    """Run; the exit status is 0, 1 (a capture file had a fault), 74 or 78 (see sysexits.h)."""
    options = _options(arguments)
    log = journal.set_up("capture")
    life = Lifecycle("capture")
    try:
        settings = config.load(options.config, config.CaptureConfig)
        if options.files:
            run = Replay(settings, options.report, life, log).run
            return 0 if run(in_order(options.files)) else 1
        interface = options.interface or settings.interface
        if not interface:
            raise ValueError("no interface: give --interface, or set it in capture.toml")
        Live(_instance(settings, interface), interface, life, log).run()
    except ValueError as error:
        log.error("cannot start", extra={"FAULT": str(error)})
        return EX_CONFIG
    except OSError as error:
        log.error("cannot go on", extra={"FAULT": str(error)})
        return EX_IOERR
    return 0


def _instance(settings: config.CaptureConfig, interface: str) -> config.CaptureConfig:
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
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="pcap or pcapng files")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
