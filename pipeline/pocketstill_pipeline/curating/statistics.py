"""The figures of a curation: how right the teacher was, what was kept, and why the rest was not."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np

from pocketstill.stats import wilson
from pocketstill_pipeline.example import Elicited, Split

from .decisions import REASONS, Decision, asked
from .filters import said
from .texts import words

_SPLITS: tuple[Split, ...] = ("train", "heldout")
_BINS = 12


class Statistics:
    """Counts that grow item by item; `result` makes stats.json of them."""

    def __init__(self) -> None:
        self._seen: Counter[tuple[str, ...]] = Counter()
        self._kept: Counter[tuple[str, ...]] = Counter()
        self._rejected: Counter[tuple[str, ...]] = Counter()
        self._graded: Counter[tuple[str, str, bool]] = Counter()
        self._by_method: Counter[tuple[str, bool]] = Counter()
        self._kept_right: Counter[str] = Counter()
        self._lengths: dict[str, list[int]] = defaultdict(list)

    def add(self, item: Elicited, decision: Decision) -> None:
        """Count one elicited thing."""
        entry = item.split, item.skill, item.route, item.method
        self._seen[entry] += 1
        if decision.right is not None and item.reason != "failed_request":
            # What the student said of itself is no measure of the teacher.
            if item.route != "self_knowledge":
                self._graded[item.split, item.skill, decision.right] += 1
            self._by_method[item.method, decision.right] += 1
        if decision.reason is not None:
            self._rejected.update([(*entry, decision.reason)])
            return
        self._kept[entry] += 1
        if item.split == "train":
            self._kept_right["ungraded" if decision.right is None else "right" if decision.right else "wrong"] += 1
            self._lengths["question_words"].append(len(words(asked(item))))
            self._lengths["reply_words"].append(len(words(said(item))))

    def result(self) -> dict[str, Any]:
        """JSON-ready. Shares are 0 to 1, lengths in words; `mistakes` is 1 - accuracy of graded samples."""
        teacher = {split: self._accuracies(split) for split in _SPLITS}
        graded = teacher["train"]["by_skill"] | {"overall": teacher["train"]["overall"]}
        methods = dict.fromkeys(method for method, _ in self._by_method)
        return {
            "teacher": teacher,
            "mistakes": {name: 1 - entry["accuracy"] if entry["n"] else 0.0 for name, entry in graded.items()},
            "accuracy_by_method": {m: _accuracy(self._by_method[m, True], self._by_method[m, False]) for m in methods},
            "kept": {split: _sums(self._kept, split, 1) for split in _SPLITS},
            "kept_by_route": dict(sorted(_sums(self._kept, "train", 2).items())),
            "kept_by_method": dict(sorted(_sums(self._kept, "train", 3).items())),
            "kept_by_answer": dict(sorted(self._kept_right.items())),
            "rejected": {split: self._reasons(split, 1) for split in _SPLITS},
            "rejected_by_route": {split: self._reasons(split, 2) for split in _SPLITS},
            "rejected_by_method": {split: self._reasons(split, 3) for split in _SPLITS},
            "yield": {
                name: {split: self._yield(split, at) for split in _SPLITS}
                for name, at in (("by_skill", 1), ("by_route", 2), ("by_method", 3))
            },
            "lengths": {name: _distribution(values) for name, values in sorted(self._lengths.items())},
        }

    def _accuracies(self, split: Split) -> dict[str, Any]:
        skills = dict.fromkeys(skill for side, skill, _ in self._graded if side == split)
        counts = {s: (self._graded[split, s, True], self._graded[split, s, False]) for s in skills}
        total = sum(right for right, _ in counts.values()), sum(wrong for _, wrong in counts.values())
        return {"overall": _accuracy(*total), "by_skill": {s: _accuracy(*found) for s, found in counts.items()}}

    def _reasons(self, split: Split, at: int) -> dict[str, dict[str, int]]:
        """Reason -> skill (or route, or method) -> how many, in the order in which reasons are looked for."""
        found: dict[str, dict[str, int]] = defaultdict(dict)
        for entry, count in self._rejected.items():
            if entry[0] == split:
                found[entry[4]][entry[at]] = found[entry[4]].get(entry[at], 0) + count
        order = {reason: index for index, reason in enumerate(REASONS)}
        # What only a route knows ("similar_to_pool") comes before the filters that all share.
        return dict(sorted(found.items(), key=lambda pair: (order.get(pair[0], -1), pair[0])))

    def _yield(self, split: Split, at: int) -> dict[str, dict[str, float]]:
        seen, kept = _sums(self._seen, split, at), _sums(self._kept, split, at)
        return {
            name: {"elicited": count, "kept": kept.get(name, 0), "share": kept.get(name, 0) / count}
            for name, count in seen.items()
        }


def _sums(counts: Counter[tuple[str, ...]], split: str, at: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry, count in counts.items():
        if entry[0] == split and count:
            found[entry[at]] = found.get(entry[at], 0) + count
    return found


def _accuracy(right: int, wrong: int) -> dict[str, Any]:
    count = right + wrong
    low, high = wilson(right, count)
    return {"n": count, "correct": right, "accuracy": right / count if count else 0.0, "low": low, "high": high}


def _distribution(values: list[int]) -> dict[str, Any]:
    """Mean, quantiles, and a histogram: `counts[i]` values lie from `edges[i]` up to `edges[i + 1]`."""
    found = np.asarray(values)
    counts, edges = np.histogram(found, bins=min(_BINS, int(found.max() - found.min()) + 1))
    named = {"min": 0, "p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95, "max": 100}
    return {
        "n": len(values),
        "mean": float(found.mean()),
        **{name: float(np.percentile(found, percent)) for name, percent in named.items()},
        "histogram": {"edges": [float(edge) for edge in edges], "counts": [int(count) for count in counts]},
    }
