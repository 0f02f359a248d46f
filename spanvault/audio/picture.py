"""A picture of a call's sound in a terminal: each side's loudness over time, in characters.

Shown by `spanvault show --waveform`. Source of the blocks: render.py.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

STEPS: Final = " ▁▂▃▄▅▆▇█"
ROWS: Final = 3
FLOOR_DB: Final = -48.0  # quieter than this is drawn as nothing


class Picture:
    """Peaks of both sides, gathered a tenth of a second at a time."""

    def __init__(self, rate: int) -> None:
        self._rate, self._step = rate, rate // 10
        self._peaks: list[NDArray[np.int32]] = []
        self._samples = 0

    def add(self, block: NDArray[np.int16]) -> None:
        """A block of int16[n, 2]; all but the last a whole second."""
        self._samples += len(block)
        loud = np.abs(block.astype(np.int32))
        starts = np.arange(0, len(loud), self._step)
        if len(starts):
            self._peaks.append(np.maximum.reduceat(loud, starts, axis=0))

    def lines(self, width: int) -> list[str]:
        """The picture in `width` characters: three rows for each side, and the time below."""
        label = 8
        columns = max(10, width - label)
        peaks = self._columns(columns)
        if not len(peaks):
            return ["no sound"]
        drawn = []
        for side, name in enumerate(("caller", "callee")):
            rows = bars(peaks[:, side])
            drawn += [
                f"{name if row == ROWS // 2 else '':<{label}}{text}"
                for row, text in enumerate(rows)
            ]
        return [*drawn, " " * label + self._ruler(len(peaks))]

    def _columns(self, columns: int) -> NDArray[np.int32]:
        if not self._peaks:
            return np.zeros((0, 2), np.int32)
        peaks = np.concatenate(self._peaks)
        # A short call is stretched, a long one is thinned to its loudest moments.
        edges = np.linspace(0, len(peaks), columns + 1)[:-1].astype(int)
        return np.maximum.reduceat(peaks, edges, axis=0)

    def _ruler(self, columns: int) -> str:
        seconds = self._samples / self._rate
        end = f"{int(seconds // 60)}:{seconds % 60:04.1f}"
        return "0" + end.rjust(columns - 1)


def bars(peaks: NDArray[np.int32]) -> list[str]:
    """Bars of ROWS characters' height over decibels, from the top row down."""
    decibels = 20 * np.log10(np.maximum(peaks, 1) / 32768.0)
    heights = np.clip(1 - decibels / FLOOR_DB, 0, 1) * ROWS * (len(STEPS) - 1)
    levels = np.rint(heights).astype(int)
    levels[(peaks > 32) & (levels == 0)] = 1
    return [
        "".join(STEPS[step] for step in np.clip(levels - row * (len(STEPS) - 1), 0, 8))
        for row in reversed(range(ROWS))
    ]
