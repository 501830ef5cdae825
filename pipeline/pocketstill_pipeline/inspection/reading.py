"""What a collection holds, and what curation made of it, gathered for people to look at; also while it is under way."""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pocketstill.errors import UserError
from pocketstill.files import read_json
from pocketstill.manifest import read_manifest
from pocketstill_pipeline.collect import LEDGER, QUESTIONS, UNREADABLE
from pocketstill_pipeline.curate import REJECTS, STATS
from pocketstill_pipeline.curating.decisions import asked
from pocketstill_pipeline.entries import SAMPLES
from pocketstill_pipeline.example import Elicited
from pocketstill_pipeline.ledger import Ledger, Row
from pocketstill_pipeline.tables import read_parquet

KEPT, UNJUDGED, AGAIN = "kept", "not curated yet", "made again by a later entry"
# What became of a sample that was not dropped.
FINE = (KEPT, UNJUDGED, AGAIN)
# What is remembered of a big collection for the page.
_GROUPS, _GROUP_SAMPLES, _DROPS, _MOST_VALUES = 6, 6, 3, 20_000
_LEAKS = "leakage.json"


@dataclass
class Entry:
    """One `[[elicit]]` entry: `fates` counts its samples by what became of them, `done` is False while it is asked."""

    name: str
    method: str
    route: str
    done: bool
    samples: int = 0
    usable: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    words: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    scores: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def kept(self) -> int:
        return self.fates[KEPT]


@dataclass(frozen=True)
class Shown:
    """One sample as it is shown; `fate` is "kept" or the reason against it."""

    rationale: str
    answer: str
    completion: str
    fate: str
    detail: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Group:
    """Samples of one question, side by side."""

    entry: str
    skill: str
    question: str
    gold: str | None
    samples: list[Shown]


@dataclass(frozen=True)
class Asked:
    """The ledger in figures, with that of the student's answers.

    Latencies are in seconds, of answered requests; `failures` are by reason.
    """

    requests: int
    answered: int
    failed: int
    pending: int
    asked_again: int
    prompt_tokens: int
    completion_tokens: int
    price: float
    latency_s: dict[str, float]
    failures: dict[str, int]


@dataclass(frozen=True)
class Inspection:
    """All of it. `finished`: the collection has ended; `curated`: its fates are curation's."""

    folder: Path
    name: str
    finished: bool
    curated: bool
    questions: int
    unreadable: list[dict[str, str]]
    asked: Asked
    entries: list[Entry]
    groups: list[Group]
    drops: dict[str, list[Shown]]
    leakage: dict[str, Any] | None

    def fates(self) -> Counter[str]:
        """What became of all samples."""
        return sum((entry.fates for entry in self.entries), Counter())

    def to_dict(self) -> dict[str, Any]:
        """The figures, JSON-ready; without texts."""
        return {
            "run": str(self.folder),
            "finished": self.finished,
            "curated": self.curated,
            "questions": self.questions,
            "unreadable": len(self.unreadable),
            "asked": asdict(self.asked),
            "entries": {
                entry.name: {
                    "method": entry.method,
                    "route": entry.route,
                    "done": entry.done,
                    "samples": entry.samples,
                    "usable": entry.usable,
                    "fates": dict(entry.fates.most_common()),
                }
                for entry in self.entries
            },
        }


