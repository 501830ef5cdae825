"""Learning in context: k demonstrations of a task and a query, which the teacher answers (labeling, k-shot).

In-context learning distillation (Huang et al. 2022, arXiv 2212.10670, sections 3.2 and 3.3) trains a student on what a
teacher says behind demonstrations, in two regimes. Meta-ICT tunes on many tasks and tests on others, as MetaICL (Min
et al. 2022, arXiv 2110.15943, section 3) does: each training example is k demonstrations and a query of one task.
Multitask-ICT tunes on the tasks that are wanted themselves, and tests their held-out rows too.
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from pocketstill import grading
from pocketstill_pipeline.asking import Reply
from pocketstill_pipeline.example import Elicited
from pocketstill_pipeline.problems.families import FAMILIES, FORMS, HELD_OUT
from pocketstill_pipeline.sections import Rate
from pocketstill_pipeline.teacher.protocol import count_tokens

from .base import Context, Planned, Settings, ask_json, trouble
from .context_tasks import TARGET_TASK, Row, Task, find_tasks, target_of
from .prompts.in_context import (
    Chosen,
    NewPairs,
    choose_request,
    demonstration_turns,
    generate_request,
    label_request,
    read_output,
)

_OUTPUT_TOKENS = (1.0, 16.0)
_PAIR_TOKENS = (16.0, 40.0)
# How often new demonstrations are asked for when too few of them can be used.
_GENERATIONS = 3
_RANGE = re.compile(r"(\d+)-(\d+)")
_MOST_SHOTS = 1000


class InContext(Settings):
    """k-shot prompts over tasks by rule, or over the tasks of a file with the columns task, input and output."""

    FILES: ClassVar[tuple[str, ...]] = ("file",)

    method: Literal["in_context"] = "in_context"
    skill: str = Field("in_context", description="the skill that the examples belong to; its source may be none")
    regime: Literal["meta", "multitask"] = Field("meta", description="test other tasks, or those trained on as well")
    shots: int | list[int] | str = Field(4, description='demonstrations k: a number, several, or a range as in "1-8"')
    heldout_shots: list[Annotated[int, Field(ge=0)]] = Field(
        default_factory=list, description="each held-out query is asked with each of these; the most of shots if empty"
    )
    demonstrations: Literal["random", "generated", "chosen"] = Field(
        "random", description="from the task's rows, made by the teacher, or chosen by it for each query"
    )
    candidates: int = Field(12, ge=2, description="rows that the teacher chooses demonstrations from")
    described_by: int = Field(3, ge=1, description="rows that describe a task when demonstrations are generated")
    file: str = Field("", description="a data file with the columns task, input, output; by rule when left out")
    families: list[str] = Field(default_factory=list, description="families by rule to train on; all not held out")
    heldout_families: list[str] = Field(list(HELD_OUT), description="families that nothing trains on")
    forms: list[str] = Field(default_factory=list, description="surface forms of the tasks by rule; all if empty")
    tasks: int = Field(400, ge=1, description="training tasks by rule")
    queries: int = Field(4, ge=1, description="most queries a training task")
    heldout: int = Field(240, ge=0, description="held-out queries of unseen families")
    heldout_seen: int = Field(60, ge=0, description="held-out queries of unseen tasks, and of target tasks (multitask)")
    unseen_tasks: list[str] = Field(default_factory=list, description="tasks of the file that nothing trains on")
    unseen_share: Rate = Field(0.2, description="share of the file's tasks held out when none is named")

    @field_validator("shots")
    @classmethod
    def _counts(cls, shots: int | list[int] | str) -> int | list[int] | str:
        if not _shot_counts(shots):
            raise ValueError(f'it must be a number from 0 to {_MOST_SHOTS}, a list of such, or a range as in "1-8"')
        return shots

    @field_validator("families", "heldout_families")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in FAMILIES:
                nearest = difflib.get_close_matches(name, FAMILIES, n=1, cutoff=0.0)
                raise ValueError(f"there is no family {name!r}; nearest: {nearest[0]!r}")
        return names

    @field_validator("forms")
    @classmethod
    def _forms(cls, names: list[str]) -> list[str]:
        known = [form.name for form in FORMS]
        for name in names:
            if name not in known:
                raise ValueError(f"there is no surface form {name!r}; there are {', '.join(known)}")
        return names

    @property
    def shot_counts(self) -> list[int]:
        """Every k that a training query may be asked with."""
        return _shot_counts(self.shots)

    @property
    def tested_shots(self) -> list[int]:
        """Every k that a held-out query is asked with."""
        return sorted(set(self.heldout_shots)) or [max(self.shot_counts)]

    @property
    def trained_families(self) -> list[str]:
        """The families to train on: those named, or all, without those held out."""
        return [name for name in self.families or FAMILIES if name not in self.heldout_families]

    @property
    def pool_size(self) -> int:
        """How many rows a task needs beside its queries."""
        most = max(*self.shot_counts, *self.tested_shots, 1)
        return max(most, self.candidates if self.demonstrations == "chosen" else 0, self.described_by)


def _shot_counts(shots: int | list[int] | str) -> list[int]:
    if isinstance(shots, str):
        match = _RANGE.fullmatch(shots.strip())
        first, last = (int(match[1]), int(match[2])) if match else (1, 0)
        return list(range(first, last + 1)) if last <= _MOST_SHOTS else []
    counts = [shots] if isinstance(shots, int) else shots
    return counts if all(0 <= count <= _MOST_SHOTS for count in counts) else []


async def in_context(settings: InContext, context: Context) -> AsyncIterator[Elicited]:
    """Query by query, task by task: training tasks, then held-out ones.

    Demonstrations of held-out queries are always random rows of their task, so that a suite does not depend on what
    the teacher made or chose. A task's queries are asked one after the other, its generated demonstrations once.
    """
    found = find_tasks(settings, context.seed)
    tested = {task.name: {row.input for row in task.queries} for task in found.tasks if TARGET_TASK in task.tags}
    asked = _Asked(settings, context, tested)
    for number, bad in enumerate(found.bad):
        yield asked.unusable(number, f"{bad.where}: {bad.why}")
    async for several in context.teacher.map(asked.task, found.tasks):
        for elicited in several:
            yield elicited


class _Asked:
    """What one run of the route asks with."""

    def __init__(self, settings: InContext, context: Context, tested: Mapping[str, set[str]]) -> None:
        # Raises for a skill that the recipe does not have.
        context.check_skill(settings.skill)
        self.settings = settings
        self.context = context
        self.skill = context.skills[settings.skill]
        self.tested = tested

    async def task(self, task: Task) -> list[Elicited]:
        """Everything that is asked of one task."""
        settings = self.settings
        generated: list[Row] = []
        sources: tuple[str, ...] = ()
        if task.split == "train" and settings.demonstrations == "generated":
            generated, sources = await self._generate(task)
        found = []
        for number, query in enumerate(task.queries):
            drawn = f"{self.context.seed}/{settings.entry}/{task.name}/{number}"
            for shots in self._shots(task, random.Random(f"{drawn}/shots")):
                # The same order for every k, so that more shots only add to fewer.
                rng = random.Random(drawn)
                shown, keys, problem = await self._demonstrations(task, query, shots, generated, sources, rng)
                for sample in range((settings.samples or 1) if task.split == "train" else 1):
                    name = f"{settings.entry}/{task.name}/{number}/{shots}/{sample}"
                    found.append(await self._label(name, task, query, shown, keys, problem, sample))
        return found

    def _shots(self, task: Task, rng: random.Random) -> list[int]:
        return [rng.choice(self.settings.shot_counts)] if task.split == "train" else self.settings.tested_shots

    async def _demonstrations(
        self, task: Task, query: Row, shots: int, generated: Sequence[Row], sources: tuple[str, ...], rng: random.Random
    ) -> tuple[list[Row], tuple[str, ...], tuple[str, str] | None]:
        """The demonstrations of a query, the ledger keys that they come from, and why there are too few."""
        others = [row for row in task.pool if row.input != query.input]
        mode = self.settings.demonstrations if task.split == "train" else "random"
        if shots == 0:
            return [], (), None
        if mode == "generated":
            usable = [row for row in generated if row.input != query.input]
            if len(usable) < shots:
                return [], sources, ("few_demonstrations", f"{len(usable)} of {shots} could be used")
            return rng.sample(usable, shots), sources, None
        rng.shuffle(others)
        if mode == "random":
            return others[:shots], (), None
        return await self._choose(task, query, shots, others[: self.settings.candidates])

    async def _generate(self, task: Task) -> tuple[list[Row], tuple[str, ...]]:
        """New instances by the teacher of the task that a few rows describe, checked for their form."""
        described = list(task.pool[-self.settings.described_by :])
        tested = self.tested.get(target_of(task.name), set())
        wanted = max(self.settings.shot_counts) + 2
        good: list[Row] = []
        keys: tuple[str, ...] = ()
        for sample in range(_GENERATIONS):
            said, reply = await ask_json(
                self.context.teacher, generate_request(described, wanted), NewPairs, sample=sample
            )
            keys += (reply.key,)
            for pair in said.examples if said is not None else ():
                row = Row(pair.input.strip(), pair.output.strip())
                known = tested | {other.input for other in good}
                if well_formed(row, described) and row.input not in known:
                    good.append(row)
            if len(good) >= wanted - 1 or reply.error is not None:
                break
        return good, keys

    async def _choose(
        self, task: Task, query: Row, shots: int, candidates: list[Row]
    ) -> tuple[list[Row], tuple[str, ...], tuple[str, str] | None]:
        """The candidates that the teacher thinks help most with the query, in its order."""
        count = min(shots, len(candidates))
        if count == 0:
            return [], (), None
        request = choose_request(candidates, task.asked(query.input), count)
        said, reply = await ask_json(self.context.teacher, request, Chosen)
        numbers = list(dict.fromkeys(said.numbers)) if said is not None else []
        chosen = [candidates[number - 1] for number in numbers if 1 <= number <= len(candidates)]
        if len(chosen) < count:
            problem = trouble(reply) or ("bad_choice", reply.text.strip()[:200])
            return [], (reply.key,), problem
        return chosen[-count:], (reply.key,), None

    async def _label(
        self,
        name: str,
        task: Task,
        query: Row,
        shown: list[Row],
        keys: tuple[str, ...],
        problem: tuple[str, str] | None,
        sample: int,
    ) -> Elicited:
        messages = [{"role": "user", "content": task.asked(query.input)}]
        turns = demonstration_turns((task.asked(row.input), row.output) for row in shown)
        reply = Reply(key="")
        if problem is None:
            reply = await self.context.teacher.ask(
                label_request(turns, messages),
                sample=sample,
                # The same words may be a query of many tasks: the name keeps their draws apart.
                about=f"{task.name}/{query.input}",
                temperature=self.settings.temperature if task.split == "train" else 0.0,
                max_tokens=self.settings.max_tokens,
            )
            keys, problem = (*keys, reply.key), trouble(reply)
        kind = self.skill.kind
        answer = read_output(reply.text, task.around) if kind == "text" else grading.extract(reply.text, kind)
        if problem is None and answer is None:
            problem = "no_answer", reply.text.strip()[:200]
        reason, detail = problem or (None, "")
        generated = self.settings.demonstrations == "generated" and task.split == "train"
        return Elicited(
            id=name,
            skill=self.settings.skill,
            route="expansion" if generated else "labeling",
            method=self.settings.method,
            messages=messages,
            answer=answer,
            completion=reply.text,
            kind=kind,
            gold=query.output if self.skill.graded else None,
            split=task.split,
            source=keys,
            tags=(task.about, f"shots={len(shown)}", *task.tags),
            group=f"{task.name}/{query.input}",
            demonstrations=turns,
            reason=reason,
            detail=detail,
        )

    def unusable(self, number: int, why: str) -> Elicited:
        """A row of the file that cannot be used, listed among the rejected with its line."""
        settings = self.settings
        return Elicited(
            id=f"{settings.entry}/bad_row/{number}",
            skill=settings.skill,
            route="labeling",
            method=settings.method,
            messages=[{"role": "user", "content": ""}],
            answer=None,
            completion="",
            kind=self.skill.kind,
            reason="unreadable_row",
            detail=why,
        )


def well_formed(row: Row, described: Sequence[Row]) -> bool:
    """Whether a generated instance has the form of those that described its task, and is none of them.

    Neither side may be empty, have lines where none of theirs has, or be more than four times as long as their longest.
    """
    if row.input in {other.input for other in described}:
        return False
    for said, theirs in ((row.input, [r.input for r in described]), (row.output, [r.output for r in described])):
        lines = any("\n" in text for text in theirs)
        if not said or ("\n" in said and not lines) or len(said) > 4 * max(map(len, theirs)) + 8:
            return False
    return True


def plan(settings: InContext, context: Context) -> list[Planned]:
    """The requests for answers, and for demonstrations made or chosen."""
    tasks = find_tasks(settings, context.seed).tasks
    trained = [task for task in tasks if task.split == "train"]
    queries = sum(len(task.queries) for task in trained)
    heldout = sum(len(task.queries) for task in tasks if task.split == "heldout") * len(settings.tested_shots)
    labels = queries * (settings.samples or 1) + heldout
    row = _row_tokens(tasks)
    counts = settings.shot_counts
    mean_shots = (sum(counts) / len(counts) * queries + max(settings.tested_shots) * heldout) / max(
        queries + heldout, 1
    )
    prompt = 30 + row * (mean_shots + 0.5)
    found = [Planned("answers behind demonstrations", (labels, labels), (0.8 * prompt, 1.2 * prompt), _OUTPUT_TOKENS)]
    if settings.demonstrations == "generated":
        wanted = max(counts) + 2
        size = 60 + 2 * row * settings.described_by
        low, high = _PAIR_TOKENS
        most = len(trained) * _GENERATIONS
        found.append(Planned("demonstrations", (len(trained), most), (size, size), (low * wanted, high * wanted)))
    if settings.demonstrations == "chosen":
        size = 80 + 2 * row * settings.candidates
        found.append(Planned("choices", (queries, 3 * queries), (size, size), (8.0, 8.0 + 4 * max(counts))))
    return found


def _row_tokens(tasks: Sequence[Task]) -> float:
    """Mean tokens of an instance in its surface form."""
    some: list[Any] = [(task, row) for task in tasks[:: max(1, len(tasks) // 200)] for row in task.pool[:2]]
    sizes = [count_tokens(task.asked(row.input)) + count_tokens(row.output) for task, row in some]
    return sum(sizes) / max(len(sizes), 1)
