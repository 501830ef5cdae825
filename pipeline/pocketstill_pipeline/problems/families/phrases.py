"""Families over the words of a short phrase."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

from .base import BRACKETS, MARKS, Family, Pair, Params, among, ask_word, ask_words, every, place, word, words

_PLACES = ("1", "-1", "2")
_PICKS = (*_PLACES, "longest", "shortest")
_ORDERS = ("reverse", "first last", "last first")


def _one(rng: random.Random) -> Params:
    return (word(rng),)


def _last_word(pairs: Sequence[Pair]) -> Iterable[Params]:
    return [(pairs[0][1].rpartition(" ")[2],)]


def _first_word(pairs: Sequence[Pair]) -> Iterable[Params]:
    return [(pairs[0][1].partition(" ")[0],)]


def _pick(params: Params, text: str) -> str | None:
    parts = text.split()
    if params[0] in ("longest", "shortest"):
        ordered = sorted(parts, key=len, reverse=params[0] == "longest")
        tied = len(ordered) > 1 and len(ordered[0]) == len(ordered[1])
        return None if tied else ordered[0]
    index = place(params[0], len(parts))
    return None if index is None else parts[index]


def _ask_pick(params: Params, rng: random.Random) -> str:
    """Words of which one is the longest and one the shortest where the task needs that."""
    while True:
        text = words(rng, (2, 3, 4)) if params[0] in ("longest", "shortest") else words(rng)
        if _pick(params, text) is not None:
            return text


def _omit(params: Params, text: str) -> str | None:
    parts = text.split()
    index = place(params[0], len(parts))
    return None if index is None or len(parts) < 2 else " ".join(parts[:index] + parts[index + 1 :])


def _each(change: Callable[[Params, str], str]) -> Callable[[Params, str], str | None]:
    """Every word changed in the same way."""
    return lambda params, text: " ".join(change(params, part) for part in text.split())


def _short(rng: random.Random) -> Params:
    return (word(rng, 1, 2),)


def _guess_each_suffix(pairs: Sequence[Pair]) -> Iterable[Params]:
    asked, said = (text.partition(" ")[0] for text in pairs[0])
    return [(said[len(asked) :],)] if len(said) > len(asked) else []


def _guess_each_prefix(pairs: Sequence[Pair]) -> Iterable[Params]:
    asked, said = (text.partition(" ")[0] for text in pairs[0])
    return [(said[: len(said) - len(asked)],)] if len(said) > len(asked) else []


def _edges(params: Params, text: str) -> str | None:
    first, *middle, last = text.split() if " " in text else (text, text)
    return " ".join([last, *middle, first] if params[0] == "exchanged" else [first, last])


def _sandwich(params: Params, text: str) -> str | None:
    return f"{text} {params[0]} {text}"


def _guess_sandwich(pairs: Sequence[Pair]) -> Iterable[Params]:
    asked, said = pairs[0]
    return [(said[len(asked) + 1 : -len(asked) - 1],)] if len(said) > 2 * len(asked) + 2 else []


def _push(params: Params, text: str) -> str | None:
    return " ".join([*text.split()[1:], params[0]])


def _again(params: Params, text: str) -> str | None:
    parts = text.split()
    index = place(params[0], len(parts))
    return None if index is None else " ".join([*parts[: index + 1], *parts[index:]])


def _enclose(params: Params, text: str) -> str | None:
    parts = text.split()
    index = place(params[0], len(parts))
    if index is None:
        return None
    return " ".join([*parts[:index], params[1][0] + parts[index] + params[1][1], *parts[index + 1 :]])


def _draw_enclose(rng: random.Random) -> Params:
    return (rng.choice(_PLACES), rng.choice(BRACKETS))


def _guess_enclose(_: Sequence[Pair]) -> Iterable[Params]:
    return [(where, marks) for where in _PLACES for marks in BRACKETS]


def _join(params: Params, text: str) -> str | None:
    return params[0].join(text.split())


def _between(params: Params, text: str) -> str | None:
    return f" {params[0]} ".join(text.split())


def _surround(params: Params, text: str) -> str | None:
    return f"{params[0]} {text} {params[1]}"


def _draw_surround(rng: random.Random) -> Params:
    return (word(rng), word(rng))


def _guess_surround(pairs: Sequence[Pair]) -> Iterable[Params]:
    parts = pairs[0][1].split()
    return [(parts[0], parts[-1])] if len(parts) > 2 else []


def _exchange(params: Params, text: str) -> str | None:
    parts = text.split()
    index = place(params[0], len(parts))
    return None if index is None else " ".join([*parts[:index], params[1], *parts[index + 1 :]])


def _draw_exchange(rng: random.Random) -> Params:
    return (rng.choice(_PLACES), word(rng))


def _guess_exchange(pairs: Sequence[Pair]) -> Iterable[Params]:
    parts = max((said for _, said in pairs), key=len).split()
    if len(parts) < 2:
        return []
    return [(where, parts[index]) for where in _PLACES if (index := place(where, len(parts))) is not None]


def _order(params: Params, text: str) -> str | None:
    parts = text.split()
    if params[0] == "reverse":
        return " ".join(reversed(parts))
    return " ".join([*parts[1:], parts[0]] if params[0] == "first last" else [parts[-1], *parts[:-1]])


def _repeat(params: Params, text: str) -> str | None:
    return " ".join([text] * int(params[0]))


def _initials(params: Params, text: str) -> str | None:
    return "".join(part[0 if params[0] == "first" else -1] for part in text.split())


def _constant(params: Params, _: str) -> str | None:
    return params[0]


def _said(pairs: Sequence[Pair]) -> Iterable[Params]:
    return [(pairs[0][1],)]


def _middle(pairs: Sequence[Pair]) -> Iterable[Params]:
    parts = pairs[0][1].split()
    return [(parts[1],)] if len(parts) > 2 else []


FAMILIES = (
    Family("pick", among(*_PICKS), _ask_pick, _pick, every(*_PICKS)),
    Family("omit", among(*_PLACES), ask_words, _omit, every(*_PLACES)),
    Family("again", among(*_PLACES), ask_words, _again, every(*_PLACES)),
    Family("enclose", _draw_enclose, ask_words, _enclose, _guess_enclose),
    Family("join", among("", *MARKS), ask_words, _join, every("", *MARKS)),
    Family("each_suffix", _short, ask_words, _each(lambda params, part: part + params[0]), _guess_each_suffix),
    Family("each_prefix", _short, ask_words, _each(lambda params, part: params[0] + part), _guess_each_prefix),
    Family(
        "each_bracket", among(*BRACKETS), ask_words,
        _each(lambda params, part: params[0][0] + part + params[0][1]), every(*BRACKETS),
    ),
    Family("each_again", among("2"), ask_words, _each(lambda _, part: f"{part} {part}"), every("2")),
    Family("each_reverse", among("letters"), ask_words, _each(lambda _, part: part[::-1]), every("letters")),
    Family("edges", among("exchanged", "kept"), ask_words, _edges, every("exchanged", "kept")),
    Family("sandwich", _one, ask_word, _sandwich, _guess_sandwich),
    Family("push", _one, ask_words, _push, _last_word),
    Family("after", _one, ask_words, lambda params, text: f"{text} {params[0]}", _last_word),
    Family("before", _one, ask_words, lambda params, text: f"{params[0]} {text}", _first_word),
    Family("between", _one, ask_words, _between, _middle),
    Family("surround", _draw_surround, ask_words, _surround, _guess_surround),
    Family("exchange", _draw_exchange, ask_words, _exchange, _guess_exchange),
    Family("order", among(*_ORDERS), ask_words, _order, every(*_ORDERS)),
    Family("repeat", among("2", "3"), ask_word, _repeat, every("2", "3")),
    Family("initials", among("first", "last"), ask_words, _initials, every("first", "last")),
    Family("constant", _one, ask_words, _constant, _said),
)  # fmt: skip
