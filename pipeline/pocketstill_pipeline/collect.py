"""Collect: ask the teacher every question of the recipe, and keep all that it says in the ledger."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from pocketstill.errors import UserError
from pocketstill.files import sha256_file
from pocketstill.manifest import MANIFEST, read_manifest, up_to_date, write_manifest

from .asking import Asker, local_teacher, rules_digest, samples_of
from .example import Question
from .ledger import Ledger
from .prompts import reasons_first
from .questions import build_questions
from .recipe import Recipe
from .teacher.client import Tally, TeacherClient, connected
from .teacher.server import running_teacher

QUESTIONS = "questions.jsonl"
LEDGER = "ledger.sqlite"


@dataclass(frozen=True)
class CollectResult:
    """What a collection holds. `price` is in the recipe's money, 0 when it gives no prices.

    `requests` were sent by the last run, `from_cache` were answered before it; `failed` have no answer.
    """

    folder: Path
    questions: int
    requests: int
    from_cache: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    price: float
    seconds: float


def collect(recipe: Recipe, out: Path, *, progress: Console | None = None) -> CollectResult:
    """Ask the recipe's teacher all of its questions.

    Writes questions.jsonl, ledger.sqlite and manifest.json to `out`. Resumes: what the ledger
    holds is never asked again. A request that failed is kept with its reason, and asked again only when the
    collection is made anew (another recipe, or its manifest removed).

    Raises:
        UserError: the teacher cannot be reached or refuses, a file is broken, or the disk is full.
    """
    config, inputs = collect_config(recipe), collect_inputs(recipe)
    if up_to_date(out, config, inputs):
        return _result(out)
    started = time.monotonic()
    questions = build_questions(recipe)
    _prepare(out, questions)
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(out / LEDGER))
        local = local_teacher(recipe)
        url = recipe.teacher.base_url if local is None else stack.enter_context(running_teacher(local))
        tally = asyncio.run(_ask_all(recipe, questions, url, ledger, progress))
    if questions and not tally.from_cache and tally.failed >= tally.requests > 0:
        raise UserError(f"collect: all {tally.failed} requests failed; their reasons are in {out / LEDGER}")
    seconds = time.monotonic() - started
    counts = _counts(out / LEDGER, questions, tally)
    write_manifest(
        out, stage="collect", config=config, inputs=inputs, outputs=[out / QUESTIONS, out / LEDGER],
        seed=recipe.seed, counts=counts, seconds=seconds,
    )  # fmt: skip
    return _result(out)


def collect_config(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that determines what is collected; gates, prices and pace do not."""
    teacher = recipe.teacher.model_dump(
        mode="json",
        exclude={
            "concurrency", "requests_per_minute", "timeout_s", "retries", "price_in", "price_out",
            "api_key_env", "replay",
        },
    )  # fmt: skip
    teacher["embedded"].pop("latency_ms")
    kept = {"name", "kind", "source", "questions", "heldout", "expand"}
    skills = [skill.model_dump(mode="json", include=kept) for skill in recipe.skills]
    return {"seed": recipe.seed, "teacher": teacher, "skills": skills}


