"""Peak memory of this process, for programs that run in an environment of their own."""

from __future__ import annotations

import re
import resource
from pathlib import Path


def peak_mib(children: bool = False) -> float:
    """In MiB, the largest child process added if asked for.

    From /proc where there is one: what getrusage says of a process includes the one that started it.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    own = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss if children else 0
    return (own + largest) / 1024
