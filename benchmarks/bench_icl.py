"""Does a student learn in context better from k-shot than from zero-shot training? Asked on families it never met.

    python benchmarks/bench_icl.py [--recipe recipes/elicit/in-context-student.toml] [--runs runs/bench-icl]
        [--seeds 17 18] [--tokens N] [--query-only] [--threads 1]

The recipe is collected and curated once, from its teacher. Then two students a seed start from the same weights and
vocabulary and train on the same examples for the same number of tokens: one with the demonstrations before each query,
one without. Both answer the held-out queries, greedily, with 0 and with k demonstrations. Families of tasks that
nothing trained on are counted apart from unseen tasks of the families trained on; the difference between the students
is paired by query (Newcombe's method 10). `--query-only` trains a third one that reads the demonstrations but learns
the query's answer alone, as MetaICL does. It prints Markdown tables, and one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pocketstill import grading
from pocketstill.files import sha256_file
from pocketstill.manifest import read_manifest
from pocketstill.stats import paired_difference, wilson
from pocketstill_pipeline.collect import collect
from pocketstill_pipeline.curate import curate
from pocketstill_pipeline.distill import train
from pocketstill_pipeline.entries import entries_of
from pocketstill_pipeline.example import Elicited
from pocketstill_pipeline.recipe import Recipe, load_recipe
from pocketstill_pipeline.students import hush_transformers, load_student, read_tokenizer
from pocketstill_pipeline.tables import read_parquet

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "elicit" / "in-context-student.toml"
GROUPS = {"unseen_family": "unseen families", "unseen_task": "unseen tasks of seen families"}
# The longest output of a held-out task, in tokens of a vocabulary of letters.
MOST_NEW_TOKENS = 40
BATCH = 50


def held_out(recipe: Recipe, collected: Path) -> list[Elicited]:
    """Every held-out query of the collection, with each number of demonstrations."""
    found = []
    for entry in entries_of(recipe):
        with (collected / "samples" / f"{entry.entry}.jsonl").open(encoding="utf-8") as lines:
            found += [item for line in lines if (item := Elicited.from_dict(json.loads(line))).split == "heldout"]
    return found


def first_weights(recipe: Recipe, rows: list[dict[str, Any]], out: Path) -> Recipe:
    """The recipe with a base that both students start from: new weights, and a vocabulary of all that is read."""
    hush_transformers()
    turns = (turn["content"] for row in rows for turn in [*row["demonstrations"], *row["messages"]])
    model, tokenizer = load_student(recipe, turns)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return recipe.model_copy(update={"student": recipe.student.model_copy(update={"base": str(out)})})


def ask(student: Path, items: Sequence[Elicited]) -> list[str]:
    """The student's greedy answers behind the demonstrations that each query comes with."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = read_tokenizer(student)
    tokenizer.padding_side = "left"
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).eval()
    prompts = [
        tokenizer.apply_chat_template(
            [*item.demonstrations, *item.messages], tokenize=False, add_generation_prompt=True
        )
        for item in items
    ]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    said = [""] * len(prompts)
    for at in range(0, len(order), BATCH):
        batch = order[at : at + BATCH]
        fed = tokenizer([prompts[i] for i in batch], return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            made = model.generate(
                input_ids=fed["input_ids"], attention_mask=fed["attention_mask"], max_new_tokens=MOST_NEW_TOKENS,
                do_sample=False, pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
        for index, row in zip(batch, made, strict=True):
            said[index] = tokenizer.decode(row[fed["input_ids"].shape[1] :], skip_special_tokens=True)
    return said


def right(items: Sequence[Elicited], said: Sequence[str]) -> list[bool]:
    return [
        grading.equal(grading.extract(text, item.kind), item.gold or "", item.kind)
        for item, text in zip(items, said, strict=True)
    ]


def share(answers: Sequence[bool]) -> dict[str, Any]:
    """Accuracy with its 95 % Wilson interval."""
    low, high = wilson(sum(answers), len(answers))
    return {"n": len(answers), "accuracy": sum(answers) / max(len(answers), 1), "low": low, "high": high}


def measure(items: Sequence[Elicited], answers: dict[str, list[bool]]) -> dict[str, Any]:
    """Accuracies by student, group, shots and family, and the paired difference of each student from zero-shot."""
    found: dict[str, Any] = {}
    shots = sorted({len(item.demonstrations) // 2 for item in items})
    for group in GROUPS:
        for k in shots:
            chosen = [n for n, i in enumerate(items) if group in i.tags and len(i.demonstrations) == 2 * k]
            families = sorted({items[n].tags[0] for n in chosen})
            for name, said in answers.items():
                part = {"all": share([said[n] for n in chosen])}
                part |= {f: share([said[n] for n in chosen if items[n].tags[0] == f]) for f in families}
                entry: dict[str, Any] = {"accuracy": part}
                if name != "zero-shot":
                    zero = [answers["zero-shot"][n] for n in chosen]
                    entry["over_zero_shot"] = paired_difference([said[n] for n in chosen], zero)
                found.setdefault(group, {}).setdefault(str(k), {})[name] = entry
    return found


def percent(figure: dict[str, Any]) -> str:
    return f"{100 * figure['accuracy']:.1f} ({100 * figure['low']:.1f} to {100 * figure['high']:.1f})"


def tables(measured: dict[str, Any], teacher: dict[str, Any]) -> str:
    lines = [
        "| asked about | shots | student trained | accuracy, % | over zero-shot, points | n |",
        "|---|---|---|---|---|---|",
    ]
    for group, by_shots in measured.items():
        for k, students in by_shots.items():
            for name, entry in students.items():
                over = entry.get("over_zero_shot")
                gain = f"{100 * over[0]:+.1f} ({100 * over[1]:+.1f} to {100 * over[2]:+.1f})" if over else ""
                figure = entry["accuracy"]["all"]
                lines.append(f"| {GROUPS[group]} | {k} | {name} | {percent(figure)} | {gain} | {figure['n']} |")
            lines.append(f"| {GROUPS[group]} | {k} | (the teacher) | {percent(teacher[group][k])} | | |")
    for group, by_shots in measured.items():
        k, students = list(by_shots.items())[-1]
        lines += ["", f"By family, {GROUPS[group]}, asked with {k} demonstrations:", ""]
        lines += [f"| family | n | {' | '.join(students)} |", f"|---|---|{'---|' * len(students)}"]
        first = next(iter(students.values()))["accuracy"]
        for family in first:
            if family != "all":
                cells = " | ".join(f"{100 * entry['accuracy'][family]['accuracy']:.0f}" for entry in students.values())
                lines.append(f"| {family} | {first[family]['n']} | {cells} |")
    return "\n".join(lines)


def of_teacher(items: Sequence[Elicited]) -> dict[str, Any]:
    said = right(items, [item.answer or "" for item in items])
    shots = sorted({len(item.demonstrations) // 2 for item in items})
    return {
        group: {
            str(k): share(
                [ok for ok, i in zip(said, items, strict=True) if group in i.tags and len(i.demonstrations) == 2 * k]
            )
            for k in shots
        }
        for group in GROUPS
    }


def one_seed(
    recipe: Recipe, curated: Path, items: Sequence[Elicited], out: Path, students: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train each of the students from the same first weights, and ask them all; one that is trained stays."""
    rows = read_parquet(curated / "train.parquet")
    inputs = {"train.parquet": sha256_file(curated / "train.parquet")}
    recipe = first_weights(recipe, rows, out / "first")
    answers, trained = {}, {}
    for name, how in students.items():
        mine = recipe.model_copy(update={"train": recipe.train.model_copy(update=how)})
        manifest = read_manifest(out / name)
        config = mine.train.model_dump(mode="json")
        if manifest is None or manifest.inputs != inputs or manifest.config["train"] != config:
            train(mine, rows, out / name, inputs=inputs)
            manifest = read_manifest(out / name)
        assert manifest is not None
        answers[name] = right(items, ask(out / name / "student", items))
        trained[name] = manifest.counts | {"seconds": round(manifest.seconds, 1)}
        print(f"{name}: {trained[name]}", file=sys.stderr, flush=True)
    return measure(items, answers), trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--runs", type=Path, default=Path("runs/bench-icl"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[17])
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--query-only", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    recipe = load_recipe(options.recipe)
    if options.tokens:
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"tokens": options.tokens})})
    collected = collect(recipe, options.runs / "collect")
    curated = curate(recipe, options.runs / "collect", options.runs / "curate")
    items = held_out(recipe, collected.folder)
    print(f"{collected.requests} requests, {curated.train} examples, {len(items)} held out", file=sys.stderr)
    students = {"k-shot": {"shots": "all"}, "zero-shot": {"shots": 0}}
    if options.query_only:
        students["k-shot, query alone"] = {"shots": "all", "learn_demonstrations": False}
    report: dict[str, Any] = {"examples": curated.train, "teacher": of_teacher(items), "seeds": {}}
    for seed in options.seeds:
        seeded = recipe.model_copy(update={"seed": seed})
        measured, trained = one_seed(seeded, curated.folder, items, options.runs / f"seed-{seed}", students)
        report["seeds"][str(seed)] = {"measured": measured, "trained": trained}
        print(f"\nSeed {seed}, {trained['k-shot']['tokens']:,} training tokens each:\n")
        print(tables(measured, report["teacher"]), flush=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
