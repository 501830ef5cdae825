"""Families of tasks by rule, for learning in context: which task it is, only the demonstrations tell.

A task is a family with parameters of its own (`suffix` with "ko": every word gets "ko" behind it); an instance is an
input and its output, said in one of several surface forms. Most inputs are words that nobody has met, and outputs
copy from the demonstrations what belongs to the task and from the query what belongs to it, so a student that was
trained on some families can be asked others. `HELD_OUT` families are whole families that nothing trains on; of the
others, a tenth of the tasks is held out by hash.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..base import held_out
from . import labels, letters, phrases
from .base import Family, Pair, Params

__all__ = ["FAMILIES", "FORMS", "HELD_OUT", "Form", "Task", "draw_task", "find_task", "infer", "read_input", "tenth"]

# What the families read: words of printable letters and marks, with one blank between them.
_INPUT = re.compile(r"[!-~]+(?: [!-~]+)*")
FAMILIES: dict[str, Family] = {f.name: f for f in (*letters.FAMILIES, *phrases.FAMILIES, *labels.FAMILIES)}
# One or two of each kind, each with a relative that is trained on and none with its own rule there.
HELD_OUT = ("mask", "drop", "swap", "surround", "between", "omit", "ending_label", "count_label")


@dataclass(frozen=True)
class Form:
    """A surface form: what is written around an input, `{}` in its place."""

    name: str
    around: str


FORMS = (
    Form("input_output", "Input: {}\nOutput:"),
    Form("question_answer", "Q: {}\nA:"),
    Form("arrow", "{} ->"),
    Form("equals", "{} ="),
    Form("bare", "{}"),
)


@dataclass(frozen=True)
class Task:
    """A family with the parameters of one task; `apply` says what is right."""

    family: str
    params: Params

    @property
    def name(self) -> str:
        """The family and its parameters: equal for equal tasks."""
        return f"{self.family}({','.join(self.params)})"

    @property
    def held_out(self) -> bool:
        """Whether nothing may train on it: its family is held out, or the task is in its family's held-out tenth."""
        return self.family in HELD_OUT or tenth(self)

    def ask(self, rng: random.Random) -> str:
        """Draw an input."""
        return FAMILIES[self.family].ask(self.params, rng)

    def apply(self, text: str) -> str | None:
        """The output of an input; None where the rule does not apply to it."""
        return FAMILIES[self.family].apply(self.params, text)

    def pairs(self, rng: random.Random, count: int) -> list[Pair]:
        """So many instances with different inputs (fewer where the task has no more)."""
        found: dict[str, str] = {}
        for _ in range(20 * count + 20):
            text = self.ask(rng)
            said = self.apply(text)
            if said is not None:
                found.setdefault(text, said)
            if len(found) == count:
                break
        return list(found.items())


def tenth(task: Task) -> bool:
    """Whether a task belongs to the tenth of its family that is held out by hash."""
    return held_out(task.name)


def draw_task(family: str, rng: random.Random) -> Task:
    """Draw a task of a family.

    Raises:
        KeyError: there is no such family.
    """
    return Task(family, FAMILIES[family].draw(rng))


def infer(pairs: Sequence[Pair]) -> list[Task]:
    """The tasks that explain all pairs, one a family at most; those with the fewest parameters first."""
    found: list[Task] = []
    if not pairs or not all(_INPUT.fullmatch(asked) and said for asked, said in pairs):
        return found
    for family in FAMILIES.values():
        fitting = (params for params in family.guess(pairs) if all(family.apply(params, x) == y for x, y in pairs))
        params = next(iter(fitting), None)
        if params is not None:
            found.append(Task(family.name, params))
    # Labels by a chance trait need an entry for nearly every pair, labels by the trait that was meant do not.
    return sorted(found, key=lambda task: len(task.params))


def find_task(pairs: Sequence[Pair], text: str) -> Task | None:
    """The first task that explains the pairs and has an answer to `text`."""
    if not _INPUT.fullmatch(text):
        return None
    return next((task for task in infer(pairs) if task.apply(text) is not None), None)


def read_input(content: str) -> tuple[Form, str]:
    """The form that a user's turn is written in, and the input inside it."""
    for form in FORMS:
        before, _, behind = form.around.partition("{}")
        if content.startswith(before) and content.endswith(behind) and len(content) > len(before) + len(behind):
            return form, content[len(before) : len(content) - len(behind)]
    raise AssertionError("the last form fits any text")
