"""Collect: elicit what the recipe asks for from its teacher, and keep all that is said in the ledger."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    nullcontext,
    suppress,
)
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from pocketstill.errors import UserError
from pocketstill.files import sha256_file
from pocketstill.manifest import MANIFEST, read_manifest, up_to_date, write_manifest

from .elicit.base import Context, Planned, Settings
from .elicit.methods import METHODS
from .endpoints import endpoint_of, local_server, rules_digest
from .entries import SAMPLES, context_of, entries_of
from .example import Question, Split
from .ledger import Ledger
from .progress import Shown
from .question_file import open_questions, write_questions
from .questions import iter_questions
from .quote import plans_of, quote_of
from .reading import BadRow
from .recipe import Recipe, Teacher
from .session import Session
from .teacher.batch import BatchClient, batching
from .teacher.client import Tally, TeacherClient, connected
from .teacher.server import running_teacher
from .teacher.spending import Spending

T = TypeVar("T")

QUESTIONS = "questions.jsonl"
LEDGER = "ledger.sqlite"
UNREADABLE = "unreadable.jsonl"


@dataclass(frozen=True)
class CollectResult:
    """What a collection holds. `price` is in the recipe's money, 0 when it gives no prices.

    `requests` were sent by the last run, to teacher and student, `from_cache` were answered before it; `failed` have
    no answer. `samples` came of them, `usable` of these have nothing against them so far. `unreadable` rows of data
    files are listed in unreadable.jsonl with file and line.
    """

    folder: Path
    questions: int
    samples: int
    usable: int
    unreadable: int
    requests: int
    from_cache: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    price: float
    seconds: float


def collect(recipe: Recipe, out: Path, *, progress: Console | None = None) -> CollectResult:
    """Elicit all that the recipe asks for.

    Writes questions.jsonl, samples/<entry>.jsonl, ledger.sqlite and manifest.json to `out`. Resumes: what the ledger
    holds is never asked again. A request that failed is kept with its reason, and asked again only when the
    collection is made anew (another recipe, or its manifest removed).

    Raises:
        UserError: the teacher cannot be reached or refuses, the budget is spent, a file is broken, or the disk is
            full.
    """
    config, inputs = collect_config(recipe), collect_inputs(recipe)
    if up_to_date(out, config, inputs):
        return _result(out)
    started = time.monotonic()
    bad: list[BadRow] = []
    splits = _prepare(recipe, out, bad)
    if bad and progress is not None:
        said = f"{len(bad)} rows cannot be used, see {out / UNREADABLE}; the first: {bad[0].where}: {bad[0].why}"
        progress.print(said, markup=False)
    with ExitStack() as stack:
        questions = stack.enter_context(open_questions(out / QUESTIONS))
        ledger = stack.enter_context(Ledger(out / LEDGER))
        own = stack.enter_context(Ledger(out / "student" / LEDGER)) if recipe.student_endpoint else None
        plans = plans_of(recipe, questions, out)
        if progress is not None:
            progress.print(quote_of(recipe, plans, out).line())
        urls = [stack.enter_context(_reached(recipe, teacher)) for teacher in _teachers(recipe)]
        run = _Run(recipe, questions, out, plans, ledger, own, Shown(progress))
        tallies = _finished(run.all(urls))
    sent = {name: sum(getattr(tally, name) for tally in tallies) for name in ("requests", "from_cache", "failed")}
    if run.samples and not sent["from_cache"] and sent["failed"] >= sent["requests"] > 0:
        raise UserError(f"collect: all {sent['failed']} requests failed; their reasons are in {out / LEDGER}")
    seconds = time.monotonic() - started
    counts = {"questions": splits.total(), "train": splits["train"], "heldout": splits["heldout"]} | sent
    counts |= {"samples": run.samples, "usable": run.usable, "unreadable": len(bad)} | _totals(out / LEDGER)
    write_manifest(
        out, stage="collect", config=config, inputs=inputs,
        outputs=[out / QUESTIONS, out / UNREADABLE, out / LEDGER, *sorted((out / SAMPLES).glob("*.jsonl"))],
        seed=recipe.seed, counts=counts, seconds=seconds,
    )  # fmt: skip
    return _result(out)


def collect_config(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that determines what is collected; gates, prices and pace do not."""
    pace = {
        "mode", "concurrency", "requests_per_minute", "tokens_per_minute", "timeout_s", "retries", "price_in",
        "price_out", "batch_requests", "batch_price", "api_key_env", "replay", "bundle",
    }  # fmt: skip
    asked = {}
    for name, teacher in (("teacher", recipe.teacher), ("student", recipe.student_endpoint)):
        if teacher is not None:
            asked[name] = teacher.model_dump(mode="json", exclude=pace)
            rates = asked[name]["embedded"]
            asked[name]["embedded"] = {key: rates[key] for key in ("mistakes", "noise")}
    kept = {"name", "kind", "graded", "split", "questions", "heldout", "expand", "form", "columns"}
    skills = [
        # A file counts by its content (`collect_inputs`), wherever it lies.
        skill.model_dump(mode="json", include=kept)
        | {"source": Path(skill.source).name if skill.from_file else skill.source}
        for skill in recipe.skills
    ]
    elicit = [
        entry.model_dump(mode="json") | {name: Path(path).name for name, path in entry.files.items()}
        for entry in entries_of(recipe)
    ]
    return {"seed": recipe.seed, "skills": skills, "elicit": elicit} | asked


