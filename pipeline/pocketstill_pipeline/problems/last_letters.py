"""Last-letter concatenation (Wei et al. 2022; Kojima et al. 2022)."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from .base import Problem, Solution, draw_names, draw_style, join_and

_WORDINGS = (
    'Take the last letters of the words in "{}" and concatenate them.',
    'What do you get when you join the last letter of each word in "{}"?',
    'Put together the last letters of "{}".',
)
_QUOTED = re.compile(r'last letters?\b.*?"(?P<words>[^"]+)"')


def sample(rng: random.Random, unseen: bool) -> Problem:
    names = draw_names(rng, rng.choice((3, 4, 4)), unseen=unseen)
    return Problem("last_letters", rng.choice(_WORDINGS).format(" ".join(names)), _answer(names), "text")


def _answer(names: list[str]) -> str:
    return "".join(name[-1].lower() for name in names)


def solve(question: str, rng: random.Random, mistaken: bool) -> Solution | None:
    quoted = _QUOTED.search(question)
    if quoted is None:
        return None
    names = quoted["words"].split()
    letters = list(_answer(names))
    if mistaken:
        slip = rng.randrange(len(names))
        wrong = [c for c in names[slip].lower()[:-1] if c != letters[slip]] or ["e" if letters[slip] != "e" else "a"]
        letters[slip] = rng.choice(wrong)
    answer, pairs = "".join(letters), list(zip(names, letters, strict=True))
    style = draw_style(rng)
    if style == 0:
        lines = [f'{name} ends in {letter}: "{answer[: index + 1]}".' for index, (name, letter) in enumerate(pairs)]
        return Solution("\n".join([*lines, f'Together they make "{answer}".']), answer)
    if style == 1:
        lines = [f'The last letter of "{name}" is "{letter}".' for name, letter in pairs]
        return Solution("\n".join([*lines, f'Together they make "{answer}".']), answer)
    quoted_letters = join_and([f'"{letter}"' for letter in letters])
    listed = ", ".join(f"{name} ({letter})" for name, letter in pairs)
    return Solution(f'{listed}: the letters are {quoted_letters}, which give "{answer}".', answer)


def vary(question: str, others: Sequence[str], rng: random.Random) -> Problem | None:
    """The same wording with names drawn from the other questions and made up anew."""
    quoted = _QUOTED.search(question)
    if quoted is None:
        return None
    count = len(quoted["words"].split())
    lent = [
        match["words"].split() for match in map(_QUOTED.search, rng.sample(list(others), min(4, len(others)))) if match
    ]
    names = list(dict.fromkeys([rng.choice(words) for words in lent] + draw_names(rng, count)))
    rng.shuffle(names)
    text = question[: quoted.start("words")] + " ".join(names[:count]) + question[quoted.end("words") :]
    return Problem("last_letters", text, _answer(names[:count]), "text")
