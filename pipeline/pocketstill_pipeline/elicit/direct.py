"""Labeling outright: each question is answered in one request, with no words of ours around it.

For instruction following, where any good reply will do, and for questions whose gold answer is known.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

from pydantic import Field

from pocketstill_pipeline.asking import Messages
from pocketstill_pipeline.example import Elicited, Question
from pocketstill_pipeline.teacher.protocol import count_tokens

from .base import Context, Planned, Settings, system_turns
from .sampling import REPLY_TOKENS, options_of, question_messages, read_reply, units


class Direct(Settings):
    """Ask every question of the skills as it stands."""

    method: Literal["direct"] = "direct"
    skills: list[str] = Field(default_factory=list, description="whose questions; all when left out")
    system: str = Field("", description="a system message, for the teacher alone")


async def direct(settings: Direct, context: Context) -> AsyncIterator[Elicited]:
    """One sample after the other, question by question; held-out questions once, greedily."""

    async def one(unit: tuple[Question, int]) -> Elicited:
        question, sample = unit
        reply = await context.teacher.ask(_messages(settings, question), **options_of(settings, question, sample))
        return read_reply(question, sample, reply, graded=context.skills[question.skill].graded)

    async for found in context.teacher.map(one, units(context.of_skills(settings.skills), settings, context)):
        yield found


def _messages(settings: Direct, question: Question) -> Messages:
    return system_turns(settings.system) + question_messages(question)


def plan(settings: Direct, context: Context) -> list[Planned]:
    """One request a sample."""
    sizes = [
        sum(count_tokens(m["content"]) for m in _messages(settings, question))
        for question, _ in units(context.of_skills(settings.skills), settings, context)
    ]
    mean = sum(sizes) / max(len(sizes), 1)
    return [Planned("answers", (len(sizes), len(sizes)), (mean, mean), REPLY_TOKENS)]
