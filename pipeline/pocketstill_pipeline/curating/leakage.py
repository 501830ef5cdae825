"""How much of the held-out questions a student has in effect been trained on.

A split by row looks clean when no question is in both parts. It is not when both were made from the same templates:
then what is measured is how well numbers and names are filled in. The report counts matches from the plainest to the
widest, and shows what a split by template would be like.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pocketstill.errors import UserError
from pocketstill.stats import wilson
from pocketstill_pipeline.duplicates import NearDuplicates
from pocketstill_pipeline.problems.base import normalise

from .contamination import Suite
from .templates import NEAR, mask, split_groups, template_groups

# From the plainest to the widest; what each means stands in `describe`.
LEVELS = ("exact", "normalised", "ngram", "minhash", "masked", "template")
_EXAMPLES, _GROUPS, _GROUP_EXAMPLES = 3, 10, 3


@dataclass(frozen=True)
class Item:
    """A question under its name."""

    name: str
    text: str


def describe(level: str, ngram: int, similarity: float, near: float) -> str:
    """What a match at a level means, in words."""
    return {
        "exact": "the same text",
        "normalised": "the same words, whatever their case, blanks and punctuation",
        "ngram": f"{ngram} words in a row that are no common phrase",
        "minhash": f"Jaccard similarity of {similarity:g} or more between triples of words",
        "masked": "the same text once numbers, names and quoted things are masked",
        "template": f"one template: masked texts of Jaccard similarity {near:g} or more, directly or by way of others",
    }[level]


def leakage(
    train: Sequence[Item],
    heldout: Sequence[Item],
    *,
    right: Mapping[str, bool] | None = None,
    ngram: int | None = None,
    similarity: float = 0.8,
    near: float = NEAR,
    seed: int | str = 0,
) -> dict[str, Any]:
    """The leakage report of one split, JSON-ready.

    `right` says of held-out items (by name) whether they were answered rightly: then accuracy is given apart for
    those that match at a level and those that do not. Shares are 0 to 1, with 95 % Wilson intervals. Equal training
    questions count once.
    """
    train = list({item.text: item for item in reversed(train)}.values())[::-1]
    suite = Suite(((item.name, item.text) for item in heldout), ngram=ngram, similarity=1.0)
    groups = template_groups([item.text for item in (*train, *heldout)], near)
    sides = {"train": groups[: len(train)], "heldout": groups[len(train) :]}
    found = {
        "exact": _matches(train, heldout, str),
        "normalised": _matches(train, heldout, _words_alone),
        "ngram": _ngram_matches(train, heldout, suite),
        "minhash": _near_matches(train, heldout, similarity),
        "masked": _matches(train, heldout, mask),
        "template": _group_matches(train, heldout, sides),
    }
    texts = {item.name: item.text for item in (*train, *heldout)}
    report: dict[str, Any] = {
        "train": len(train),
        "heldout": len(heldout),
        "ngram": suite.ngram,
        "levels": {
            level: _level(matches, heldout, texts, right) | {"means": describe(level, suite.ngram, similarity, near)}
            for level, matches in found.items()
        },
        "templates": _templates(train, heldout, sides),
        "by_template": _split(groups, len(heldout), seed),
    }
    return report


def _words_alone(text: str) -> str:
    return " ".join(re.findall(r"\w+", normalise(text)))


def _matches(train: Iterable[Item], heldout: Iterable[Item], form: Any) -> dict[str, str]:
    """For each held-out item with a training item of the same form, the first such."""
    first: dict[str, str] = {}
    for item in train:
        first.setdefault(form(item.text), item.name)
    return {item.name: first[key] for item in heldout if (key := form(item.text)) in first}


def _ngram_matches(train: Sequence[Item], heldout: Sequence[Item], suite: Suite) -> dict[str, str]:
    suite.forget_common(item.text for item in train)
    matches: dict[str, str] = {}
    for item in train:
        for name in suite.items_in(item.text):
            matches.setdefault(name, item.name)
    return {item.name: matches[item.name] for item in heldout if item.name in matches}


def _near_matches(train: Iterable[Item], heldout: Iterable[Item], similarity: float) -> dict[str, str]:
    seen = NearDuplicates(similarity)
    for item in train:
        seen.remember(item.name, item.text)
    return {item.name: near[0] for item in heldout if (near := seen.nearest(item.text)) is not None}


def _group_matches(train: Sequence[Item], heldout: Sequence[Item], sides: dict[str, list[int]]) -> dict[str, str]:
    first: dict[int, str] = {}
    for item, group in zip(train, sides["train"], strict=True):
        first.setdefault(group, item.name)
    pairs = zip(heldout, sides["heldout"], strict=True)
    return {item.name: first[group] for item, group in pairs if group in first}


def _level(
    matches: dict[str, str], heldout: Sequence[Item], texts: dict[str, str], right: Mapping[str, bool] | None
) -> dict[str, Any]:
    shown = list(matches.items())[:: max(1, len(matches) // _EXAMPLES)][:_EXAMPLES]
    level: dict[str, Any] = _share(len(matches), len(heldout)) | {
        "examples": [
            {"heldout": name, "train": twin, "heldout_text": texts[name], "train_text": texts[twin]}
            for name, twin in shown
        ]
    }
    if right:
        sides: dict[str, list[bool]] = {"matched": [], "unmatched": []}
        for item in heldout:
            if item.name in right:
                sides["matched" if item.name in matches else "unmatched"].append(right[item.name])
        level["accuracy"] = {side: _share(sum(answers), len(answers)) for side, answers in sides.items()}
    return level


def _share(count: int, total: int) -> dict[str, Any]:
    low, high = wilson(count, total)
    return {"count": count, "of": total, "share": count / total if total else 0.0, "low": low, "high": high}


def _templates(train: Sequence[Item], heldout: Sequence[Item], sides: dict[str, list[int]]) -> dict[str, Any]:
    counts = {side: Counter(groups) for side, groups in sides.items()}
    members: dict[int, list[Item]] = defaultdict(list)
    for items, groups in ((heldout, sides["heldout"]), (train, sides["train"])):
        for item, group in zip(items, groups, strict=True):
            members[group].append(item)
    both = [group for group in counts["heldout"] if group in counts["train"]]
    order = sorted(both, key=lambda group: (-counts["heldout"][group] - counts["train"][group], group))
    largest = [
        {
            "template": mask(members[group][0].text),
            "train": counts["train"][group],
            "heldout": counts["heldout"][group],
            "examples": [item.text for item in (members[group][0], *members[group][-_GROUP_EXAMPLES + 1 :])],
        }
        for group in order[:_GROUPS]
    ]
    return {
        "count": len(members),
        "in_train": len(counts["train"]),
        "in_heldout": len(counts["heldout"]),
        "on_both_sides": len(both),
        "largest_on_both_sides": largest,
    }


def _split(groups: Sequence[int], wanted: int, seed: int | str) -> dict[str, Any]:
    """What holding out whole templates would give for as many questions."""
    try:
        split = split_groups(groups, wanted, seed)
    except UserError as error:
        return {"possible": False, "why": str(error)}
    held = {group for group, side in zip(groups, split, strict=True) if side == "heldout"}
    count = sum(side == "heldout" for side in split)
    return {
        "possible": True,
        "train": len(groups) - count,
        "heldout": count,
        "templates_in_train": len(set(groups) - held),
        "templates_heldout": len(held),
    }


def as_text(report: Mapping[str, Any], name: str = "") -> str:
    """The report in lines for a terminal."""
    lines = [f"{name or 'split'}: {report['heldout']} held out, {report['train']} to train on"]
    for level in LEVELS:
        entry = report["levels"][level]
        share = f"{100 * entry['share']:5.1f} % ({100 * entry['low']:.1f} to {100 * entry['high']:.1f})"
        lines.append(f"  {level:<11}{entry['count']:>5}  {share:<24}  {entry['means']}")
        if "accuracy" in entry and 0 < entry["count"] < entry["of"]:
            sides = ", ".join(
                f"{100 * side['share']:.1f} % of {side['of']} {what}" for what, side in entry["accuracy"].items()
            )
            lines.append(f"  {'':<16}  answered rightly: {sides}")
    templates = report["templates"]
    lines.append(
        f"  templates: {templates['count']}, of them {templates['on_both_sides']} on both sides"
        f" ({templates['in_heldout']} held out)"
    )
    for group in templates["largest_on_both_sides"][:3]:
        lines.append(f"    {group['train']} + {group['heldout']}: {group['template'][:110]}")
    by = report["by_template"]
    lines.append(
        f"  by template: {by['heldout']} held out of {by['templates_heldout']} templates, {by['train']} to train on"
        if by["possible"]
        else f"  by template: {by['why']}"
    )
    return "\n".join(lines)
