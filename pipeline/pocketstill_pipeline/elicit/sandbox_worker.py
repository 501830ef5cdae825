"""The process that `sandbox.py` starts: it forks a child for every program, under limits, and says what came of it.

It is run as a file and imports nothing of this project but `isolate.py`, by the path in its first argument, so that
none of what a run holds (keys, data, open files) is in its memory. Lines of JSON come in and go out. The first line
out says what holds here: {"network": means, "filter": whether the kernel refuses system calls}.
"""

from __future__ import annotations

import ast
import builtins
import ctypes
import gc
import importlib.util
import json
import os
import platform
import resource
import select
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

MODULES = (
    "bisect", "calendar", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "heapq", "itertools", "math", "numbers", "operator", "re", "statistics", "string", "textwrap",
    "typing",
)  # fmt: skip
# What these import themselves when they are used; by then the filter lets nothing be read.
_LAZY = ("_strptime", "time", "unicodedata")
_NO_BUILTINS = frozenset(
    "open exec eval compile __import__ input breakpoint globals locals vars help exit quit copyright credits license "
    "memoryview __loader__ __spec__ __debug__".split()
)
_REFUSED_EVENTS = ("open", "os.", "subprocess.", "socket.", "ctypes.", "shutil.", "fcntl.", "mmap.", "signal.", "pty.")
_MOST_ANSWER, _MOST_DETAIL, _MOST_REPLY = 1000, 300, 1 << 16
# Read, write (the one pipe that is left), close, fstat, lseek, memory, futex, clocks, yield, randomness, exit. No
# opening, no sockets, no processes, no signals: by number for each machine, from the kernel's own tables.
_CALLS = {
    "x86_64": (0xC000003E, (0, 1, 3, 5, 8, 9, 10, 11, 12, 15, 24, 25, 28, 60, 96, 202, 219, 228, 231, 318)),
    "aarch64": (
        0xC00000B7, (63, 64, 57, 80, 62, 222, 226, 215, 214, 139, 124, 216, 233, 93, 169, 98, 128, 113, 94, 278),
    ),
}  # fmt: skip
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050001
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER_MODE, _PARENT_DEATH_SIGNAL = 38, 22, 2, 1


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction)))


class _ForbiddenError(Exception):
    """What a program wants that none may have."""


def _filter() -> _Program | None:
    """The kernel's filter of system calls (seccomp, Linux): those of `_CALLS` go through, all others are refused."""
    known = _CALLS.get(platform.machine()) if sys.platform == "linux" else None
    if known is None:
        return None
    machine, allowed = known
    count = len(allowed)
    # The offsets 4 and 0 are of seccomp_data: the machine, and the number of the call.
    lines = [(_LOAD, 0, 0, 4), (_JUMP_EQUAL, 1, 0, machine), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    lines += [(_JUMP_EQUAL, count - index, 0, number) for index, number in enumerate(allowed)]
    lines += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    instructions = (_Instruction * len(lines))(*(_Instruction(*line) for line in lines))
    return _Program(len(lines), ctypes.cast(instructions, ctypes.POINTER(_Instruction)))


def _confine(libc: Any, program: _Program) -> bool:
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_SET_SECCOMP, _FILTER_MODE, ctypes.byref(program), 0, 0) == 0)


def _limit(limits: dict[str, float]) -> None:
    memory, cpu = int(limits["memory_mib"]) << 20, int(limits["cpu_s"]) + 1
    wanted = {
        "RLIMIT_AS": memory, "RLIMIT_DATA": memory, "RLIMIT_CPU": cpu, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": 0,
    }  # fmt: skip
    for name, most in wanted.items():
        if hasattr(resource, name):
            # Some systems do not know a limit, or do not let it be set; the others still hold.
            try:
                resource.setrlimit(getattr(resource, name), (most, most))
            except (ValueError, OSError):
                continue
    # By processor time, so that a busy machine fails no program that would finish on an idle one.
    signal.setitimer(signal.ITIMER_PROF, limits["cpu_s"])


def _check(tree: ast.AST) -> None:
    stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            wanted = [node.module or "."]
        elif isinstance(node, ast.Attribute) and node.attr.startswith("__"):
            raise _ForbiddenError(f"the attribute {node.attr}")
        elif isinstance(node, ast.Name) and node.id in _NO_BUILTINS and node.id not in stored:
            raise _ForbiddenError(f"the name {node.id}")
        else:
            continue
        for name in wanted:
            if name.partition(".")[0] not in MODULES:
                raise _ForbiddenError(f"import of {name}")


