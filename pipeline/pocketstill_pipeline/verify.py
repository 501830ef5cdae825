"""Verify, as a stage of a run: every variant on this machine, beside the checkpoint and the teacher."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from pocketstill.bundle import Bundle, SuiteItem
from pocketstill.errors import UserError
from pocketstill.files import read_json, sha256_file, write_json
from pocketstill.machine import machine
from pocketstill.manifest import read_manifest, up_to_date, versions, write_manifest
from pocketstill.stats import paired_difference, wilson
from pocketstill.verify import graded_answer
from pocketstill.verify import verify as verify_bundle

from .recipe import Recipe


def verify(recipe: Recipe, curated: Path, distilled: Path, exported: Path, out: Path) -> dict[str, Any]:
    """Verify all variants of `exported`; writes `out`/<variant>.json, checkpoint.json, report.json, manifest.json.

    A variant that was verified before with the same files and budget is not verified again.

    Raises:
        UserError: the export is not there.
    """
    exports = read_manifest(exported)
    if exports is None:
        raise UserError(f"{exported}: no finished export there; run `pocketstill export` first")
    # The report shows the recipe and what was curated too; what was measured is kept beside it, each by its own key.
    config = recipe.model_dump(mode="json")
    inputs = {f"export/{name}": digest for name, digest in exports.outputs.items()}
    inputs["curate/stats.json"] = sha256_file(curated / "stats.json")
    if up_to_date(out, config, inputs):
        return summary(read_json(out / "report.json"))
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)
    model = exported / "model"
    checkpoint = _checkpoint(recipe, distilled / "student", model, out)
    rows = []
    for name in [variant.name for variant in Bundle.load(model).variants]:
        found = _variant(recipe, model, name, out)
        rows.append(_judged(recipe, found, checkpoint["answers"]))
    report = _report(recipe, rows, checkpoint, read_json(curated / "stats.json"), exported)
    write_json(out / "report.json", report)
    write_manifest(
        out,
        stage="verify",
        config=config,
        inputs=inputs,
        outputs=[
            out / "report.json",
            out / "checkpoint.json",
            *(out / f"{row['variant']}.json" for row in rows),
        ],
        seed=None,
        counts={"passed": [row["variant"] for row in rows if row["passed"]], "default": report["default"]},
        seconds=time.monotonic() - started,
    )
    return summary(report)


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """The one JSON object that a command ends with."""
    kept = ("variant", "passed", "file_mib", "decode_tok_s", "failures")
    return {
        "passed": report["default"] is not None,
        "default": report["default"],
        "variants": [{key: row[key] for key in kept} for row in report["variants"]],
    }


def _checkpoint(recipe: Recipe, student: Path, model: Path, out: Path) -> dict[str, Any]:
    """The checkpoint's own answers to the suite, in transformers, float32, greedy."""
    key = {
        "student": sha256_file(student / "model.safetensors"),
        "suite": sha256_file(model / "suite.jsonl"),
        "max_new_tokens": recipe.verify.max_new_tokens,
        "versions": versions(),
    }
    path = out / "checkpoint.json"
    if path.is_file() and (known := read_json(path)).get("key") == key:
        return dict(known)
    items = Bundle.load(model).suite()
    started = time.monotonic()
    completions = _generate(student, items, recipe.verify.max_new_tokens)
    answers = [graded_answer(item, text) for item, text in zip(items, completions, strict=True)]
    found = {
        "key": key,
        "answers": answers,
        "skills": by_skill(answers),
        "seconds": time.monotonic() - started,
    }
    write_json(path, found)
    return found


