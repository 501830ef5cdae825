"""What becomes of each elicited thing: filters first, then what needs to see the others, in one fixed order.

in_heldout, contaminated, exact_duplicate, over_cap and near_duplicate come after the filters of `filters.py`, and
not_selected at last. Earlier things win over later ones like them. Of the texts only what is asked stays in memory, and
short forms of the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pocketstill.errors import UserError
from pocketstill_pipeline.asking import user_text
from pocketstill_pipeline.duplicates import NearDuplicates, tokens
from pocketstill_pipeline.example import Elicited, Question
from pocketstill_pipeline.problems.base import normalise

from . import selection
from .contamination import SHORTEST, Suite
from .filters import CONTENT_REASONS, correct, judge, said
from .settings import Curate

REASONS = (
    "failed_request", *CONTENT_REASONS, "in_heldout", "contaminated", "exact_duplicate", "over_cap", "near_duplicate",
    "not_selected",
)  # fmt: skip
Items = Callable[[], Iterator[Elicited]]


@dataclass(frozen=True)
class Decision:
    """What becomes of one elicited thing: kept when `reason` is None. `right`: None where nothing is graded."""

    reason: str | None
    detail: str
    right: bool | None
    weight: float = 1.0
    score: float | None = None


@dataclass
class Decided:
    """The decisions in the order of the things, and what was found out on the way.

    `good` counts the training examples with nothing against them, before any selection.
    """

    decisions: list[Decision] = field(default_factory=list)
    good: int = 0
    suites: dict[str, dict[str, int]] = field(default_factory=dict)
    score_basis: str = ""


def decide(items: Items, questions: Sequence[Question], kept_apart: dict[str, list[str]], rules: Curate) -> Decided:
    """Decide on every elicited thing; `items` is called once for each pass over them.

    `kept_apart` has the questions of further files, by the files' names.

    Raises:
        UserError: weights by quality are asked for, and nothing has a score.
    """
    held = [*((q.id, q.skill, q.whole) for q in questions if q.split == "heldout"), *_heldout(items())]
    own = {normalise(question.whole) for question in questions}
    found = Decided()
    suites = _suites(held, kept_apart, rules)
    if rules.decontaminate_ngram != 0:
        written = {text for item in items() if item.split == "train" for text in (asked(item),)}
        for suite in suites.values():
            suite.forget_common(written)
    found.suites = {name: {"items": suite.size, "ngram": suite.ngram} for name, suite in suites.items()}
    # What ends a conversation is met by chance where it is short ("And why?"): only a long one counts by itself.
    ends = {q.text for q in questions if q.split == "heldout" and len(tokens(q.text)) >= SHORTEST}
    heldout = {normalise(text) for text in (*ends, *(text for _, _, text in held))}
    crowd = _Crowd(rules, heldout, own, suites, kept_apart)
    chosen: list[tuple[int, selection.Candidate]] = []
    for index, item in enumerate(items()):
        verdict = judge(item, rules)
        reason, detail = (verdict.reason, verdict.detail) if verdict else (None, "")
        if reason is None and item.split == "train":
            reason, detail = crowd.objection(item) or (None, "")
        found.decisions.append(Decision(reason, detail, correct(item)))
        if reason is not None or item.split != "train":
            continue
        found.good += 1
        if rules.select or rules.weights != "none":
            chosen.append((index, _candidate(index, item)))
    _select(found, chosen, rules)
    return found


def asked(item: Elicited) -> str:
    """All that a thing asks: the turns of the user, one after the other."""
    return user_text(item.messages)


def _heldout(items: Iterable[Elicited]) -> list[tuple[str, str, str]]:
    """Held-out questions that a route made itself: (name, skill, text), each once."""
    made = {asked(item): item for item in items if item.split == "heldout"}
    return [(item.id, item.skill, text) for text, item in made.items()]


def _suites(held: Sequence[tuple[str, str, str]], kept_apart: dict[str, list[str]], rules: Curate) -> dict[str, Suite]:
    """One search a skill and a file, since the length of a run of words follows from its questions' lengths."""
    named: dict[str, list[tuple[str, str]]] = {}
    for name, skill, text in held:
        named.setdefault(skill, []).append((name, text))
    for file, texts in kept_apart.items():
        named.setdefault(file, []).extend((f"{file}, question {n}", text) for n, text in enumerate(texts, start=1))
    ngram, similarity = rules.decontaminate_ngram, rules.decontaminate_similarity
    return {name: Suite(items, ngram=ngram, similarity=similarity) for name, items in named.items()}


