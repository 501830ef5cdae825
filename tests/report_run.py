"""A finished run in files, for the report's tests: every figure in it is invented.

`python tests/report_run.py FOLDER` writes one and its page, to look at.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from pocketstill.bundle import Variant
from pocketstill.files import write_json
from pocketstill.grading import token_f1
from pocketstill.machine import machine
from pocketstill.manifest import write_manifest
from pocketstill.stats import paired_difference, wilson
from pocketstill_export.export import ExportResult
from pocketstill_export.parity.logits import LogitsCheck
from pocketstill_export.parity.measure import Parity
from pocketstill_export.parity.text import TextCheck
from pocketstill_pipeline import problems
from pocketstill_pipeline.curating.decisions import Decision
from pocketstill_pipeline.curating.statistics import Statistics
from pocketstill_pipeline.example import Elicited, Question
from pocketstill_pipeline.recipe import Recipe

SKILLS = {
    "coin_flip": ("yes_no", 0.95, 0.996),
    "last_letters": ("text", 0.95, 0.979),
    "shuffled_objects": ("choice", 0.95, 0.988),
    "arithmetic": ("number", 0.90, 0.946),
    "tool_call": ("json", 0.90, 0.971),
}
UNSEEN = "last_letters_unseen"
# name: MiB, decode tokens/s, peak MiB, answers lost against the checkpoint
VARIANTS = {
    "onnx-fp32": (19.31, 612.0, 141.2, 0.0),
    "onnx-int4": (4.12, 941.0, 97.4, 0.003),
    "gguf-f16": (9.92, 703.0, 61.8, 0.0),
    "gguf-q8_0": (5.41, 988.0, 52.3, 0.002),
    "gguf-q4_k_m": (4.63, 902.0, 50.9, 0.05),
}


def make_recipe(folder: Path, **changes: Any) -> Recipe:
    skills = [
        {"name": name, "kind": kind, "gate": gate, "questions": 2400, "heldout": 240, "expand": 600}
        for name, (kind, gate, _) in SKILLS.items()
    ]
    fields: dict[str, Any] = {
        "name": "fixture",
        "description": "Five small skills for a phone. (Fixture: every figure on this page is invented.)",
        "notes": [
            "The student starts from a base student of this project, pretrained on generated problems; "
            "no held-out question was among them."
        ],
        "published_source": "Fixture: test accuracy, as if published.",
        "published": [
            {
                "name": "An older student of 6.7 B parameters",
                "accuracy": {"coin_flip": 0.987, "last_letters": 0.527, "shuffled_objects": 0.644},
            },
            {"name": "A smaller one", "accuracy": {"coin_flip": 0.993, "last_letters": 0.507}},
        ],
        "skills": skills,
        "student": {"base": str(folder / "base" / "pocket-base"), "context_length": 512},
        "teacher": {"price_in": 0.15, "price_out": 0.6},
    }
    return Recipe.model_validate(fields | changes)


def write_run(root: Path, *, n: int = 24, recipe: Recipe | None = None, passing: bool = True) -> Path:
    """Write a run with `n` held-out questions a skill; with `passing` False, no variant meets its gates."""
    rng = random.Random(3)
    recipe = recipe or make_recipe(root)
    questions = [
        *(q for name in SKILLS for q in _draw(name, name, n, rng)),
        *_draw("last_letters", UNSEEN, n, rng, unseen=True),
    ]
    _collect(root, recipe, len(questions))
    _curate(root, recipe, questions, rng)
    _distill(root, recipe)
    _export(root, recipe)
    _verify(root, recipe, questions, rng, passing)
    return root


def _draw(skill: str, name: str, n: int, rng: random.Random, *, unseen: bool = False) -> list[tuple[Question, str]]:
    drawn = []
    for index in range(n):
        problem = problems.sample(skill, rng, unseen=True) if unseen else problems.sample(skill, rng)
        solution = problems.solve(problem.question, rng)
        question = Question(
            id=f"{name}-{index}", skill=name, text=problem.question, gold=problem.gold, kind=problem.kind,
            split="heldout", tags=(*problem.tags, *(["unseen_names"] if unseen else [])),
        )  # fmt: skip
        drawn.append((question, solution.rationale if solution else ""))
    return drawn


def _collect(root: Path, recipe: Recipe, heldout: int) -> None:
    (root / "collect").mkdir(parents=True)
    train = sum(skill.questions + skill.expand for skill in recipe.skills)
    counts = {
        "questions": train + heldout, "train": train, "heldout": heldout, "requests": 42_190,
        "from_cache": 13_370, "failed": 12, "prompt_tokens": 3_911_204, "completion_tokens": 2_204_871,
        "price": 1.909603,
    }  # fmt: skip
    (root / "collect" / "questions.jsonl").write_text("{}\n", encoding="utf-8")
    write_manifest(
        root / "collect", stage="collect", config={}, inputs={}, outputs=["questions.jsonl"], seed=17,
        counts=counts, seconds=141.2,
    )  # fmt: skip


def _curate(root: Path, recipe: Recipe, heldout: list[tuple[Question, str]], rng: random.Random) -> None:
    figures, counted = Statistics(), Counter[str]()

    def add(question: Question, reason: str | None, right: bool) -> None:
        item = Elicited(
            question.id, question.skill, question.route, "zero_shot_cot", [{"role": "user", "content": "?"}],
            "x", "x", question.kind, gold="x", split=question.split,
        )  # fmt: skip
        figures.add(item, Decision(reason, "", right))
        counted["rejected" if reason else question.split] += 1

    for skill, (kind, _, _) in SKILLS.items():
        for index in range(300):
            route = "expansion" if index % 5 == 0 else "labeling"
            question = Question(f"{skill}-t{index}", skill, "?", "x", kind, "train", route)  # type: ignore[arg-type]
            reason = rng.choices([None, "wrong", "no_answer", "near_duplicate", "truncated"], [82, 11, 2, 4, 1])[0]
            add(question, reason, reason in (None, "near_duplicate"))
    for question, _ in heldout:
        right = rng.random() < 0.88
        add(question, None if right else "wrong", right)
    stats = figures.result() | {"decontamination": {}, "selected_by": ""}
    (root / "curate").mkdir()
    write_json(root / "curate" / "stats.json", stats)
    counts = {
        **{name: counted[name] for name in ("train", "heldout", "rejected")}, "suite": len(heldout),
        "teacher_accuracy": stats["teacher"]["train"]["overall"]["accuracy"],
    }  # fmt: skip
    write_manifest(
        root / "curate", stage="curate", config={}, inputs={"questions.jsonl": "0" * 64},
        outputs=["stats.json"], seed=17, counts=counts, seconds=21.7,
    )  # fmt: skip


def _distill(root: Path, recipe: Recipe) -> None:
    (root / "distill" / "student").mkdir(parents=True)
    (root / "distill" / "student" / "model.safetensors").write_bytes(b"fixture")
    steps, rng, lines = 490, random.Random(5), []
    for step in range(5, steps + 1, 5):
        tokens = step * 8192
        rate = 0.02 * min(1.0, step / 15) * min(1.0, (steps - step) / (0.4 * steps) + 1e-3)
        loss = 0.06 + 2.4 * math.exp(-step / 45) + 0.35 * math.exp(-step / 180) + rng.gauss(0, 0.012)
        seconds = round(tokens / 9100, 2)
        lines.append({"step": step, "tokens": tokens, "loss": loss, "learning_rate": rate, "seconds": seconds})
        if step % 50 == 0 or step == steps:
            lines.append({"step": step, "tokens": tokens, "dev_loss": loss + 0.02, "seconds": seconds})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (root / "distill" / "curve.jsonl").write_text(text, encoding="utf-8")
    counts = {
        "parameters": 5_112_064, "steps": steps, "tokens": steps * 8192, "tokens_per_second": 9104.3,
        "mfu": None, "train_loss": lines[-2]["loss"], "dev_loss": lines[-1]["dev_loss"], "examples": 24_110,
        "dev_examples": 400,
    }  # fmt: skip
    write_manifest(
        root / "distill", stage="distill", config=recipe.model_dump(mode="json", include={"student", "train", "seed"}),
        inputs={"curate/train.parquet": "1" * 64, "base/model.safetensors": "2" * 64},
        outputs=["curve.jsonl", "student"], seed=17, counts=counts, seconds=487.0,
    )  # fmt: skip


def _export(root: Path, recipe: Recipe) -> None:
    model = root / "export" / "model"
    model.mkdir(parents=True)
    variants, logits, texts = [], [], [TextCheck("rendered prompt", "all", 12, True)]
    for name in recipe.verify.variants:
        engine = "onnx" if name.startswith("onnx") else "gguf"
        file = f"{engine}/{name}.{engine}"
        (model / engine).mkdir(exist_ok=True)
        (model / file).write_bytes(name.encode())
        variants.append(Variant(name, engine, file, (file,), int(VARIANTS[name][0] * 2**20)))  # type: ignore[arg-type]
        kl = {"onnx-fp32": 3e-8, "onnx-int4": 4.1e-3, "gguf-f16": 2.1e-6, "gguf-q8_0": 9e-5}.get(name, 7.7e-3)
        bound = {"onnx-fp32": 1e-4, "gguf-f16": 5e-3}.get(name)
        logits.append(LogitsCheck(name, 4096, kl, kl * 31, kl * 90, 1 - min(0.02, kl * 2), bound, True))
        texts.append(TextCheck("token ids", name, 214, True))
        texts.append(TextCheck("greedy tokens of decode and prefill", name, 16, True))
        texts.append(TextCheck("stop ids", name, 1, True))
    parity = Parity(True, tuple(texts), tuple(logits), ())
    result = ExportResult(
        folder=model, name="fixture", architecture="LlamaForCausalLM", parameters=5_000_000, context_length=512,
        default=variants[0].name, variants=tuple(variants), stop_ids=(0,), parity=parity, choice=None,
        notes=("gguf-q4_k_m: 6 of 43 tensors fall back to q5_0.",), seconds={"onnx": 11.0},
    )  # fmt: skip
    write_json(root / "export" / "parity.json", result.to_dict())
    counts = {"bytes": {v.name: v.bytes for v in variants}, "notes": list(result.notes)}
    write_manifest(
        root / "export", stage="export", config={}, inputs={"distill/student/model.safetensors": "3" * 64},
        outputs=["model", "parity.json"], seed=None, counts=counts, seconds=38.4,
    )  # fmt: skip


def _answer(question: Question, rationale: str, right: bool, rng: random.Random) -> dict[str, Any]:
    wrong = {"yes_no": "no" if question.gold == "yes" else "yes", "number": "41", "choice": "(C)"}
    prediction = question.gold if right else wrong.get(question.kind, question.gold[:-1])
    completion = f"{rationale}\nAnswer: {prediction}" if rationale else prediction
    return {
        "id": question.id, "skill": question.skill, "tags": list(question.tags), "question": question.text,
        "gold": question.gold, "completion": completion, "prediction": prediction, "correct": right,
        "token_f1": token_f1(prediction, question.gold),
        "rationale_leads_to_answer": right or rng.random() < 0.4 if rationale else None,
        "completion_tokens": 4 + len(completion) // 3,
        "seconds": round(0.01 + len(completion) / rng.uniform(2000, 2800), 6),
    }  # fmt: skip


def _result(rows: list[dict[str, Any]], gate: float | None) -> dict[str, Any]:
    n, correct = len(rows), sum(row["correct"] for row in rows)
    low, high = wilson(correct, n)
    told = [row["rationale_leads_to_answer"] for row in rows if row["rationale_leads_to_answer"] is not None]
    return {
        "n": n, "correct": correct, "accuracy": correct / n, "low": low, "high": high, "gate": gate,
        "passed": gate is None or correct / n >= gate, "token_f1": sum(row["token_f1"] for row in rows) / n,
        "rationale_accuracy": sum(told) / len(told) if told else None,
    }  # fmt: skip


def _by(rows: list[dict[str, Any]], skill: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["skill"] == skill]


def _verify(
    root: Path, recipe: Recipe, questions: list[tuple[Question, str]], rng: random.Random, passing: bool
) -> None:
    (root / "verify").mkdir()
    names = [*SKILLS, UNSEEN]
    likely = {name: accuracy for name, (_, _, accuracy) in SKILLS.items()} | {UNSEEN: 0.81}
    if not passing:
        likely["arithmetic"] = 0.6
    right = _right(questions, likely)
    theirs = [_answer(question, rationale, right[question.id], rng) for question, rationale in questions]
    checkpoint = {
        "key": {}, "answers": theirs, "seconds": 61.3,
        "skills": {name: _result(_by(theirs, name), None) for name in names},
    }  # fmt: skip
    write_json(root / "verify" / "checkpoint.json", checkpoint)
    rows = []
    for name in recipe.verify.variants:
        lost = VARIANTS[name][3]
        keeps = _right(questions, dict.fromkeys(names, 1 - lost), offset=2)
        mine = [_answer(q, why, right[q.id] and keeps[q.id], rng) for q, why in questions]
        found = _measured(name) | {
            "skills": {s: _result(_by(mine, s), SKILLS[s][1] if s in SKILLS else None) for s in names},
            "tags": {"unseen_names": _result(_by(mine, UNSEEN), None)},
        }
        write_json(root / "verify" / f"{name}.json", found | {"answers": mine, "key": {}})
        rows.append(found | _judged(found, mine, theirs, names))
    passed = [row for row in rows if row["passed"]]
    best = min(passed, key=lambda row: row["file_mib"], default=None)
    stats = json.loads((root / "curate" / "stats.json").read_text(encoding="utf-8"))
    parity = json.loads((root / "export" / "parity.json").read_text(encoding="utf-8"))["parity"]
    report = {
        "recipe": recipe.model_dump(mode="json"), "machine": machine(), "default": best and best["variant"],
        "variants": rows,
        "checkpoint": {"skills": checkpoint["skills"], "seconds": 61.3}, "teacher": stats["teacher"],
        "curation": stats, "parity": parity,
    }  # fmt: skip
    write_json(root / "verify" / "report.json", report)
    write_manifest(
        root / "verify", stage="verify", config={}, inputs={"export/parity.json": "4" * 64},
        outputs=["report.json"], seed=None, counts={"default": report["default"]}, seconds=203.9,
    )  # fmt: skip


def _right(questions: list[tuple[Question, str]], likely: dict[str, float], *, offset: int = 1) -> dict[str, bool]:
    """The share of each skill that is `likely`, not drawn by lot: gates must come out the same at any size."""
    found = {}
    for skill, share in likely.items():
        own = [question.id for question, _ in questions if question.skill == skill]
        wrong = round(len(own) * (1 - share))
        places = {int((k + offset / 3) * len(own) / wrong) for k in range(wrong)} if wrong else set()
        found |= {name: place not in places for place, name in enumerate(own)}
    return found


def _measured(name: str) -> dict[str, Any]:
    mib, decode, peak, _ = VARIANTS[name]
    return {
        "passed": True, "failures": [], "bundle": "fixture", "variant": name, "engine": name.split("-")[0],
        "file_mib": mib, "load_s": 0.02 * mib**0.5, "ttft_ms": 3600 / decode, "ttft_ms_sd": 0.21,
        "prefill_tok_s": 9.4 * decode, "prefill_tok_s_sd": 0.3 * decode, "decode_tok_s": decode,
        "decode_tok_s_sd": 0.016 * decode, "prefill_tokens": 510, "decode_tokens": 128, "repetitions": 5,
        "peak_rss_mib": peak, "threads": 2, "thread_rates": {"1": 0.71 * decode, "2": decode}, "cores": 2,
        "network": "denied by network namespace",
    }  # fmt: skip


def _judged(
    found: dict[str, Any], mine: list[dict[str, Any]], theirs: list[dict[str, Any]], names: list[str]
) -> dict[str, Any]:
    def cost(some: list[str]) -> dict[str, float]:
        a = [row["correct"] for row in mine if row["skill"] in some]
        b = [row["correct"] for row in theirs if row["skill"] in some]
        mean, low, high = paired_difference(a, b)
        return {"mean": mean, "low": low, "high": high}

    differences = {name: cost([name]) for name in names}
    failures = [
        f"{name}: accuracy {skill['accuracy']:.1%} of {skill['n']} is below its gate of {skill['gate']:.1%}"
        for name, skill in found["skills"].items()
        if not skill["passed"]
    ]
    failures += [
        f"{name}: costs {-entry['mean']:.1%} against the checkpoint, above 1%"
        for name, entry in differences.items()
        if entry["mean"] < -0.0101
    ]
    examples = [
        row
        for name in names
        for row in [
            *[row for row in _by(mine, name) if row["correct"]][:1],
            *[row for row in _by(mine, name) if not row["correct"]][:2],
        ]
    ]
    return {
        "passed": not failures, "failures": failures, "difference": cost(names), "differences": differences,
        "examples": examples,
    }  # fmt: skip


def _main(folder: Path) -> None:
    from pocketstill_pipeline.report import model_card, write_report

    for name, passing in (("passed", True), ("failed", False)):
        root = write_run(folder / name, n=240, passing=passing)
        print(write_report(root, root / "report.html"))
        if passing:
            (root / "MODEL_CARD.md").write_text(model_card(root), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
