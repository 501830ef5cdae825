"""Evol-Instruct (Xu et al. 2023, WizardLM, arXiv 2304.12244, section 3): instructions made harder, round by round.

Every instruction is evolved in each of M rounds by an operation drawn at random, in depth or in breadth. An evolved
instruction that fails is dropped and its parent tried again in the next round; otherwise it takes its parent's place.
"""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from pocketstill_pipeline.asking import Reply
from pocketstill_pipeline.curating.texts import words as words_of
from pocketstill_pipeline.elicit.base import Asker, Context, Planned, Settings, declined, trouble
from pocketstill_pipeline.elicit.prompts.evolving import (
    COPIED,
    OPERATIONS,
    Operation,
    compare_request,
    evolve_request,
    read_compare,
    read_evolved,
)
from pocketstill_pipeline.elicit.sampling import untouched
from pocketstill_pipeline.example import Elicited
from pocketstill_pipeline.teacher.protocol import count_tokens

from .seeds import as_asked, read_seeds
from .stopwords import STOPWORDS

# A reply that says sorry is a failure when it is shorter than this, in words (section 3.2 of the paper).
_SHORT_WORDS = 80
_SORRY = re.compile(r"\bsorry\b", re.IGNORECASE)


class EvolInstruct(Settings):
    """Evolve instructions: of a file of seeds, of skills of the recipe, or of an earlier entry."""

    FILES: ClassVar[tuple[str, ...]] = ("seeds",)

    method: Literal["evol_instruct"] = "evol_instruct"
    skill: str = Field(description="that the examples count as")
    seeds: str = Field("", description="JSONL of instructions, with instances if wanted")
    skills: list[str] = Field(default_factory=list, description="whose training questions are evolved")
    of: str = Field("", description="an earlier [[elicit]] entry whose instructions are evolved")
    limit: int | None = Field(None, ge=1, description="most instructions to start from")
    rounds: int = Field(4, ge=1, description="M, rounds of evolution")
    operations: list[Operation] = Field(
        default_factory=lambda: list(OPERATIONS), min_length=1, description="what may be drawn, in depth or in breadth"
    )
    keep_starts: bool = Field(True, description="answer the instructions that it starts from too")

    @model_validator(mode="after")
    def _from_somewhere(self) -> EvolInstruct:
        if not (self.seeds or self.skills or self.of):
            raise ValueError("evol_instruct needs instructions to start from: seeds, skills or of")
        if self.of and self.limit is None:
            raise ValueError("evol_instruct of an earlier entry needs a limit, so that its cost is known beforehand")
        return self


@dataclass(frozen=True)
class Start:
    """An instruction to evolve; `sample` is the index of the chain of evolutions."""

    id: str
    text: str
    sample: int


@dataclass(frozen=True)
class Evolved:
    """What one round made of an instruction: the new one, or why there is none, and the replies so far."""

    text: str
    operation: str
    replies: tuple[Reply, ...]
    reason: str | None = None
    detail: str = ""

    def but(self, reason: str | None, detail: str, *replies: Reply) -> Evolved:
        return Evolved(self.text, self.operation, (*self.replies, *replies), reason, detail)


async def evol_instruct(settings: EvolInstruct, context: Context) -> AsyncIterator[Elicited]:
    """Each start with all its rounds, start by start.

    What an instruction becomes depends on no other one, so no round waits for another instruction's.

    Raises:
        UserError: the seeds cannot be read, or there is no such skill or earlier entry.
    """
    context.check_skill(settings.skill)

    async def one(start: Start) -> list[Elicited]:
        made = []
        if settings.keep_starts and start.sample == 0:
            given = await _answered(Evolved(start.text, "start", ()), start, settings, context.teacher)
            made.append(_elicited(settings, start, 0, given, ""))
        text = start.text
        for number in range(1, settings.rounds + 1):
            rng = random.Random(f"{context.seed}/{settings.entry}/{start.id}/{start.sample}/{number}")
            operation = rng.choice(settings.operations)
            evolved = await _evolve(text, operation, number, start, settings, context.teacher)
            made.append(_elicited(settings, start, number, evolved, text))
            if evolved.reason is None:
                text = evolved.text
        return made

    async for items in context.teacher.map(one, starts(settings, context)):
        for item in items:
            yield item


def starts(settings: EvolInstruct, context: Context) -> Iterator[Start]:
    """The instructions to start from, each as often as `samples` says (once when it says nothing)."""
    for index, (identity, text) in enumerate(_texts(settings, context)):
        if settings.limit is not None and index >= settings.limit:
            return
        for sample in range(settings.samples or 1):
            yield Start(identity, text, sample)


