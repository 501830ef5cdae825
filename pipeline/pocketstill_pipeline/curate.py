"""Curate: make examples of what the teacher said, and keep only what a student should learn from.

Fine-tune-CoT (Ho et al. 2023, arXiv 2212.10071, section 3): a sample is kept when the answer that its
rationale leads to is right. What is left out is kept beside it, each with its reason.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketstill import grading
from pocketstill.errors import UserError
from pocketstill.files import sha256_file, write_json
from pocketstill.manifest import MANIFEST, read_manifest, up_to_date, write_manifest
from pocketstill.stats import wilson

from .collect import QUESTIONS, SAMPLES, collect_config, collect_inputs, entries_of, read_questions
from .duplicates import NearDuplicates
from .example import Elicited, Example, Question
from .problems.base import normalise
from .recipe import Recipe
from .tables import EXAMPLES, REJECTED, write_parquet

TRAIN, HELDOUT, REJECTS, SUITE, STATS = (
    "train.parquet", "heldout.parquet", "rejected.parquet", "suite.jsonl", "stats.json",
)  # fmt: skip
REASONS = (
    "failed_request", "empty", "truncated", "no_answer", "wrong", "in_heldout", "exact_duplicate",
    "near_duplicate", "over_cap",
)  # fmt: skip


@dataclass(frozen=True)
class CurateResult:
    """How many examples were kept and rejected; `teacher_accuracy` is of training samples, 0 to 1."""

    folder: Path
    train: int
    heldout: int
    rejected: int
    suite: int
    teacher_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Graded:
    """One sample, graded. `reason` is why its own content rejects it, None when nothing does."""

    elicited: Elicited
    correct: bool
    reason: str | None
    detail: str


def curate(recipe: Recipe, collected: Path, out: Path) -> CurateResult:
    """Grade a collection and split it.

    Writes train.parquet, heldout.parquet, rejected.parquet, suite.jsonl and stats.json to `out`.

    Raises:
        UserError: the collection is missing, unfinished or of another recipe; nothing is left to train on; or
            `out` cannot be written.
    """
    started = time.monotonic()
    _check_collected(recipe, collected)
    config = {"curate": recipe.curate.model_dump(mode="json"), "collect": collect_config(recipe)}
    questions = read_questions(collected)
    graded = list(_graded(recipe, collected))
    inputs = {QUESTIONS: sha256_file(collected / QUESTIONS), "answers": _digest(graded)}
    if up_to_date(out, config, inputs):
        return _result(out)
    kept, rejected = _select(recipe, graded)
    train = [item for item in kept if item.elicited.split == "train"]
    heldout = [item for item in kept if item.elicited.split == "heldout"]
    suite = [_suite_item(question) for question in questions if question.split == "heldout"]
    if not train:
        why = ", ".join(f"{count} {reason}" for reason, count in Counter(r for _, r, _ in rejected).most_common())
        raise UserError(f"curate: nothing is left to train on ({why or 'no training questions'}); check the teacher")
    stats = _stats(graded, train, heldout, rejected)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MANIFEST).unlink(missing_ok=True)
        write_parquet(out / TRAIN, [_example(item).to_dict() for item in train], EXAMPLES)
        write_parquet(out / HELDOUT, [_example(item).to_dict() for item in heldout], EXAMPLES)
        write_parquet(out / REJECTS, [_rejected(*entry) for entry in rejected], REJECTED)
        lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in suite)
        (out / SUITE).write_text(lines, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); free some space or mend the path"
        ) from None
    write_json(out / STATS, stats)
    counts = {
        "train": len(train), "heldout": len(heldout), "rejected": len(rejected), "suite": len(suite),
        "teacher_accuracy": stats["teacher"]["train"]["overall"]["accuracy"],
    }  # fmt: skip
    outputs = [out / name for name in (TRAIN, HELDOUT, REJECTS, SUITE, STATS)]
    write_manifest(
        out, stage="curate", config=config, inputs=inputs, outputs=outputs, seed=recipe.seed, counts=counts,
        seconds=time.monotonic() - started,
    )  # fmt: skip
    return _result(out)


def _check_collected(recipe: Recipe, collected: Path) -> None:
    manifest = read_manifest(collected)
    if manifest is None:
        raise UserError(f"{collected}: no finished collection there; run `pocketstill collect` first")
    if manifest.config != collect_config(recipe) or manifest.inputs != collect_inputs(recipe):
        raise UserError(f"{collected}: it was collected for another recipe; run `pocketstill collect` again")


def _result(out: Path) -> CurateResult:
    manifest = read_manifest(out)
    assert manifest is not None
    return CurateResult(folder=out, seconds=manifest.seconds, **manifest.counts)


def _graded(recipe: Recipe, collected: Path) -> Iterator[Graded]:
    for entry in entries_of(recipe):
        with (collected / SAMPLES / f"{entry.entry}.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                yield grade(Elicited.from_dict(json.loads(line)))


def grade(item: Elicited) -> Graded:
    """Whether a sample's answer is right, and what speaks against it."""
    correct = item.gold is None or grading.equal(item.answer, item.gold, item.kind)
    reason, detail = item.reason, item.detail
    if reason is None and not correct:
        reason, detail = "wrong", f"{item.answer!r} instead of {item.gold!r}"
    return Graded(item, correct and item.answer is not None, reason, detail)