def _import(name: str, space: Any = None, names: Any = None, wanted: Any = (), level: int = 0) -> Any:
    if level or (name.partition(".")[0] not in MODULES and name not in _LAZY):
        raise _ForbiddenError(f"import of {name}")
    return builtins.__import__(name, space, names, wanted, level)


def _silent(*_: Any, **__: Any) -> None:
    """`print` of a program: what it prints goes nowhere."""


def _refuse_event(event: str, _: Any) -> None:
    if event.startswith(_REFUSED_EVENTS):
        raise PermissionError(f"{event}: a program may not do this")


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _execute(program: str) -> dict[str, str]:
    names = {name: value for name, value in vars(builtins).items() if name not in _NO_BUILTINS}
    space: dict[str, Any] = {"__name__": "__main__"}
    space["__builtins__"] = names | {"print": _silent, "__import__": _import}
    try:
        tree = ast.parse(program)
        _check(tree)
        exec(compile(tree, "program", "exec"), space)
        if space.get("answer") is None:
            return {"state": "failed", "detail": "it sets no answer"}
        text = _said(space["answer"])
    except _ForbiddenError as error:
        return {"state": "forbidden", "detail": str(error)}
    # A program may raise anything, even what ends an interpreter.
    except BaseException as error:
        return {"state": "failed", "detail": f"{type(error).__name__}: {error}"[:_MOST_DETAIL]}
    if len(text) > _MOST_ANSWER:
        return {"state": "failed", "detail": f"the answer has {len(text)} characters"}
    return {"state": "done", "answer": text}


def _child(pipe: int, program: str, limits: dict[str, float], libc: Any, rules: _Program | None) -> NoReturn:
    os.closerange(0, pipe)
    os.closerange(pipe + 1, 256)
    _limit(limits)
    if sys.platform == "linux":
        libc.prctl(_PARENT_DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)
    if rules is not None and not _confine(libc, rules):
        os._exit(70)
    sys.addaudithook(_refuse_event)
    try:
        os.write(pipe, json.dumps(_execute(program)).encode())
    finally:
        os._exit(0)


def _run(program: str, limits: dict[str, float], libc: Any, rules: _Program | None) -> dict[str, str]:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(theirs, program, limits, libc, rules)
    os.close(theirs)
    deadline, said = time.monotonic() + limits["wall_s"], b""
    late = False
    while len(said) < _MOST_REPLY:
        ready = select.select([ours, 0], [], [], max(0.0, deadline - time.monotonic()))[0]
        if ours not in ready:
            if ready:
                # Nobody asks before the answer is there: standard input has ended, and with it the run.
                os.kill(pid, signal.SIGKILL)
                sys.exit()
            late = True
            break
        part = os.read(ours, _MOST_REPLY)
        if not part:
            break
        said += part
    os.close(ours)
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    try:
        found = json.loads(said)
        return {name: str(found[name])[:_MOST_REPLY] for name in ("state", "answer", "detail") if name in found}
    except (ValueError, TypeError, RecursionError):
        killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if late or killed in (signal.SIGPROF, signal.SIGXCPU):
        return {"state": "timeout", "detail": f"more than {limits['wall_s' if late else 'cpu_s']:g} s"}
    return {"state": "failed", "detail": f"it ended by signal {killed}" if killed else "it said nothing"}


def _holds(limits: dict[str, float], libc: Any, rules: _Program | None) -> bool:
    """Whether this kernel takes the filter: a program runs under it, and cannot open so much as its own folder."""
    if rules is None or _run("answer = 1", limits, libc, rules).get("state") != "done":
        return False
    pid = os.fork()
    if pid == 0:
        if not _confine(libc, rules):
            os._exit(1)
        try:
            os.open("/", os.O_RDONLY)
        except PermissionError:
            os._exit(0)
        os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def main() -> None:
    """Serve until standard input ends."""
    # The folder of this file: a program must not find what lies there.
    sys.path.pop(0)
    spec = importlib.util.spec_from_file_location("isolate", sys.argv[1])
    assert spec is not None and spec.loader is not None
    isolate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(isolate)
    limits: dict[str, float] = json.loads(sys.argv[2])
    for name in (*MODULES, *_LAZY):
        importlib.import_module(name)
    # A folder that is gone already: nothing can be made in it, and nothing is left of it.
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    Path(folder).rmdir()
    network = isolate.deny_network()
    libc, rules = ctypes.CDLL(None, use_errno=True), _filter()
    gc.freeze()
    rules = rules if _holds(limits, libc, rules) else None
    say = sys.stdout.write
    say(json.dumps({"network": network, "filter": rules is not None}) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        say(json.dumps(_run(json.loads(line), limits, libc, rules)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
