"""What an export may lose and what it shall save, and the folder cut down to what was chosen."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pocketstill.bundle import SuiteItem
from pocketstill_export.choice.candidates import Choice, Tolerance
from pocketstill_export.variants import VariantSpec
from pocketstill_export.weights import Written


@dataclass(frozen=True)
class Budget:
    """The terms of a choice among variants.

    Attributes:
        tolerance: the most that may be lost against the checkpoint.
        objective: what is saved among those within the tolerance.
        keep: which variants the folder holds in the end: the chosen one, the Pareto front, or all.
        mixed: whether GGUF types are also chosen tensor by tensor.
        suite: questions for a tolerance in accuracy.
        max_bytes: of the chosen variant's files.
    """

    tolerance: Tolerance
    objective: Literal["smallest", "fastest"] = "smallest"
    keep: Literal["chosen", "front", "all"] = "chosen"
    mixed: bool = True
    suite: Sequence[SuiteItem] = ()
    max_bytes: int | None = None


def keep_chosen(
    folder: Path, specs: Sequence[VariantSpec], written: Written, choice: Choice, budget: Budget
) -> tuple[list[VariantSpec], Written]:
    """Removes from `folder` the files of the variants that are not kept; a mixed variant joins the rest."""
    kept = {choice.required().name}
    if budget.keep == "front":
        kept |= {candidate.name for candidate in choice.candidates if candidate.on_front}
    elif budget.keep == "all":
        kept |= {candidate.name for candidate in choice.candidates}
    variants = list(written.variants)
    if choice.mixed is not None:
        adapters = next((v.adapters for v in variants if v.engine == "gguf"), {})
        variants.append(replace(choice.mixed, adapters=adapters))
    left = tuple(variant for variant in variants if variant.name in kept)
    needed = {file for variant in left for file in (*variant.files, *variant.adapters.values())}
    for variant in variants:
        for file in (*variant.files, *variant.adapters.values()):
            if file not in needed:
                (folder / file).unlink(missing_ok=True)
    if not any((folder / "onnx").glob("*")):
        shutil.rmtree(folder / "onnx", ignore_errors=True)
        (folder / "genai_config.json").unlink(missing_ok=True)
    return [spec for spec in specs if spec.name in kept], replace(written, variants=left)