def collect_inputs(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of every file that the recipe reads questions or recorded completions from, and of the rules.

    Raises:
        UserError: one of them cannot be read.
    """
    named = {f"source/{s.name}": s.source for s in recipe.skills if s.from_file}
    for teacher in _teachers(recipe):
        if teacher.base_url == "replay":
            named |= {f"replay/{index}": path for index, path in enumerate(teacher.replay)}
        elif teacher.base_url == "bundle":
            named["bundle"] = str(Path(teacher.bundle) / "pocketstill.json")
    for entry in recipe.elicit:
        named |= {f"{entry.entry}/{name}": path for name, path in entry.files.items()}
    by_rule = any(t.base_url == "embedded" for t in _teachers(recipe))
    by_rule = by_rule or any(s.source == "embedded" or s.expand for s in recipe.skills)
    hashes = {"rules": rules_digest()} if by_rule else {}
    for name, path in named.items():
        hashes |= file_hashes(name, Path(path))
    return hashes


def read_questions(folder: Path) -> list[Question]:
    """The questions of a collection, in their order."""
    with (folder / QUESTIONS).open(encoding="utf-8") as lines:
        return [Question.from_dict(json.loads(line)) for line in lines]


def file_hashes(name: str, path: Path) -> dict[str, str]:
    """SHA-256 of a file, or of each in a folder, behind the name that it goes by.

    Raises:
        UserError: it cannot be read.
    """
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    try:
        if path.is_dir():
            return {f"{name}/{file.relative_to(path)}": sha256_file(file) for file in files}
        return {name: sha256_file(path)}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); the recipe names it as {name}") from None


def _teachers(recipe: Recipe) -> list[Teacher]:
    return [recipe.teacher, *([recipe.student_endpoint] if recipe.student_endpoint else [])]


def _reached(recipe: Recipe, teacher: Teacher) -> AbstractContextManager[str]:
    """A context in which somebody answers for `teacher`; gives the base URL."""
    server = local_server(recipe, teacher)
    return nullcontext(teacher.base_url) if server is None else running_teacher(server)


def _prepare(recipe: Recipe, out: Path, bad: list[BadRow]) -> Counter[Split]:
    """Draw the questions into an empty collection, and count them by split.

    What an earlier collection holds stays if they cannot be drawn.
    """
    drawn = out / f"{QUESTIONS}.partial"
    try:
        out.mkdir(parents=True, exist_ok=True)
        splits = write_questions(drawn, iter_questions(recipe, bad))
        (out / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(out / SAMPLES, ignore_errors=True)
        (out / SAMPLES).mkdir()
        drawn.replace(out / QUESTIONS)
        rows = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in bad)
        (out / UNREADABLE).write_text(rows, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); free some space or mend the path") from None
    finally:
        with suppress(OSError):
            drawn.unlink(missing_ok=True)
    return splits


@dataclass
class _Run:
    """One collection under way, and how many samples it has made."""

    recipe: Recipe
    questions: Sequence[Question]
    out: Path
    plans: dict[str, list[Planned]]
    ledger: Ledger
    own_ledger: Ledger | None
    show: Shown
    samples: int = 0
    usable: int = 0

    async def all(self, urls: list[str]) -> list[Tally]:
        """Every entry of the recipe, one after the other; the tallies of the teacher, and of the student if asked."""
        recipe = self.recipe
        async with AsyncExitStack() as stack:
            spending = Spending.of(recipe.budget, recipe.teacher, self.ledger.spent())
            client = await stack.enter_async_context(_client(recipe.teacher, urls[0], self.ledger, spending))
            teacher = Session(client, recipe.teacher, endpoint_of(recipe, recipe.teacher), recipe.seed)
            student, tallies = None, [client.tally]
            if recipe.student_endpoint is not None and self.own_ledger is not None:
                learner = await stack.enter_async_context(_client(recipe.student_endpoint, urls[1], self.own_ledger))
                tallies.append(learner.tally)
                endpoint = endpoint_of(recipe, recipe.student_endpoint)
                student = Session(learner, recipe.student_endpoint, endpoint, recipe.seed)
            context = context_of(recipe, self.questions, self.out, teacher, student)
            stack.enter_context(self.show)
            for entry in entries_of(recipe):
                await self._entry(entry, context, tallies)
            client.check_reached()
            return tallies

    async def _entry(self, entry: Settings, context: Context, tallies: list[Tally]) -> None:
        path = self.out / SAMPLES / f"{entry.entry}.jsonl"
        partial = path.with_suffix(".partial")
        # What builds on an earlier entry is known exactly now.
        plan = METHODS[entry.method].plan(entry, context) if entry.builds_on else self.plans[entry.entry]
        self.show.start(entry.entry, plan, tallies)
        shown = asyncio.create_task(self.show.follow())
        try:
            with partial.open("w", encoding="utf-8") as file:
                async for item in METHODS[entry.method].elicit(entry, context):
                    file.write(json.dumps(item.to_dict(), ensure_ascii=False) + "\n")
                    self.samples += 1
                    self.usable += item.reason is None
                    self.show.count(item.reason)
        finally:
            shown.cancel()
        self.show.finish()
        partial.rename(path)


def _finished(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`. On Python 3.10 too, an interrupt cancels `work` alone, not the requests that it yet takes in."""
    if sys.version_info >= (3, 11) or threading.current_thread() is not threading.main_thread():
        return asyncio.run(work)

    async def main() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
        # Windows has no such handlers.
        with suppress(NotImplementedError):
            loop.add_signal_handler(signal.SIGINT, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    return asyncio.run(main())


def _client(
    teacher: Teacher, url: str, ledger: Ledger, spending: Spending | None = None
) -> AbstractAsyncContextManager[TeacherClient | BatchClient]:
    return (batching if teacher.mode == "batch" else connected)(teacher, url, ledger, spending)


def _totals(ledger_path: Path) -> dict[str, Any]:
    totals: dict[str, Any] = {"prompt_tokens": 0, "completion_tokens": 0, "price": 0.0}
    with Ledger(ledger_path, readonly=True) as ledger:
        for row in ledger.rows():
            totals["prompt_tokens"] += row.prompt_tokens or 0
            totals["completion_tokens"] += row.completion_tokens or 0
            totals["price"] += row.price or 0.0
    return totals


def _result(out: Path) -> CollectResult:
    manifest = read_manifest(out)
    assert manifest is not None
    named = {name: manifest.counts[name] for name in CollectResult.__dataclass_fields__ if name in manifest.counts}
    return CollectResult(folder=out, seconds=manifest.seconds, **named)
