"""Reinforced self-training (ReST, Gulcehre et al. 2023, arXiv 2308.08998, section 3): grow, then improve.

Grow: N samples of the student to every question. Improve: those whose reward reaches a threshold, and then those that
reach a higher one, and so on; each stage trains on its own. The reward is 1 for a right answer and 0 for a wrong one,
as in its variant for verifiable problems (Singh et al. 2023, arXiv 2312.06585, section 3), or the teacher's score.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from pocketstill import grading
from pocketstill.errors import UserError
from pocketstill_pipeline.elicit.base import Context, Planned, ask_json
from pocketstill_pipeline.elicit.feedback.candidates import (
    FRAME_TOKENS,
    JUDGE_TEMPERATURE,
    REASON_TOKENS,
    question_of,
    reply_of,
)
from pocketstill_pipeline.elicit.feedback.score import scores_schema
from pocketstill_pipeline.elicit.prompts.feedback import CRITERIA, score_request
from pocketstill_pipeline.elicit.sampling import REPLY_TOKENS, mean_tokens
from pocketstill_pipeline.example import Elicited, Question
from pocketstill_pipeline.sections import Rate

from .own import OwnSettings, own_questions, own_sample, planned_own, samples_of


class RestSettings(OwnSettings):
    """Keep the student's samples by their reward."""

    method: Literal["rest"] = "rest"
    reward: Literal["answer", "teacher"] = Field(
        "answer", description="answer: 1 when it is right; teacher: its score of the quality, 1 to 5 as 0 to 1"
    )
    thresholds: list[Rate] = Field([1.0], min_length=1, description="of the stages, rising")

    @model_validator(mode="after")
    def _rising(self) -> RestSettings:
        if any(a >= b for a, b in zip(self.thresholds, self.thresholds[1:], strict=False)):
            raise ValueError("thresholds must rise from stage to stage, as [0.5, 0.75, 1.0]")
        return self


async def rest(settings: RestSettings, context: Context) -> AsyncIterator[Elicited]:
    """Every sample with its `reward`, tagged `stage_1`, `stage_2`, ... for each threshold that it reaches.

    Raises:
        UserError: a question has no right answer and `reward` is "answer".
    """
    student = context.asks_student()

    async def one(unit: tuple[int, int]) -> Elicited:
        index, sample = unit
        made = await own_sample(settings, context, questions[index], sample)
        if made.reason is not None:
            return made
        if settings.reward == "teacher":
            made = await _scored(made, context)
        else:
            right = made.gold is not None and grading.equal(made.answer, made.gold, made.kind)
            made = replace(made, scores={"reward": float(right)})
        return _staged(made, settings.thresholds)

    questions = _rewarded(settings, context)
    units = ((index, sample) for index in range(len(questions)) for sample in range(samples_of(settings)))
    async for made in student.map(one, units):
        yield made


def _rewarded(settings: RestSettings, context: Context) -> Sequence[Question]:
    questions = own_questions(settings, context)
    ungraded = next((q.skill for q in questions if not context.skills[q.skill].graded), None)
    if settings.reward == "answer" and ungraded is not None:
        raise UserError(
            f"elicit: {settings.entry}: skill {ungraded!r} has no right answers to reward; "
            'set reward = "teacher", or name other skills'
        )
    return questions


async def _scored(item: Elicited, context: Context) -> Elicited:
    criteria = {"quality": CRITERIA["quality"]}
    found, reply = await ask_json(
        context.teacher, score_request(question_of(item), reply_of(item), criteria), scores_schema(["quality"]),
        temperature=JUDGE_TEMPERATURE,
    )  # fmt: skip
    item = replace(item, source=(*item.source, reply.key))
    if found is None:
        return replace(item, reason="unscored", detail=reply.error or reply.text.strip()[:200])
    quality = float(found.quality.score)  # type: ignore[attr-defined]
    return replace(item, scores={"reward": (quality - 1) / 4, "quality": quality})


def _staged(item: Elicited, thresholds: list[float]) -> Elicited:
    """The stages that it is part of; one that reaches none is dropped, a wrong one by its answer as everywhere."""
    if item.reason is not None:
        return item
    reward = item.scores["reward"]
    stages = tuple(f"stage_{number}" for number, least in enumerate(thresholds, 1) if reward >= least)
    item = replace(item, tags=(*item.tags, *stages))
    wrong = item.gold is not None and not grading.equal(item.answer, item.gold, item.kind)
    if stages or wrong:
        return item
    return replace(item, reason="below_threshold", detail=f"reward {reward:.2f}, below {thresholds[0]:.2f}")


def plan_rest(settings: RestSettings, context: Context) -> list[Planned]:
    """The student's samples, and the teacher's scores of them when these are the reward."""
    questions = _rewarded(settings, context)
    planned = [planned_own(settings, context, samples_of(settings))]
    if settings.reward == "teacher":
        count, around = len(questions) * samples_of(settings), mean_tokens(questions) + FRAME_TOKENS
        shown = (around + REPLY_TOKENS[0], around + REPLY_TOKENS[1])
        planned.append(Planned("scores", (0, count), shown, REASON_TOKENS))
    return planned
