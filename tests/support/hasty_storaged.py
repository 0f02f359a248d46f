"""storaged as it must never be: it acknowledges what it has been sent, and commits it later.

The negative control of the kill test. Run in place of `python -m storaged`.
"""

import os
import sys
import time

from storaged.__main__ import main
from storaged.recordings.committer import Committed, Committer
from storaged.recordings.gathering import Group
from storaged.recordings.writer import Counts

LATER_S = 1.5
_submit, _commit = Committer.submit, Committer._commit


def acknowledge_and_submit(self: Committer, group: Group) -> None:
    """The group's batches are acknowledged before anything of them is on disk."""
    self.done.append(Committed(group, Counts(0, 0, 0, 0)))
    os.eventfd_write(self.wake_fd, 1)
    _submit(self, group)


def commit_later(self: Committer, group: Group) -> Counts | None:
    """As always, but late enough to be killed before."""
    time.sleep(LATER_S)
    return _commit(self, group)


if __name__ == "__main__":
    Committer.submit = acknowledge_and_submit  # type: ignore[method-assign]
    Committer._commit = commit_later  # type: ignore[method-assign]
    sys.exit(main())
