"""The `[[elicit]]` entries of a recipe, and what their routes are given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .elicit.base import Context, Settings
from .elicit.zero_shot import ZeroShot
from .example import Question
from .recipe import Recipe

SAMPLES = "samples"


def entries_of(recipe: Recipe) -> list[Settings]:
    """What a recipe asks for; one that does not say asks every question for its chain of thought."""
    return list(recipe.elicit) or [ZeroShot()]


def context_of(recipe: Recipe, questions: Sequence[Question], out: Path, teacher: Any, student: Any) -> Context:
    """What the routes of a recipe are given."""
    skills = {skill.name: skill for skill in recipe.skills}
    return Context(
        recipe.seed, questions, teacher, student, out / SAMPLES,
        skills | {q.skill: skills[q.skill.removesuffix("_unseen")] for q in questions if q.skill not in skills},
        recipe.teacher.samples,
        {entry.entry: entry for entry in entries_of(recipe)},
    )  # fmt: skip
