"""Families that name a category by label words that mean nothing: only the demonstrations tell which is which."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

from .base import LETTERS, MARKS, VOWELS, Family, Pair, Params, word


def _labels(rng: random.Random, count: int) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        new = word(rng)
        if new not in found:
            found.append(new)
    return found


def _table(categories: Sequence[str], labels: Sequence[str]) -> Params:
    return tuple(f"{category}={label}" for category, label in zip(categories, labels, strict=True))


def _look_up(params: Params, category: str) -> str | None:
    return next((entry[len(category) + 1 :] for entry in params if entry.startswith(f"{category}=")), None)


def _guess(category: Callable[[str], str]) -> Callable[[Sequence[Pair]], Iterable[Params]]:
    """The table that the pairs spell out, as far as they show it."""

    def guess(pairs: Sequence[Pair]) -> Iterable[Params]:
        table = {category(asked): said for asked, said in pairs}
        if "" in table or len(set(table.values())) < 2 or any(" " in label for label in table.values()):
            return []
        return [tuple(f"{key}={label}" for key, label in sorted(table.items()))]

    return guess


def _family(
    name: str,
    category: Callable[[str], str],
    draw: Callable[[random.Random], Sequence[str]],
    ask: Callable[[str, random.Random], str],
) -> Family:
    def draw_table(rng: random.Random) -> Params:
        categories = draw(rng)
        return _table(categories, _labels(rng, len(categories)))

    def ask_some(params: Params, rng: random.Random) -> str:
        return ask(rng.choice(params).partition("=")[0], rng)

    return Family(name, draw_table, ask_some, lambda params, text: _look_up(params, category(text)), _guess(category))


def _ask_case(category: str, rng: random.Random) -> str:
    return word(rng).upper() if category == "upper" else word(rng)


def _ask_count(category: str, rng: random.Random) -> str:
    return " ".join(_labels(rng, int(category)))


def _ask_letters(category: str, rng: random.Random) -> str:
    return word(rng, int(category), int(category))


def _ask_length(category: str, rng: random.Random) -> str:
    return word(rng, 2, 3) if category == "short" else word(rng, 6, 8)


def _ask_vowel(category: str, rng: random.Random) -> str:
    consonants = "".join(letter for letter in LETTERS if letter not in VOWELS)
    return rng.choice(VOWELS if category == "vowel" else consonants) + word(rng, 2, 4)


def _ask_equal(category: str, rng: random.Random) -> str:
    first, second = _labels(rng, 2)
    return f"{first} {first}" if category == "same" else f"{first} {second}"


def _equal(text: str) -> str:
    return "same" if len(set(text.split())) == 1 else "different"


def _labelled(params: Params, text: str) -> str | None:
    label = _look_up(params, text[0])
    return None if label is None else f"{label} {text}"


def _guess_labelled(pairs: Sequence[Pair]) -> Iterable[Params]:
    if not all(said.endswith(f" {asked}") for asked, said in pairs):
        return []
    return _guess(lambda text: text[0])([(asked, said.removesuffix(f" {asked}")) for asked, said in pairs])


def _draw_labelled(rng: random.Random) -> Params:
    return _table(rng.sample(LETTERS, 2), _labels(rng, 2))


def _ask_labelled(params: Params, rng: random.Random) -> str:
    return rng.choice(params)[0] + word(rng)


def _some_of(alphabet: str) -> Callable[[random.Random], Sequence[str]]:
    return lambda rng: rng.sample(alphabet, rng.choice((2, 3)))


def _both(*categories: str) -> Callable[[random.Random], Sequence[str]]:
    return lambda _: categories


def _some_words(rng: random.Random) -> Sequence[str]:
    return _labels(rng, rng.choice((2, 3)))


def _mark(text: str) -> str:
    return text[0] if text[0] in MARKS else ""


def _case(text: str) -> str:
    return "upper" if text.isupper() else "lower"


def _length(text: str) -> str:
    return "short" if len(text) < 5 else "long"


def _vowel(text: str) -> str:
    return "vowel" if text[0] in VOWELS else "consonant"


def _ask_second(category: str, rng: random.Random) -> str:
    return rng.choice(LETTERS) + category + word(rng, 2, 3)


FAMILIES = (
    _family("mark_label", _mark, _some_of(MARKS), lambda category, rng: f"{category} {word(rng)}"),
    _family("initial_label", lambda text: text[0], _some_of(LETTERS), lambda category, rng: category + word(rng)),
    _family("second_label", lambda text: text[1:2], _some_of(LETTERS), _ask_second),
    _family("ending_label", lambda text: text[-1], _some_of(LETTERS), lambda category, rng: word(rng) + category),
    _family("word_label", lambda text: text.split()[0], _some_words, lambda category, rng: f"{category} {word(rng)}"),
    _family("last_label", lambda text: text.split()[-1], _some_words, lambda category, rng: f"{word(rng)} {category}"),
    _family("letters_label", lambda text: str(len(text)), _both("2", "3", "4"), _ask_letters),
    Family("label_before", _draw_labelled, _ask_labelled, _labelled, _guess_labelled),
    _family("case_label", _case, _both("upper", "lower"), _ask_case),
    _family("count_label", lambda text: str(len(text.split())), _both("1", "2", "3"), _ask_count),
    _family("length_label", _length, _both("short", "long"), _ask_length),
    _family("vowel_label", _vowel, _both("vowel", "consonant"), _ask_vowel),
    _family("equal_label", _equal, _both("same", "different"), _ask_equal),
)
