"""The `[[elicit]]` entries of a recipe, and what their routes are given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .elicit.base import Context, Settings
from .elicit.zero_shot import ZeroShot
from .example import UNSEEN_SUFFIX, Question
from .questions import has_unseen
from .recipe import Recipe

SAMPLES = "samples"


def entries_of(recipe: Recipe) -> list[Settings]:
    """What a recipe asks for; one that does not say asks every question for its chain of thought."""
    return list(recipe.elicit) or [ZeroShot()]


def context_of(recipe: Recipe, questions: Sequence[Question], out: Path, teacher: Any, student: Any) -> Context:
    """What the routes of a recipe are given."""
    skills = {skill.name: skill for skill in recipe.skills}
    skills |= {f"{skill.name}{UNSEEN_SUFFIX}": skill for skill in recipe.skills if has_unseen(skill)}
    return Context(
        recipe.seed, questions, teacher, student, out / SAMPLES, skills, recipe.teacher.samples,
        {entry.entry: entry for entry in entries_of(recipe)},
    )  # fmt: skip
