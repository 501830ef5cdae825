"""`pocketstill inspect`: in the terminal and as a page."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from rich.console import Console

from pocketstill.errors import UserError
from pocketstill_pipeline.recipe import load_recipe

from .page import write_page
from .reading import inspect_run
from .terminal import show


def inspect_command(
    target: Path, runs: Path, *, out: Path | None = None, groups: int = 3, reason: str | None = None
) -> dict[str, Any]:
    """Shows a run on stderr, writes its page, and returns its figures.

    Args:
        target: a run's folder, or a recipe.
        runs: the folder of runs, for a recipe.
        out: the page; inspect.html in the run when left out.
        groups: questions to show with their samples.
        reason: show samples that were dropped for it instead.

    Raises:
        UserError: nothing was collected there, or nothing was dropped for that reason.
    """
    root = runs / load_recipe(target).name if target.suffix == ".toml" else target
    found = inspect_run(root)
    if reason is not None and reason not in found.drops:
        nearest = difflib.get_close_matches(reason, found.drops, n=1, cutoff=0.0)
        hint = f"; nearest: {nearest[0]!r}" if nearest else ""
        raise UserError(f"{root}: nothing was dropped as {reason!r}{hint}")
    show(found, Console(stderr=True), groups=groups, reason=reason)
    page = write_page(found, out or root / "inspect.html")
    return found.to_dict() | {"page": str(page)}
