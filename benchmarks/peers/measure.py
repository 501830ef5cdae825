"""Whole processes measured: wall seconds, and the peak memory of the process with all that it starts."""

from __future__ import annotations

import contextlib
import os
import resource
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_EVERY_S = 0.02


@dataclass(frozen=True)
class Run:
    """One run of a command. `peak_mib` is None where the system does not tell (no /proc)."""

    seconds: float
    peak_mib: float | None
    status: int
    last_words: str


def run(command: Sequence[str | Path], *, environment: dict[str, str] | None = None) -> Run:
    """Runs a command to its end."""
    with tempfile.TemporaryFile() as words:
        started = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=subprocess.STDOUT,
            env=os.environ | (environment or {}),
        )
        peak, done = [0], threading.Event()
        watch = threading.Thread(target=_watch, args=(process.pid, peak, done), daemon=True)
        watch.start()
        status = process.wait()
        seconds = time.perf_counter() - started
        done.set()
        watch.join()
        words.seek(0)
        lines = [line.strip() for line in words.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return Run(seconds, peak[0] / 1024 if peak[0] else None, status, lines[-1] if lines else "")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) == 1:
        return {"median": values[0], "q1": values[0], "q3": values[0]}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high}


def machine() -> dict[str, Any]:
    """What the figures were taken on, and how busy it was with other work."""
    names = [line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return {
        "cpu": names[0] if names else "unknown",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "own_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _watch(root: int, peak: list[int], done: threading.Event) -> None:
    """Keeps the largest sum seen, in KiB.

    Memory of one's own is added over the tree; pages of files (libraries, mapped weights) are shared by the
    processes that map them, so the largest process alone counts for those.
    """
    while not done.wait(_EVERY_S):
        sizes = [_memory(pid) for pid in _tree(root)]
        if sizes:
            peak[0] = max(peak[0], sum(own for own, _ in sizes) + max(files for _, files in sizes))


def _tree(root: int) -> list[int]:
    found = [root]
    for pid in found:
        for task in _entries(Path(f"/proc/{pid}/task")):
            found += [int(child) for line in _lines(task / "children") for child in line.split()]
    return found


def _memory(pid: int) -> tuple[int, int]:
    """KiB of the process's own, and of files."""
    fields = {"RssAnon": 0, "RssShmem": 0, "RssFile": 0}
    for line in _lines(Path(f"/proc/{pid}/status")):
        name, _, value = line.partition(":")
        if name in fields:
            fields[name] = int(value.split()[0])
    return fields["RssAnon"] + fields["RssShmem"], fields["RssFile"]


def _entries(path: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(path.iterdir())
    return []


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8").splitlines()
    return []
