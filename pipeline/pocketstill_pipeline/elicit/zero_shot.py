"""Labeling by zero-shot chain of thought in two steps (Kojima et al. 2022, arXiv 2205.11916, section 3).

With D samples a question at a temperature this is the diverse reasoning of Fine-tune-CoT (Ho et al. 2023,
arXiv 2212.10071, section 3).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Literal

from pydantic import Field

from pocketstill import grading
from pocketstill_pipeline.asking import Messages, Reply
from pocketstill_pipeline.example import Elicited, Question
from pocketstill_pipeline.prompts import answer_request, first_request, reasons_first
from pocketstill_pipeline.teacher.protocol import count_tokens

from .base import Context, Planned, Settings, trouble

# A rationale and an answer as teachers write them, in tokens: (short, long); the recipe's limit caps both.
RATIONALE_TOKENS, ANSWER_TOKENS = (15.0, 160.0), (1.0, 12.0)


class ZeroShot(Settings):
    """Ask every question of the skills: for its rationale, then for the answer behind it."""

    method: Literal["zero_shot_cot"] = "zero_shot_cot"
    skills: list[str] = Field(default_factory=list, description="whose questions; all when left out")


async def zero_shot_cot(settings: ZeroShot, context: Context) -> AsyncIterator[Elicited]:
    """One sample after the other, question by question; held-out questions once, greedily."""

    async def one(unit: tuple[Question, int]) -> Elicited:
        question, sample = unit
        options: dict[str, Any] = {
            "sample": sample,
            "about": question.text,
            # Greedy for held-out questions: they measure the teacher, as the published figures were measured.
            "temperature": settings.temperature if question.split == "train" else 0.0,
            "max_tokens": settings.max_tokens,
        }
        first = await context.teacher.ask([*question.before, *first_request(question.text, question.kind)], **options)
        unanswered = (trouble(first) or ("",))[0] in ("failed_request", "refused")
        if unanswered or not reasons_first(question.kind):
            return read_sample(question, sample, (first,))
        behind = answer_request(question.text, question.kind, first.text.strip())
        second = await context.teacher.ask([*question.before, *behind], **options)
        return read_sample(question, sample, (first, second))

    async for found in context.teacher.map(one, units(asked(settings.skills, context), settings, context)):
        yield found


def asked(skills: list[str], context: Context) -> list[Question]:
    """The questions of these skills, or of all.

    Raises:
        UserError: the recipe has no such skill.
    """
    return [q for skill in skills for q in context.of_skill(skill)] if skills else list(context.questions)


def units(questions: Iterable[Question], settings: Settings, context: Context) -> Iterator[tuple[Question, int]]:
    """Each question with each sample index of it: D of them for training, one when held out."""
    for question in questions:
        count = (settings.samples or context.samples_a_question) if question.split == "train" else 1
        for sample in range(question.occurrence * count, (question.occurrence + 1) * count):
            yield question, sample


def read_sample(question: Question, sample: int, replies: tuple[Reply, ...]) -> Elicited:
    """Put the replies to one sample together: rationale, answer, and what speaks against them."""
    completion = replies[-1].text
    rationale = tidy(replies[0].text) if reasons_first(question.kind) else ""
    answer = grading.extract(completion, question.kind)
    problem = next((found for reply in replies if (found := trouble(reply))), None)
    if problem is None and reasons_first(question.kind) and not rationale:
        problem = "empty", ""
    if problem is None and answer is None:
        problem = "no_answer", completion.strip()[:200]
    reason, detail = problem or (None, "")
    failed = reason == "failed_request"
    return Elicited(
        id=f"{question.id}/{sample}",
        skill=question.skill,
        route=question.route,
        method="zero_shot_cot",
        messages=question_messages(question),
        answer=None if failed else answer,
        completion="" if failed else completion,
        kind=question.kind,
        rationale="" if failed else rationale,
        gold=question.gold,
        split=question.split,
        source=tuple(reply.key for reply in replies),
        tags=question.tags,
        reason=reason,
        detail=detail,
    )


def question_messages(question: Question) -> Messages:
    """What the student will be asked."""
    return [*question.before, {"role": "user", "content": question.text}]


def tidy(rationale: str) -> str:
    """Runs of blanks and of empty lines folded, white space at the ends of lines and text dropped."""
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"[^\S\n]+", " ", rationale)).strip()


def plan(settings: ZeroShot, context: Context) -> list[Planned]:
    """The requests for rationales, and for the answers behind them."""
    firsts, seconds, prompt, follow = 0, 0, 0.0, 0.0
    for question, _ in units(asked(settings.skills, context), settings, context):
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