def inspect_run(root: Path) -> Inspection:
    """Gathers what `root`/collect and, where it is there, `root`/curate hold.

    Raises:
        UserError: nothing has been collected there, or a file of it is broken.
    """
    collected = root / "collect"
    if not (collected / QUESTIONS).is_file():
        raise UserError(f"{root}: nothing was collected there; give the folder of a run, such as runs/pocket")
    try:
        return _looked_at(root, collected)
    except (KeyError, OSError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{root}: a file of it is missing or broken ({said}); run its recipe again") from None


def _looked_at(root: Path, collected: Path) -> Inspection:
    fates = _fates(root / "curate", collected)
    gathered = _Gathered()
    paths = sorted((collected / SAMPLES).glob("*"), key=lambda path: path.stat().st_mtime_ns)
    again = set(read_json(root / "curate" / STATS)["made_again"]) if fates is not None else set()
    entries = []
    for path in paths:
        # Curation tells the samples of several entries apart by their names.
        prefix = "" if len(paths) == 1 else f"{path.stem}/"
        entries.append(_entry(path, fates, prefix, gathered, again=path.stem in again))
    with (collected / QUESTIONS).open(encoding="utf-8") as lines:
        questions = sum(1 for _ in lines)
    leaks = root / "curate" / _LEAKS if fates is not None else None
    return Inspection(
        folder=root,
        name=root.name,
        finished=read_manifest(collected) is not None,
        curated=fates is not None,
        questions=questions,
        unreadable=_unreadable(collected / UNREADABLE),
        asked=_asked(collected / LEDGER, collected / "student" / LEDGER),
        entries=entries,
        groups=gathered.groups(),
        drops=gathered.drops,
        leakage=read_json(leaks) if leaks and leaks.is_file() else None,
    )


def _fates(curated: Path, collected: Path) -> dict[str, tuple[str, str]] | None:
    """Why curation rejected a sample, by its id; None when nothing is curated, or another collection was."""
    made, found = read_manifest(curated), read_manifest(collected)
    if made is None or found is None:
        return None
    samples = {name: digest for name, digest in found.outputs.items() if name.startswith(f"{SAMPLES}/")}
    if any(made.inputs.get(name.removesuffix(".jsonl")) != digest for name, digest in samples.items()):
        return None
    rows = read_parquet(curated / REJECTS)
    return {row["id"]: (row["reason"], row["detail"] or "") for row in rows}


def _entry(
    path: Path, fates: dict[str, tuple[str, str]] | None, prefix: str, gathered: _Gathered, *, again: bool
) -> Entry:
    entry = Entry(path.stem, "", "", path.suffix == ".jsonl")
    for item in _samples(path):
        entry.method, entry.route = item.method, item.route
        entry.samples += 1
        entry.usable += item.reason is None
        if fates is None:
            fate, detail = item.reason or UNJUDGED, item.detail
        else:
            fate, detail = (AGAIN, "") if again else fates.get(prefix + item.id, (KEPT, ""))
        entry.fates[fate] += 1
        for name, text in (("question", item.question), ("rationale", item.rationale), ("answer", item.answer or "")):
            if text and len(entry.words[name]) < _MOST_VALUES:
                entry.words[name].append(len(text.split()))
        for name, score in item.scores.items():
            if len(entry.scores[name]) < _MOST_VALUES:
                entry.scores[name].append(score)
        gathered.add(entry.name, item, fate, detail)
    return entry


def _samples(path: Path) -> Iterator[Elicited]:
    # As bytes: the last line of an entry under way may be there in part, and end within a character.
    with _opened(path) as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield Elicited.from_dict(json.loads(line))


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        # The entry has ended since the folder was listed.
        return path.with_suffix(".jsonl").open("rb")


class _Gathered:
    """Samples to show: some questions with all that was said to them, and some of what was dropped, by reason."""

    def __init__(self) -> None:
        self.drops: dict[str, list[Shown]] = {}
        self._groups: dict[tuple[str, str], Group] = {}
        self._by_entry: Counter[str] = Counter()

    def add(self, entry: str, item: Elicited, fate: str, detail: str) -> None:
        shown = Shown(item.rationale, item.answer or "", item.completion, fate, detail, dict(item.scores))
        if fate not in FINE:
            drops = self.drops.setdefault(fate, [])
            if len(drops) < _DROPS:
                drops.append(shown)
        key = (entry, item.group or asked(item))
        group = self._groups.get(key)
        if group is None:
            # Questions are looked at as they come, the first ones of each entry.
            if self._by_entry[entry] >= 40 * _GROUPS:
                return
            self._by_entry[entry] += 1
            group = self._groups[key] = Group(entry, item.skill, item.question, item.gold, [])
        if len(group.samples) < _GROUP_SAMPLES:
            group.samples.append(shown)

    def groups(self) -> list[Group]:
        """A few questions of each entry: those first whose samples met different fates, then those with most."""
        by_entry: dict[str, list[Group]] = defaultdict(list)
        for group in self._groups.values():
            by_entry[group.entry].append(group)
        chosen: list[Group] = []
        for groups in by_entry.values():
            groups.sort(key=lambda group: (-len({s.fate for s in group.samples}), -len(group.samples)))
            chosen += groups[: max(1, _GROUPS // len(by_entry))]
        return chosen


def _asked(*paths: Path) -> Asked:
    states: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    again, prompt, completion, price = 0, 0, 0, 0.0
    latencies: list[float] = []
    for row in _rows(paths):
        states[row.state] += 1
        again += row.attempts > 1
        prompt += row.prompt_tokens or 0
        completion += row.completion_tokens or 0
        price += row.price or 0.0
        if row.state == "done" and row.latency_s is not None:
            latencies.append(row.latency_s)
        if row.state == "failed":
            failures[(row.error or "unknown")[:120]] += 1
    return Asked(
        sum(states.values()), states["done"], states["failed"], states["pending"], again, prompt, completion, price,
        _quantiles(latencies), dict(failures.most_common(12)),
    )  # fmt: skip


def _rows(paths: Sequence[Path]) -> Iterator[Row]:
    for path in paths:
        if path.is_file():
            with Ledger(path, readonly=True) as ledger:
                yield from ledger.rows()


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    found = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else [values[0]] * 99
    return {"p50": found[49], "p95": found[94], "p99": found[98], "max": max(values)}


def _unreadable(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
