"""The thread of requests: what it does besides, when nobody asks."""

import time
from collections.abc import Generator

from storaged.serving import _REST, _Background


def test_what_takes_long_to_look_at_is_looked_at_more_rarely():
    """Tens of thousands of rows may wait for one capture that is away, for weeks."""
    took_s = 0.0

    def looking() -> Generator[float | None]:
        nonlocal took_s
        begun_s = time.thread_time()
        while (took_s := time.thread_time() - begun_s) < 0.01:
            pass
        yield from ()

    for every_s in (0.0, 7.0):
        work, now_s = _Background(looking, every_s), time.monotonic()
        work.turn(now_s)
        assert work.wait_s(now_s) >= max(_REST * took_s, every_s)
