"""Runs the programs of a teacher, which nobody has read, in processes that can do nothing but compute.

A warm worker (`sandbox_worker.py`) is started with no environment but a fixed hash seed, no site packages and none of
this project's modules, enters an empty network namespace where it may, and forks a child for every program. What
holds in that child:

- Linux on x86-64 and ARM64: the kernel refuses every system call but those for memory, the clock and one pipe
  (seccomp). Nothing can be opened, created, connected, started or signalled, whatever the program makes of Python.
- Everywhere: limits on processor time, wall time, memory, and the size of files and of the answer; an empty, already
  removed working folder; Python's own rules: an allow-list of modules, no `open`, `eval`, `__import__` or names
  with two underscores, and an audit hook that refuses files, sockets and processes.

What does not: Python's rules alone are no wall, since a determined program finds its way around them, and memory
limits are not kept on macOS. So where the kernel's filter is missing, `Sandbox` refuses to start unless it is told that
this is good enough. No side channel is closed: a program can see what machine it is on, and how busy that is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from pocketstill import isolate
from pocketstill.errors import UserError

State = Literal["done", "forbidden", "failed", "timeout"]
_WORKER = Path(__file__).with_name("sandbox_worker.py")
_MOST_PROGRAM = 32_768
_START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Limits:
    """Of one program: processor and wall time in seconds, address space in MiB."""

    cpu_s: float = 2.0
    wall_s: float = 30.0
    memory_mib: int = 256


@dataclass(frozen=True)
class Outcome:
    """What came of a program: its `answer` as text when `done`, else why not in `detail`."""

    state: State
    answer: str = ""
    detail: str = ""


class Sandbox:
    """A pool of warm workers; `async with Sandbox() as sandbox: await sandbox.run(program)`.

    Args:
        limits: of each program.
        workers: processes that run programs side by side; None takes one a core.
        weak: run programs also where the kernel does not confine them (see above).

    Raises:
        UserError: on entering, when programs cannot be run here, or not confined and `weak` is false.
    """

    def __init__(self, limits: Limits | None = None, *, workers: int | None = None, weak: bool = False) -> None:
        self._limits = limits or Limits()
        self._count = workers or os.cpu_count() or 1
        self._weak = weak
        self._started: list[_Worker] = []
        self._free: asyncio.LifoQueue[_Worker] = asyncio.LifoQueue()

    async def __aenter__(self) -> Sandbox:
        if not hasattr(os, "fork"):
            raise UserError("sandbox: programs can be run on Linux and macOS only; leave program_of_thought out here")
        for _ in range(self._count):
            self._free.put_nowait(_Worker(self._limits, self._weak))
        # The first one says whether programs are held at all; the others start when they are needed.
        first = self._free.get_nowait()
        self._started.append(first)
        try:
            await first.start()
        except BaseException:
            await first.stop()
            raise
        self._free.put_nowait(first)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(worker.stop() for worker in self._started))

    async def run(self, program: str) -> Outcome:
        """Run one program, which is to set `answer`; never raises for anything that it does."""
        if len(program) > _MOST_PROGRAM:
            return Outcome("forbidden", detail=f"a program of {len(program)} characters")
        worker = await self._free.get()
        try:
            if worker not in self._started:
                self._started.append(worker)
            return await worker.run(program)
        finally:
            self._free.put_nowait(worker)


class _Worker:
    def __init__(self, limits: Limits, weak: bool) -> None:
        self._limits = limits
        self._weak = weak
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> asyncio.subprocess.Process:
        """The running process.

        Raises:
            UserError: it does not start, or does not hold programs.
        """
        if self._process is not None:
            return self._process
        process = self._process = await asyncio.create_subprocess_exec(
            # As isolated as with -I, which would also ignore the hash seed: with another one, a program that goes
            # through a set would answer otherwise in the next run.
            *(sys.executable, "-s", "-S", "-B", "-X", "utf8", str(_WORKER)),
            str(Path(isolate.__file__).resolve()), json.dumps(asdict(self._limits)),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env={"PYTHONHASHSEED": "0"},
            # Ctrl-C ends the run, which then ends its workers.
            start_new_session=True,
        )  # fmt: skip
        said = await self._line(process, _START_TIMEOUT_S)
        if said is None:
            raise UserError("sandbox: its process did not start; see the lines above")
        if not said["filter"] and not self._weak:
            raise UserError(
                "sandbox: this system cannot confine programs (no seccomp); set weak_sandbox = true in the entry if "
                "Python's own rules and limits are enough for programs of this teacher"
            )
        return process

    async def run(self, program: str) -> Outcome:
        process = await self.start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(program).encode() + b"\n")
            await process.stdin.drain()
            # Its own limits come first; this one is for a worker that is gone.
            said = await self._line(process, self._limits.wall_s + _START_TIMEOUT_S)
        except ConnectionError:
            said = None
        except BaseException:
            # Its answer will come when nobody waits: it must not be taken for the next program's.
            await self.stop()
            raise
        if said is None or said.get("state") not in ("done", "forbidden", "failed", "timeout"):
            await self.stop()
            return Outcome("failed", detail="the process that ran it ended")
        return Outcome(said["state"], said.get("answer", ""), said.get("detail", ""))

    async def stop(self) -> None:
        """End the process; the next program starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        assert process.stdin is not None
        process.stdin.close()
        # All of its output is read before the loop goes, or the pipe would be closed too late.
        await process.communicate()

    @staticmethod
    async def _line(process: asyncio.subprocess.Process, seconds: float) -> dict[str, Any] | None:
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), seconds)
            found = json.loads(line)
        except (ValueError, asyncio.TimeoutError):
            return None
        return found if isinstance(found, dict) else None
