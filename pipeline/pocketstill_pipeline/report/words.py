"""What page and card say in plain words, each sentence made of the run's own figures."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from pocketstill_export.report.words import SPACE, count, figure, label, listed, with_percent

from .reading import Json, Run


def gated(run: Run) -> list[str]:
    """The skills that the recipe names, in its order."""
    own = {skill["name"] for skill in run.recipe["skills"]}
    return [name for name in run.skills if name in own]


def verdict(run: Run) -> str:
    """What passing meant: a recipe may set no accuracy to reach, and then only fidelity and budget were held to."""
    some = any(skill["gate"] is not None for skill in run.recipe["skills"])
    return "every gate passed" if some else "no accuracy gate set"


def headline(run: Run) -> str:
    """The page in one sentence: what the file does and what it takes, or that nothing passed."""
    shipped = run.shipped
    if shipped is None:
        nearest = run.shown
        missed = count(len(nearest["failures"]), "gate")
        size = figure(nearest["file_mib"])
        return (
            f"This run did not pass: none of {count(len(run.variants), 'variant')} met every gate, and the nearest, "
            f"{nearest['variant']} ({size}{SPACE}MiB), missed {missed}."
        )
    return (
        f"This {figure(shipped['file_mib'])}{SPACE}MiB file {_against_teacher(run, shipped)}: "
        f"{figure(shipped['decode_tok_s'])} tokens a second in {figure(shipped['peak_rss_mib'])}{SPACE}MiB of memory, "
        f"with the network {shipped['network']}."
    )


def _against_teacher(run: Run, shipped: Json) -> str:
    teacher = run.report["teacher"]["heldout"]["by_skill"]
    compared = [name for name in gated(run) if name in teacher]
    if not compared:
        return f"passed its gates on {count(len(gated(run)), 'skill')}"
    equalled = [name for name in compared if shipped["skills"][name]["accuracy"] >= teacher[name]["accuracy"]]
    total = count(len(compared), "skill")
    if not equalled:
        return f"answers less well than its teacher ({total})"
    if len(equalled) == len(compared):
        which = f"all {total}" if len(compared) > 1 else label(compared[0])
    else:
        which = f"{len(equalled)} of {total}"
    return f"answers at least as well as its teacher on {which}"


def overall(run: Run) -> dict[str, float | None]:
    """Accuracy over all held-out questions of the recipe's skills: of the shown variant and of its teacher."""
    teacher = run.report["teacher"]["heldout"]["by_skill"]
    sources = {"file": run.shown["skills"], "teacher": teacher}
    found: dict[str, float | None] = {}
    for who, skills in sources.items():
        own = [skills[name] for name in gated(run) if name in skills]
        n = sum(skill["n"] for skill in own)
        found[who] = sum(skill["accuracy"] * skill["n"] for skill in own) / n if n else None
    return found


def gates_said(run: Run) -> str:
    """How the variant that ships was chosen, and its weakest skill."""
    shipped = run.shipped
    if shipped is None:
        return "Nothing ships. What follows is what was measured, with every gate that was missed."
    passed = [row for row in run.variants if row["passed"]]
    skills = {name: shipped["skills"][name] for name in gated(run)}
    weakest = min(skills, key=lambda name: float(skills[name]["accuracy"]))
    found = skills[weakest]
    gate = "" if found["gate"] is None else f", its gate {with_percent(found['gate'])}"
    answers = overall(run)
    beside = f"It is right on {with_percent(answers['file'])} of all questions of these skills"
    beside += "" if answers["teacher"] is None else f", its teacher on {with_percent(answers['teacher'])}"
    return (
        f"{shipped['variant']} ships as the smallest of {count(len(passed), 'variant')} (of {len(run.variants)}) that "
        f"passed every gate. {beside}. Its weakest skill is {label(weakest)}: {with_percent(found['accuracy'])} of "
        f"{count(found['n'], 'held-out question')}{gate}."
    )


def teacher_said(run: Run) -> str:
    """Who the teacher was; a stand-in is called one."""
    teacher = run.recipe["teacher"]
    embedded = teacher["embedded"]
    rates = f"wrong answers at a rate of {with_percent(embedded['mistakes'])}"
    rates += f" and untidy formatting at {with_percent(embedded['noise'])}"
    if teacher["base_url"] == "embedded":
        return (
            "The teacher is the embedded one: problems and worked solutions by rule, with "
            f"{rates}. It stands in for a language model behind the same protocol."
        )
    if teacher["base_url"] == "replay":
        files = listed(PurePath(path).name for path in teacher["replay"])
        whose = "" if teacher["model"] == "embedded" else f" of {teacher['model']}"
        said = f"The teacher is a replay of recorded completions{whose} ({files}); no model was asked."
        if any(skill["expand"] for skill in run.recipe["skills"]):
            said += f" Questions that are not recorded were answered by the embedded teacher, by rule, with {rates}."
        return said
    return f"The teacher is {teacher['model']} at {urlsplit(teacher['base_url']).hostname or teacher['base_url']}."


def student_said(run: Run) -> str:
    """What the training started from."""
    student, counts = run.recipe["student"], run.manifests["distill"].counts
    size = count(counts["parameters"], "parameter")
    base = base_name(run)
    if base is None:
        new = student["new"]
        return (
            f"The student is new: {new['architecture']}, {count(new['layers'], 'layer')} of width "
            f"{new['hidden_size']}, {size}, trained from random weights. No base student was used."
        )
    return f"A base student was used: training started from {base} ({size}), not from random weights."


def expansion_said(run: Run) -> str:
    """Whether training questions were added by rule, and how many of the kept examples they make."""
    routes = run.stats["kept_by_route"]
    total, added = sum(routes.values()), routes.get("expansion", 0)
    if not added:
        return "No question was added to those of the recipe: the training data is not expanded."
    return (
        f"The training data is expanded: {added:,} of {count(total, 'kept example')} ({with_percent(added / total)}) "
        "answer questions that were varied by rule from the training questions."
    )


def base_name(run: Run) -> str | None:
    """The checkpoint that the student started from, by hub name or, for a folder, by the folder's name."""
    base: str | None = run.recipe["student"]["base"]
    return None if base is None else public(base)


def public(value: Any) -> Any:
    """JSON values fit to be shown: of an absolute path the name, of a URL no credentials and no query."""
    if isinstance(value, dict):
        return {key: public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [public(item) for item in value]
    if not isinstance(value, str):
        return value
    if "://" in value:
        parts = urlsplit(value)
        host = (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
        return f"{parts.scheme}://{host}{parts.path}"
    return PurePath(value).name if PurePath(value).is_absolute() else value


def three_lines(run: Run) -> tuple[list[str], str]:
    """Python that asks what ships a question that it answered right, and its answer ("" where it was never right)."""
    right = [row for row in run.shown["examples"] if row["correct"]]
    shortest = min(right or run.shown["examples"], key=lambda row: len(row["question"]))
    question, answer = shortest["question"], str(shortest["prediction"]) if right else ""
    asked = json.dumps(question, ensure_ascii=False)
    code = [
        "import pocketstill",
        'model = pocketstill.load("device")',
        f"print(model.answer({asked}).answer)",
    ]
    return code, answer
