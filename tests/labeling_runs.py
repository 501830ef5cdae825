"""What the tests of labeling share: the samples and the requests of a small run, and recipes for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from teaching import recipe_of

from pocketstill import grading
from pocketstill_pipeline.collect import LEDGER, collect
from pocketstill_pipeline.entries import SAMPLES
from pocketstill_pipeline.ledger import Ledger
from pocketstill_pipeline.recipe import Recipe

TOOLS = {"name": "tool_call", "kind": "json", "questions": 60, "heldout": 4}


def samples_of(recipe: Recipe, out: Path) -> dict[str, list[dict[str, Any]]]:
    """What each entry of a recipe made."""
    collect(recipe, out)
    return {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in sorted((out / SAMPLES).glob("*.jsonl"))
    }


def requests_of(out: Path) -> list[dict[str, Any]]:
    with Ledger(out / LEDGER, readonly=True) as ledger:
        return [json.loads(row.request) for row in ledger.rows()]


def right(sample: dict[str, Any]) -> bool:
    return sample.get("reason") is None and grading.equal(sample["answer"], sample["gold"], sample["kind"])


def tools_recipe(teacher: dict[str, Any], **entry: Any) -> Recipe:
    return recipe_of(teacher, skills=[TOOLS], elicit=[{"method": "tool_calls", "samples": 1} | entry])
