"""Follow a chain of records, each as long as it says, through a window of bytes.

Both capture formats are such chains. Candidates are found by a whole-array search; the links from
one to the next prove them, and the first link that does not fit ends the run.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_CAPTURED: Final = 262_144  # libpcap's own limit of a frame; a longer one is a damaged file


def run(candidates: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The records that follow each other without a break from offset 0 on.

    candidates: offsets where a record may begin, ascending.  lengths: of those whole records.
    Returns the offsets of the run; empty if no record begins at 0.
    """
    if not len(candidates) or candidates[0] != 0:
        return candidates[:0]
    broken = np.flatnonzero(candidates[:-1] + lengths[:-1] != candidates[1:])
    return candidates[: broken[0] + 1] if len(broken) else candidates


def places(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where a mask is set, which it rarely is: 64 bytes are looked at at once.

    mask: bool[64 × n].  Returns what flatnonzero would, in a third of the time.
    """
    words = mask.view(np.uint64)
    groups = (words != 0).view(np.uint64)
    return _set_bytes(words, _set_bytes(groups, np.flatnonzero(groups != 0)))


def _set_bytes(words: NDArray[np.uint64], at: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bytes that are 1, rising; the others are 0. at: int64[n], the words that hold any."""
    word, found = words[at], []
    while len(at):
        below = word - np.uint64(1)
        found.append(at * 8 + (np.bitwise_count(~word & below) >> 3))
        word &= below  # without the lowest
        more = np.flatnonzero(word)
        at, word = at[more], word[more]
    if len(found) == 1:
        return found[0]
    together = np.concatenate([np.empty(0, np.int64), *found])
    together.sort(kind="stable")  # runs that rise: they are merged
    return together