def collect_inputs(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of every file that the recipe reads questions or recorded completions from, and of the rules.

    Raises:
        UserError: one of them cannot be read.
    """
    named = {f"source/{s.name}": s.source for s in recipe.skills if s.source != "embedded"}
    if recipe.teacher.base_url == "replay":
        named |= {f"replay/{index}": path for index, path in enumerate(recipe.teacher.replay)}
    by_rule = recipe.teacher.base_url == "embedded" or any(s.source == "embedded" or s.expand for s in recipe.skills)
    hashes = {"rules": rules_digest()} if by_rule else {}
    for name, path in named.items():
        try:
            hashes[name] = sha256_file(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); the recipe names it as {name}") from None
    return hashes


def read_questions(folder: Path) -> list[Question]:
    """The questions of a collection, in their order."""
    with (folder / QUESTIONS).open(encoding="utf-8") as lines:
        return [Question.from_dict(json.loads(line)) for line in lines]


def _prepare(out: Path, questions: list[Question]) -> None:
    text = "".join(json.dumps(question.to_dict(), ensure_ascii=False) + "\n" for question in questions)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MANIFEST).unlink(missing_ok=True)
        (out / QUESTIONS).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); free some space or mend the path") from None


async def _ask_all(
    recipe: Recipe, questions: list[Question], url: str, ledger: Ledger, console: Console | None
) -> Tally:
    asker = Asker(recipe)
    jobs = iter([(q, sample) for q in questions for sample in samples_of(q, recipe.teacher)])
    total = sum(len(samples_of(q, recipe.teacher)) * (1 + reasons_first(q.kind)) for q in questions)
    async with connected(recipe.teacher, url, ledger) as client:
        with _Shown(console, total) as show:
            workers = [asyncio.create_task(_work(jobs, asker, client, show)) for _ in range(recipe.teacher.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                # Awaited, so that none is left to complain after the loop has closed.
                await asyncio.gather(*workers, return_exceptions=True)
            client.check_reached()
        return client.tally


async def _work(jobs: Iterator[tuple[Question, int]], asker: Asker, client: TeacherClient, show: _Shown) -> None:
    for done, (question, sample) in enumerate(jobs):
        first = await client.ask(asker.first(question, sample))
        if first.error is None and reasons_first(question.kind):
            await client.ask(asker.answer(question, sample, first.text))
        show.update(client.tally)
        if first.cached and done % 64 == 0:
            await asyncio.sleep(0)


class _Shown:
    """The progress bar on stderr: requests done, rate, failures, cost. Without a console it shows nothing."""

    def __init__(self, console: Console | None, total: int) -> None:
        columns = (TextColumn("collect"), BarColumn(), TextColumn("{task.fields[said]}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, refresh_per_second=4) if console else None
        self._task: TaskID | None = None
        self._total, self._started, self._next = total, time.monotonic(), 0.0

    def __enter__(self) -> _Shown:
        if self._progress is not None:
            self._progress.start()
            self._task = self._progress.add_task("collect", total=self._total, said="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, tally: Tally) -> None:
        now = time.monotonic()
        done = tally.requests + tally.from_cache
        if self._progress is None or self._task is None or (now < self._next and done < self._total):
            return
        self._next = now + 0.25
        rate = tally.requests / max(now - self._started, 1e-6)
        said = f"{done}/{self._total} requests, {rate:.0f}/s, {tally.failed} failed"
        said += f", {tally.from_cache} from ledger" if tally.from_cache else ""
        said += f", cost {tally.price:.4f}" if tally.price else ""
        self._progress.update(self._task, completed=done, said=said)


def _counts(ledger_path: Path, questions: list[Question], tally: Tally) -> dict[str, Any]:
    totals = {"prompt_tokens": 0, "completion_tokens": 0, "price": 0.0}
    with Ledger(ledger_path, readonly=True) as ledger:
        for row in ledger.rows():
            if row.state == "done":
                totals["prompt_tokens"] += row.prompt_tokens or 0
                totals["completion_tokens"] += row.completion_tokens or 0
                totals["price"] += row.price or 0.0
    return totals | {
        "questions": len(questions),
        "train": sum(q.split == "train" for q in questions),
        "heldout": sum(q.split == "heldout" for q in questions),
        "requests": tally.requests,
        "from_cache": tally.from_cache,
        "failed": tally.failed,
    }


def _result(out: Path) -> CollectResult:
    manifest = read_manifest(out)
    assert manifest is not None
    named = {name: manifest.counts[name] for name in CollectResult.__dataclass_fields__ if name in manifest.counts}
    return CollectResult(folder=out, seconds=manifest.seconds, **named)
