"""Near-duplicates: MinHash finds what may be alike (Broder 1997), the exact Jaccard similarity decides."""

from __future__ import annotations

import re
import zlib
from typing import Any

from datasketch import MinHash, MinHashLSH

# 64 permutations in bands of 8: two texts of similarity 0.95 share a band with probability 0.9997, of 0.8
# with 0.77; the exact check behind it makes a band shared by chance harmless.
_PERMUTATIONS, _BANDS, _ROWS = 64, 8, 8
_WORD = re.compile(r"\w+")


def shingles(text: str) -> frozenset[int]:
    """The text's sequences of three words, in lower case and without punctuation, as 32-bit hashes.

    Numbers and names are words like all others, so each that differs changes three shingles wherever it
    stands. In texts of up to about a hundred words, two that differ in one name or number fall below a
    similarity of 0.95.
    """
    words = _WORD.findall(text.lower())
    if len(words) < 3:
        return frozenset({zlib.crc32(" ".join(words).encode())})
    return frozenset(zlib.crc32(" ".join(words[i : i + 3]).encode()) for i in range(len(words) - 2))


class NearDuplicates:
    """Texts seen so far. A threshold of 1 turns the search off."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._seen: dict[str, frozenset[int]] = {}
        # A lower threshold needs more bands of fewer rows, which datasketch works out.
        params = (_BANDS, _ROWS) if threshold >= 0.9 else None
        self._index: Any = MinHashLSH(threshold=max(threshold, 0.01), num_perm=_PERMUTATIONS, params=params)
        self._blank: Any = MinHash(num_perm=_PERMUTATIONS, hashfunc=_already_hashed)

    def add(self, name: str, text: str) -> str | None:
        """The name of an earlier text as good as this one; None if there is none, and it is remembered."""
        if self._threshold >= 1:
            return None
        mine = shingles(text)
        sketch = self._blank.copy()
        sketch.update_batch(mine)
        for other in sorted(self._index.query(sketch)):
            theirs = self._seen[other]
            common = len(mine & theirs)
            if common >= self._threshold * (len(mine) + len(theirs) - common):
                return str(other)
        self._index.insert(name, sketch)
        self._seen[name] = mine
        return None


def _already_hashed(value: int) -> int:
    return value
