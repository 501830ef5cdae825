"""Log probabilities of what the embedded teacher says: what it draws by rule is likely, what else it says less so.

With `_SURE` the word comes from the rule; the rest of the probability falls on the words that its own sentences
have at such a place, by a bigram model interpolated with single words (Jelinek and Mercer 1980). So the values are
those of one probability distribution for each place, and the same whenever the same is said.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from functools import lru_cache
from typing import Any

from pocketstill_pipeline import problems

from .protocol import pieces

_SURE = 0.85
_OF_BIGRAM = 0.8
_SENTENCES_PER_SKILL = 40
_COMMON = 64


@lru_cache(maxsize=1)
def _counted() -> tuple[Counter[str], dict[str, Counter[str]]]:
    rng = random.Random(0)
    single: Counter[str] = Counter()
    after: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for skill in problems.SKILLS:
        for _ in range(_SENTENCES_PER_SKILL):
            solution = problems.solve(problems.sample(skill, rng).question, rng)
            if solution is None:
                continue
            said = pieces(f"{solution.rationale}\n{solution.answer}.")
            single.update(said)
            for before, word in zip(["", *said], said, strict=False):
                after[before][word] += 1
    return single, dict(after)


@lru_cache(maxsize=4096)
def _else_at(before: str) -> dict[str, float]:
    """The likely words behind another, with their shares."""
    single, after = _counted()
    follows = after.get(before, Counter())
    total, seen = single.total(), follows.total()
    weight = _OF_BIGRAM if seen else 0.0
    words = {word for word, _ in single.most_common(_COMMON)} | {word for word, _ in follows.most_common(_COMMON)}
    share = {w: (1 - weight) * single[w] / total + (weight * follows[w] / seen if seen else 0.0) for w in words}
    return dict(sorted(share.items(), key=lambda item: (-item[1], item[0])))


def logprobs_of(text: str, top: int) -> tuple[dict[str, Any], ...]:
    """OpenAI's `logprobs.content` of a text, one entry a piece of it, each with `top` alternatives, best first."""
    said, entries = pieces(text), []
    for before, word in zip(["", *said], said, strict=False):
        share = _else_at(before)
        mass = {other: (1 - _SURE) * part for other, part in list(share.items())[: top + 1]}
        mass[word] = _SURE + (1 - _SURE) * share.get(word, 0.0)
        ranked = sorted(mass.items(), key=lambda item: (-item[1], item[0]))[:top]
        entries.append(
            _entry(word, mass[word]) | {"top_logprobs": [_entry(other, part) for other, part in ranked]},
        )
    return tuple(entries)


def _entry(token: str, probability: float) -> dict[str, Any]:
    return {"token": token, "logprob": round(math.log(probability), 6), "bytes": list(token.encode())}
