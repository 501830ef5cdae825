"""Arithmetic word problems of two and three steps, in the manner of MultiArith and GSM8K."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from .base import Problem, Solution, draw_name, draw_style, slots_pattern

_ITEMS = "apples marbles stickers books cards coins pencils shells stamps cookies flowers beads".split()


@dataclass(frozen=True)
class _Form:
    """A wording with slots, the ranges of its numbers, and its steps: each an operator over numbers and results.

    A step names its operands by slot letter or by the index of an earlier step ("1" is the first step's result).
    """

    text: str
    ranges: dict[str, tuple[int, int]]
    steps: tuple[tuple[str, str, str], ...]


_S, _T = (3, 60), (2, 9)
_FORMS = (
    _Form(
        "{name} has {a} {item}. {name} finds {b} more and then gives away {c}. How many {item} are left?",
        {"a": _S, "b": _S, "c": _S},
        (("a", "+", "b"), ("1", "-", "c")),
    ),
    _Form(
        "{name} had {a} {item}, lost {b} of them, and then bought {c} new ones. How many {item} does {name} have now?",
        {"a": _S, "b": _S, "c": _S},
        (("a", "-", "b"), ("1", "+", "c")),
    ),
    _Form(
        "{name} buys {a} boxes with {b} {item} in each and already owns {c}. How many {item} does {name} have in all?",
        {"a": _T, "b": (2, 12), "c": _S},
        (("a", "*", "b"), ("1", "+", "c")),
    ),
    _Form(
        "There are {a} bags with {b} {item} each. {name} takes out {c} {item}. How many {item} remain in the bags?",
        {"a": _T, "b": (2, 12), "c": _S},
        (("a", "*", "b"), ("1", "-", "c")),
    ),
    _Form(
        "{name} has {a} {item} and gets {b} more. They are shared out evenly among {c} "
        "friends. How many {item} does each get?",
        {"a": _S, "b": _S, "c": _T},
        (("a", "+", "b"), ("1", "/", "c")),
    ),
    _Form(
        "{name} picks {a} {item}, but {b} are broken. The good ones are packed in boxes of "
        "{c}. How many boxes are filled?",
        {"a": (10, 90), "b": (2, 40), "c": _T},
        (("a", "-", "b"), ("1", "/", "c")),
    ),
    _Form(
        "A shop sells {a} {item} on Monday, {b} on Tuesday and {c} on Wednesday. How many "
        "{item} does it sell in the three days?",
        {"a": _S, "b": _S, "c": _S},
        (("a", "+", "b"), ("1", "+", "c")),
    ),
    _Form(
        "{name} has {a} {item}. A friend has {b} times as many. How many {item} do they have together?",
        {"a": (3, 20), "b": (2, 6)},
        (("b", "*", "a"), ("a", "+", "1")),
    ),
    _Form(
        "{name} earns {a} coins an hour and works {b} hours on Monday and {c} hours on "
        "Friday. How many coins does {name} earn?",
        {"a": (3, 12), "b": _T, "c": _T},
        (("b", "+", "c"), ("1", "*", "a")),
    ),
    _Form(
        "{name} has {a} {item}, finds {b} more, gives away {c}, and then buys {d}. How many "
        "{item} does {name} have at the end?",
        {"a": _S, "b": _S, "c": _S, "d": _S},
        (("a", "+", "b"), ("1", "-", "c"), ("2", "+", "d")),
    ),
    _Form(
        "{name} buys {a} packs of {b} {item} and {c} single ones, then uses up {d}. How many {item} are left?",
        {"a": _T, "b": (2, 12), "c": _S, "d": _S},
        (("a", "*", "b"), ("1", "+", "c"), ("2", "-", "d")),
    ),
    _Form(
        "{name} collects {a} {item} on each of {b} days, loses {c}, and shares the rest "
        "evenly with {d} people in all. How many {item} does each get?",
        {"a": (2, 12), "b": _T, "c": (2, 40), "d": _T},
        (("a", "*", "b"), ("1", "-", "c"), ("2", "/", "d")),
    ),
    _Form(
        "A box holds {a} red and {b} blue {item}. {name} has {c} such boxes and sells {d} "
        "{item}. How many {item} does {name} keep?",
        {"a": (2, 12), "b": (2, 12), "c": _T, "d": _S},
        (("a", "+", "b"), ("1", "*", "c"), ("2", "-", "d")),
    ),
)
_SLOT = {"name": r"[^\W\d_]+", "item": r"[a-z]+"}
_WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}


def _pattern(form: _Form) -> re.Pattern[str]:
    return re.compile(slots_pattern(form.text, lambda slot: _SLOT.get(slot, r"[0-9]+")))


_PATTERNS = tuple(_pattern(form) for form in _FORMS)


def _work(form: _Form, numbers: dict[str, int]) -> list[tuple[int, str, int, int]] | None:
    """The steps as (left, operator, right, result); None when a division does not come out even."""
    results: list[tuple[int, str, int, int]] = []
    for left, operator, right in form.steps:
        x, y = (results[int(o) - 1][3] if o.isdigit() else numbers[o] for o in (left, right))
        value = _apply(x, operator, y)
        if value is None:
            return None
        results.append((x, operator, y, value))
    return results


def _apply(x: int, operator: str, y: int) -> int | None:
    if operator == "/":
        return x // y if y and x % y == 0 else None
    return {"+": x + y, "-": x - y, "*": x * y}[operator]


def sample(rng: random.Random, unseen: bool) -> Problem:
    form = rng.choice(_FORMS)
    while True:
        numbers = {slot: rng.randint(*span) for slot, span in form.ranges.items()}
        steps = _work(form, numbers)
        # No other numbers make sense: nobody gives away more than there is.
        if steps is not None and all(0 < step[3] < 200 for step in steps):
            break
    text = form.text.format(name=draw_name(rng, unseen=unseen), item=rng.choice(_ITEMS), **numbers)
    return Problem("arithmetic", text, str(steps[-1][3]), "number")


def solve(question: str, rng: random.Random, mistaken: bool) -> Solution | None:
    for form, pattern in zip(_FORMS, _PATTERNS, strict=True):
        match = pattern.fullmatch(question.strip())
        if match is None:
            continue
        steps = _work(form, {slot: int(match[slot]) for slot in form.ranges})
        if steps is None:
            return None
        # A slip before a division would not come out even, so there the division itself goes wrong.
        first = len(steps) - 1 if steps[-1][1] == "/" else 0
        slip = rng.randrange(first, len(steps)) if mistaken else None
        return _tell(steps, form, slip, rng)
    return None


def _tell(steps: list[tuple[int, str, int, int]], form: _Form, slip: int | None, rng: random.Random) -> Solution:
    style, lines, shift = draw_style(rng), [], 0
    starts = ("First", "Then", "Finally")
    for index, (x, operator, y, value) in enumerate(steps):
        left, _, right = form.steps[index]
        x, y = (number + (shift if operand == str(index) else 0) for number, operand in ((x, left), (y, right)))
        said = value if index == slip else _apply(x, operator, y) or value
        if index == slip:
            said += rng.choice((-2, -1, 1, 2, 10))
        shift = said - value
        if style == 0:
            lines.append(f"{x} {operator} {y} = {said}.")
        elif style == 1:
            lines.append(f"{starts[min(index, 2)]}, {x} {_WORDS[operator]} {y} is {said}.")
        else:
            lines.append(f"Step {index + 1}: {x} {operator} {y} = {said}")
    answer = str(said)
    return Solution("\n".join([*lines, f"The answer is {answer}."]), answer)
