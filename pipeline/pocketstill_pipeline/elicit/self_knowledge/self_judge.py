"""Self-rewarding (Yuan et al. 2024, arXiv 2401.10020, section 2): the student judges its own replies.

N replies of the student to a question, each scored by the student itself with an additive rubric of five points,
several times over, the mean taken (section 3.1.3 uses three); the best and the worst become a preference pair.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field

from pocketstill_pipeline.elicit.base import Context, Planned
from pocketstill_pipeline.elicit.feedback.candidates import (
    FRAME_TOKENS,
    REASON_TOKENS,
    Candidate,
    question_of,
    ranked,
    reply_of,
)
from pocketstill_pipeline.elicit.prompts.self_knowledge import judgement_request, read_score
from pocketstill_pipeline.elicit.sampling import REPLY_TOKENS, mean_tokens, question_messages
from pocketstill_pipeline.example import Elicited, Question

from .own import OwnSettings, own_questions, own_samples, planned_own, samples_of

# Questions whose replies are held before they are judged: as many as keep everybody busy.
_BLOCK = 512


class SelfJudgeSettings(OwnSettings):
    """Have the student score its own replies; the best and the worst become a pair."""

    method: Literal["self_judge"] = "self_judge"
    judgements: int = Field(3, ge=1, description="scores a reply, whose mean counts")
    min_gap: float = Field(0.5, gt=0.0, le=5.0, description="points that must lie between the best and the worst")


async def self_judge(settings: SelfJudgeSettings, context: Context) -> AsyncIterator[Elicited]:
    """One pair a question, the better reply as the sample; no right answer is looked at."""
    questions = own_questions(settings, context)
    for start in range(0, len(questions), _BLOCK):
        async for made in _judged(settings, context, questions[start : start + _BLOCK]):
            yield made


async def _judged(
    settings: SelfJudgeSettings, context: Context, questions: Sequence[Question]
) -> AsyncIterator[Elicited]:
    replies: list[list[Elicited]] = []
    async for _, samples in own_samples(settings, context, questions, samples_of(settings)):
        replies.append(_different(samples))
    units = [
        (index, item, number)
        for index, items in enumerate(replies)
        for item in items
        for number in range(settings.judgements)
    ]

    async def judge(unit: tuple[int, Elicited, int]) -> tuple[float | None, str]:
        _, item, number = unit
        request = judgement_request(question_of(item), reply_of(item))
        reply = await context.asks_student().ask(request, sample=number, max_tokens=settings.max_tokens)
        return (None if reply.error else read_score(reply.text)), reply.key

    said: list[dict[str, list[float]]] = [{} for _ in replies]
    keys: list[list[str]] = [[] for _ in replies]
    asked = iter(units)
    async for points, key in context.asks_student().map(judge, units):
        index, item, _ = next(asked)
        keys[index].append(key)
        if points is not None:
            said[index].setdefault(item.id, []).append(points)
    for question, items, points_of, asked_by in zip(questions, replies, said, keys, strict=True):
        yield _pair(settings, question, items, points_of, asked_by)


def _different(samples: list[Elicited]) -> list[Elicited]:
    """The usable replies, each text once."""
    texts: dict[str, Elicited] = {}
    for item in samples:
        if item.reason is None:
            texts.setdefault(" ".join(reply_of(item).split()), item)
    return list(texts.values())


def _pair(
    settings: SelfJudgeSettings, question: Question, items: list[Elicited], said: dict[str, list[float]],
    keys: list[str],
) -> Elicited:  # fmt: skip
    scored = [(item, sum(points) / len(points)) for item in items if (points := said.get(item.id))]
    sources = tuple(dict.fromkeys(key for item in items for key in item.source)) + tuple(keys)
    name = f"{question.id}/pair"
    if len(scored) < 2:
        made = items[0] if items else _nothing(question)
        found = f"{len(items)} different replies, {len(scored)} of them scored"
        return replace(
            made, id=name, gold=None, source=sources, reason="unscored" if items else "no_reply", detail=found
        )
    # Of equals the first: min and max alike keep the order.
    best, worst = max(scored, key=lambda pair: pair[1]), min(scored, key=lambda pair: pair[1])
    pair = [Candidate(item, reply_of(item)) for item, _ in (best, worst)]
    made = replace(
        best[0], id=name, gold=None, source=sources, scores={"own": best[1]},
        candidates=ranked(pair, [best[1], worst[1]]),
    )  # fmt: skip
    gap = best[1] - worst[1]
    return replace(made, reason="no_gap", detail=f"{gap:.2f} points apart") if gap < settings.min_gap else made


def _nothing(question: Question) -> Elicited:
    return Elicited(
        question.id, question.skill, "self_knowledge", "self_judge",
        question_messages(question), None, "", question.kind, tags=question.tags,
    )  # fmt: skip


def plan_self_judge(settings: SelfJudgeSettings, context: Context) -> list[Planned]:
    """The samples, and the judgements of each different one."""
    questions = own_questions(settings, context)
    count, around = samples_of(settings), mean_tokens(questions) + FRAME_TOKENS
    most = len(questions) * count * settings.judgements
    shown = (around + REPLY_TOKENS[0], around + REPLY_TOKENS[1])
    judged = Planned("its judgements", (0, most), shown, REASON_TOKENS, "student")
    return [planned_own(settings, context, count), judged]