def _generate(student: Path, items: Sequence[SuiteItem], max_new_tokens: int) -> list[str]:
    import torch
    from transformers import AutoModelForCausalLM

    from .students import hush_transformers, read_tokenizer

    hush_transformers()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = read_tokenizer(student)
    tokenizer.padding_side = "left"
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).to(device).eval()
    prompts = [
        tokenizer.apply_chat_template(list(item.messages), tokenize=False, add_generation_prompt=True) for item in items
    ]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    said = [""] * len(prompts)
    batches = [order[at : at + 64] for at in range(0, len(order), 64)]
    for batch in track(batches, "verify checkpoint", console=Console(file=sys.stderr)):
        fed = tokenizer([prompts[i] for i in batch], return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            made = model.generate(
                input_ids=fed["input_ids"].to(device), attention_mask=fed["attention_mask"].to(device),
                max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
        for index, row in zip(batch, made, strict=True):
            said[index] = tokenizer.decode(row[fed["input_ids"].shape[1] :], skip_special_tokens=True)
    return said


def _variant(recipe: Recipe, model: Path, name: str, out: Path) -> dict[str, Any]:
    """One variant's verification, taken from `out` where it was done before on the same bundle and budget."""
    budget = recipe.verify
    key = {
        "bundle": sha256_file(model / "pocketstill.json"),
        "budget": budget.model_dump(mode="json", include={"cores", "memory_mib", "max_file_mib"}),
        "versions": versions(),
    }
    path = out / f"{name}.json"
    if path.is_file() and (known := read_json(path)).get("key") == key:
        return dict(known)
    console = Console(stderr=True)
    with console.status(f"verify {name}") as status:
        result = verify_bundle(
            model, variant=name, cores=budget.cores, memory_mib=budget.memory_mib, file_mib=budget.max_file_mib,
            on_progress=lambda stage, done, total: status.update(f"verify {name}: {stage} {done}/{total}"),
        )  # fmt: skip
    found = result.to_dict(answers=True) | {"key": key}
    write_json(path, found)
    speed = f"{found['decode_tok_s']:,.0f} tokens/s, {found['file_mib']:.2f} MiB"
    console.print(f"verify {name}: {'passed' if found['passed'] else 'failed'}, {speed}")
    return found


def _judged(recipe: Recipe, found: dict[str, Any], checkpoint: list[dict[str, Any]]) -> dict[str, Any]:
    """Add what the variant lost against the checkpoint, with paired intervals, and whether that is too much."""
    mine = {answer["id"]: answer for answer in found["answers"]}
    pairs: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for theirs in checkpoint:
        pairs[theirs["skill"]].append((mine[theirs["id"]]["correct"], theirs["correct"]))
    every = [pair for skill in pairs.values() for pair in skill]
    costs = {skill: _difference(rows) for skill, rows in pairs.items()}
    overall = _difference(every)
    own = {skill.name for skill in recipe.skills}
    failures = list(found["failures"])
    if overall["low"] < -recipe.verify.tolerance:
        failures.append(
            f"against the checkpoint: the paired interval reaches {overall['low']:+.1%}, "
            f"beyond the tolerance of {-recipe.verify.tolerance:+.1%}"
        )
    failures += [
        f"{skill}: costs {-cost['mean']:.1%} against the checkpoint, above {recipe.verify.max_cost:.1%}"
        for skill, cost in costs.items()
        if skill in own and cost["mean"] < -recipe.verify.max_cost - 1e-9
    ]
    kept = {key: value for key, value in found.items() if key not in ("answers", "key")}
    return kept | {
        "passed": not failures,
        "failures": failures,
        "difference": overall,
        "differences": costs,
        "examples": _examples(found["answers"]),
    }


def _difference(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    mean, low, high = paired_difference([a for a, _ in pairs], [b for _, b in pairs])
    return {"mean": mean, "low": low, "high": high}


def _examples(answers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each skill, the first right answer and the first two wrong ones."""
    shown: list[dict[str, Any]] = []
    for skill in dict.fromkeys(answer["skill"] for answer in answers):
        own = [answer for answer in answers if answer["skill"] == skill]
        shown += [a for a in own if a["correct"]][:1] + [a for a in own if not a["correct"]][:2]
    return shown


def by_skill(answers: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Accuracy with its Wilson interval, a skill."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        groups[answer["skill"]].append(answer["correct"])
    found = {}
    for skill, right in groups.items():
        low, high = wilson(sum(right), len(right))
        found[skill] = {"n": len(right), "accuracy": sum(right) / len(right), "low": low, "high": high}
    return found


def _report(
    recipe: Recipe,
    rows: list[dict[str, Any]],
    checkpoint: dict[str, Any],
    stats: dict[str, Any],
    exported: Path,
) -> dict[str, Any]:
    passed = [row for row in rows if row["passed"]]
    best = min(passed, key=lambda row: row["file_mib"], default=None)
    return {
        "recipe": recipe.model_dump(mode="json"),
        "machine": machine(),
        "default": best and best["variant"],
        "variants": rows,
        "checkpoint": {"skills": checkpoint["skills"], "seconds": checkpoint["seconds"]},
        "teacher": stats["teacher"],
        "curation": stats,
        "parity": read_json(exported / "parity.json")["parity"],
    }
