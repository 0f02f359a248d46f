"""Which functions of the product change what lies on a disk: read off the source, not off a run.

By the names of what they call: the system's calls, pathlib's, storaged.files, an index transaction.
So that no such function is left out where crashes are tried: tests/storaged/test_crash_points.py.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

REPOSITORY: Final = Path(__file__).parents[2]
# What keeps something that must outlive a crash.
FOLDERS: Final = (
    "storaged", "replicator", "capture/delivery", "capture/callstate.py", "spanvault/init.py",
    "spanvault/keys", "spanvault/spool.py",
)  # fmt: skip
_ANYWHERE: Final = {
    "rename", "unlink", "mkdir", "rmdir", "hardlink_to", "write_bytes", "write_text", "touch",
    "ftruncate", "fsync", "fdatasync", "rmtree", "copyfile", "copytree",
}  # fmt: skip
_OF: Final = {
    "os": {"link", "truncate", "write", "writev", "pwrite", "replace"},
    "files": {"replace", "replace_all", "destroy", "write_at", "write_all", "overwrite"},
    "_index": {"write"}, "index": {"write"}, "tables": {"write"}, "_tables": {"write"},
}  # fmt: skip


class Writers(NamedTuple):
    """functions: FILE:NAME."""

    functions: set[str]

    @classmethod
    def of_product(cls) -> "Writers":
        """Read all of it."""
        paths = [
            path for name in FOLDERS for place in [REPOSITORY / name]
            for path in (sorted(place.rglob("*.py")) if place.is_dir() else [place])
        ]  # fmt: skip
        return cls({one for path in paths for one in _writers(path)})


def _writers(path: Path) -> Iterator[str]:
    name = path.relative_to(REPOSITORY)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and any(map(_changes, _own(node))):
            yield f"{name}:{node.name}"


def _own(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """What is in a function and not in one within it."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, ast.FunctionDef):
            yield node
            yield from _own(node)  # type: ignore[arg-type]


def _changes(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    called, whose = node.func.attr, node.func.value
    name = whose.id if isinstance(whose, ast.Name) else getattr(whose, "attr", "")
    return called in _ANYWHERE or called in _OF.get(name, ())
