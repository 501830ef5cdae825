"""Families over the letters of one word."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from .base import BRACKETS, LETTERS, MARKS, Family, Pair, Params, among, ask_word, every, place, word

_PLACES = ("1", "-1", "2", "-2", "3")
_SWAPS = ("1,2", "1,-1", "-2,-1", "2,3")
_KEPT = ("2", "-2", "3", "-3")
_SHIFTS = ("1", "-1", "2", "-2")


def _affix(rng: random.Random) -> Params:
    return (word(rng, 1, 3),)


def _suffixes(pairs: Sequence[Pair]) -> Iterable[Params]:
    asked, said = pairs[0]
    return [(said[len(asked) :],)] if len(said) > len(asked) else []


def _prefixes(pairs: Sequence[Pair]) -> Iterable[Params]:
    asked, said = pairs[0]
    return [(said[: len(said) - len(asked)],)] if len(said) > len(asked) else []


def _draw_affixes(rng: random.Random) -> Params:
    return (word(rng, 1, 2), word(rng, 1, 2))


def _guess_affixes(pairs: Sequence[Pair]) -> Iterable[Params]:
    asked, said = pairs[0]
    before, found, behind = said.partition(asked)
    return [(before, behind)] if found and before and behind else []


def _ends(params: Params, text: str) -> str | None:
    if len(text) < 3:
        return None
    return text[1:-1] if params[0] == "inner" else text[0] + text[-1]


def _mirror(params: Params, text: str) -> str | None:
    return text + text[::-1] if params[0] == "behind" else text[::-1] + text


def _pick(params: Params, text: str) -> str | None:
    index = place(params[0], len(text))
    return None if index is None else text[index]


def _drop(params: Params, text: str) -> str | None:
    index = place(params[0], len(text))
    return None if index is None else text[:index] + text[index + 1 :]


def _double(params: Params, text: str) -> str | None:
    if params[0] == "all":
        return "".join(letter * 2 for letter in text)
    index = place(params[0], len(text))
    return None if index is None else text[: index + 1] + text[index:]


def _mask(params: Params, text: str) -> str | None:
    index = place(params[0], len(text))
    return None if index is None else text[:index] + params[1] + text[index + 1 :]


def _draw_mask(rng: random.Random) -> Params:
    return (rng.choice(_PLACES), rng.choice(MARKS))


def _guess_mask(pairs: Sequence[Pair]) -> Iterable[Params]:
    return [(where, mark) for mark in MARKS if mark in pairs[0][1] for where in _PLACES]


def _insert(params: Params, text: str) -> str | None:
    index = place(params[0], len(text))
    return None if index is None else text[: index + 1] + params[1] + text[index + 1 :]


def _draw_insert(rng: random.Random) -> Params:
    return (rng.choice(_PLACES), rng.choice(LETTERS))


def _guess_insert(pairs: Sequence[Pair]) -> Iterable[Params]:
    asked, said = pairs[0]
    index = next((i for i, (old, new) in enumerate(zip(asked, said, strict=False)) if old != new), len(asked))
    return [(where, said[index]) for where in _PLACES] if len(said) == len(asked) + 1 else []


def _keep(params: Params, text: str) -> str | None:
    count = int(params[0])
    return None if len(text) <= abs(count) else text[:count] if count > 0 else text[count:]


def _ask_keep(_: Params, rng: random.Random) -> str:
    return word(rng, 4, 5)


def _swap(params: Params, text: str) -> str | None:
    first, second = (place(name, len(text)) for name in params[0].split(","))
    if first is None or second is None:
        return None
    letters = list(text)
    letters[first], letters[second] = letters[second], letters[first]
    return "".join(letters)


def _rotate(params: Params, text: str) -> str | None:
    turn = int(params[0])
    return text[turn:] + text[:turn]


def _shift(params: Params, text: str) -> str | None:
    if not text.isalpha():
        return None
    return "".join(LETTERS[(LETTERS.index(letter) + int(params[0])) % len(LETTERS)] for letter in text.lower())


def _sort(params: Params, text: str) -> str | None:
    return "".join(sorted(text, reverse=params[0] == "down"))


def _replace(params: Params, text: str) -> str | None:
    return text.replace(params[0], params[1])


def _without(params: Params, text: str) -> str | None:
    return text.replace(params[0], "") or None


def _guess_without(pairs: Sequence[Pair]) -> Iterable[Params]:
    gone = {letter for asked, said in pairs for letter in asked if letter not in said}
    return [(letter,) for letter in gone] if len(gone) == 1 else []


def _draw_replace(rng: random.Random) -> Params:
    old, new = rng.sample(LETTERS, 2)
    return (old, new)


def _ask_replace(params: Params, rng: random.Random) -> str:
    """Words that mostly hold the letter to replace, some of them twice, and neither by chance the new one."""
    text = [letter for letter in word(rng, 3, 5) if letter not in params] or ["a" if "a" not in params else "e", "s"]
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        text.insert(rng.randint(0, len(text)), params[0])
    return "".join(text)


def _guess_replace(pairs: Sequence[Pair]) -> Iterable[Params]:
    changes = {
        (old, new)
        for asked, said in pairs
        if len(asked) == len(said)
        for old, new in zip(asked, said, strict=True)
        if old != new
    }
    return sorted(changes) if len(changes) == 1 else []


def _bracket(params: Params, text: str) -> str | None:
    return params[0][0] + text + params[0][1]


def _separate(params: Params, text: str) -> str | None:
    return params[0].join(text)


FAMILIES = (
    Family("suffix", _affix, ask_word, lambda params, text: text + params[0], _suffixes),
    Family("prefix", _affix, ask_word, lambda params, text: params[0] + text, _prefixes),
    Family("affixes", _draw_affixes, ask_word, lambda params, text: params[0] + text + params[1], _guess_affixes),
    Family("ends", among("inner", "outer"), ask_word, _ends, every("inner", "outer")),
    Family("mirror", among("behind", "before"), ask_word, _mirror, every("behind", "before")),
    Family("bracket", among(*BRACKETS), ask_word, _bracket, every(*BRACKETS)),
    Family("letter", among(*_PLACES), ask_word, _pick, every(*_PLACES)),
    Family("drop", among(*_PLACES), ask_word, _drop, every(*_PLACES)),
    Family("reverse", among("letters"), ask_word, lambda _, text: text[::-1], every("letters")),
    Family("double", among("all", *_PLACES), ask_word, _double, every("all", *_PLACES)),
    Family("mask", _draw_mask, ask_word, _mask, _guess_mask),
    Family("insert", _draw_insert, ask_word, _insert, _guess_insert),
    Family("keep", among(*_KEPT), _ask_keep, _keep, every(*_KEPT)),
    Family("swap", among(*_SWAPS), ask_word, _swap, every(*_SWAPS)),
    Family("rotate", among("1", "-1", "2"), ask_word, _rotate, every("1", "-1", "2")),
    Family("separate", among(*MARKS), ask_word, _separate, every(*MARKS)),
    Family("replace", _draw_replace, _ask_replace, _replace, _guess_replace),
    Family("without", lambda rng: (rng.choice(LETTERS),), _ask_replace, _without, _guess_without),
    Family("sort", among("up", "down"), ask_word, _sort, every("up", "down")),
    Family("shift", among(*_SHIFTS), ask_word, _shift, every(*_SHIFTS)),
)
