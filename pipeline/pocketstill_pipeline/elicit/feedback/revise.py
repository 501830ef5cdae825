"""Critique, then revision of a given solution.

SelFee (Ye et al. 2023) and Self-Refine (Madaan et al. 2023, arXiv 2303.17651): feedback that names what is wrong, and
a solution written anew by it. A revision is kept when it says something else than the solution did and its answer is
right; where no right answer is known, when it did not change the answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, Field

from pocketstill import grading
from pocketstill_pipeline.elicit.base import Context, Planned, ask_json, trouble
from pocketstill_pipeline.elicit.prompts.feedback import critique_request, revision_request
from pocketstill_pipeline.elicit.sampling import REPLY_TOKENS, tidy
from pocketstill_pipeline.example import Elicited

from .candidates import (
    Candidate,
    OfEarlier,
    expected,
    is_graded,
    question_of,
    ranked,
    read_reply,
    reply_of,
    to_judge,
)


class Critique(BaseModel):
    """What is wrong first, so that the verdict follows from it."""

    critique: str
    correct: bool


class ReviseSettings(OfEarlier):
    """Have samples of an earlier entry criticised and written anew."""

    method: Literal["revise"] = "revise"
    which: Literal["all", "wrong"] = Field("all", description="samples to mend; wrong: those known to be wrong")


async def revise(settings: ReviseSettings, context: Context) -> AsyncIterator[Elicited]:
    """One revision a sample; with the solution that it mends as the worse candidate."""

    async def one(item: Elicited) -> Elicited:
        question, graded = question_of(item), is_graded(item, context)
        found, said = await ask_json(
            context.teacher, critique_request(question, reply_of(item)), Critique, **settings.options
        )
        made = replace(
            item, id=f"{item.id}/revised", route="feedback", method="revise", source=(*item.source, said.key)
        )
        if found is None:
            reason, detail = trouble(said) or ("no_critique", said.text.strip()[:200])
            return replace(made, reason=reason, detail=detail)
        if found.correct:
            return replace(made, reason="no_flaw", detail=found.critique[:200])
        bare = not graded or not item.rationale
        request = revision_request(question, reply_of(item), found.critique, bare=bare)
        reply = await context.teacher.ask(request, temperature=settings.temperature, max_tokens=settings.max_tokens)
        made = replace(made, source=(*made.source, reply.key))
        if (problem := trouble(reply)) is not None:
            return replace(made, reason=problem[0], detail=problem[1])
        revised = read_reply(made, reply.text.strip(), graded=graded)
        revised = replace(revised, rationale=tidy(revised.rationale))
        against = _against(item, revised, graded=graded)
        both = [Candidate(revised, reply_of(revised)), Candidate(item, reply_of(item))]
        if against is not None:
            return replace(revised, reason=against[0], detail=against[1])
        return replace(revised, detail=found.critique[:200], candidates=ranked(both, [1.0, 0.0]))

    async for made in context.teacher.map(one, _chosen(settings, context)):
        yield made


def _chosen(settings: ReviseSettings, context: Context) -> Iterator[Elicited]:
    for item in to_judge(context.earlier(settings.of)):
        wrong = item.gold is not None and not grading.equal(item.answer, item.gold, item.kind)
        if wrong or settings.which == "all":
            yield item


def _against(item: Elicited, revised: Elicited, *, graded: bool) -> tuple[str, str] | None:
    """What speaks against a revision, as (reason, detail)."""
    if revised.answer is None:
        return "no_answer", revised.completion[:200]
    if reply_of(revised).split() == reply_of(item).split():
        return "revision_unchanged", "it says what the solution said"
    if not graded:
        return None
    if item.gold is None:
        same = grading.equal(revised.answer, item.answer or "", item.kind)
        return (
            None if same else ("answer_changed", f"{item.answer!r} became {revised.answer!r}, none known to be right")
        )
    if grading.equal(revised.answer, item.gold, item.kind):
        return None
    spoilt = grading.equal(item.answer, item.gold, item.kind)
    return ("revision_spoilt" if spoilt else "revision_wrong"), f"{revised.answer!r} instead of {item.gold!r}"


def plan_revise(settings: ReviseSettings, context: Context) -> list[Planned]:
    """A critique a sample, and up to one revision."""
    earlier = expected(settings.of, context)
    low, high = earlier.samples if settings.which == "all" else (0, earlier.samples[1])
    critiques = earlier.judged("critiques", (low, high))
    revisions = replace(earlier.judged("revisions", (0, high)), completion_tokens=REPLY_TOKENS)
    return [critiques, revisions]
