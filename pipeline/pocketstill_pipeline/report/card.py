"""MODEL_CARD.md: what ships, in the form that model hubs read (huggingface.co/docs/hub/model-cards)."""

from __future__ import annotations

from pathlib import Path

from pocketstill.errors import UserError

from . import words
from .page import environment
from .reading import read_run


def model_card(root: Path) -> str:
    """The card of the variant that ships from the run in `root`: YAML head, then Markdown.

    Raises:
        UserError: a file of the run is missing or broken, or no variant passed its gates.
    """
    run = read_run(root)
    if run.shipped is None:
        raise UserError(f"{root}: no variant passed its gates, so nothing ships; see report.html for the reasons")
    code, answer = words.three_lines(run)
    return environment(escaped=False).get_template("card.md.jinja").render(
        run=run,
        recipe=run.recipe,
        shipped=run.shipped,
        skills=run.skills,
        headline=words.headline(run),
        teacher_said=words.teacher_said(run),
        student_said=words.student_said(run),
        expansion_said=words.expansion_said(run),
        base=words.base_name(run),
        license=run.recipe["license"],
        code=code,
        code_answer=answer,
        collected=run.manifests["collect"].counts,
        machine=run.report["machine"],
    )  # fmt: skip