def _select(recipe: Recipe, graded: list[Graded]) -> tuple[list[Graded], list[tuple[Graded, str, str]]]:
    """What is kept, and what is not with (reason, detail). Earlier samples win over later ones like them."""
    heldout = {normalise(item.elicited.question) for item in graded if item.elicited.split == "heldout"}
    near = NearDuplicates(recipe.curate.near_duplicate)
    exact: dict[tuple[str, str, str], str] = {}
    per_question: Counter[str] = Counter()
    kept: list[Graded] = []
    rejected: list[tuple[Graded, str, str]] = []
    for item in graded:
        if item.reason is not None and not (item.reason == "wrong" and recipe.curate.keep_wrong):
            rejected.append((item, item.reason, item.detail))
            continue
        if item.elicited.split == "heldout":
            kept.append(item)
            continue
        asked = normalise(item.elicited.question)
        identity, name = (asked, normalise(item.elicited.rationale), item.elicited.answer or ""), _name(item)
        if asked in heldout:
            rejected.append((item, "in_heldout", "the question is held out"))
        elif identity in exact:
            rejected.append((item, "exact_duplicate", f"of {exact[identity]}"))
        elif per_question[asked] >= recipe.curate.max_per_question:
            rejected.append((item, "over_cap", f"{recipe.curate.max_per_question} of this question are kept"))
        elif (
            twin := near.add(name, f"{item.elicited.question}\n{item.elicited.rationale}\n{item.elicited.answer}")
        ) is not None:
            exact[identity] = name
            rejected.append((item, "near_duplicate", f"of {twin}"))
        else:
            exact[identity] = name
            per_question[asked] += 1
            kept.append(item)
    return kept, rejected


def _name(item: Graded) -> str:
    return item.elicited.id


def _example(item: Graded) -> Example:
    said = item.elicited
    return Example(
        id=said.id, skill=said.skill, route=said.route, messages=said.messages, rationale=said.rationale,
        answer=said.answer or "", answer_kind=said.kind, gold=said.gold or "", split=said.split,
        source=list(said.source), tags=list(said.tags), demonstrations=said.demonstrations,
        candidates=said.candidates, top_logprobs=said.top_logprobs, method=said.method, tools=said.tools,
    )  # fmt: skip


def _rejected(item: Graded, reason: str, detail: str) -> dict[str, Any]:
    said = item.elicited
    return {
        "id": said.id, "skill": said.skill, "route": said.route, "split": said.split,
        "reason": reason, "detail": detail, "question": said.question, "rationale": said.rationale,
        "completion": said.completion, "answer": said.answer, "gold": said.gold,
        "answer_kind": said.kind, "source": list(said.source), "method": said.method,
    }  # fmt: skip


def _suite_item(question: Question) -> dict[str, Any]:
    return {
        "id": question.id, "skill": question.skill, "messages": [{"role": "user", "content": question.text}],
        "gold": question.gold, "answer_kind": question.kind, "tags": list(question.tags),
    }  # fmt: skip


def _digest(graded: list[Graded]) -> str:
    """Hash of all that was answered: equal for two collections that differ only in when they asked."""
    digest = hashlib.sha256()
    for item in graded:
        said = [item.elicited.to_dict(), item.reason, item.detail]
        digest.update(json.dumps(said, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _stats(
    graded: list[Graded], train: list[Graded], heldout: list[Graded], rejected: list[tuple[Graded, str, str]]
) -> dict[str, Any]:
    answered = [item for item in graded if item.reason != "failed_request"]
    reasons = Counter((item.elicited.split, item.elicited.skill, reason) for item, reason, _ in rejected)
    skills = list(dict.fromkeys(item.elicited.skill for item in graded))
    kept = Counter((item.elicited.split, item.elicited.skill) for item in train + heldout)
    routes = Counter(item.elicited.route for item in train)
    teacher = {
        split: _accuracies([item for item in answered if item.elicited.split == split])
        for split in ("train", "heldout")
    }
    mistakes = {name: 1 - entry["accuracy"] for name, entry in teacher["train"]["by_skill"].items()}
    return {
        "teacher": teacher,
        "mistakes": mistakes | {"overall": 1 - teacher["train"]["overall"]["accuracy"]},
        "kept": {split: {s: kept[split, s] for s in skills if kept[split, s]} for split in ("train", "heldout")},
        "kept_by_route": dict(sorted(routes.items())),
        "rejected": {
            split: {
                reason: by_skill
                for reason in REASONS
                if (by_skill := {s: reasons[split, s, reason] for s in skills if reasons[split, s, reason]})
            }
            for split in ("train", "heldout")
        },
    }


def _accuracies(items: list[Graded]) -> dict[str, Any]:
    def accuracy(some: list[Graded]) -> dict[str, Any]:
        correct = sum(item.correct for item in some)
        low, high = wilson(correct, len(some))
        share = correct / len(some) if some else 0.0
        return {"n": len(some), "correct": correct, "accuracy": share, "low": low, "high": high}

    skills = dict.fromkeys(item.elicited.skill for item in items)
    by_skill = {skill: accuracy([item for item in items if item.elicited.skill == skill]) for skill in skills}
    return {"overall": accuracy(items), "by_skill": by_skill}
