"""Curate: make examples of what was elicited, and keep only what a student should learn from.

Fine-tune-CoT (Ho et al. 2023, arXiv 2212.10071, section 3): a sample is kept when the answer that its
rationale leads to is right. What is left out is kept beside it, each with its reason.

Whether leaving out wrong answers helps is open, hence `answer_filter = false`: Ho et al. see a trade-off of quality and
quantity, more samples, some badly reasoned, against fewer clean ones; Chandra et al. 2025 (arXiv 2512.22255) get better
students from traces that all end in a wrong answer than from human solutions; He et al. 2025 (arXiv 2510.06101) find no
effect of correctness in distilling code; Yan et al. 2025 (arXiv 2509.23574) get more from a few rationales, chosen for
accuracy among others, than from all.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pocketstill.errors import UserError
from pocketstill.files import write_json
from pocketstill.manifest import MANIFEST, read_manifest, up_to_date, write_manifest

from .asking import user_text
from .collect import QUESTIONS, collect_config, collect_inputs, file_hashes, read_questions
from .curating.decisions import Decided, Decision, asked, decide
from .curating.leakage import Item, leakage
from .curating.statistics import Statistics
from .entries import SAMPLES, entries_of
from .example import Elicited, Example, Question
from .problems.base import normalise
from .reading import read_data
from .recipe import Recipe
from .tables import EXAMPLES, REJECTED, Table

TRAIN, HELDOUT, REJECTS, SUITE, STATS, LEAKAGE = (
    "train.parquet", "heldout.parquet", "rejected.parquet", "suite.jsonl", "stats.json", "leakage.json",
)  # fmt: skip


@dataclass(frozen=True)
class CurateResult:
    """How many examples were kept and rejected; `teacher_accuracy` is of training samples, 0 to 1, None ungraded."""

    folder: Path
    train: int
    heldout: int
    rejected: int
    suite: int
    teacher_accuracy: float | None
    seconds: float


def curate(recipe: Recipe, collected: Path, out: Path) -> CurateResult:
    """Filter a collection and split it.

    Writes train.parquet, heldout.parquet, rejected.parquet, suite.jsonl, stats.json and leakage.json to `out`. The
    samples are read some times over, line by line; what stays in memory of one is what it is compared by.

    Raises:
        UserError: the collection is missing, unfinished or of another recipe; a file to keep apart cannot be read;
            nothing is left to train on; or `out` cannot be written.
    """
    started = time.monotonic()
    _check_collected(recipe, collected)
    # A file counts by its content (`_inputs`), wherever it lies; a data set of the hub by its name.
    apart_by = [name if name.startswith("hf:") else Path(name).name for name in recipe.curate.decontaminate]
    rules = recipe.curate.model_dump(mode="json") | {"decontaminate": apart_by}
    config = {"curate": rules, "collect": collect_config(recipe)}
    inputs = _inputs(recipe, collected)
    if up_to_date(out, config, inputs):
        return _result(out)
    questions = read_questions(collected)
    apart = {called: _questions_of(name) for called, name in _called(recipe.curate.decontaminate).items()}
    decided = decide(lambda: _samples(recipe, collected), questions, apart, recipe.curate)
    _check_left(decided)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MANIFEST).unlink(missing_ok=True)
        written = _write(recipe, collected, out, decided, questions)
        suite = [_suite_item(question) for question in questions if question.split == "heldout"] + written.made
        lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in suite)
        (out / SUITE).write_text(lines, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); free some space or mend the path"
        ) from None
    stats = written.statistics.result() | {"decontamination": decided.suites, "selected_by": decided.score_basis}
    stats["made_again"] = sorted({entry.replaces for entry in entries_of(recipe)} - {""})
    write_json(out / STATS, stats)
    write_json(out / LEAKAGE, _leakage(recipe, questions, written))
    graded = stats["teacher"]["train"]["overall"]
    counts = written.counts | {"suite": len(suite), "teacher_accuracy": graded["accuracy"] if graded["n"] else None}
    outputs = [out / name for name in (TRAIN, HELDOUT, REJECTS, SUITE, STATS, LEAKAGE)]
    write_manifest(
        out, stage="curate", config=config, inputs=inputs, outputs=outputs, seed=recipe.seed, counts=counts,
        seconds=time.monotonic() - started,
    )  # fmt: skip
    return _result(out)


def _called(names: list[str]) -> dict[str, str]:
    """Files by their names, and those that share one by their paths."""
    short = Counter(Path(name).name for name in names)
    return {name if short[Path(name).name] > 1 else Path(name).name: name for name in names}


def _questions_of(source: str) -> list[str]:
    return [user_text(row.messages) for row in read_data(source).rows]


def _check_collected(recipe: Recipe, collected: Path) -> None:
    manifest = read_manifest(collected)
    if manifest is None:
        raise UserError(f"{collected}: no finished collection there; run `pocketstill collect` first")
    if manifest.config != collect_config(recipe) or manifest.inputs != collect_inputs(recipe):
        raise UserError(f"{collected}: it was collected for another recipe; run `pocketstill collect` again")


def _inputs(recipe: Recipe, collected: Path) -> dict[str, str]:
    """Hashes of what is read: equal for two collections that differ only in when they asked."""
    files = {QUESTIONS: collected / QUESTIONS}
    files |= {f"{SAMPLES}/{entry.entry}": collected / SAMPLES / f"{entry.entry}.jsonl" for entry in entries_of(recipe)}
    named = [name for name in recipe.curate.decontaminate if not name.startswith("hf:")]
    files |= {f"decontaminate/{index}": Path(name) for index, name in enumerate(named)}
    hashes: dict[str, str] = {}
    for name, path in files.items():
        hashes |= file_hashes(name, path)
    return hashes


def _result(out: Path) -> CurateResult:
    manifest = read_manifest(out)
    assert manifest is not None
    return CurateResult(folder=out, seconds=manifest.seconds, **manifest.counts)


def _samples(recipe: Recipe, collected: Path) -> Iterator[Elicited]:
    """All samples; where there are several entries, an id begins with its entry's name.

    An entry that a later one made again with more to it, such as scores, is left to that one.
    """
    entries = entries_of(recipe)
    again = {entry.replaces for entry in entries}
    for entry in entries:
        if entry.entry in again:
            continue
        with (collected / SAMPLES / f"{entry.entry}.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                item = Elicited.from_dict(json.loads(line))
                yield item if len(entries) == 1 else replace(item, id=f"{entry.entry}/{item.id}")


def _check_left(decided: Decided) -> None:
    if decided.good:
        return
    reasons = Counter(decision.reason for decision in decided.decisions if decision.reason is not None)
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    raise UserError(f"curate: nothing is left to train on ({why or 'no training questions'}); check the teacher")


@dataclass
class _Written:
    """What was written, what the leakage report needs of it, and the held-out items that routes `made`."""

    statistics: Statistics
    counts: dict[str, int]
    trained: dict[str, dict[str, Item]]
    right: dict[str, bool]
    made: list[dict[str, Any]]


def _write(recipe: Recipe, collected: Path, out: Path, decided: Decided, questions: list[Question]) -> _Written:
    found = _Written(Statistics(), {}, defaultdict(dict), {}, [])
    known = {(question.skill, normalise(question.text)) for question in questions}
    seen: set[str] = set()
    with (
        Table(out / TRAIN, EXAMPLES) as train,
        Table(out / HELDOUT, EXAMPLES) as heldout,
        Table(out / REJECTS, REJECTED) as rejected,
    ):
        for item, decision in zip(_samples(recipe, collected), decided.decisions, strict=True):
            found.statistics.add(item, decision)
            if item.split == "heldout" and decision.right is not None:
                found.right[normalise(asked(item))] = decision.right
                row = _made_item(item)
                whole = json.dumps([item.skill, row["messages"]])
                if (item.skill, normalise(item.question)) not in known and whole not in seen:
                    seen.add(whole)
                    found.made.append(row)
            if decision.reason is not None:
                rejected.add(_rejected(item, decision))
                continue
            (train if item.split == "train" else heldout).add(_example(item, decision).to_dict())
            if item.split == "train":
                text = asked(item)
                found.trained[item.skill].setdefault(text, Item(item.id, text))
    found.counts = {"train": train.count, "heldout": heldout.count, "rejected": rejected.count}
    return found


def _example(item: Elicited, decision: Decision) -> Example:
    wrong = ["wrong"] if decision.right is False else []
    scores = item.scores if decision.score is None else item.scores | {"evol": decision.score}
    return Example(
        id=item.id, skill=item.skill, route=item.route, messages=item.messages, rationale=item.rationale,
        answer=item.answer or "", answer_kind=item.kind, gold=item.gold or "", split=item.split,
        source=list(item.source), tags=[*item.tags, *wrong], demonstrations=item.demonstrations,
        candidates=item.candidates, top_logprobs=item.top_logprobs, method=item.method, tools=item.tools,
        weight=decision.weight, scores=scores,
    )  # fmt: skip


def _rejected(item: Elicited, decision: Decision) -> dict[str, Any]:
    return {
        "id": item.id, "skill": item.skill, "route": item.route, "split": item.split,
        "reason": decision.reason, "detail": decision.detail, "question": item.question, "rationale": item.rationale,
        "completion": item.completion, "answer": item.answer, "gold": item.gold, "answer_kind": item.kind,
        "source": list(item.source), "method": item.method, "score": decision.score,
    }  # fmt: skip


def _suite_item(question: Question) -> dict[str, Any]:
    item = {
        "id": question.id, "skill": question.skill,
        "messages": [*question.before, {"role": "user", "content": question.text}],
        "gold": question.gold, "answer_kind": question.kind, "tags": list(question.tags),
    }  # fmt: skip
    return item | ({"tools": question.tools} if question.tools else {})


def _made_item(item: Elicited) -> dict[str, Any]:
    """A held-out question that a route made itself, k-shot with its demonstrations before it."""
    row = {
        "id": item.id, "skill": item.skill, "messages": [*item.demonstrations, *item.messages],
        "gold": item.gold, "answer_kind": item.kind, "tags": list(item.tags),
    }  # fmt: skip
    return row | ({"tools": item.tools} if item.tools else {})


def _leakage(recipe: Recipe, questions: list[Question], written: _Written) -> dict[str, Any]:
    """The report of each skill that has both: what is trained on, and what verifies it."""
    held: dict[str, list[Item]] = defaultdict(list)
    for question in questions:
        if question.split == "heldout":
            held[question.skill].append(Item(question.id, question.whole))
    reports = {}
    for skill, items in held.items():
        if trained := list(written.trained.get(skill, {}).values()):
            right = {i.name: written.right[t] for i in items if (t := normalise(i.text)) in written.right}
            reports[skill] = leakage(
                trained, items, right=right, ngram=recipe.curate.decontaminate_ngram, seed=recipe.seed
            )
    return reports
