"""Export, as a stage of a run: the student as every variant that the recipe names, with the suite beside them."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

from pocketstill.bundle import Bundle, write_bundle_json
from pocketstill.errors import UserError
from pocketstill.files import write_json
from pocketstill.manifest import read_manifest, up_to_date, write_manifest
from pocketstill_export import Budget, ExportResult, Provenance, Tolerance
from pocketstill_export import export as export_checkpoint

from .curate import SUITE
from .packing import encode
from .recipe import Recipe
from .students import read_tokenizer
from .tables import read_parquet

_COMPARED = 180


def export(recipe: Recipe, curated: Path, distilled: Path, out: Path) -> dict[str, Any]:
    """Write `out`/model with every variant and the suite, `out`/parity.json, and manifest.json last.

    Raises:
        UserError: a variant is not the same model as the checkpoint; nothing is left that looks complete.
    """
    config = {
        "variants": recipe.verify.variants,
        "max_new_tokens": recipe.verify.max_new_tokens,
        "context_length": recipe.student.context_length,
        **recipe.export.model_dump(mode="json"),
        "skills": [skill.model_dump(mode="json", include={"name", "kind", "gate"}) for skill in recipe.skills],
    }
    inputs = _inputs(curated, distilled)
    if up_to_date(out, config, inputs):
        return _counts(out)
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)
    model = out / "model"
    if model.is_dir():
        shutil.rmtree(model)
    texts, calibration = _texts(recipe, distilled, curated)
    most = recipe.export.mixed_kl
    budget = None if most is None else Budget(Tolerance(kl_mean=most), keep="all")
    result = export_checkpoint(
        distilled / "student",
        model,
        variants=recipe.verify.variants,
        context_length=recipe.student.context_length,
        generation={"max_new_tokens": recipe.verify.max_new_tokens, "temperature": 0.0},
        skills={skill.name: {"kind": skill.kind, "gate": skill.gate} for skill in recipe.skills},
        name=recipe.name,
        parity_texts=texts,
        calibration=calibration,
        tensor_types=recipe.export.tensor_types,
        provenance=Provenance(license=recipe.license, teacher=recipe.teacher.model),
        budget=budget,
    )
    shutil.copyfile(curated / SUITE, model / SUITE)
    write_index(model, Bundle.load(model, check=False))
    write_json(out / "parity.json", result.to_dict())
    write_manifest(
        out,
        stage="export",
        config=config,
        inputs=inputs,
        outputs=[path for path in sorted(model.rglob("*")) if path.is_file()] + [out / "parity.json"],
        seed=None,
        counts=_sizes(result),
        seconds=time.monotonic() - started,
    )
    return _counts(out)


def write_index(folder: Path, bundle: Bundle, **index: Any) -> Bundle:
    """Write the index of `folder` over the files that it has now, as that of `bundle` but for what is given."""
    fields: dict[str, Any] = {
        "name": bundle.name,
        "variants": bundle.variants,
        "default": bundle.default,
        "stop_ids": bundle.stop_ids,
        "generation": bundle.generation,
        "context_length": bundle.context_length,
        "skills": bundle.skills,
        "threads": bundle.threads,
        "verification": bundle.verification,
        "lineage": bundle.lineage,
    }
    return write_bundle_json(folder, **(fields | index))


def _inputs(curated: Path, distilled: Path) -> dict[str, str]:
    trained, kept = read_manifest(distilled), read_manifest(curated)
    if trained is None or kept is None:
        raise UserError(f"{distilled}: no finished student there; run `pocketstill distill` first")
    weights = {f"distill/{name}": digest for name, digest in trained.outputs.items() if name.startswith("student/")}
    read = {f"curate/{name}": kept.outputs[name] for name in (SUITE, "train.parquet")}
    return weights | read


def _texts(recipe: Recipe, distilled: Path, curated: Path) -> tuple[list[str], list[list[int]]]:
    """Training conversations as the student sees them: texts to compare over, and token ids to calibrate on.

    None of the held-out questions is among them, so that what is chosen here can be verified on those.
    """
    rows = read_parquet(curated / "train.parquet")
    random.Random(recipe.seed).shuffle(rows)
    tokenizer = read_tokenizer(distilled / "student")
    compared = min(_COMPARED, max(1, len(rows) // 4))
    texts = [tokenizer.decode(ids) for ids, _ in encode(tokenizer, recipe.student.template, rows[:compared])]
    left, taken = recipe.export.calibration_tokens, []
    for row in rows[compared:]:
        if left <= 0:
            break
        [(ids, _)] = encode(tokenizer, recipe.student.template, [row])
        taken.append(ids[: recipe.student.context_length])
        left -= len(taken[-1])
    return texts, taken


def _sizes(result: ExportResult) -> dict[str, Any]:
    return {
        "bytes": {variant.name: variant.bytes for variant in result.variants},
        "notes": list(result.notes),
    }


def _counts(out: Path) -> dict[str, Any]:
    manifest = read_manifest(out)
    return {} if manifest is None else dict(manifest.counts)
