"""Read the same header out of many frames at once: rows of bytes gathered from one buffer.

A view with a stride of one byte makes every offset of a buffer the start of a row; indexing it
with the frames' offsets copies each header with one memcpy. Gathering a gapped structured dtype
instead would copy field by field, six times slower. What the bytes mean: capture.packets.network.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Offsets = NDArray[np.int64]
AT_ONCE: Final = 2048  # rows copied on at once: what lies in between stays in the cache


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


def gather(data: Bytes, offsets: Offsets, width: int, out: Bytes) -> None:
    """Put the width bytes at each offset one behind the other. out: uint8[n × width]."""
    for at in range(0, len(offsets) if width else 0, AT_ONCE):
        some = rows(data, offsets[at : at + AT_ONCE], width)
        out[at * width : (at + len(some)) * width] = some.view(np.uint8)


def scatter(data: Bytes, offsets: Offsets, width: int, out: Bytes, places: Offsets) -> None:
    """Put the width bytes at each offset where its place in out is. width: at least 1."""
    view = np.ndarray((len(out) - width + 1,), f"V{width}", out, strides=(1,))
    for at in range(0, len(offsets), AT_ONCE):
        view[places[at : at + AT_ONCE]] = rows(data, offsets[at : at + AT_ONCE], width)


def _rows_at_the_edge(data: Bytes, offsets: Offsets, width: int) -> NDArray[np.void]:
    """The same where some rows reach over an end: those few come from padded copies of the ends."""
    last = len(data) - width
    inside = (offsets >= 0) & (offsets <= last)
    found = np.empty(len(offsets), f"V{width}")
    found[inside] = rows(data, offsets[inside], width)
    nothing = np.zeros(width, np.uint8)
    front = np.concatenate((nothing, data[:width], nothing))
    behind = np.concatenate((nothing, data[max(0, last + 1) :], nothing))
    for padded, which, base in (
        (front, offsets < 0, -width),
        (behind, (offsets >= 0) & ~inside, max(0, last + 1) - width),
    ):
        # Whatever lies outside the buffer altogether reads from the zeros at that end.
        start = np.clip(offsets[which] - base, 0, len(padded) - width)
        found[which] = rows(padded, start, width)
    return found
