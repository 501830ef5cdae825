"""Self-improvement by majority (LMSI, Huang et al. 2022, arXiv 2210.11610, section 3).

N reasoning paths of the student to a question; those that lead to the answer of most are kept. No right answer is
looked at: the share of paths that agree is the confidence, which the paper finds to follow accuracy.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field

from pocketstill import grading
from pocketstill.grading import Kind
from pocketstill_pipeline.elicit.base import Context, Planned
from pocketstill_pipeline.example import Elicited
from pocketstill_pipeline.sections import Rate

from .own import OwnSettings, graded_questions, own_samples, planned_own, samples_of


class LmsiSettings(OwnSettings):
    """Keep the student's paths that agree with most of its others."""

    method: Literal["lmsi"] = "lmsi"
    min_share: Rate = Field(0.0, description="share of the paths that must agree")


def majority(answers: Sequence[str | None], kind: Kind) -> tuple[str | None, float]:
    """The answer that most give, None when two are given equally often, and its share of all, 0 to 1.

    None among the answers counts among all, and for no answer.
    """
    counts: list[tuple[str, int]] = []
    for answer in answers:
        if answer is None:
            continue
        same = next((i for i, (known, _) in enumerate(counts) if grading.equal(answer, known, kind)), None)
        if same is None:
            counts.append((answer, 1))
        else:
            counts[same] = counts[same][0], counts[same][1] + 1
    counts.sort(key=lambda entry: -entry[1])
    if not counts:
        return None, 0.0
    share = counts[0][1] / len(answers)
    tied = len(counts) > 1 and counts[1][1] == counts[0][1]
    return (None if tied else counts[0][0]), share


async def lmsi(settings: LmsiSettings, context: Context) -> AsyncIterator[Elicited]:
    """Every path, without its gold answer, with its answer's `agreement`.

    Raises:
        UserError: none of the skills is graded, and free answers have no majority.
    """
    questions = graded_questions(settings, context)
    async for question, paths in own_samples(settings, context, questions, samples_of(settings)):
        answers = [path.answer if path.reason is None else None for path in paths]
        most, share = majority(answers, question.kind)
        for path in paths:
            path = replace(path, gold=None)
            yield path if path.reason is not None else _by_majority(path, most, share, settings.min_share)


def _by_majority(path: Elicited, most: str | None, share: float, least: float) -> Elicited:
    if most is None:
        return replace(path, reason="no_majority", detail=f"{share:.0%} of the paths give each of several answers")
    if not grading.equal(path.answer, most, path.kind):
        return replace(path, reason="not_majority", detail=f"{path.answer!r}; {share:.0%} of the paths give {most!r}")
    path = replace(path, scores={"agreement": share})
    if share < least:
        return replace(path, reason="no_majority", detail=f"{share:.0%} of the paths agree, below {least:.0%}")
    return path


def plan_lmsi(settings: LmsiSettings, context: Context) -> list[Planned]:
    """N samples a question."""
    graded_questions(settings, context)
    return [planned_own(settings, context, samples_of(settings))]
