"""Self-taught reasoning (STaR, Zelikman et al. 2022, arXiv 2203.14465, sections 3.1 and 3.2).

Rationales of the student are kept when they lead to the right answer. Where they do not, rationalization: the right
answer is given as a hint and the student reasons towards it; what comes of it is kept as if there had been no hint, so
it must not speak of one, and its answer is read from the rationale alone.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from pocketstill import grading
from pocketstill_pipeline.elicit.base import Context, Planned
from pocketstill_pipeline.elicit.prompts.self_knowledge import hint_request
from pocketstill_pipeline.elicit.sampling import read_reply, read_sample, two_steps
from pocketstill_pipeline.example import Elicited, Question
from pocketstill_pipeline.prompts import reasons_first

from .own import OwnSettings, graded_questions, own_sample, planned_own

# What the words around a hint take, in tokens.
_HINT_TOKENS = 25.0
_SPEAKS_OF_IT = re.compile(
    r"\bhint(?:s|ed)?\b"
    r"|\b(?:given|provided|stated|known|expected|correct) answer\b"
    r"|\banswer (?:is|was|has been) (?:already )?(?:given|provided|stated|known|told)\b"
    r"|\b(?:was|were|been|are|am) (?:already )?told that the answer\b"
    r"|\b(?:we|i) (?:already )?know (?:that )?the answer\b",
    re.IGNORECASE,
)


class StarSettings(OwnSettings):
    """Keep rationales that lead to the right answer; have wrong ones rationalized."""

    method: Literal["star"] = "star"
    rationalize: bool = Field(True, description="ask again with the right answer as a hint where it was missed")


async def star(settings: StarSettings, context: Context) -> AsyncIterator[Elicited]:
    """Every sample, and behind a wrong one its rationalization, tagged `rationalized`. Graded skills alone."""

    async def one(unit: tuple[Question, int]) -> list[Elicited]:
        question, sample = unit
        first = await own_sample(settings, context, question, sample)
        usable = first.reason is None or first.reason in ("no_answer", "empty", "truncated")
        if not usable or not settings.rationalize or not reasons_first(question.kind):
            return [first]
        if grading.equal(first.answer, question.gold, question.kind):
            return [first]
        return [first, await _rationalized(settings, context, question, sample)]

    questions = graded_questions(settings, context)
    units = ((question, sample) for question in questions for sample in range(settings.samples or 1))
    async for found in context.asks_student().map(one, units):
        for item in found:
            yield item


async def _rationalized(settings: StarSettings, context: Context, question: Question, sample: int) -> Elicited:
    student, whole = context.asks_student(), settings.prompt == "plain"
    options: dict[str, Any] = settings.options | {"sample": sample, "about": question.text}
    opening = hint_request(question.text, question.gold, question.kind, whole=whole)
    if whole:
        made = read_reply(question, sample, await student.ask([*question.before, *opening], **options), graded=True)
    else:
        # The hint is not in the second step: the answer must follow from the rationale.
        made = read_sample(question, sample, await two_steps(student, question, options, opening))
    made = replace(
        made, id=f"{made.id}/rationalized", route="self_knowledge", method="star", tags=(*made.tags, "rationalized")
    )
    # A question may have such words of its own.
    spoken = [found[0] for found in _SPEAKS_OF_IT.finditer(made.rationale)]
    spoken = [words for words in spoken if words.lower() not in question.text.lower()]
    if made.reason is None and spoken:
        return replace(made, reason="mentions_hint", detail=spoken[0])
    return made


def plan_star(settings: StarSettings, context: Context) -> list[Planned]:
    """The samples, and up to as many rationalizations."""
    graded_questions(settings, context)
    samples = planned_own(settings, context, settings.samples or 1)
    if not settings.rationalize:
        return [samples]
    low, high = samples.prompt_tokens
    hinted = replace(samples, what="rationalizations", requests=(0, samples.requests[1]))
    return [samples, replace(hinted, prompt_tokens=(low + _HINT_TOKENS, high + _HINT_TOKENS))]
