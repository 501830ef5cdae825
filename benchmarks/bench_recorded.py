"""What curation makes of real traces: yield and reasons by data set, and how far published splits leak.

    python benchmarks/bench_recorded.py DIR [--out DIR] [--set key=value ...]

DIR holds recorded completions, one JSONL file a data set, each row with question, reasoning, answer_prompt,
answer_completion, gold and, where there is one, split (train or test); the names of the files say the kind of answer
(see KINDS). They go the way that any collection goes: the replay teacher over HTTP, then curation. `--set` changes a
key of the recipe's [curate], as in `--set answer_filter=false`. Leakage is that of the splits as they were published,
before anything was filtered; beside it stands that of what was kept. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from pocketstill import grading
from pocketstill.files import read_json
from pocketstill_pipeline.collect import collect, read_questions
from pocketstill_pipeline.curate import LEAKAGE, STATS, curate
from pocketstill_pipeline.curating.decisions import REASONS
from pocketstill_pipeline.curating.leakage import LEVELS, Item, as_text, leakage
from pocketstill_pipeline.recipe import Recipe
from pocketstill_pipeline.tables import read_parquet

KINDS = {
    "addsub": "number", "aqua": "choice", "coin_flip": "yes_no", "commonsensqa": "choice",
    "date_understanding": "choice", "gsm8k": "number", "last_letters": "text", "multiarith": "number",
    "shuffled_objects": "choice",
}  # fmt: skip


def recipe_for(folder: Path, rules: dict[str, Any]) -> Recipe:
    """A recipe of every data set in the folder: each question asked once, as it was recorded."""
    files = {name: path for name in KINDS if (path := folder / f"{name}.jsonl").is_file()}
    if not files:
        sys.exit(f"{folder}: none of {', '.join(KINDS)} is there as a .jsonl file")
    skills = [
        {"name": name, "kind": KINDS[name], "source": str(path), "questions": 100_000, "heldout": 0}
        for name, path in files.items()
    ]
    teacher = {
        "base_url": "replay", "model": "recorded", "replay": [str(path) for path in files.values()],
        "samples": 1, "temperature": 0.0,
    }  # fmt: skip
    return Recipe.model_validate({"name": "recorded", "teacher": teacher, "skills": skills, "curate": rules})


def table(stats: dict[str, Any]) -> list[str]:
    """Yield by data set, held-out rows among them, with a column for each reason that occurs."""
    splits = ("train", "heldout")
    used = [reason for reason in REASONS if any(reason in stats["rejected"][split] for split in splits)]
    lines = [
        f"| data set | elicited | right, % | kept | yield, % | {' | '.join(used)} |",
        "|---|" + "---|" * (len(used) + 4),
    ]
    by_skill = {split: stats["yield"]["by_skill"][split] for split in splits}
    for skill in dict.fromkeys([*by_skill["train"], *by_skill["heldout"]]):
        parts = [by_skill[split][skill] for split in splits if skill in by_skill[split]]
        count, kept = (sum(part[key] for part in parts) for key in ("elicited", "kept"))
        graded = [g for split in splits if (g := stats["teacher"][split]["by_skill"].get(skill))]
        right = sum(g["correct"] for g in graded) / max(sum(g["n"] for g in graded), 1)
        reasons = [sum(stats["rejected"][split].get(r, {}).get(skill, 0) for split in splits) for r in used]
        figures = [count, f"{100 * right:.1f}", kept, f"{100 * kept / count:.1f}", *reasons]
        lines.append(f"| {skill} | {' | '.join(str(figure) for figure in figures)} |")
    return lines


def published(out: Path) -> dict[str, Any]:
    """The leakage report of each data set with a split, over all of its questions."""
    items: dict[str, dict[str, list[Item]]] = {}
    for question in read_questions(out / "collect"):
        sides = items.setdefault(question.skill, {"train": [], "heldout": []})
        sides[question.split].append(Item(question.id, question.text))
    right = {}
    for row in read_parquet(out / "curate" / "heldout.parquet"):
        right[row["id"].rpartition("/")[0]] = grading.equal(row["answer"], row["gold"], row["answer_kind"])
    for row in read_parquet(out / "curate" / "rejected.parquet"):
        if row["split"] == "heldout":
            answered = row["answer"] is not None and grading.equal(row["answer"], row["gold"], row["answer_kind"])
            right[row["id"].rpartition("/")[0]] = answered
    return {
        skill: leakage(sides["train"], sides["heldout"], right=right, seed=17)
        for skill, sides in items.items()
        if sides["train"] and sides["heldout"]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="keep the collection and its curation there")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="rules")
    arguments = parser.parse_args()
    rules = {}
    for pair in arguments.rules:
        key, _, value = pair.partition("=")
        try:
            rules[key] = json.loads(value)
        except ValueError:
            rules[key] = value
    recipe = recipe_for(arguments.folder.resolve(), rules)
    with tempfile.TemporaryDirectory() as scratch:
        out = arguments.out or Path(scratch)
        collect(recipe, out / "collect")
        result = curate(recipe, out / "collect", out / "curate")
        stats, kept = read_json(out / "curate" / STATS), read_json(out / "curate" / LEAKAGE)
        leaks = published(out)
    print("\n".join(table(stats)))
    for skill, report in leaks.items():
        print(f"\n{as_text(report, skill)}")
        counts = [f"{level} {kept[skill]['levels'][level]['count']}" for level in LEVELS]
        print(f"  of what was kept to train on: {', '.join(counts)}")
    print(json.dumps({"train": result.train, "heldout": result.heldout, "rejected": result.rejected, "leakage": {
        skill: {level: entry["count"] for level, entry in report["levels"].items()} for skill, report in leaks.items()
    }}))  # fmt: skip


if __name__ == "__main__":
    main()