def _texts(settings: EvolInstruct, context: Context) -> Iterator[tuple[str, str]]:
    if settings.seeds:
        for number, seed in enumerate(read_seeds(Path(settings.seeds))):
            given = seed.instances[0].input if seed.instances else ""
            yield f"seed-{number}", as_asked(seed.instruction, given)
    for skill in settings.skills:
        for question in context.of_skills([skill]):
            if question.split == "train":
                yield question.id, question.text
    if settings.of:
        groups: set[str] = set()
        for item in context.earlier(settings.of):
            # One instance of each instruction.
            if item.reason is None and item.split == "train" and (item.group or item.question) not in groups:
                groups.add(item.group or item.question)
                yield item.id, item.question


async def _evolve(
    parent: str, operation: Operation, number: int, start: Start, settings: EvolInstruct, teacher: Asker
) -> Evolved:
    """One round of one instruction, with the four rules of elimination, those that cost nothing first."""
    options = _options(settings, start, number)
    reply = await teacher.ask(evolve_request(parent, operation), **options)
    told = trouble(reply)
    if told is not None:
        return Evolved(parent, operation, (reply,), *told)
    evolved = Evolved(read_evolved(reply.text), operation, (reply,))
    if not evolved.text:
        return Evolved(parent, operation, (reply,), "empty")
    told = declined(evolved.text)
    if told is not None and declined(parent) is None:
        return evolved.but(*told)
    copied = next((found[0] for found in COPIED.finditer(evolved.text) if found[0].lower() not in parent.lower()), None)
    if copied is not None:
        return evolved.but("eliminated_copied_prompt", copied)
    judged = await teacher.ask(compare_request(parent, evolved.text), temperature=0.0)
    told = trouble(judged)
    if told is not None:
        return evolved.but(*told, judged)
    equal = read_compare(judged.text)
    if equal is not False:
        reason = "eliminated_no_gain" if equal else "no_judgement"
        return evolved.but(reason, judged.text.strip()[:200], judged)
    return await _answered(evolved.but(None, "", judged), start, settings, teacher, number)


async def _answered(evolved: Evolved, start: Start, settings: EvolInstruct, teacher: Asker, number: int = 0) -> Evolved:
    """With the reply to the instruction, which shows whether it can be answered at all."""
    asked = [{"role": "user", "content": evolved.text}]
    reply = await teacher.ask(asked, **_options(settings, start, number))
    told = trouble(reply)
    if told is not None and told[0] != "empty":
        return evolved.but(*told, reply)
    words = [word.replace("’", "'") for word in words_of(reply.text)]
    if _SORRY.search(reply.text) and len(words) < _SHORT_WORDS:
        return evolved.but("eliminated_sorry", f"{len(words)} words", reply)
    # A number is a word with content; the paper's rule is about punctuation and stop words alone.
    if all(word in STOPWORDS for word in words):
        return evolved.but("eliminated_empty", reply.text.strip()[:200], reply)
    return evolved.but(None, "", reply)


def _options(settings: EvolInstruct, start: Start, number: int) -> dict[str, Any]:
    sample = start.sample * (settings.rounds + 1) + number
    return {"sample": sample, "temperature": settings.temperature, "max_tokens": settings.max_tokens}


def _elicited(settings: EvolInstruct, start: Start, number: int, evolved: Evolved, parent: str) -> Elicited:
    last = evolved.replies[-1]
    # The last of up to three replies is the answer only when nothing stopped it before.
    answered = number == 0 or len(evolved.replies) == 3
    return Elicited(
        id=f"{start.id}/{start.sample}/{number}",
        skill=settings.skill,
        route="expansion",
        method="evol_instruct",
        messages=[{"role": "user", "content": evolved.text}],
        answer=untouched(last.text) or None if answered and last.error is None else None,
        completion=last.text,
        kind="text",
        source=tuple(reply.key for reply in evolved.replies),
        tags=(f"round:{number}", f"operation:{evolved.operation}"),
        group=f"{settings.entry}/{start.id}/{start.sample}",
        reason=evolved.reason,
        detail=evolved.detail or (f"of {parent[:150]!r}" if evolved.reason else ""),
    )


def plan(settings: EvolInstruct, context: Context) -> list[Planned]:
    """Up to three requests a round and instruction: evolve, compare, answer."""
    known = [start.text for start in starts(settings.model_copy(update={"of": ""}), context)]
    size = sum(map(count_tokens, known)) / len(known) if known else 40.0
    chains = len(known), len(known)
    if settings.of:
        # How many instructions an earlier entry will make is known by the limit alone.
        chains = len(known), (settings.limit or 0) * (settings.samples or 1)
    every = (chains[0] * settings.rounds, chains[1] * settings.rounds)
    first = [count // (settings.samples or 1) * settings.keep_starts for count in chains]
    # Each round adds 10 to 20 words.
    grown = (size + 5, size + 15 * settings.rounds)
    answers = (first[0], every[1] + first[1])
    return [
        Planned("evolutions", every, (grown[0] + 90, grown[1] + 110), grown),
        Planned("comparisons", (0, every[1]), (2 * grown[0] + 50, 2 * grown[1] + 50), (1.0, 3.0)),
        Planned("answers", answers, grown, (40.0, 400.0)),
    ]
