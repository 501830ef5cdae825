"""Pairwise preference, asked in both orders.

Judges favour a place (Zheng et al. 2023, arXiv 2306.05685, section 3.4), so each pair is judged both ways round, and
kept only when the same reply wins twice. The pair is what RLAIF (Bai et al. 2022, arXiv 2212.08073) and preference
objectives learn from.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from pydantic import BaseModel, Field

from pocketstill_pipeline.asking import Reply
from pocketstill_pipeline.elicit.base import Context, Planned, ask_json, trouble
from pocketstill_pipeline.elicit.prompts.feedback import prefer_request
from pocketstill_pipeline.elicit.sampling import REPLY_TOKENS
from pocketstill_pipeline.example import Elicited

from .candidates import (
    Candidate,
    OfEarlier,
    by_question,
    expected,
    is_graded,
    question_of,
    ranked,
    read_reply,
    reply_of,
    shuffled,
)


class Preference(BaseModel):
    """Why first, so that the verdict follows from it."""

    reason: str
    better: Literal["first", "second"]


class PreferSettings(OfEarlier):
    """Compare replies to one question, two at a time."""

    method: Literal["prefer"] = "prefer"
    against: Literal["samples", "student"] = Field(
        "samples", description="samples: of one question with each other; student: each with the student's own reply"
    )
    pairs: int = Field(1, ge=1, description="pairs a question")

    @property
    def needs_student(self) -> bool:
        """When the student's reply is one side."""
        return self.against == "student"


@dataclass(frozen=True)
class _Pair:
    """Two replies; `other` is None while the student has still to be asked."""

    one: Candidate
    other: Candidate | None = None


async def prefer(settings: PreferSettings, context: Context) -> AsyncIterator[Elicited]:
    """The better reply of each pair, with both as candidates."""
    student = context.asks_student() if settings.against == "student" else None

    async def judge(pair: _Pair) -> Elicited:
        one, other, keys = pair.one, pair.other, pair.one.item.source
        if other is None:
            assert student is not None
            turns = [*one.item.demonstrations, *one.item.messages]
            reply = await student.ask(turns, max_tokens=settings.max_tokens)
            if (problem := trouble(reply)) is not None:
                return _rejected(settings, pair, (*keys, reply.key), "no_student_reply", ": ".join(problem))
            theirs = read_reply(one.item, reply.text.strip(), graded=is_graded(one.item, context))
            other = Candidate(replace(theirs, source=(reply.key,)), reply_of(theirs) or reply.text.strip())
            if other.text.split() == one.text.split():
                return _rejected(settings, pair, (*keys, reply.key), "same_reply", "the student says the same")
        question = question_of(one.item)
        verdicts: list[Preference | None] = []
        keys = tuple(dict.fromkeys((*keys, *other.item.source)))
        for first, second in ((one, other), (other, one)):
            request = prefer_request(question, first.text, second.text)
            found, said = await ask_json(context.teacher, request, Preference, **settings.options)
            verdicts.append(found)
            keys = (*keys, said.key)
            if found is None:
                return _rejected(settings, _Pair(one, other), keys, *_unjudged(said))
        forward, backward = (verdict.better for verdict in verdicts if verdict is not None)
        if forward == backward:
            return _rejected(settings, _Pair(one, other), keys, "position_bias", f"both times the {forward} one")
        best, worst = (one, other) if forward == "first" else (other, one)
        return replace(
            best.item, id=_name(pair), route="feedback", method="prefer", source=keys,
            candidates=ranked([best, worst], [1.0, 0.0]),
        )  # fmt: skip

    async for made in context.teacher.map(judge, _pairs(settings, context)):
        yield made


def _pairs(settings: PreferSettings, context: Context) -> Iterator[_Pair]:
    for candidates in by_question(context.earlier(settings.of)):
        if settings.against == "student":
            yield from map(_Pair, candidates[: settings.pairs])
            continue
        about = f"{context.seed}/{settings.entry}/{candidates[0].item.id}" if candidates else ""
        for one, other in shuffled(list(combinations(candidates, 2)), about)[: settings.pairs]:
            yield _Pair(one, other)


def _name(pair: _Pair) -> str:
    return f"{pair.one.item.id}+{pair.other.item.id if pair.other else 'student'}"


def _unjudged(reply: Reply) -> tuple[str, str]:
    return trouble(reply) or ("unjudged", reply.text.strip()[:200])


def _rejected(settings: PreferSettings, pair: _Pair, keys: tuple[str, ...], reason: str, detail: str) -> Elicited:
    both = [candidate for candidate in (pair.one, pair.other) if candidate is not None]
    name = _name(pair) if settings.against == "samples" else _name(_Pair(pair.one))
    return replace(
        pair.one.item, id=name, route="feedback", method="prefer", source=keys, reason=reason, detail=detail,
        candidates=ranked(both, [0.5] * len(both)),
    )  # fmt: skip


def plan_prefer(settings: PreferSettings, context: Context) -> list[Planned]:
    """Two requests a pair; against the student, one of its own too."""
    earlier = expected(settings.of, context)
    low, high = (count * settings.pairs for count in earlier.questions)
    planned = [earlier.judged("preferences", (2 * low, 2 * high), 2)]
    if settings.against == "student":
        tokens = (earlier.question_tokens, earlier.question_tokens)
        planned.append(Planned("replies", (low, high), tokens, REPLY_TOKENS, "student"))
    return planned
