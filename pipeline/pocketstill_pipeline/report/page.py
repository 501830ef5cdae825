"""The page: everything that a run found, on one file that needs nothing but itself."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pocketstill.errors import UserError
from pocketstill.stats import wilson
from pocketstill_export.report import drawing
from pocketstill_export.report import words as formats
from pocketstill_export.report.drawing import Family

from . import figures, words
from .figures import Estimate, Point
from .reading import Json, Run, read_run

TEACHER, CHECKPOINT = "teacher", "checkpoint"


@dataclass(frozen=True)
class Measured:
    """Who was measured on a skill, and the result: n, accuracy, low, high, and what else is known of it."""

    who: str
    family: Family
    result: Json
    shipped: bool


def write_report(root: Path, out: Path) -> Path:
    """Write the page of the run in `root` to `out`, and return `out`.

    The page has its styles and plots in it, runs no script and fetches nothing. The same run gives the same bytes
    on any machine.

    Raises:
        UserError: a file of the run is missing or broken, or `out` cannot be written.
    """
    run = read_run(root)
    text = _environment().get_template("page.html.jinja").render(_context(run))
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); free some space or mend the path") from None
    return out


# Page and export's page look alike: they share one style sheet.
_LOOKS = Path(drawing.__file__).parent


def environment(*, escaped: bool) -> Environment:
    """The templates of this folder; `escaped` is for HTML. A name that a template misspells is an error."""
    found = Environment(
        loader=FileSystemLoader([Path(__file__).parent, _LOOKS]), autoescape=escaped, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    said = ("label", "percent", "with_percent", "points", "figure", "spread", "tiny", "duration")
    found.filters |= {name: getattr(formats, name) for name in said}
    found.filters |= {
        "by_number": lambda rates: sorted(rates.items(), key=lambda item: int(item[0])),
        "yaml": lambda value: json.dumps(value, ensure_ascii=False),
    }  # fmt: skip
    return found


def _environment() -> Environment:
    return environment(escaped=True)


def _context(run: Run) -> dict[str, Any]:
    code, answer = words.three_lines(run)
    return {
        "run": run,
        "recipe": run.recipe,
        "shipped": run.shipped,
        "shown": run.shown,
        "skills": run.skills,
        "headline": words.headline(run),
        "overall": words.overall(run),
        "gates_said": words.gates_said(run),
        "code": code,
        "code_answer": answer,
        "measured": {skill: measured(run, skill) for skill in run.skills},
        "accuracy_plots": accuracy_plots(run),
        "size_plots": size_plots(run),
        "cost_plot": cost_plot(run),
        "curve_plots": curve_plots(run),
        "answer_times": {row["variant"]: _answer_time(run, row["variant"]) for row in run.variants},
        "teacher_said": words.teacher_said(run),
        "student_said": words.student_said(run),
        "expansion_said": words.expansion_said(run),
        "collected": run.manifests["collect"].counts,
        "trained": run.manifests["distill"].counts,
        "samples": samples(run),
        "published": published(run),
        "examples": {skill: [e for e in run.shown["examples"] if e["skill"] == skill] for skill in run.skills},
        "shipped_hashes": _variant_hashes(run),
        "machine": run.report["machine"],
        "verdict_said": words.verdict(run),
        "own_files": _reads_files(run.recipe),
        "recipe_json": json.dumps(words.public(run.recipe), indent=2, ensure_ascii=False),
    }


def family(variant: str) -> Family:
    return "onnx" if variant.startswith("onnx") else "gguf"


def measured(run: Run, skill: str) -> list[Measured]:
    """Teacher (where it was asked), checkpoint and variants on a skill's held-out questions, in this order."""
    found = []
    teacher = run.report["teacher"]["heldout"]["by_skill"].get(skill)
    if teacher is not None:
        found.append(Measured(TEACHER, "teacher", teacher, False))
    found.append(Measured(CHECKPOINT, "checkpoint", _checkpoint(run, skill), False))
    for row in run.variants:
        name = row["variant"]
        found.append(Measured(name, family(name), row["skills"][skill], name == run.report["default"]))
    return found


