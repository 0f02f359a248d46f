"""Whether freed memory is used again, counted in page faults of a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

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


ABORTED = """
import os, resource, sys
from spanvault.daemon import memory
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (4096 if hard < 0 else min(4096, hard), hard))
if sys.argv[1] == "private, whatever the limit":  # as where a dump goes to a program
    memory.resource.setrlimit = lambda *_: None
if sys.argv[1] != "as ever":
    memory.keep_private()
os.chdir(sys.argv[2])
os.abort()
"""


def dumped(how: str, folder: Path) -> bool:
    """By the kernel's own word."""
    arguments = [sys.executable, "-c", ABORTED, how, str(folder)]
    _, status = os.waitpid(os.posix_spawn(sys.executable, arguments, os.environ), 0)
    assert os.WTERMSIG(status) == signal.SIGABRT
    return os.WCOREDUMP(status)


def test_no_core_dump_is_made_whatever_the_shell_allows(tmp_path):
    assert not dumped("private", tmp_path)
    assert not dumped("private, whatever the limit", tmp_path)
    if not dumped("as ever", tmp_path):
        pytest.skip("nothing here is dumped")
