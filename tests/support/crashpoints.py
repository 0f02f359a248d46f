"""storaged in a process that can be told where to die, in place of `python -m storaged`.

Nothing of it is in the product: before storaged begins, the system calls by which a store changes
are wrapped, together with the index's transactions and the answers. Each is a step with a name,
such as `rename keys/root` or `syncfs`; a run can be traced, and another killed (SIGKILL) before
the n-th step of a name, or when half of what it writes is written. So the points at which a crash
is tried are all that there are, not a list that somebody keeps.

To be quick, one process imports storaged once and forks a daemon a line of its standard input (a
Plan as JSON); it answers with the pid. `{"wait": PID}` answers with that daemon's exit status.
Who drives it: tests/support/crashing.py.
"""

import json
import os
import re
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from storaged import __main__, files, ingest, serving
from storaged.format.ledger import ERASURE, Entry
from storaged.index.environment import Index
from storaged.index.writing import Writing
from storaged.integrity import rebuilding
from storaged.keys import keyring, slot
from storaged.pools import intake, pool
from storaged.recordings import committer
from storaged.requests import accesslog

# How a store changes: the call, and which of its arguments says what of.
BY_PATH: Final = {"mkdir": 0, "unlink": 0, "rmdir": 0, "truncate": 0, "rename": 1, "replace": 1,
                  "link": 1}  # fmt: skip
BY_DESCRIPTOR: Final = ("write", "writev", "pwrite", "ftruncate", "fsync", "fdatasync")
WRITES: Final = ("write", "writev", "pwrite")
_NOT_STEPS: Final = re.compile(r"stderr|lock$|log/|i\.memory|\.\.|/|trace|notes|token")
_REPOSITORY: Final = str(Path(__file__).parents[2]) + "/"
_PRODUCT: Final = ("storaged/", "capture/", "replicator/", "spanvault/")
_MAGIC: Final = b"\x89SVR"
_FLAGS: Final = {0: "DATA", 1: "LAST"}


class Plan(msgspec.Struct):
    """One daemon. folder: names in steps are relative to it, and to `store` in it."""

    config: str
    folder: str
    trace: str = ""  # a file that gets each step's name, a line each
    kill: str = ""  # the step before which to die
    nth: int = 1  # the first, second … of that name
    within: bool = False  # die when half of it is done
    spoil: str = ""  # a negative control: a name of SPOILERS
    task: str = ""  # of storaged, in place of the daemon
    act: str = ""  # a name of ACTS in place of storaged


class Steps:
    """Counts the steps of this process; ends it at the one that was asked for."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._seen = plan, Counter[str]()
        self._trace = open(plan.trace, "a", buffering=1) if plan.trace else None  # noqa: PTH123, SIM115
        self._base = os.path.realpath(plan.folder)

    def take(self, name: str, half: Callable[[], Any] | None = None) -> None:
        """Note a step that begins now. half: does half of it."""
        self._seen[name] += 1
        if self._trace:
            self._trace.write(f"{name}\t{'half' if half else ''}\t{' '.join(_ours())}\n")
        if (name, self._seen[name]) == (self._plan.kill, self._plan.nth):
            if half and self._plan.within:
                half()
            os.kill(os.getpid(), signal.SIGKILL)

    def named(self, verb: str, path: Any) -> str:
        """`verb path`, ids and numbers left out; nothing for what is no part of a store."""
        path = os.path.relpath(os.path.realpath(os.fspath(path)), self._base)
        path = path.removeprefix("store/")
        if _NOT_STEPS.match(path):
            return ""
        path = re.sub(r"[0-9a-f]{32}", "ID", path)
        path = re.sub(r"\d{12}\.[0-9a-f]{16}\.sealed", "BATCH", path)
        path = re.sub(r"[0-9a-f]{16}\.(moving|key)", r"KEY.\1", path)
        path = re.sub(r"refused/\d+-[0-9a-f]{8}", "refused/REFUSED", path)
        path = re.sub(r"\d{20}\.[0-9a-f]{16}\.(sealed|part)", r"BATCH.\1", path)
        path = re.sub(r"\bnew-[0-9a-z_]+", "NEW", path)
        path = re.sub(r"objects/[0-9a-f]{2}\b", "objects/XX", path)
        return f"{verb} " + re.sub(r"page-\d+\.\d+", "page", path).removesuffix(".new")


def _ours() -> Iterator[str]:
    """The product's functions that a step is taken in, innermost first: FILE:NAME."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(_REPOSITORY) and (name := path[len(_REPOSITORY) :]).startswith(_PRODUCT):
            yield f"{name}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]


