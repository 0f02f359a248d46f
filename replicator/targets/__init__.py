"""Places to copy to, by the `kind` of a [[targets]] entry in etc/replicator.toml."""

from collections.abc import Callable
from typing import Final

from replicator.targets.base import (
    PART_BYTES,
    Entry,
    Missing,
    Space,
    Target,
    TargetError,
    check_name,
)
from replicator.targets.directory import DirectoryTarget
from spanvault.daemon.config import TargetConfig

__all__ = [
    "KINDS", "PART_BYTES", "Entry", "Missing", "Space", "Target", "TargetError", "check_name",
    "make_target",
]  # fmt: skip

KINDS: Final[dict[str, Callable[[TargetConfig], Target]]] = {
    "directory": lambda settings: DirectoryTarget(settings.path),
}


def make_target(settings: TargetConfig) -> Target:
    """The target that the settings describe, not yet touched. Raises ValueError."""
    make = KINDS.get(settings.kind)
    if make is None:
        raise ValueError(
            f"target '{settings.name}': kind '{settings.kind}' is unknown. "
            f"Known: {', '.join(sorted(KINDS))}"
        )
    return make(settings)
