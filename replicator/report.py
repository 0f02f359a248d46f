"""How the replicator says how it is: one line for people, fields for `spanvault status`. Pure."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from replicator.plan import Fault, Lag
from replicator.targets.base import Space

HANGS_S: Final = 60.0
HANGS: Final = "The place hangs, as a network share does whose server is gone: check its mount."


class Progress(NamedTuple):
    """A target's state at one moment, for status and health."""

    target: str
    position: int
    lag: Lag
    fault: Fault | None
    aside: int
    copied: int  # recordings verified since the start
    copied_bytes: int
    space: Space
    moved_ns: int  # when its thread last got anything done, or ended a wait


def status_line(targets: Sequence[Progress], now_ns: int) -> str:
    """One line: every target that stands still with what to do, else how far all are."""
    if not targets:
        return "no target is configured: add [[targets]] to replicator.toml"
    return "; ".join(_target_line(target, now_ns) for target in targets)


def fields(targets: Sequence[Progress], now_ns: int) -> dict[str, Any]:
    """The fields of a Health message: lag overall, and each target by name."""
    return {
        "changes_behind": max((t.lag.changes or 0 for t in targets), default=0),
        "oldest_s": max((_oldest_s(t, now_ns) for t in targets), default=0.0),
        "targets": {target.target: _target_fields(target, now_ns) for target in targets},
    }


def _target_line(target: Progress, now_ns: int) -> str:
    if hangs_s := _hangs_s(target, now_ns):
        return f"{target.target}: {_behind(target, now_ns)}; no answer for {hangs_s:.0f} s. {HANGS}"
    if target.fault:
        since_s = (now_ns - target.fault.since_ns) / 1e9
        fault = f"{target.fault.text}, for {since_s:.0f} s. {target.fault.hint}"
        return f"{target.target}: {_behind(target, now_ns)}; {fault}"
    aside = f", {target.aside} set aside as damaged at the source" if target.aside else ""
    return f"{target.target}: {_behind(target, now_ns)}, {target.copied} copied{aside}"


def _behind(target: Progress, now_ns: int) -> str:
    if target.lag.changes is None:
        return "asking how far it is behind"
    if not target.lag.changes:
        return "up to date"
    return f"{target.lag.changes} changes behind, oldest {_oldest_s(target, now_ns):.0f} s"


def _hangs_s(target: Progress, now_ns: int) -> float:
    """For how long a target's thread has been stuck in one read or write; 0 if it is not."""
    stuck_s = (now_ns - target.moved_ns) / 1e9
    return stuck_s if stuck_s >= HANGS_S and not target.fault else 0.0


def _oldest_s(target: Progress, now_ns: int) -> float:
    oldest_ns = target.lag.oldest_ns
    return round(max(0, now_ns - oldest_ns) / 1e9, 3) if oldest_ns is not None else 0.0


def _target_fields(target: Progress, now_ns: int) -> dict[str, Any]:
    return {
        "position": target.position,
        "changes_behind": target.lag.changes,
        "oldest_s": _oldest_s(target, now_ns),
        "set_aside": target.aside,
        "copied": target.copied,
        "copied_bytes": target.copied_bytes,
        "free_bytes": target.space.free,
        "hangs_s": round(_hangs_s(target, now_ns), 1),
        "fault": target.fault.text if target.fault else None,
        "hint": target.fault.hint if target.fault else None,
    }
