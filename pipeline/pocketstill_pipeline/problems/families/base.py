"""What all families share: the type, the letters and words that inputs are made of, and places in a sequence."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Params = tuple[str, ...]
Pair = tuple[str, str]
LETTERS = string.ascii_lowercase
VOWELS = "aeiou"
# No quotes, stars, dots or colons: around an answer `grading` takes them for decoration. No "=", which is a form's cue.
MARKS = "+~#@%&$!^"
BRACKETS = ("[]", "()", "{}", "<>", "||", "//", "__", "^^", "!!", "+-", "~~")


@dataclass(frozen=True)
class Family:
    """A family of tasks: one rule whose parameters differ from task to task.

    `draw` makes a task's parameters, `ask` an input that the task fits, `apply` the output (None where the rule does
    not apply), and `guess` proposes parameters that would explain given pairs, likelier ones first; whoever guesses
    checks them with `apply`.
    """

    name: str
    draw: Callable[[random.Random], Params]
    ask: Callable[[Params, random.Random], str]
    apply: Callable[[Params, str], str | None]
    guess: Callable[[Sequence[Pair]], Iterable[Params]]


def word(rng: random.Random, low: int = 3, high: int = 3) -> str:
    """Different letters in any order, `low` to `high` of them: nearly no word is met often enough to be known."""
    return "".join(rng.sample(LETTERS, rng.randint(low, high)))


def words(rng: random.Random, lengths: Sequence[int] = (3,)) -> str:
    """Two or three different words of these lengths, with a blank between them."""
    found: list[str] = []
    wanted = rng.randint(2, 3)
    while len(found) < wanted:
        length = rng.choice(lengths)
        new = word(rng, length, length)
        if new not in found:
            found.append(new)
    return " ".join(found)


def ask_word(_: Params, rng: random.Random) -> str:
    return word(rng, 3, 5)


def ask_words(_: Params, rng: random.Random) -> str:
    return words(rng)


def place(name: str, length: int) -> int | None:
    """The index that a place ("1", "2", "-1" for the last) has in a sequence; None outside of it."""
    number = int(name)
    index = number - 1 if number > 0 else length + number
    return index if 0 <= index < length else None


def among(*choices: str) -> Callable[[random.Random], Params]:
    """Draw one parameter out of these."""
    return lambda rng: (rng.choice(choices),)


def every(*choices: str) -> Callable[[Sequence[Pair]], Iterable[Params]]:
    """Guess each of these in turn, whatever the pairs."""
    return lambda _: [(choice,) for choice in choices]
