"""One timer for each call, cheap to set again and again.

Timers that were moved stay in the heap and are passed over when they come up; the heap is rebuilt
when most of it is such.
"""

import heapq


class Timers:
    """Fed with times, gives the keys whose time has come."""

    def __init__(self) -> None:
        self._due: dict[bytes, int] = {}
        self._heap: list[tuple[int, bytes]] = []

    def set(self, key: bytes, due_ns: int) -> None:
        """Set or move a key's timer."""
        if self._due.get(key) == due_ns:
            return
        self._due[key] = due_ns
        heapq.heappush(self._heap, (due_ns, key))
        if len(self._heap) > 64 + 8 * len(self._due):
            self._heap = [(due, other) for other, due in self._due.items()]
            heapq.heapify(self._heap)

    def cancel(self, key: bytes) -> None:
        """Forget a key."""
        self._due.pop(key, None)

    def due(self, now_ns: int) -> list[bytes]:
        """The keys whose time has come, each once; their timers are gone then."""
        keys = []
        while self._heap and self._heap[0][0] <= now_ns:
            due_ns, key = heapq.heappop(self._heap)
            if self._due.get(key) == due_ns:
                del self._due[key]
                keys.append(key)
        return keys
