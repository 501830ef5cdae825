"""Problems by rule: questions of five skills with their right answers, and a solver that reads the question's text.

The embedded teacher is built on this. `sample` makes a question; `solve` parses any question in a wording that it
knows (also the public wordings of coin flip, last letters and shuffled objects) and writes a rationale in one of
several styles; `vary` makes new questions in the wording of given ones. A fixed tenth of all questions and of all
names is held out by hash, so that whatever trains on the rest has never met them, in whichever process it ran.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from . import arithmetic, coin_flip, last_letters, shuffled_objects, tool_call
from .base import Problem, Solution, held_out
from .tool_call import TOOLS

__all__ = ["SKILLS", "TOOLS", "Problem", "Solution", "held_out", "sample", "solve", "vary"]

_SAMPLERS: dict[str, Callable[[random.Random, bool], Problem]] = {
    "coin_flip": coin_flip.sample,
    "last_letters": last_letters.sample,
    "shuffled_objects": shuffled_objects.sample,
    "arithmetic": arithmetic.sample,
    "tool_call": tool_call.sample,
}
_SOLVERS = (coin_flip.solve, last_letters.solve, shuffled_objects.solve, tool_call.solve, arithmetic.solve)
_VARIERS = (coin_flip.vary, last_letters.vary, shuffled_objects.vary)
SKILLS = tuple(_SAMPLERS)


def sample(skill: str, rng: random.Random, *, unseen: bool = False) -> Problem:
    """Draw a problem of a skill; with `unseen`, the names in it come from the pool that training never sees.

    Raises:
        KeyError: the skill is none of `SKILLS`.
    """
    return _SAMPLERS[skill](rng, unseen)


def solve(question: str, rng: random.Random, *, mistaken: bool = False) -> Solution | None:
    """Solve a question from its text, in a style of rationale drawn from `rng`; None if its form is unknown.

    With `mistaken`, one step goes wrong and the answer with it.
    """
    for solver in _SOLVERS:
        solution = solver(question, rng, mistaken)
        if solution is not None:
            return solution
    return None


def vary(questions: Sequence[str], rng: random.Random) -> Problem | None:
    """Make a new question in the wording of one of the given ones; None if the one drawn has no known form."""
    question = rng.choice(questions)
    for varier in _VARIERS:
        problem = varier(question, questions, rng)
        if problem is not None:
            return problem
    return None
