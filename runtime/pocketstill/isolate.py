"""Cuts a process off from the network and holds it to a device's cores and memory.

Everything here is for a process of its own, such as the one that `verify` starts: none of it can be undone.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from pathlib import Path
from typing import Any

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
NAMESPACE = "network namespace"
AUDIT_HOOK = "audit hook"


def deny_network() -> str:
    """Takes the network from this process and from its children; returns the means.

    On Linux an empty network namespace, which has not even a loopback: no code in the process, native or not,
    gets around it. Call it before the first thread starts, since a process with threads cannot enter a user
    namespace. Where that is refused, an audit hook stops Python's own sockets (native code is not held).
    """
    if sys.platform == "linux" and _enter_empty_namespace():
        return NAMESPACE
    sys.addaudithook(_refuse_sockets)
    return AUDIT_HOOK


def _enter_empty_namespace() -> bool:
    try:
        unshare = ctypes.CDLL(None, use_errno=True).unshare
    except (OSError, AttributeError):
        return False
    # With the right to do so, a network namespace alone keeps the user's rights over files.
    if unshare(_CLONE_NEWNET) == 0:
        return True
    user, group = os.getuid(), os.getgid()
    if unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    # Without a mapping, files would belong to nobody; a refusal changes nothing about the network.
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        try:
            Path(f"/proc/self/{name}").write_text(text)
        except OSError:
            break
    return True


def _refuse_sockets(event: str, args: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"):
        raise PermissionError(f"{event}: this process has no network")


def network_reachable(host: str, port: int, timeout: float = 1.0) -> bool:
    """Whether a TCP connection to `host` and `port` comes about within `timeout` seconds."""
    try:
        with socket.create_connection((host, port), timeout=timeout):
            return True
    except OSError:
        return False


def limit_cores(n: int) -> int:
    """Holds this process to `n` of its cores where the system can do that; returns how many it may use."""
    if not hasattr(os, "sched_setaffinity"):
        return min(n, os.cpu_count() or 1)
    allowed = sorted(os.sched_getaffinity(0))[: max(1, n)]
    os.sched_setaffinity(0, allowed)
    return len(allowed)


def limit_memory(mib: int) -> bool:
    """Lets this process allocate at most `mib` MiB of private memory; False where the system cannot do that.

    A backstop against runaway growth: allocated is not resident, so leave room above a budget in RSS.
    """
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (mib << 20, mib << 20))
    except (ImportError, AttributeError, ValueError, OSError):
        return False
    return True


def peak_rss_mib() -> float:
    """The most memory that this process has had resident, in MiB."""
    try:
        # getrusage counts the parent's memory from before exec; the kernel's own high-water mark does not.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024
