"""Coin flip (Wei et al. 2022; Kojima et al. 2022): who turned the coin over, and how does it lie at the end?"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from .base import Problem, Solution, draw_names, draw_style

_WORDINGS = (
    (
        "A coin is {side} up.",
        "{name} flips the coin.",
        "{name} does not flip the coin.",
        "Is the coin still {side} up?",
    ),
    (
        "A coin lies on the table, {side} up.",
        "{name} turns it over.",
        "{name} does not turn it over.",
        "Is it {side} up now?",
    ),
    (
        "The coin starts {side} up.",
        "Then {name} flips it.",
        "Then {name} does not flip it.",
        "At the end, is the coin {side} up?",
    ),
)
_ACT = re.compile(
    r"(?P<name>[^\W\d_]+) (?P<verb>flips|turns|(?P<no>does not|doesn't) (?:flip|turn)) (?:the coin|it)\b(?: over)?"
)
_SIDE = re.compile(r"\bcoin\b[^.]*?\b(heads|tails) up")
_OTHER = {"heads": "tails", "tails": "heads"}


def sample(rng: random.Random, unseen: bool) -> Problem:
    opening, flips, keeps, asks = rng.choice(_WORDINGS)
    side = "heads" if rng.random() < 0.8 else "tails"
    names = draw_names(rng, rng.choice((2, 3, 4, 4)), unseen=unseen)
    acts = [rng.random() < 0.5 for _ in names]
    lines = [(flips if act else keeps).format(name=name) for name, act in zip(names, acts, strict=True)]
    text = " ".join([opening.format(side=side), *lines, asks.format(side=side)])
    return Problem("coin_flip", text, _answer(acts), "yes_no")


def _answer(acts: list[bool]) -> str:
    return "no" if sum(acts) % 2 else "yes"


def _parse(question: str) -> tuple[str, list[str], list[bool]] | None:
    side, acts = _SIDE.search(question), list(_ACT.finditer(question))
    if side is None or not acts:
        return None
    return side[1], [act["name"] for act in acts], [act["no"] is None for act in acts]


def solve(question: str, rng: random.Random, mistaken: bool) -> Solution | None:
    parsed = _parse(question)
    if parsed is None:
        return None
    start, names, acts = parsed
    slip = rng.randrange(len(acts)) if mistaken else None
    style = draw_style(rng)
    side, lines = start, []
    for index, (name, act) in enumerate(zip(names, acts, strict=True)):
        side = side if act == (index == slip) else _OTHER[side]
        if style == 0:
            lines.append(f"{name}: {'flip' if act else 'no flip'}, {side} up.")
        elif style == 1:
            lines.append(f"{name} {'turns it' if act else 'leaves it'}: {side}.")
        else:
            lines.append(f"{name} {'flips' if act else 'does not flip'} the coin, so it is {side} up.")
    first = ("The coin is {} up.", "Start: {}.", "It starts {} up.")[style].format(start)
    answer = "yes" if side == start else "no"
    last = f"The question is whether it is {start} up, and it is {side} up: {answer}."
    return Solution("\n".join([first, *lines, last]), answer)


def vary(question: str, others: Sequence[str], rng: random.Random) -> Problem | None:
    """The same wording with other people (from the other questions, or made up), who flip or not anew."""
    parsed = _parse(question)
    if parsed is None:
        return None
    _, names, _ = parsed
    lent = _parse(rng.choice(others))
    pool = lent[1] if lent is not None and rng.random() < 0.5 else []
    new = (pool + [name for name in draw_names(rng, len(names)) if name not in pool])[: len(names)]
    rng.shuffle(new)
    acts = [rng.random() < 0.5 for _ in new]
    verbs = {
        act["no"] is None: act[0].removeprefix(act["name"]) for act in _ACT.finditer(" ".join([question, *others]))
    }
    if len(verbs) < 2:
        return None
    drawn = iter(zip(new, acts, strict=True))

    def put(_: re.Match[str]) -> str:
        name, act = next(drawn)
        return name + verbs[act]

    return Problem("coin_flip", _ACT.sub(put, question), _answer(acts), "yes_no")
