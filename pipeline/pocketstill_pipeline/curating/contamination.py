"""Decontamination: what of the training data overlaps with the questions that verify the student.

N-grams as in GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C): a text is dirty when it shares a run of N words
with a suite item, where N is the 5th percentile of the items' lengths, at least 8 and at most 13 words, punctuation and
case ignored. An item shorter than N counts with all of its words, and below 8 only where it is all that is asked. As
there, runs that more than ten training texts have are common phrases and do not count: a rule that makes questions
repeats its own words in all of them. Beside it, MinHash finds suite items whose words the text has nearly all of, in
other runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pocketstill_pipeline.duplicates import NearDuplicates, tokens

# Brown et al. 2020, appendix C: bounds of N, and in how many training texts a run of words is a common phrase.
SHORTEST, LONGEST, COMMON = 8, 13, 10


@dataclass(frozen=True)
class Hit:
    """Where a text overlaps with the suite: the item's name, and how, in words; `similarity` is 1 for an n-gram."""

    item: str
    how: str
    similarity: float


def gram_length(texts: Iterable[str]) -> int:
    """N for these items: the 5th percentile of their lengths in words, within 8 and 13."""
    lengths = sorted(len(tokens(text)) for text in texts)
    if not lengths:
        return LONGEST
    return min(max(lengths[int(0.05 * (len(lengths) - 1))], SHORTEST), LONGEST)


class Suite:
    """The questions to keep apart from training, and the search for texts that overlap with them.

    Args:
        items: (name, question) of each.
        ngram: words a run; 0 turns the search for runs off, None takes `gram_length`.
        similarity: Jaccard similarity of triples of words from which on two questions are one; 1 turns it off.
    """

    def __init__(self, items: Iterable[tuple[str, str]], *, ngram: int | None = None, similarity: float = 0.95) -> None:
        listed = [(name, text) for name, text in items]
        self.size = len(listed)
        self.ngram = gram_length(text for _, text in listed) if ngram is None else ngram
        self._grams: dict[tuple[str, ...], list[str]] = {}
        self._lengths: set[int] = set()
        self._short: dict[tuple[str, ...], list[str]] = {}
        self._common: set[tuple[str, ...]] = set()
        self._near = NearDuplicates(similarity)
        for name, text in listed:
            self._near.remember(name, text)
            said = tokens(text)
            # Shorter items ("7 + 5 = ?") are met by chance: they count only where they are all that is asked.
            if not said:
                continue
            if self.ngram and len(said) < min(SHORTEST, self.ngram):
                self._short.setdefault(said, []).append(name)
            elif self.ngram:
                length = min(self.ngram, len(said))
                self._lengths.add(length)
                for gram in dict.fromkeys(_runs(said, length)):
                    self._grams.setdefault(gram, []).append(name)

    def forget_common(self, texts: Iterable[str], most: int = COMMON) -> int:
        """Leave out the runs of words that more than `most` of these training texts have; gives how many those are."""
        counted: Counter[tuple[str, ...]] = Counter()
        for text in texts:
            counted.update({gram for gram in self._runs_of(tokens(text)) if gram in self._grams})
        self._common = {gram for gram, count in counted.items() if count > most and len(gram) >= self.ngram}
        return len(self._common)

    def find(self, question: str, rest: str = "") -> Hit | None:
        """The suite item that a training question, or what else is said beside it, overlaps with; None if none does."""
        asked = tokens(question)
        if asked in self._short:
            return Hit(self._short[asked][0], "the same words", 1.0)
        for said in (asked, tokens(rest)):
            for gram in self._runs_of(said):
                if gram in self._grams and gram not in self._common:
                    return Hit(self._grams[gram][0], f"{len(gram)} words in a row: {' '.join(gram)!r}", 1.0)
        near = self._near.nearest(question)
        return None if near is None else Hit(near[0], f"Jaccard similarity {near[1]:.2f}", near[1])

    def items_in(self, question: str) -> list[str]:
        """All items that a question shares a run of words with, common phrases aside."""
        asked = tokens(question)
        names = list(self._short.get(asked, ()))
        for gram in self._runs_of(asked):
            if gram in self._grams and gram not in self._common:
                names += self._grams[gram]
        return list(dict.fromkeys(names))

    def _runs_of(self, said: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for length in sorted(self._lengths, reverse=True):
            yield from _runs(said, length)


def _runs(said: tuple[str, ...], length: int) -> Iterator[tuple[str, ...]]:
    for start in range(len(said) - length + 1):
        yield said[start : start + length]
