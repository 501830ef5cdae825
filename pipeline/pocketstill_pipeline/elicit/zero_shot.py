"""Labeling by zero-shot chain of thought in two steps (Kojima et al. 2022, arXiv 2205.11916, section 3).

With D samples a question at a temperature this is the diverse reasoning of Fine-tune-CoT (Ho et al. 2023,
arXiv 2212.10071, section 3).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

from pydantic import Field

from pocketstill_pipeline.example import Elicited, Question
from pocketstill_pipeline.prompts import first_request, reasons_first
from pocketstill_pipeline.teacher.protocol import count_tokens

from .base import Context, Planned, Settings
from .sampling import ANSWER_TOKENS, RATIONALE_TOKENS, options_of, read_sample, two_steps, units


class ZeroShot(Settings):
    """Ask every question of the skills: for its rationale, then for the answer behind it."""

    method: Literal["zero_shot_cot"] = "zero_shot_cot"
    skills: list[str] = Field(default_factory=list, description="whose questions; all when left out")


async def zero_shot_cot(settings: ZeroShot, context: Context) -> AsyncIterator[Elicited]:
    """One sample after the other, question by question; held-out questions once, greedily."""

    async def one(unit: tuple[Question, int]) -> Elicited:
        question, sample = unit
        replies = await two_steps(context.teacher, question, options_of(settings, question, sample))
        return read_sample(question, sample, replies, graded=context.skills[question.skill].graded)

    async for found in context.teacher.map(one, units(context.of_skills(settings.skills), settings, context)):
        yield found


def plan(settings: ZeroShot, context: Context) -> list[Planned]:
    """The requests for rationales, and for the answers behind them."""
    firsts, seconds, prompt, follow = 0, 0, 0.0, 0.0
    for question, _ in units(context.of_skills(settings.skills), settings, context):
        tokens = sum(count_tokens(m["content"]) for m in first_request(question.text, question.kind))
        firsts, prompt = firsts + 1, prompt + tokens
        if reasons_first(question.kind):
            seconds, follow = seconds + 1, follow + tokens
    mean, behind = prompt / max(firsts, 1), follow / max(seconds, 1)
    low, high = RATIONALE_TOKENS
    found = [Planned("rationales", (firsts, firsts), (mean, mean), (low, high))]
    if seconds:
        found.append(Planned("answers", (seconds, seconds), (behind + low, behind + high + 12), ANSWER_TOKENS))
    return found
