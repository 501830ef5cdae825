"""Verifies a bundle on this device: its skills, its speed and its size, in a process without a network."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketstill.bundle import Bundle, SuiteItem, Variant
from pocketstill.engines import installed_variant
from pocketstill.errors import BundleError, EngineError, UserError
from pocketstill.files import read_json, write_json
from pocketstill.grading import equal, extract, rationale_leads_to, token_f1
from pocketstill.stats import wilson

# Called with (stage, done, total); total is 0 where nothing is counted.
Progress = Callable[[str, int, int], None]

# Allocated is not resident: the backstop on allocations stands well above the budget on memory in use.
_ALLOCATION_FACTOR, _ALLOCATION_EXTRA_MIB = 2, 2048


@dataclass(frozen=True)
class SkillResult:
    """One skill (or tag). `low` and `high` are Wilson's 95 % interval of `accuracy`.

    `token_f1` is the mean over all questions; `rationale_accuracy` is the share of answers whose rationale
    leads to them, among those where that can be told, and None when there is none. `gate` None means report
    only.
    """

    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    gate: float | None
    passed: bool
    token_f1: float
    rationale_accuracy: float | None


@dataclass(frozen=True)
class Verification:
    """What `verify` found. MiB are 2**20 bytes, ms milliseconds; `answers` has one dict per question."""

    passed: bool
    failures: tuple[str, ...]
    bundle: str
    variant: str
    engine: str
    file_mib: float
    skills: dict[str, SkillResult]
    tags: dict[str, SkillResult]
    load_s: float
    speed: dict[str, float]
    peak_rss_mib: float
    threads: int
    thread_rates: dict[str, float]
    cores: int
    network: str
    answers: tuple[dict[str, Any], ...]

    def to_dict(self, *, answers: bool = False) -> dict[str, Any]:
        """JSON values; the answers are left out unless asked for."""
        found: dict[str, Any] = {
            "passed": self.passed,
            "failures": list(self.failures),
            "bundle": self.bundle,
            "variant": self.variant,
            "engine": self.engine,
            "file_mib": round(self.file_mib, 3),
            "skills": {name: _rounded(vars(result)) for name, result in self.skills.items()},
            "tags": {name: _rounded(vars(result)) for name, result in self.tags.items()},
            "load_s": round(self.load_s, 4),
            **_rounded(self.speed),
            "peak_rss_mib": round(self.peak_rss_mib, 1),
            "threads": self.threads,
            "thread_rates": _rounded(self.thread_rates),
            "cores": self.cores,
            "network": self.network,
        }
        if answers:
            found["answers"] = [dict(answer) for answer in self.answers]
        return found


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}


def verify(
    folder: str | Path,
    *,
    variant: str | None = None,
    limit: int | None = None,
    cores: int = 2,
    threads: int | None = None,
    memory_mib: int | None = None,
    file_mib: float | None = None,
    repetitions: int = 5,
    on_progress: Progress | None = None,
) -> Verification:
    """Answers the bundle's suite greedily in one process of its own, and holds the result to the gates.

    A variant passes when every skill with a gate reaches it, and the budgets that are given hold.

    Args:
        folder: the bundle; every file of it is checked first.
        variant: by name; otherwise the bundle's default, or another one whose engine is installed.
        limit: only the first so many questions of each skill.
        cores: how many cores the process may use.
        threads: skips the trial that finds the fastest number.
        memory_mib: budget of peak memory in use, MiB.
        file_mib: budget of the variant's files, MiB.
        repetitions: of each timing, after one warm-up.
        on_progress: hears of the progress, in the place of a bar on stderr.

    Raises:
        BundleError: when the bundle is not what its index says, or has no questions.
        EngineError: when the engine is missing, refuses the file or crashes, or the network stays reachable.
        UserError: when a limit makes no sense.
    """
    for name, value in (
        ("limit", limit),
        ("cores", cores),
        ("threads", threads),
        ("repetitions", repetitions),
    ):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; give 1 or more")
    bundle = Bundle.load(folder)
    chosen = bundle.variant(variant) if variant else installed_variant(bundle)
    items = _first_of_each(bundle.suite(), limit)
    if not items:
        raise BundleError(f"{bundle.folder} has an empty suite; without questions it cannot be verified")
    job = {
        "folder": str(bundle.folder.resolve()),
        "variant": chosen.name,
        "ids": [item.id for item in items],
        "cores": cores,
        "threads": threads,
        "allocation_mib": memory_mib and _ALLOCATION_FACTOR * memory_mib + _ALLOCATION_EXTRA_MIB,
        "repetitions": repetitions,
    }
    with nullcontext(on_progress) if on_progress else _progress_bar() as progress:
        result = _run_worker(job, chosen, progress)
    return _judge(bundle, chosen, result, memory_mib, file_mib)


def _first_of_each(items: Sequence[SuiteItem], limit: int | None) -> list[SuiteItem]:
    taken: dict[str, int] = defaultdict(int)
    found = []
    for item in items:
        taken[item.skill] += 1
        if limit is None or taken[item.skill] <= limit:
            found.append(item)
    return found


@contextmanager
def _progress_bar() -> Iterator[Progress]:
    from rich import progress
    from rich.console import Console

    columns = ("{task.description}", progress.BarColumn(), progress.MofNCompleteColumn())
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total or None)


def _run_worker(job: dict[str, Any], variant: Variant, on_progress: Progress) -> dict[str, Any]:
    """Runs the worker while listening on a loopback port, which it must reach before and not after."""
    with (
        tempfile.TemporaryDirectory(prefix="pocketstill-") as name,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        scratch = Path(name)
        result = scratch / "result.json"
        write_json(scratch / "job.json", {**job, "result": str(result), "listener": listener.getsockname()[:2]})
        command = [sys.executable, "-m", "pocketstill._verify_worker", str(scratch / "job.json")]
        with (scratch / "stderr").open("w+b") as stderr:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=_environment()
            )
            try:
                where = _follow(process, on_progress)
                code = process.wait()
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
                if process.stdout:
                    process.stdout.close()
            stderr.seek(0)
            complaint = stderr.read().decode("utf-8", "replace")
        if code < 0:
            raise EngineError(
                f"{variant.name}: the engine died of {_signal_name(-code)} while {where}; try another "
                "variant, or build the engine for this processor"
            )
        if code or not result.is_file():
            raise RuntimeError(f"the verifying process failed with status {code}:\n{complaint}")
        found: dict[str, Any] = read_json(result)
        met = _connections(listener)
    if "error" in found:
        kind = {"BundleError": BundleError, "UserError": UserError}.get(found.get("error_type", ""), EngineError)
        raise kind(found["error"])
    if met != int(found["network_before"]):
        raise EngineError(f"the verifying process made {met} connections; verify in a container without a network")
    return found


def _connections(listener: socket.socket) -> int:
    """How many connections wait at the listener: its own view of what the worker could reach."""
    listener.setblocking(False)
    count = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def _environment() -> dict[str, str]:
    package = str(Path(__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH", "")
    return {
        **os.environ,
        "PYTHONPATH": f"{package}{os.pathsep}{path}" if path else package,
        "ORT_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # numpy is used for a little copying; its thread pool would only cost memory.
        "OPENBLAS_NUM_THREADS": "1",
    }


def _follow(process: subprocess.Popen[bytes], on_progress: Progress) -> str:
    """Passes the worker's progress on; returns what it was doing last."""
    where = "starting"
    for line in process.stdout or ():
        try:
            told = json.loads(line)
            stage, done, total = str(told["stage"]), int(told.get("done", 0)), int(told.get("of", 0))
        except (ValueError, KeyError, TypeError):
            continue  # a native library that prints
        where = f"answering question {min(done + 1, total)} of {total}" if total else stage
        on_progress(stage, done, total)
    return where


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def graded_answer(item: SuiteItem, completion: str) -> dict[str, Any]:
    """What a completion of a suite's question is worth: prediction, whether it is right, and the smoother scores."""
    prediction = extract(completion, item.answer_kind)
    question = item.messages[-1]["content"] if item.messages else ""
    return {
        "id": item.id,
        "skill": item.skill,
        "tags": list(item.tags),
        "question": question,
        "gold": item.gold,
        "completion": completion,
        "prediction": prediction,
        "correct": equal(prediction, item.gold, item.answer_kind),
        "token_f1": token_f1(prediction, item.gold),
        "rationale_leads_to_answer": rationale_leads_to(completion, item.answer_kind, question),
    }


