"""Traces that somebody has already: a user's own completions go the same way as new ones, and nobody is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import ClassVar, Literal

from pydantic import Field

from pocketstill import grading
from pocketstill_pipeline.example import Elicited
from pocketstill_pipeline.reading import DataRow, iter_data

from .base import Context, Planned, Settings
from .sampling import reasons_and_answer, tidy, untouched


class Traces(Settings):
    """Completions from a file or a data set, in any form of docs/data.md."""

    FILES: ClassVar[tuple[str, ...]] = ("data",)

    method: Literal["traces"] = "traces"
    skill: str = Field(description="that the examples count as")
    data: str = Field(description="a data file or folder, or hf:owner/name of a data set")
    form: str = Field("auto", description="of a data file, see docs/data.md")
    columns: dict[str, str] = Field(default_factory=dict, description="field to column, for columns of other names")
    most_bad: int = Field(100, ge=0, description="rows of the data that may be unusable; they are listed")


async def traces(settings: Traces, context: Context) -> AsyncIterator[Elicited]:
    """Row after row; one that cannot be used is told with file and line as its detail.

    Raises:
        UserError: the data cannot be read, or too many rows cannot be used.
    """
    context.check_skill(settings.skill)
    skill = context.skills[settings.skill]
    found = iter_data(settings.data, form=settings.form, columns=settings.columns, most_bad=settings.most_bad)
    for number, row in enumerate(found):
        name = f"{settings.entry}-{number}"
        if not isinstance(row, DataRow):
            yield Elicited(
                name, settings.skill, "labeling", "traces", [{"role": "user", "content": ""}], None, "", skill.kind,
                reason="unreadable_row", detail=f"{row.where}: {row.why}",
            )  # fmt: skip
            continue
        yield _elicited(settings, name, row, graded=skill.graded, kind=skill.kind)


def _elicited(settings: Traces, name: str, row: DataRow, *, graded: bool, kind: grading.Kind) -> Elicited:
    said = row.completion or ""
    rationale, answer = row.rationale or "", untouched(said) or None
    if graded:
        # Where the reasons stand apart, all of the completion is the answer.
        rationale, answer = (rationale, grading.extract(said, kind)) if rationale else reasons_and_answer(said, kind)
    reason = None
    if not said.strip():
        reason = "empty"
    elif row.extra.get("finish_reason") == "length":
        reason = "truncated"
    elif answer is None:
        reason = "no_answer"
    return Elicited(
        id=name,
        skill=settings.skill,
        route="labeling",
        method="traces",
        messages=row.messages,
        answer=answer,
        completion=said,
        kind=kind,
        rationale=tidy(rationale),
        gold=row.gold if graded else None,
        split=row.split or "train",
        tools=row.tools,
        reason=reason,
        detail=row.where,
    )


def plan(settings: Traces, context: Context) -> list[Planned]:
    """Nothing is asked. A file that cannot be read is said before others are asked for anything.

    Raises:
        UserError: the recipe has no such skill, or the file cannot be read.
    """
    context.check_skill(settings.skill)
    if settings.files:
        iter_data(settings.data, form=settings.form, columns=settings.columns, most_bad=settings.most_bad)
    return []
