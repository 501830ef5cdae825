"""Scores by a rubric, each with its reason.

UltraFeedback (Cui et al. 2023, arXiv 2310.01377, section 2) scores replies 1 to 5 by criteria; `quality` and
`complexity` are those that DEITA selects by (Liu et al. 2023, arXiv 2312.15685, section 3), asked for directly.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, Field, create_model, model_validator

from pocketstill_pipeline.elicit.base import Context, Planned, ask_json
from pocketstill_pipeline.elicit.prompts.feedback import CRITERIA, score_request
from pocketstill_pipeline.example import Elicited

from .candidates import OfEarlier, expected, question_of, reply_of, to_judge

UNSCORED = "unscored"


class Judgement(BaseModel):
    """Why first, so that the score follows from it."""

    reason: str
    score: int = Field(ge=1, le=5)


class ScoreSettings(OfEarlier):
    """Score the training samples of an earlier entry."""

    method: Literal["score"] = "score"
    criteria: list[str] = Field(["quality", "complexity"], min_length=1, description="what is scored, 1 to 5 each")
    rubric: dict[str, str] = Field(default_factory=dict, description="what criteria of your own mean")

    @model_validator(mode="after")
    def _known(self) -> ScoreSettings:
        for name in self.criteria:
            if name not in CRITERIA | self.rubric:
                raise ValueError(f'criterion {name!r} has no meaning; say it in rubric, as {name} = "..."')
            if not name.isidentifier() or name.startswith("_") or hasattr(BaseModel, name):
                raise ValueError(f"criterion {name!r} cannot be a name here; use another word of letters")
        return self

    @property
    def replaces(self) -> str:
        """The entry all of whose samples it yields again."""
        return self.of

    @property
    def meanings(self) -> dict[str, str]:
        """Each criterion with what it asks."""
        return {name: (CRITERIA | self.rubric)[name] for name in self.criteria}


def scores_schema(criteria: list[str]) -> type[BaseModel]:
    """What an answer must be: one judgement a criterion."""
    fields: dict[str, Any] = dict.fromkeys(criteria, (Judgement, ...))
    return create_model("Scores", **fields)


async def score(settings: ScoreSettings, context: Context) -> AsyncIterator[Elicited]:
    """Every sample of the earlier entry again, the usable training ones with `scores`; one that could not be scored
    is tagged `unscored`."""
    schema, meanings = scores_schema(settings.criteria), settings.meanings

    async def one(item: Elicited) -> Elicited:
        made = replace(item, route="feedback", method="score")
        if not any(to_judge([item])):
            return made
        request = score_request(question_of(item), reply_of(item), meanings)
        found, reply = await ask_json(context.teacher, request, schema, **settings.options)
        made = replace(made, source=(*item.source, reply.key))
        if found is None:
            return replace(made, tags=(*item.tags, UNSCORED))
        given = {name: float(getattr(found, name).score) for name in settings.criteria}
        return replace(made, scores=item.scores | given)

    async for made in context.teacher.map(one, context.earlier(settings.of)):
        yield made


def plan_score(settings: ScoreSettings, context: Context) -> list[Planned]:
    """One request a sample; three at most, where an answer does not fit."""
    earlier = expected(settings.of, context)
    return [earlier.judged("scores", earlier.samples)]
