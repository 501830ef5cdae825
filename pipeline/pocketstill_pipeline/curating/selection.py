"""Selecting by quality, complexity and diversity, after DEITA (Liu et al. 2023, arXiv 2312.15685).

DEITA scores an example by s = q * c, quality by complexity (its "evol score", section 3.4), and walks from the best
down, taking an example unless its nearest neighbour among those taken is too similar (its "Repr Filter", section 2.5,
threshold 0.9 there), until the budget is met.

Two things differ here. The scores are the teacher's, elicited by the feedback route, not those of two scorers of 7B
parameters; where an example lacks one, lengths stand in for all of them, which DEITA has as a baseline. And the vectors
are hashed TF-IDF counts of words and of pairs of words, not hidden states of a language model: nothing is downloaded,
and what counts as similar is wording, not meaning.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

# With 2,048 signed buckets (Weinberger et al. 2009, arXiv 0902.2206) a cosine errs by about 0.02.
_BUCKETS = 2048
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Candidate:
    """One example to choose from: its name, its words, and its scores where the teacher gave them (any scale)."""

    name: str
    asked: str
    said: str
    quality: float | None = None
    complexity: float | None = None


@dataclass(frozen=True)
class Scored:
    """Scores by name, and what they come from: "teacher" (quality by complexity) or "lengths" (the stand-in)."""

    values: dict[str, float]
    basis: str


@dataclass(frozen=True)
class Selected:
    """What was taken, best first; and of each that was not, why, in words."""

    taken: list[str]
    left: dict[str, str]
    scores: Scored


def evol_scores(candidates: Sequence[Candidate]) -> Scored:
    """s = q * c for each (DEITA, section 3.4); from lengths when any of them lacks one of the two.

    The stand-ins are DEITA's baselines of the same name: complexity is the length of what is asked, quality that of
    what is said, both in words and here on a logarithmic scale.
    """
    if all(item.quality is not None and item.complexity is not None for item in candidates):
        return Scored({item.name: (item.quality or 0.0) * (item.complexity or 0.0) for item in candidates}, "teacher")
    lengths = {item.name: _log_words(item.said) * _log_words(item.asked) for item in candidates}
    return Scored(lengths, "lengths")


def _log_words(text: str) -> float:
    return math.log1p(len(_WORD.findall(text)))


def weights(scores: Mapping[str, float]) -> dict[str, float]:
    """A weight in training for each: its score over the mean score, so that they are 1 on average."""
    mean = sum(scores.values()) / max(len(scores), 1)
    return {name: score / mean if mean > 0 else 1.0 for name, score in scores.items()}


def select(candidates: Sequence[Candidate], budget: int, similarity: float = 0.9) -> Selected:
    """Take up to `budget` examples, best score first, none more similar (cosine) to one taken than `similarity`.

    Fewer are taken when the others are all too similar. Ties go to the earlier candidate. Memory grows with the
    number taken: 8 KiB each.
    """
    scores = evol_scores(candidates)
    order = sorted(candidates, key=lambda item: -scores.values[item.name])
    space = Vectors(f"{item.asked}\n{item.said}" for item in candidates)
    kept: NDArray[np.float32] = np.empty((min(budget, len(candidates)), _BUCKETS), np.float32)
    taken: list[str] = []
    left: dict[str, str] = {}
    for item in order:
        score = scores.values[item.name]
        if len(taken) >= budget:
            left[item.name] = f"score {score:.3g} ({scores.basis}), below the {budget} taken"
            continue
        vector = space.of(f"{item.asked}\n{item.said}")
        if taken and similarity < 1:
            alike = kept[: len(taken)] @ vector
            nearest = int(alike.argmax())
            if alike[nearest] > similarity:
                left[item.name] = (
                    f"score {score:.3g} ({scores.basis}), too similar ({alike[nearest]:.2f}) to {taken[nearest]}"
                )
                continue
        kept[len(taken)] = vector
        taken.append(item.name)
    return Selected(taken, left, scores)


class Vectors:
    """TF-IDF vectors of unit length over hashed words and pairs of words; document frequencies are of `texts`.

    Term weight (1 + log tf) * log((1 + N) / (1 + df)) + 1, as scikit-learn smooths it.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        counted: Counter[str] = Counter()
        self._count = 0
        for text in texts:
            counted.update(set(_terms(text)))
            self._count += 1
        self._frequency = counted

    def of(self, text: str) -> NDArray[np.float32]:
        """The vector of one text, of length 1 (all zeros for a text without words)."""
        vector = np.zeros(_BUCKETS, np.float32)
        for term, count in Counter(_terms(text)).items():
            rarity = math.log((1 + self._count) / (1 + self._frequency[term])) + 1
            hashed = zlib.crc32(term.encode())
            vector[hashed % _BUCKETS] += (1 + math.log(count)) * rarity * (1 if hashed & 0x8000_0000 else -1)
        norm = float(np.linalg.norm(vector))
        return vector / norm if norm else vector


def _terms(text: str) -> list[str]:
    said = _WORD.findall(text.lower())
    return said + [f"{one} {two}" for one, two in pairwise(said)]
