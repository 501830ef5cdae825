"""What all methods of self-knowledge share: whose questions, how the student is asked, its samples by question."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from pocketstill.errors import UserError
from pocketstill_pipeline.elicit.base import Context, Planned, Settings
from pocketstill_pipeline.elicit.sampling import PROMPT, Prompting, planned_samples, sampled
from pocketstill_pipeline.example import Elicited, Question
from pocketstill_pipeline.question_file import select

# So many samples a question when neither the entry nor the recipe says more than one: their choice is the point.
_FEWEST = 4


class OwnSettings(Settings):
    """An entry that asks the student the training questions."""

    skills: list[str] = Field(default_factory=list, description="whose questions; all when left out")
    prompt: Prompting = PROMPT

    @property
    def needs_student(self) -> bool:
        """Always: it is the student's own knowledge."""
        return True

    @property
    def options(self) -> dict[str, Any]:
        """How the student is asked."""
        return {"temperature": self.temperature, "max_tokens": self.max_tokens}


def own_questions(settings: OwnSettings, context: Context) -> Sequence[Question]:
    """The training questions, each once: held-out ones measure, nobody learns from them.

    Raises:
        UserError: the recipe has no such skill.
    """
    return select(
        context.of_skills(settings.skills), lambda question: question.split == "train" and not question.occurrence
    )


def graded_questions(settings: OwnSettings, context: Context) -> Sequence[Question]:
    """Those of `own_questions` whose answers can be compared.

    Raises:
        UserError: there are none.
    """
    questions = own_questions(settings, context)
    found = select(questions, lambda question: bool(context.skills[question.skill].graded))
    if questions and not found:
        raise UserError(
            f"elicit: {settings.entry} compares answers, and {questions[0].skill!r} is not graded; name other skills"
        )
    return found


def samples_of(settings: OwnSettings) -> int:
    """N, samples a question."""
    return settings.samples or _FEWEST


async def own_sample(settings: OwnSettings, context: Context, question: Question, sample: int) -> Elicited:
    """One of the student's samples; greedy when its temperature is 0."""
    graded = context.skills[question.skill].graded
    made = await sampled(
        context.asks_student(), question, sample, settings.prompt, graded=graded, **settings.options
    )  # fmt: skip
    return replace(made, route="self_knowledge", method=settings.method)


async def own_samples(
    settings: OwnSettings, context: Context, questions: Sequence[Question], count: int
) -> AsyncIterator[tuple[Question, list[Elicited]]]:
    """Each question with `count` samples. All are asked for at once, not question by question."""

    async def one(unit: tuple[Question, int]) -> Elicited:
        return await own_sample(settings, context, *unit)

    units = ((question, sample) for question in questions for sample in range(count))
    gathered: list[Elicited] = []
    at = 0
    async for made in context.asks_student().map(one, units):
        gathered.append(made)
        if len(gathered) == count:
            yield questions[at], gathered
            gathered, at = [], at + 1


def planned_own(settings: OwnSettings, context: Context, count: int) -> Planned:
    """The student's requests for `count` samples a question."""
    questions = own_questions(settings, context)
    return planned_samples("the student's samples", questions, count, settings.prompt, context, "student")