def _judge(
    bundle: Bundle,
    variant: Variant,
    result: Mapping[str, Any],
    memory_mib: int | None,
    file_mib: float | None,
) -> Verification:
    answers = tuple(result["answers"])
    by_skill: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    by_tag: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for answer in answers:
        by_skill[answer["skill"]].append(answer)
        for tag in answer["tags"]:
            by_tag[tag].append(answer)
    gates = {name: skill.get("gate") for name, skill in bundle.skills.items()}
    skills = {name: _result(rows, gates.get(name)) for name, rows in by_skill.items()}
    failures = [
        f"{name}: accuracy {skill.accuracy:.1%} of {skill.n} is below its gate of {skill.gate:.1%}"
        for name, skill in skills.items()
        if not skill.passed
    ]
    failures += [
        f"{name}: has a gate of {gate:.1%} and no question"
        for name, gate in gates.items()
        if gate is not None and name not in skills
    ]
    size = variant.bytes / (1 << 20)
    if file_mib is not None and size > file_mib:
        failures.append(f"file: {size:.2f} MiB is above the budget of {file_mib:g} MiB")
    if memory_mib is not None and result["peak_rss_mib"] > memory_mib:
        failures.append(f"memory: peak of {result['peak_rss_mib']:.0f} MiB is above the budget of {memory_mib} MiB")
    return Verification(
        passed=not failures,
        failures=tuple(failures),
        bundle=bundle.name,
        variant=variant.name,
        engine=variant.engine,
        file_mib=size,
        skills=skills,
        tags={name: _result(rows, None) for name, rows in sorted(by_tag.items())},
        load_s=result["load_s"],
        speed=dict(result["speed"]),
        peak_rss_mib=result["peak_rss_mib"],
        threads=result["threads"],
        thread_rates=dict(result["thread_rates"]),
        cores=result["cores"],
        network=result["network"],
        answers=answers,
    )


def _result(rows: Sequence[Mapping[str, Any]], gate: float | None) -> SkillResult:
    n, correct = len(rows), sum(bool(row["correct"]) for row in rows)
    low, high = wilson(correct, n)
    told = [row["rationale_leads_to_answer"] for row in rows if row["rationale_leads_to_answer"] is not None]
    return SkillResult(
        n=n,
        correct=correct,
        accuracy=correct / n,
        low=low,
        high=high,
        gate=gate,
        passed=gate is None or correct / n >= gate,
        token_f1=sum(row["token_f1"] for row in rows) / n,
        rationale_accuracy=sum(told) / len(told) if told else None,
    )