def _checkpoint(run: Run, skill: str) -> Json:
    """The checkpoint's result, with what its answers tell beyond their accuracy."""
    own = [answer for answer in run.answers[CHECKPOINT] if answer["skill"] == skill]
    told = [
        answer["rationale_leads_to_answer"] for answer in own if answer.get("rationale_leads_to_answer") is not None
    ]
    f1 = [answer["token_f1"] for answer in own if "token_f1" in answer]
    result: Json = run.report["checkpoint"]["skills"][skill]
    return result | {
        "rationale_accuracy": statistics.fmean(told) if told else None,
        "token_f1": statistics.fmean(f1) if f1 else None,
    }


def accuracy_plots(run: Run) -> list[tuple[str, str]]:
    """(skill, plot) for each skill, all over the same range."""
    low = min(it.result["low"] for skill in run.skills for it in measured(run, skill))
    limits = (max(0.0, int(low * 20) / 20), 1.0)
    plots = []
    for skill in run.skills:
        gate = run.shown["skills"][skill]["gate"]
        rows = [
            Estimate(
                it.who, it.family, it.result["accuracy"], it.result["low"], it.result["high"],
                formats.percent(it.result["accuracy"]), bold=it.shipped,
                failed=gate is not None and it.family in ("onnx", "gguf") and not it.result["passed"],
            )
            for it in measured(run, skill)
        ]  # fmt: skip
        title = f"Accuracy on {formats.label(skill)}: " + ", ".join(f"{row.label} {row.said} %" for row in rows)
        said = "" if gate is None else f"gate {formats.with_percent(gate)}"
        plots.append((skill, figures.rows(f"accuracy-{skill}", title, rows, limits, mark=gate, mark_said=said)))
    return plots


def size_plots(run: Run) -> list[str]:
    """File size against accuracy over the gated skills, and against decode speed."""
    totals = {row["variant"]: _pooled(row, words.gated(run)) for row in run.variants}
    figure_of = {
        row["variant"]: (row["file_mib"], -totals[row["variant"]][0], -row["decode_tok_s"]) for row in run.variants
    }
    accuracy, speed = [], []
    for row in run.variants:
        name, share = row["variant"], totals[row["variant"]]
        shown = name if row["passed"] else f"{name} ✗"
        bold, front = name == run.report["default"], not _beaten(figure_of, name)
        accuracy.append(Point(shown, family(name), row["file_mib"], *share, bold, front))
        rate, sd = row["decode_tok_s"], row["decode_tok_s_sd"]
        speed.append(Point(shown, family(name), row["file_mib"], rate, rate - sd, rate + sd, bold, front))
    said = {it.label: f"{it.label} {formats.figure(it.x)} MiB" for it in accuracy}
    first = "; ".join(f"{said[it.label]}, {formats.percent(it.y)} %" for it in accuracy)
    second = "; ".join(f"{said[it.label]}, {formats.figure(it.y)} tokens/s" for it in speed)
    return [
        figures.plane("size-accuracy", f"File size and accuracy: {first}", accuracy, x_label="file, MiB",
                      y_label="accuracy over the gated skills", percent=True),
        figures.plane("size-speed", f"File size and decode speed: {second}", speed, x_label="file, MiB",
                      y_label="decode, tokens/s", percent=False),
    ]  # fmt: skip


def _pooled(row: Json, skills: list[str]) -> tuple[float, float, float]:
    """Accuracy over the questions of several skills, with its Wilson interval."""
    n = sum(row["skills"][skill]["n"] for skill in skills)
    correct = sum(row["skills"][skill]["correct"] for skill in skills)
    return correct / n, *wilson(correct, n)


def _beaten(figures_of: dict[str, tuple[float, float, float]], name: str) -> bool:
    """Whether another one is no larger in any figure and smaller in one (Pareto dominance, less is better)."""
    own = figures_of[name]
    return any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in figures_of.values())


def cost_plot(run: Run) -> str:
    """What each variant answers more or less often right than the checkpoint, over all questions of the suite."""
    tolerance = -run.recipe["verify"]["tolerance"]
    rows = []
    for row in run.variants:
        found, name = row["difference"], row["variant"]
        rows.append(
            Estimate(
                name, family(name), found["mean"], found["low"], found["high"], formats.points(found["mean"]),
                bold=name == run.report["default"], failed=found["low"] < tolerance,
            )
        )  # fmt: skip
    low, high = min(tolerance, *(row.low for row in rows)), max(0.0, *(row.high for row in rows))
    room = 0.08 * (high - low)
    title = "Accuracy minus the checkpoint's: " + ", ".join(f"{row.label} {row.said} points" for row in rows)
    return figures.rows(
        "cost", title, rows, (low - room, high + room), mark=tolerance, mark_said="tolerance", signed=True
    )


