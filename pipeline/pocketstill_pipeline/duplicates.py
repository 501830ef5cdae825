"""Near-duplicates: MinHash finds what may be alike (Broder 1997), the exact Jaccard similarity decides."""

from __future__ import annotations

import re
import zlib
from typing import Any

from datasketch import MinHash, MinHashLSH

_PERMUTATIONS = 64
# Most that two texts at the threshold itself may miss each other; those more alike miss less.
_MISS = 1e-3
# Chinese and Japanese have no blanks between words: there each character counts as one.
_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def tokens(text: str) -> tuple[str, ...]:
    """The words of a text in lower case, without punctuation."""
    return tuple(_WORD.findall(text.lower()))


def shingles(text: str) -> frozenset[int]:
    """The text's sequences of three words, in lower case and without punctuation, as 32-bit hashes.

    Numbers and names are words like all others, so each that differs changes three shingles wherever it
    stands. In texts of up to about a hundred words, two that differ in one name or number fall below a
    similarity of 0.95.
    """
    words = tokens(text)
    if len(words) < 3:
        return frozenset({zlib.crc32((" ".join(words) or text.strip()).encode())})
    return frozenset(zlib.crc32(" ".join(words[i : i + 3]).encode()) for i in range(len(words) - 2))


def jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    """Size of the intersection over that of the union, 0 to 1."""
    common = len(a & b)
    return common / max(len(a) + len(b) - common, 1)


class NearDuplicates:
    """Texts seen so far. A threshold of 1 turns the search off."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._seen: dict[str, frozenset[int]] = {}
        self._index: Any = MinHashLSH(num_perm=_PERMUTATIONS, params=_bands(threshold))
        self._blank: Any = MinHash(num_perm=_PERMUTATIONS, hashfunc=_already_hashed)

    def add(self, name: str, text: str) -> str | None:
        """The name of an earlier text as good as this one; None if there is none, and it is remembered."""
        if self._threshold >= 1:
            return None
        mine = shingles(text)
        sketch = self._sketch(mine)
        for other, theirs in self._found(sketch):
            if jaccard(mine, theirs) >= self._threshold:
                return other
        self._keep(name, mine, sketch)
        return None

    def remember(self, name: str, text: str) -> None:
        """Have seen a text, whatever it is like."""
        if self._threshold < 1:
            mine = shingles(text)
            self._keep(name, mine, self._sketch(mine))

    def nearest(self, text: str) -> tuple[str, float] | None:
        """The text seen that is most like this one, with their similarity; None if none reaches the threshold."""
        if self._threshold >= 1:
            return None
        mine = shingles(text)
        found = [(other, jaccard(mine, theirs)) for other, theirs in self.alike(mine)]
        name, similarity = max(found, key=lambda pair: pair[1], default=("", 0.0))
        return (name, similarity) if similarity >= self._threshold else None

    def alike(self, mine: frozenset[int]) -> list[tuple[str, frozenset[int]]]:
        """The texts seen that may be near, in the order of their names, with their shingles."""
        return self._found(self._sketch(mine))

    def _found(self, sketch: Any) -> list[tuple[str, frozenset[int]]]:
        return [(name, self._seen[name]) for name in sorted(self._index.query(sketch))]

    def _keep(self, name: str, mine: frozenset[int], sketch: Any) -> None:
        self._index.insert(name, sketch)
        self._seen[name] = mine

    def _sketch(self, mine: frozenset[int]) -> Any:
        sketch = self._blank.copy()
        sketch.update_batch(mine)
        return sketch


def _bands(threshold: float) -> tuple[int, int]:
    """(bands, rows a band): the longest bands with which two texts at the threshold are still found.

    At 0.95 that is 8 rows in 8 bands: two texts of similarity 0.95 share a band with probability 0.9997, of 0.8
    with 0.77; the exact check behind it makes a band shared by chance harmless.
    """
    for rows in (8, 6, 5, 4, 3, 2):
        bands = _PERMUTATIONS // rows
        if (1 - threshold**rows) ** bands <= _MISS:
            return bands, rows
    return _PERMUTATIONS, 1


def _already_hashed(value: int) -> int:
    return value