def arm(steps: Steps) -> None:
    """Wrap everything by which a store changes."""
    for call, argument in BY_PATH.items():
        setattr(os, call, _by_path(steps, call, argument, getattr(os, call)))
    for call in BY_DESCRIPTOR:
        setattr(os, call, _by_descriptor(steps, call, getattr(os, call)))
    os.open = _creating(steps, os.open)
    slot.TokenSlot.make = _plain(steps, "token makes", slot.TokenSlot.make)  # type: ignore[method-assign]
    slot.TokenSlot.keep_only = _plain(  # type: ignore[method-assign]
        steps, "token destroys", slot.TokenSlot.keep_only
    )
    files.syncfs = _plain(steps, "syncfs", files.syncfs)
    Index.write = _transaction(steps, Index.write)  # type: ignore[method-assign]
    ingest.Ingest._acknowledge = _plain(  # type: ignore[method-assign]
        steps, "acknowledge", ingest.Ingest._acknowledge
    )
    serving.Serving._send = _plain(steps, "answer", serving.Serving._send)  # type: ignore[method-assign]


def _plain(steps: Steps, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def step(*arguments: Any, **named: Any) -> Any:
        steps.take(name)
        return real(*arguments, **named)

    return step


def _by_path(steps: Steps, call: str, argument: int, real: Callable[..., Any]) -> Any:
    def step(*arguments: Any, **named: Any) -> Any:
        name = steps.named(call, arguments[argument])
        if name and not (call == "mkdir" and os.path.exists(arguments[0])):  # noqa: PTH110
            steps.take(name)
        return real(*arguments, **named)

    return step


def _creating(steps: Steps, real: Callable[..., Any]) -> Any:
    def step(path: Any, flags: int, *arguments: Any, **named: Any) -> Any:
        new = flags & os.O_CREAT and not os.path.exists(path)  # noqa: PTH110
        if new and (name := steps.named("create", path)):
            steps.take(name)
        return real(path, flags, *arguments, **named)

    return step


def _by_descriptor(steps: Steps, call: str, real: Callable[..., Any]) -> Any:
    def step(descriptor: int, *arguments: Any) -> Any:
        link = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
        if link.startswith("/") and (name := steps.named(call, link)):
            if call not in WRITES:
                steps.take(name)
            else:
                data = arguments[0]
                data = b"".join(data) if call == "writev" else bytes(data)
                if link.endswith(".svr"):
                    name += f" {_part(data)}"
                half = data[: len(data) // 2]
                given = [half] if call == "writev" else half
                steps.take(name, lambda: real(descriptor, given, *arguments[1:]))
        return real(descriptor, *arguments)

    return step


def _part(data: bytes) -> str:
    """What of an object these bytes begin with."""
    return "header" if data.startswith(_MAGIC) else _FLAGS.get(data[4], "?") if data[4:] else "?"


def _transaction(steps: Steps, real: Callable[..., Any]) -> Any:
    def write(self: Index, change: Callable[[Any], Any]) -> Any:
        what = getattr(change, "func", change).__qualname__  # of a partial, what it calls
        name = f"index {what.split('.<locals>')[0]}"

        def filled(writing: Any) -> Any:
            result = change(writing)
            steps.take(f"{name}, filled")
            return result

        steps.take(f"{name}")
        result = real(self, filled)
        steps.take(f"{name}, done")
        return result

    return write


# --- negative controls: a storaged that is wrong, and must be found out --------------------------


def _hasty() -> None:
    """Acknowledges before the commit."""
    submit = committer.Committer.submit

    def acknowledge_and_submit(self: Any, group: Any) -> None:
        from storaged.recordings.writer import Counts

        self.done.append(committer.Committed(group, Counts(0, 0, 0, 0)))
        os.eventfd_write(self.wake_fd, 1)
        # The acknowledgement is to be out before the first step that kills.
        threading.Timer(0.5, submit, (self, group)).start()

    committer.Committer.submit = acknowledge_and_submit  # type: ignore[method-assign]


def _unreserved() -> None:
    """Hands slots out without reserving them: after a restart, again."""
    Index.reserve_keys = lambda self, number, tier=0: None  # type: ignore[method-assign]


def _unsalted() -> None:
    """Salts are no fresh random bytes."""
    real = os.urandom
    os.urandom = lambda size: bytes(16) if size == 16 else real(size)


def _unsynced() -> None:
    """Objects are written, and not synced before the index says that they are there."""
    files.syncfs = lambda descriptor: None


def _unlogged() -> None:
    """What is heard is answered before its line in the access log is on the medium."""
    accesslog.AccessLog.sync = lambda self: None  # type: ignore[method-assign]


def _uncut() -> None:
    """What a crash tore is not cut off before the recording goes on behind it."""
    pool.Pool.cut = lambda self, recording_id, size: None  # type: ignore[method-assign]


def _unfinished() -> None:
    """An erasure is begun, and nothing says that it has to be completed."""
    real = Writing.put

    def put(self: Writing, table: bytes, key: bytes, value: bytes) -> None:
        if table != b"unfinished":
            real(self, table, key, value)

    Writing.put = put  # type: ignore[method-assign]


def _kept() -> None:
    """Old key files are not destroyed."""
    files.destroy = lambda *_, **__: None


def _late() -> None:
    """A new root is acknowledged before it is there."""
    real = keyring.Keyring.renew

    def later(self: keyring.Keyring, recipients: list[bytes] | None = None) -> list[str]:
        threading.Timer(0.5, real, (self, recipients)).start()
        return []

    keyring.Keyring.renew = later  # type: ignore[method-assign]


def _shredded() -> None:
    """A batch of an intake is removed before it is part of recordings."""
    real = intake.Intake.open_first

    def removed(self: intake.Intake, private_key: Any) -> Any:
        found = real(self, private_key)
        if found:
            found[0].unlink(missing_ok=True)
        return found

    intake.Intake.open_first = removed  # type: ignore[method-assign]


def _unpublished() -> None:
    """What was sealed for the upper pool never counts, though the lower copy is on its way out."""
    intake.Intake.publish_moving = lambda self, move: None  # type: ignore[method-assign]


def _undropped() -> None:
    """Copies of a move that a crash cut off are left."""
    intake.Intake.drop_moving = lambda self, kept=(): None  # type: ignore[method-assign]


def _keyless() -> None:
    """An erasure gives pages new keys, and forgets one of the DEKs that are to go from each."""
    real = keyring.Keyring._rekey

    def rekey(self: keyring.Keyring, by_page: dict[int, list[int]]) -> None:
        real(self, {page: slots[1:] for page, slots in by_page.items()})

    keyring.Keyring._rekey = rekey  # type: ignore[method-assign]


def _forgetful() -> None:
    """An index that is made anew knows of no erasure."""
    real = rebuilding.Rebuilder._put_entry

    def put(self: rebuilding.Rebuilder, writing: Writing, entry: Entry) -> None:
        if entry.kind != ERASURE:
            real(self, writing, entry)

    rebuilding.Rebuilder._put_entry = put  # type: ignore[method-assign]


SPOILERS: Final = {"": lambda: None, "hasty": _hasty, "unreserved": _unreserved,
                   "unsalted": _unsalted, "unsynced": _unsynced, "unfinished": _unfinished,
                   "kept": _kept, "late": _late, "shredded": _shredded,
                   "unpublished": _unpublished, "undropped": _undropped,
                   "unlogged": _unlogged, "uncut": _uncut, "keyless": _keyless,
                   "forgetful": _forgetful}  # fmt: skip


def _become(plan: Plan) -> int:
    """Be this daemon, in a process just forked."""
    stderr = os.open(Path(plan.folder) / "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(stderr, 2)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    SPOILERS[plan.spoil]()
    if plan.act:
        return _take_part(plan)
    arm(Steps(plan))
    sys.argv = ["storaged", "--config", plan.config, *([plan.task] if plan.task else [])]
    return __main__.main()


def _take_part(plan: Plan) -> int:
    """Be one of ACTS. What it notes is out at once, and no step."""
    from tests.support.crashacts import ACTS

    folder, write = Path(plan.folder), os.write
    notes = os.open(folder / "notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    arm(Steps(plan))
    ACTS[plan.act].run(folder, lambda text: (write(notes, text.encode() + b"\n"), None)[1])
    return 0


def main() -> None:
    """Fork daemons as asked, until standard input ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            _, status = os.waitpid(asked["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if not pid:
            code = 70
            try:
                code = _become(msgspec.convert(asked, Plan))
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