def curve_plots(run: Run) -> list[str]:
    """Losses, and the learning rate, over training tokens."""

    def line(key: str) -> list[tuple[float, float]]:
        return [(row["tokens"], row[key]) for row in run.curve if key in row]

    losses = [(name, found) for name, key in (("train", "loss"), ("dev", "dev_loss")) if (found := line(key))]
    rates = line("learning_rate")
    plots = []
    if losses:
        last = ", ".join(f"{name} {found[-1][1]:.3f}" for name, found in losses)
        plots.append(
            figures.curves("loss", f"Loss at the end: {last}", losses, y_label="loss, nats a token", logarithmic=True)
        )
    if rates:
        top = max(rate for _, rate in rates)
        plots.append(
            figures.curves(
                "learning-rate", f"Learning rate, at most {top:g}", [("learning rate", rates)],
                y_label="learning rate", logarithmic=False,
            )
        )  # fmt: skip
    return plots


def _answer_time(run: Run, variant: str) -> Json | None:
    """Median milliseconds and tokens of a whole answer to a question of the suite."""
    timed = [answer for answer in run.answers[variant] if "seconds" in answer]
    if not timed:
        return None
    return {
        "ms": 1000 * statistics.median(answer["seconds"] for answer in timed),
        "tokens": statistics.median(answer["completion_tokens"] for answer in timed),
    }


def samples(run: Run) -> Json:
    """What became of the teacher's training samples: {"skills": [...], "reasons": [...]}, only reasons that occur."""
    rejected = run.stats["rejected"]["train"]
    asked = run.stats["teacher"]["train"]["by_skill"]
    rows = []
    for skill in [name for name in words.gated(run) if name in asked]:
        reasons = {reason: by_skill.get(skill, 0) for reason, by_skill in rejected.items()}
        kept = run.stats["kept"]["train"].get(skill, 0)
        total = kept + sum(reasons.values())
        rows.append({
            "skill": skill, "n": total, "mistakes": run.stats["mistakes"][skill],
            "kept": kept, "share": kept / total if total else 0.0, "reasons": reasons,
        })  # fmt: skip
    often = sorted(rejected, key=lambda reason: -sum(rejected[reason].values()))
    return {"skills": rows, "reasons": often}


def published(run: Run) -> Json | None:
    """Published figures by skill with this run's own rows below, in per cent; None where the recipe names none."""
    named = {skill["name"]: skill["teacher_accuracy"] for skill in run.recipe["skills"]}
    teacher = {name: accuracy for name, accuracy in named.items() if accuracy is not None}
    theirs = [(str(row["name"]), row["accuracy"]) for row in run.recipe["published"]]
    theirs += [("the teacher, as published", teacher)] if teacher else []
    if not theirs:
        return None
    ours = [
        ("the teacher", run.report["teacher"]["heldout"]["by_skill"]),
        ("the student, before quantizing", run.report["checkpoint"]["skills"]),
        (f"the student, {run.shown['variant']}", run.shown["skills"]),
    ]
    measured_here = [(name, {skill: own["accuracy"] for skill, own in skills.items()}) for name, skills in ours]
    columns = [name for name in named if any(name in found for _, found in theirs)]
    return {
        "columns": columns,
        "theirs": [(name, [formats.percent(found.get(column)) for column in columns]) for name, found in theirs],
        "ours": [(name, [formats.percent(found.get(column)) for column in columns]) for name, found in measured_here],
    }


def _reads_files(recipe: Json) -> bool:
    """Whether the recipe reads files of the user's, which it then has to be told the place of."""
    return recipe["teacher"]["base_url"] == "replay" or any(s["source"] != "embedded" for s in recipe["skills"])


def _variant_hashes(run: Run) -> list[tuple[str, str, str]]:
    """(variant, its main file, SHA-256) as the export recorded it."""
    outputs = run.manifests["export"].outputs
    rows = cast("list[Json]", run.export["variants"])
    return [(row["name"], row["file"], outputs.get(f"model/{row['file']}", "–")) for row in rows]
