"""Whether freed memory is used again, counted in page faults of a process of its own."""

import subprocess
import sys

import pytest

# A thread, as it would have a heap of its own. 12 buffers of 1 MiB are 3,072 pages of 4 KiB.
PROGRAM = """
import resource, sys, threading
from spanvault.daemon import memory
assert memory.keep_freed(64 << 20) if sys.argv[1] == "kept" else True
size = 1 << 20
def use(times):
    for _ in range(times):
        group = [b"x" * size for _ in range(12)]
        del group
def faults():
    use(2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    use(10)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=faults)
thread.start()
thread.join()
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_buffers_are_used_again_by_any_thread():
    assert faults("given back") > 10_000
    assert faults("kept") < 1000
