"""Ranking of N replies at once, repeated under shuffled labels.

The rankings are put together by Borda's count, and their agreement is Kendall's coefficient of concordance W
(Kendall and Babington Smith 1939). Rankings like these are what listwise objectives such as PRO and RRHF learn from
(survey, section 3.2.4).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, Field, field_validator

from pocketstill_pipeline.elicit.base import Context, Planned, ask_json
from pocketstill_pipeline.elicit.prompts.feedback import LABELS, rank_request
from pocketstill_pipeline.example import Elicited

from .candidates import Candidate, OfEarlier, by_question, expected, question_of, ranked, shuffled


class RankSettings(OfEarlier):
    """Rank the samples that an earlier entry has of each question."""

    method: Literal["rank"] = "rank"
    most: int = Field(4, ge=2, le=len(LABELS), description="most replies in one request")
    repeats: int = Field(3, ge=1, description="requests a question, each with labels of its own")
    min_agreement: float = Field(0.0, ge=0.0, le=1.0, description="Kendall's W below which a ranking is dropped")


class Ranking(BaseModel):
    """Why first, so that the order follows from it."""

    reason: str
    order: list[str]


def ranking_schema(count: int) -> type[Ranking]:
    """A ranking of all of the first `count` labels."""

    class Whole(Ranking):
        @field_validator("order")
        @classmethod
        def _all(cls, order: list[str]) -> list[str]:
            if sorted(order) != list(LABELS[:count]):
                raise ValueError(f"the order must have each of {LABELS[:count]} once")
            return order

    return Whole


def borda(rankings: Sequence[Sequence[int]]) -> list[float]:
    """Each item's mean share of the others that it is ranked above, 0 to 1.

    Args:
        rankings: the items 0..n-1, best first, n at least 2.
    """
    count = len(rankings[0])
    points = [0] * count
    for ranking in rankings:
        for place, item in enumerate(ranking):
            points[item] += count - 1 - place
    return [got / (len(rankings) * (count - 1)) for got in points]


def kendall_w(rankings: Sequence[Sequence[int]]) -> float:
    """Kendall's W of rankings without ties, W = 12 S / (m^2 (n^3 - n)), from 0 (no agreement) to 1."""
    judges, count = len(rankings), len(rankings[0])
    sums = [sum(ranking.index(item) + 1 for ranking in rankings) for item in range(count)]
    mean = judges * (count + 1) / 2
    return 12 * sum((total - mean) ** 2 for total in sums) / (judges**2 * (count**3 - count))


async def rank(settings: RankSettings, context: Context) -> AsyncIterator[Elicited]:
    """The best reply to each question that has several, with all that were ranked as candidates."""

    async def one(candidates: list[Candidate]) -> Elicited:
        count, best = len(candidates), candidates[0].item
        rankings: list[list[int]] = []
        keys = tuple(dict.fromkeys(key for candidate in candidates for key in candidate.item.source))
        schema = ranking_schema(count)
        for repeat in range(settings.repeats):
            order = shuffled(range(count), f"{context.seed}/{settings.entry}/{best.id}/{repeat}")
            request = rank_request(question_of(best), [candidates[index].text for index in order])
            found, reply = await ask_json(context.teacher, request, schema, sample=repeat, **settings.options)
            keys = (*keys, reply.key)
            if found is not None:
                rankings.append([order[LABELS.index(label)] for label in found.order])
        made = replace(best, route="feedback", method="rank", source=keys)
        if not rankings:
            return replace(made, reason="unranked", detail="no ranking of all replies came back")
        shares, agreement = borda(rankings), kendall_w(rankings)
        winner = max(range(count), key=lambda index: (shares[index], -index))
        made = replace(
            candidates[winner].item, id=best.id, route="feedback", method="rank", source=keys,
            candidates=ranked(candidates, shares),
            scores=candidates[winner].item.scores | {"agreement": agreement, "borda": shares[winner]},
        )  # fmt: skip
        if agreement < settings.min_agreement:
            detail = f"Kendall's W is {agreement:.2f} over {len(rankings)} rankings"
            return replace(made, reason="no_agreement", detail=detail)
        return made

    groups = (group[: settings.most] for group in by_question(context.earlier(settings.of)) if len(group) > 1)
    async for made in context.teacher.map(one, groups):
        yield made


def plan_rank(settings: RankSettings, context: Context) -> list[Planned]:
    """`repeats` requests a question."""
    earlier = expected(settings.of, context)
    low, high = (count * settings.repeats for count in earlier.questions)
    return [earlier.judged("rankings", (low, high), min(settings.most, max(earlier.each, 2)))]
