"""Who answers a recipe's requests: a URL, or a local server that is started for it."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from pocketstill.files import sha256_file

from .recipe import Recipe, Teacher
from .teacher import TeacherConfig

LOCAL = ("embedded", "replay", "bundle")


def endpoint_of(recipe: Recipe, teacher: Teacher) -> str:
    """Who answers, as the ledger's keys know it: the same whichever port a local teacher gets."""
    if teacher.base_url == "embedded":
        return f"embedded?{_by_rule(recipe, teacher)}"
    if teacher.base_url == "replay":
        files = ",".join(sha256_file(path)[:16] for path in teacher.replay)
        return f"replay?files={files}" + (f"&otherwise={_by_rule(recipe, teacher)}" if falls_through(recipe) else "")
    if teacher.base_url == "bundle":
        index = sha256_file(Path(teacher.bundle) / "pocketstill.json")[:16]
        return f"bundle?index={index}" + (f"&variant={teacher.variant}" if teacher.variant else "")
    return teacher.base_url.rstrip("/")


def local_server(recipe: Recipe, teacher: Teacher) -> TeacherConfig | None:
    """The local server that answers for `teacher`; None when it names a URL."""
    if teacher.base_url not in LOCAL:
        return None
    return TeacherConfig(
        model=teacher.model,
        seed=recipe.seed,
        replay=tuple(teacher.replay) if teacher.base_url == "replay" else (),
        fall_through=falls_through(recipe),
        student=teacher.bundle if teacher.base_url == "bundle" else "",
        variant=teacher.variant,
        **teacher.embedded.model_dump(),
    )


def falls_through(recipe: Recipe) -> bool:
    """Whether a replay hands unrecorded questions to the embedded teacher: when questions are added."""
    return any(skill.expand > 0 for skill in recipe.skills)


@cache
def rules_digest() -> str:
    """SHA-256 of the code that makes and solves problems: with other rules the embedded teacher says other things."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    rules = [
        path for where in ("problems", "teacher/embedded", "elicit/prompts") for path in folder.glob(f"{where}/**/*.py")
    ]
    for path in (*sorted(rules), folder / "teacher" / "logprobs.py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _by_rule(recipe: Recipe, teacher: Teacher) -> str:
    embedded = teacher.embedded
    return f"mistakes={embedded.mistakes}&noise={embedded.noise}&seed={recipe.seed}&rules={rules_digest()[:12]}"
