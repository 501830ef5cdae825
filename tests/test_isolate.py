from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pocketstill import isolate

AVOID_NAMESPACE = "isolate._enter_empty_namespace = lambda: False\n"
PROBE = """
import socket, sys
from pocketstill import isolate
{prepare}port = int(sys.argv[1])
before = isolate.network_reachable("127.0.0.1", port)
means = isolate.deny_network()
print(before, isolate.network_reachable("127.0.0.1", port), means)
"""


def probe(prepare: str, *, port: int) -> list[str]:
    code = PROBE.format(prepare=prepare)
    done = subprocess.run([sys.executable, "-c", code, str(port)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split(" ", 2)


@pytest.mark.parametrize("prepare", ["", AVOID_NAMESPACE], ids=["best means", "fallback"])
def test_after_denial_a_listener_is_out_of_reach(prepare: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        before, after, means = probe(prepare, port=listener.getsockname()[1])
        listener.settimeout(5)
        listener.accept()[0].close()
        listener.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listener.accept()
    assert (before, after) == ("True", "False")
    assert means == isolate.AUDIT_HOOK if prepare else means in (isolate.NAMESPACE, isolate.AUDIT_HOOK)


def test_files_stay_readable_and_writable_after_denial(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pocketstill import isolate; isolate.deny_network(); "
        "p = Path(sys.argv[1]); p.write_text('x'); print(p.read_text())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "x\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_cores_are_limited() -> None:
    code = "import os; from pocketstill.isolate import *; print(limit_cores(1), len(os.sched_getaffinity(0)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "1 1\n", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts private memory against the limit")
def test_memory_is_limited() -> None:
    code = "from pocketstill import isolate; isolate.limit_memory(200); x = bytearray(300 << 20)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "MemoryError" in done.stderr


def test_peak_memory_sees_what_was_touched_and_not_the_parent() -> None:
    ballast = bytearray(b"x") * (200 << 20)
    code = (
        "from pocketstill import isolate; a = isolate.peak_rss_mib(); x = bytearray(b'x') * (64 << 20); "
        "print(a, isolate.peak_rss_mib())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    before, after = map(float, done.stdout.split())
    assert len(ballast) == 200 << 20
    assert before < 100
    assert 60 < after - before < 80
