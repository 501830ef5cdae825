"""ROUGE-L between texts (Lin 2004, section 3), exact, and fast enough to compare each text with all before it.

The measure is that of Google's `rouge_score` package without a stemmer, which Self-Instruct's own code uses: words
are runs of a-z and 0-9 in the lower-cased text, and F = 2PR / (P + R) with P and R the share of either text's words
in their longest common subsequence (LCS).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from pocketstill_pipeline.problems.base import normalise

_WORD = re.compile(r"[a-z0-9]+")
# Two equal fractions may differ in the last bit once they are floats: 21 common words of 23 and 37 give
# an F of 0.6999999999999998. What rounding alone keeps below a threshold counts as having reached it.
_SLACK = 1e-9
# A word and how often it stood before in its text: what two texts share of these is their overlap as multisets.
_Occurrence = tuple[str, int]


def words_of(text: str) -> list[str]:
    """The words that ROUGE counts."""
    return _WORD.findall(text.lower())


def rouge_l(one: str, other: str) -> float:
    """ROUGE-L F of two texts, 0 to 1, whichever comes first; 0 when one of them has no word."""
    a, b = words_of(one), words_of(other)
    return _f(lcs_length(places_of(a), b), len(a), len(b))


def places_of(words: Sequence[str]) -> dict[str, int]:
    """For each word the places where it stands, as the bits of a number."""
    places: dict[str, int] = {}
    for index, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << index
    return places


def lcs_length(places: dict[str, int], words: Iterable[str]) -> int:
    """Length of the longest common subsequence of a text given by `places_of` and of `words`.

    Bit-parallel: a row of the table of lengths is one number, whose zeros are where the length grows (Hyyro 2004,
    "Bit-parallel LCS-length computation revisited").
    """
    mask = 0
    for bits in places.values():
        mask |= bits
    row = mask
    for word in words:
        common = row & places.get(word, 0)
        if common:
            row = (row + common | row - common) & mask
    return (mask & ~row).bit_count()


def _f(common: int, one: int, other: int) -> float:
    """The F measure, in the order of operations of `rouge_score`, so that not even the last bit differs."""
    if not common:
        return 0.0
    precision, recall = common / other, common / one
    return 2 * precision * recall / (precision + recall)


@dataclass(frozen=True)
class Similar:
    """The text of a pool that is most similar to another one, and its ROUGE-L F."""

    score: float
    text: str


class RougePool:
    """Texts, to find the most similar one among.

    Two texts have at most as long a common subsequence as they share words, so the overlap of their multisets of
    words bounds F from above. For an F of t, a text of m words must share k = tm / (2 - t) of them, so of any
    m - k + 1 of its words one at least is shared: an index from words to texts, asked for the rarest ones, gives all
    texts that can reach the threshold (prefix filtering, Chaudhuri et al. 2006, "A primitive operator for similarity
    joins"). Only where the overlap allows it the subsequence is measured, highest bound first.

    Attributes:
        compared: pairs of texts that were decided on.
        measured: those of them whose subsequence had to be measured.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.texts: list[str] = []
        self.compared = 0
        self.measured = 0
        self._lengths: list[int] = []
        self._places: list[dict[str, int]] = []
        self._shares: list[frozenset[_Occurrence]] = []
        self._with: dict[_Occurrence, list[int]] = {}
        self._known: set[str] = set()
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Take a text in."""
        words = words_of(text)
        shares = frozenset(_occurrences(words))
        for occurrence in shares:
            self._with.setdefault(occurrence, []).append(len(self.texts))
        self._shares.append(shares)
        self.texts.append(text)
        self._known.add(normalise(text))
        self._lengths.append(len(words))
        self._places.append(places_of(words))

    def __contains__(self, text: str) -> bool:
        """Whether the text itself is there, case and white space aside; texts without a-z and 0-9 are only told so."""
        return normalise(text) in self._known

    def nearest(self, text: str, threshold: float) -> Similar | None:
        """The most similar text whose ROUGE-L F is at least `threshold` (above 0); None when all are below it."""
        words = words_of(text)
        threshold -= _SLACK
        self.compared += len(self.texts)
        mine = frozenset(_occurrences(words))
        longest = (2 - threshold) * len(words) / threshold + _SLACK if threshold > 0 else math.inf
        bounds = [
            (bound, -index)
            for index in self._sharing(mine, threshold)
            if self._lengths[index] <= longest
            and (bound := _f(len(mine & self._shares[index]), self._lengths[index], len(words)) + _SLACK) >= threshold
        ]
        best: Similar | None = None
        for bound, negative in sorted(bounds, reverse=True):
            if best is not None and bound < best.score:
                break
            self.measured += 1
            index = -negative
            score = _f(lcs_length(self._places[index], words), self._lengths[index], len(words))
            if score >= threshold and (best is None or score > best.score):
                best = Similar(score, self.texts[index])
        return best

    def _sharing(self, mine: frozenset[_Occurrence], threshold: float) -> set[int]:
        """The texts that share one of so many of these words that none is missed that reaches the threshold."""
        least = max(1, math.ceil(threshold * len(mine) / (2 - threshold) - _SLACK))
        lists = sorted((self._with.get(occurrence, []) for occurrence in mine), key=len)
        found = set(chain.from_iterable(lists[: len(mine) - least + 1]))
        return {index for index in found if self._lengths[index] >= least}


def _occurrences(words: Iterable[str]) -> list[_Occurrence]:
    counted: Counter[str] = Counter()
    found = []
    for word in words:
        found.append((word, counted[word]))
        counted[word] += 1
    return found
