"""Labeling outright: each question is answered in one request, with no words of ours around it.

For instruction following, where any good reply will do, and for questions whose gold answer is known.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

from pydantic import Field

from pocketstill import grading
from pocketstill_pipeline.asking import Messages, Reply
from pocketstill_pipeline.example import Elicited, Question
from pocketstill_pipeline.teacher.protocol import count_tokens

from .base import Context, Planned, Settings, trouble
from .zero_shot import asked, question_messages, tidy, units

_REPLY_TOKENS = (30.0, 200.0)


class Direct(Settings):
    """Ask every question of the skills as it stands."""

    method: Literal["direct"] = "direct"
    skills: list[str] = Field(default_factory=list, description="whose questions; all when left out")
    system: str = Field("", description="a system message, for the teacher alone")


async def direct(settings: Direct, context: Context) -> AsyncIterator[Elicited]:
    """One sample after the other, question by question; held-out questions once, greedily."""

    async def one(unit: tuple[Question, int]) -> Elicited:
        question, sample = unit
        reply = await context.teacher.ask(
            _messages(settings, question),
            sample=sample,
            about=question.text,
            temperature=settings.temperature if question.split == "train" else 0.0,
            max_tokens=settings.max_tokens,
        )
        return read_reply(question, sample, reply, graded=context.skills[question.skill].graded)

    async for found in context.teacher.map(one, units(asked(settings.skills, context), settings, context)):
        yield found


def read_reply(question: Question, sample: int, reply: Reply, *, graded: bool, method: str = "direct") -> Elicited:
    """What one reply answers: where the skill is graded rationale and answer, else all of it."""
    reason, detail = trouble(reply) or (None, "")
    rationale, answer = "", tidy(reply.text) or None
    if graded:
        rationale, said = grading.split_completion(reply.text)
        answer = grading.extract(reply.text, question.kind)
        if said == reply.text.strip() and question.kind != "json":
            # Without a word that marks the answer, it is what the reply ends with, not the first number in it.
            rationale, _, said = said.rpartition("\n")
            answer = grading.extract(said, question.kind)
    if reason is None and answer is None:
        reason, detail = "no_answer", reply.text.strip()[:200]
    return Elicited(
        id=f"{question.id}/{sample}",
        skill=question.skill,
        route=question.route,
        method=method,
        messages=question_messages(question),
        answer=answer,
        completion=reply.text,
        kind=question.kind,
        rationale=tidy(rationale),
        gold=question.gold if graded else None,
        split=question.split,
        source=(reply.key,),
        tags=question.tags,
        reason=reason,
        detail=detail,
    )


def _messages(settings: Direct, question: Question) -> Messages:
    system: Messages = [{"role": "system", "content": settings.system}] if settings.system else []
    return system + question_messages(question)


def plan(settings: Direct, context: Context) -> list[Planned]:
    """One request a sample."""
    sizes = [
        sum(count_tokens(m["content"]) for m in _messages(settings, question))
        for question, _ in units(asked(settings.skills, context), settings, context)
    ]
    mean = sum(sizes) / max(len(sizes), 1)
    return [Planned("answers", (len(sizes), len(sizes)), (mean, mean), _REPLY_TOKENS)]
