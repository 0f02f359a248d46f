"""Read the same header out of many frames at once: rows of bytes gathered from one buffer.

A view with a stride of one byte makes every offset of a buffer the start of a row; indexing it
with the frames' offsets copies each header with one memcpy. Gathering a gapped structured dtype
instead would copy field by field, six times slower. What the bytes mean: capture.network.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Offsets = NDArray[np.int64]


def rows(data: Bytes, offsets: Offsets, width: int) -> NDArray[np.void]:
    """The width bytes at each offset; what lies outside the buffer reads as zero.

    data: uint8[*].  offsets: int64[n], in any order.  Returns void{width}[n], a copy.
    """
    last = len(data) - width
    if not len(offsets):
        return np.empty(0, f"V{width}")
    if last >= 0 and int(offsets.max()) <= last and int(offsets.min()) >= 0:
        view = np.ndarray((last + 1,), f"V{width}", data, strides=(1,))
        return view[offsets]
    return _rows_at_the_edge(data, offsets, width)


def fields(data: Bytes, offsets: Offsets, header: np.dtype[Any]) -> NDArray[Any]:
    """The header at each offset, as a structured array: header.itemsize bytes each."""
    return rows(data, offsets, header.itemsize).view(header)


def _rows_at_the_edge(data: Bytes, offsets: Offsets, width: int) -> NDArray[np.void]:
    """The same where some rows reach over an end: those few come from a padded copy of it."""
    last = len(data) - width
    outside = (offsets > last) | (offsets < 0)
    edge = max(0, last + 1)
    padded = np.zeros(len(data) - edge + 2 * width, np.uint8)
    padded[: len(data) - edge] = data[edge:]
    found = np.empty(len(offsets), f"V{width}")
    inside = np.flatnonzero(~outside)
    found[inside] = rows(data, offsets[inside], width)
    beyond = np.flatnonzero(outside)
    # Whatever starts outside the buffer altogether reads from the zeros behind its last byte.
    start = np.where(offsets[beyond] < 0, len(data), np.minimum(offsets[beyond], len(data)))
    found[beyond] = rows(padded, start - edge, width)
    return found
