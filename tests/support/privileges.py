"""What whoever runs the tests may do; root of a container may not have all of it.

Source: capabilities(7), ptrace(2) (access mode checks).
"""

from pathlib import Path
from typing import Final

_SYS_PTRACE: Final = 19


def sees_into_daemons() -> bool:
    """Whether /proc/PID/{fd,environ} of a process that may not be dumped can be read."""
    line = next(
        one for one in Path("/proc/self/status").read_text().splitlines() if "CapEff" in one
    )
    return bool(int(line.split()[1], 16) >> _SYS_PTRACE & 1)