class _Crowd:
    """The training examples kept so far, and what none of them may be or overlap with."""

    def __init__(
        self, rules: Curate, heldout: set[str], own: set[str], suites: dict[str, Suite], files: Container[str]
    ) -> None:
        self._rules, self._heldout, self._own, self._suites, self._files = rules, heldout, own, suites, files
        # An example with candidates or probabilities is none that goes without: each kind has its own crowd.
        self._near: defaultdict[tuple[bool, bool], NearDuplicates] = defaultdict(
            lambda: NearDuplicates(rules.near_duplicate)
        )
        self._exact: dict[tuple[object, ...], str] = {}
        self._counts: Counter[tuple[object, ...]] = Counter()
        # Whoever calls may have the same id twice.
        self._names: Counter[str] = Counter()

    def objection(self, item: Elicited) -> tuple[str, str] | None:
        """(reason, detail) against an example that is good by itself; None when there is none: it joins them."""
        rules, text = self._rules, asked(item)
        question = normalise(text)
        carries = bool(item.candidates), item.top_logprobs is not None
        group = carries, item.group or question
        demonstrations = [str(turn.get("content") or "") for turn in item.demonstrations]
        shown = "\n".join(demonstrations + _contents(item))
        identity = carries, _digest(normalise(shown), normalise(item.rationale), item.answer or "")
        if problem := self._overlap(item, text, demonstrations):
            return problem
        if identity in self._exact:
            return "exact_duplicate", f"of {self._exact[identity]}"
        if self._counts[group] >= rules.max_per_question:
            return "over_cap", f"{rules.max_per_question} of this question are kept"
        self._names[item.id] += 1
        name = item.id if self._names[item.id] == 1 else f"{item.id} ({self._names[item.id]})"
        self._exact[identity] = name
        if (twin := self._near[carries].add(name, f"{shown}\n{item.rationale}\n{item.answer}")) is not None:
            return "near_duplicate", f"of {twin}"
        self._counts[group] += 1
        return None

    def _overlap(self, item: Elicited, text: str, demonstrations: list[str]) -> tuple[str, str] | None:
        if normalise(text) in self._heldout or normalise(item.question) in self._heldout:
            return "in_heldout", "the question is held out"
        if any(normalise(turn) in self._heldout for turn in demonstrations):
            return "in_heldout", "a demonstration is held out"
        # The recipe's own questions were split knowingly; how near the two parts are, the leakage report says.
        own = self._rules.decontaminate_scope == "written" and normalise(text) in self._own
        replies = [str(turn.get("content") or "") for turn in item.messages if turn.get("role") == "assistant"]
        rest = "\n".join([*demonstrations, *replies, said(item)])
        for name, suite in self._suites.items():
            if own and name not in self._files:
                continue
            if (hit := suite.find(text, rest)) is not None:
                return "contaminated", f"{hit.item}: {hit.how}"
        return None


def _digest(*texts: str) -> bytes:
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=16).digest()


def _contents(item: Elicited) -> list[str]:
    return [str(turn.get("content") or "") for turn in item.messages]


def _candidate(index: int, item: Elicited) -> selection.Candidate:
    scores = item.scores
    return selection.Candidate(str(index), asked(item), said(item), scores.get("quality"), scores.get("complexity"))


def _select(found: Decided, chosen: list[tuple[int, selection.Candidate]], rules: Curate) -> None:
    """Decide anew on those that were good so far: what is not selected, and what the others weigh."""
    candidates = [candidate for _, candidate in chosen]
    if rules.select is not None:
        selected = selection.select(candidates, rules.select, rules.diversity)
        found.score_basis = selected.scores.basis
        for index, candidate in chosen:
            why = selected.left.get(candidate.name)
            found.decisions[index] = replace(
                found.decisions[index],
                reason="not_selected" if why else None,
                detail=why or "",
                score=selected.scores.values[candidate.name],
            )
        candidates = [candidate for candidate in candidates if candidate.name not in selected.left]
    if rules.weights != "none" and candidates:
        scores = _scores(candidates, rules, found)
        for name, weight in selection.weights(scores).items():
            found.decisions[int(name)] = replace(found.decisions[int(name)], weight=weight)


def _scores(candidates: list[selection.Candidate], rules: Curate, found: Decided) -> Mapping[str, float]:
    """What the weights follow."""
    if rules.weights == "evol":
        evol = selection.evol_scores(candidates)
        found.score_basis = found.score_basis or evol.basis
        return evol.values
    scores = {item.name: item.quality for item in candidates if item.quality is not None}
    if not scores:
        raise UserError(
            'curate.weights is "quality", but no example has a quality score; add an [[elicit]] entry that scores, '
            'or set it to "evol"'
        )
    return scores
