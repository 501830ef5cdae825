"""Tracking shuffled objects (BIG-bench; Kojima et al. 2022): three people, three things, a few swaps."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .base import Problem, Solution, draw_style

# The three of the benchmark, in its order.
_PEOPLE = ["Alice", "Bob", "Claire"]
_COLOURS = ["red", "blue", "green", "yellow", "white", "black", "orange", "purple", "pink", "brown"]
_POSITIONS = ["goalkeeper", "striker", "defender", "sweeper", "fullback", "left winger", "right winger", "midfielder"]
_BOOKS = ("Emma,Dracula,Hamlet,Middlemarch,Walden,The Iliad,The Tempest,Jane Eyre,Little Women,Treasure Island").split(
    ","
)
_PARTNERS = ["Karl", "Lola", "Rosa", "Peter", "Nina", "Hugo", "Ivan", "Greta", "Marta", "Felix"]
_SCENES = (
    (
        "{0}, {1} and {2} each hold a ball: {0} has a {3}, {1} has a {4} and {2} has a {5}. They play a game.",
        "swap balls",
        "At the end of the game, {} has the",
        [f"{colour} ball" for colour in _COLOURS],
    ),
    (
        "{0}, {1} and {2} bring presents to a party: {0} has a {3}, {1} has a {4} and {2} has a {5}.",
        "swap presents",
        "At the end of the party, {} has the",
        [f"{colour} {thing}" for colour in _COLOURS for thing in ("box", "present", "bag")],
    ),
    (
        "{0}, {1} and {2} play in one team: {0} is playing {3}, {1} is playing {4} and {2} is playing {5}.",
        "trade positions",
        "At the end of the match, {} is playing",
        _POSITIONS,
    ),
    (
        "{0}, {1} and {2} each buy a book: {0} gets {3}, {1} gets {4} and {2} gets {5}.",
        "trade books",
        "At the end of the year, {} has",
        _BOOKS,
    ),
    (
        "{0}, {1} and {2} go to a dance: {0} is dancing with {3}, {1} is dancing with {4} and {2} is dancing with {5}.",
        "switch partners",
        "At the end of the dance, {} is dancing with",
        _PARTNERS,
    ),
)
_ORDER = ("First", "Then", "Finally")
_LISTED = re.compile(r"(\w+), (\w+),? and (\w+)\b")
_SWAP = re.compile(r"(First|Then|Next|Finally)(, )(\w+)( and )(\w+)(?= (?:swap|trade|switch)\b)")
_ASKED = re.compile(r"(At the end of [^,]+, )(\w+)(?= (?:has|is playing|is dancing with)\b)")
_OWNS = r" (?:has|gets|is playing|is dancing with) (?:an? )?"
_CHOICE = re.compile(r"\(([A-C])\) (.*?)\.(?= \(|$)")


@dataclass(frozen=True)
class _Parsed:
    people: list[str]
    things: list[str]
    holds: list[int]
    orders: list[str]
    swaps: list[tuple[int, int]]
    asked: int


def sample(rng: random.Random, unseen: bool) -> Problem:
    opening, swap, asks, things = rng.choice(_SCENES)
    people, held = _PEOPLE, rng.sample(things, 3)
    order = _ORDER if rng.random() < 0.8 else (_ORDER[0], _ORDER[2])
    swaps = [rng.sample(range(3), 2) for _ in order]
    lines = [f"{word}, {people[a]} and {people[b]} {swap}." for word, (a, b) in zip(order, swaps, strict=True)]
    choices = " ".join(f"({letter}) {thing}." for letter, thing in zip("ABC", held, strict=True))
    asked = rng.randrange(3)
    text = " ".join([opening.format(*people, *held), *lines, asks.format(people[asked])])
    gold = "ABC"[_final([0, 1, 2], swaps)[asked]]
    return Problem("shuffled_objects", f"{text}\nWhich choice is true? Answer Choices: {choices}", gold, "choice")


def _final(holds: list[int], swaps: Sequence[Sequence[int]]) -> list[int]:
    holds = list(holds)
    for a, b in swaps:
        holds[a], holds[b] = holds[b], holds[a]
    return holds


def _parse(question: str) -> _Parsed | None:
    listed, asked = _LISTED.match(question), _ASKED.search(question)
    swaps, choices = list(_SWAP.finditer(question)), _CHOICE.findall(question)
    if listed is None or asked is None or not swaps or len(choices) != 3:
        return None
    people, things = list(listed.groups()), [thing for _, thing in choices]
    named = [asked[2], *(swap[k] for swap in swaps for k in (3, 5))]
    opening = question[: swaps[0].start()]
    holds = []
    for person in people:
        owned = re.search(person + _OWNS, opening)
        held = [i for i, thing in enumerate(things) if owned and opening.startswith(thing, owned.end())]
        if not held:
            return None
        holds.append(held[0])
    if not set(named) <= set(people):
        return None
    pairs = [(people.index(swap[3]), people.index(swap[5])) for swap in swaps]
    orders = [swap[1] for swap in swaps]
    return _Parsed(people, things, holds, orders, pairs, people.index(asked[2]))


def solve(question: str, rng: random.Random, mistaken: bool) -> Solution | None:
    parsed = _parse(question)
    if parsed is None:
        return None
    right = _final(parsed.holds, parsed.swaps)[parsed.asked]
    done = list(parsed.swaps)
    while mistaken and _final(parsed.holds, done)[parsed.asked] == right:
        done = list(parsed.swaps)
        done[rng.randrange(len(done))] = (a := rng.randrange(3), (a + rng.randrange(3)) % 3)
    style = draw_style(rng)
    if style == 0:
        return _numbered(parsed, done)
    holds = parsed.holds
    lines = ["Start: " + _state(parsed, holds, style)]
    for order, said, swap in zip(parsed.orders, parsed.swaps, done, strict=True):
        holds = _final(holds, [swap])
        event = f"{order}, {parsed.people[said[0]]} and {parsed.people[said[1]]} swap"
        lines.append(event + (", so now " if style == 1 else ", which gives ") + _state(parsed, holds, style))
    letter, who = "ABC"[holds[parsed.asked]], parsed.people[parsed.asked]
    return Solution("\n".join([*lines, f"At the end {who} has ({letter})."]), letter)


def _numbered(parsed: _Parsed, done: Sequence[tuple[int, int]]) -> Solution:
    """People by number and things by letter, so that each line follows from the line above it alone."""
    named = [f"{person}{number}" for number, person in enumerate(parsed.people, 1)]
    holds = parsed.holds
    lines = [f"People: {', '.join(named)}.", f"Start: {_letters(holds)}."]
    for order, (a, b), swap in zip(parsed.orders, parsed.swaps, done, strict=True):
        holds = _final(holds, [swap])
        lines.append(f"{order}, {named[a]} and {named[b]} swap: {_letters(holds)}.")
    letter = "ABC"[holds[parsed.asked]]
    return Solution("\n".join([*lines, f"So {named[parsed.asked]} {letter}."]), letter)


def _letters(holds: list[int]) -> str:
    return " ".join("ABC"[i] for i in holds)


def _state(parsed: _Parsed, holds: list[int], style: int) -> str:
    """Who holds what, by the letter of its choice, always in the order of the question."""
    form = ("{} {}", "{} has {}", "{} ({})")[style]
    return ", ".join(form.format(person, "ABC"[i]) for person, i in zip(parsed.people, holds, strict=True)) + "."


def vary(question: str, others: Sequence[str], rng: random.Random) -> Problem | None:
    """The same wording with things of another question of that wording, other swaps, and another person asked."""
    parsed = _parse(question)
    if parsed is None:
        return None
    scene = _scene(question)
    lenders = [p for p in map(_parse, (q for q in rng.sample(others, min(24, len(others))) if _scene(q) == scene)) if p]
    things = rng.choice(lenders).things if lenders and rng.random() < 0.7 else list(parsed.things)
    people, held = parsed.people, rng.sample(things, 3)
    swaps = [rng.sample(range(3), 2) for _ in parsed.swaps]
    asked = rng.randrange(3)

    first = _SWAP.search(question)
    split = first.start() if first else 0
    opening, rest = question[:split], question[split:]
    new = {parsed.things[thing]: held[i] for i, thing in enumerate(parsed.holds)}
    longest_first = sorted(map(re.escape, new), key=len, reverse=True)
    opening = re.sub("|".join(longest_first), lambda m: new[m[0]], opening)
    drawn = iter(swaps)

    def swap_again(match: re.Match[str]) -> str:
        a, b = next(drawn)
        return match[1] + match[2] + people[a] + match[4] + people[b]

    rest = _ASKED.sub(lambda m: m[1] + people[asked], _SWAP.sub(swap_again, rest))
    rest = _CHOICE.sub(lambda m: f"({m[1]}) {held['ABC'.index(m[1])]}.", rest)
    gold = "ABC"[_final([0, 1, 2], swaps)[asked]]
    return Problem("shuffled_objects", opening + rest, gold, "choice")


def _scene(question: str) -> str:
    """What marks the wording: the text after the last swap up to the person asked."""
    asked = _ASKED.search(question)
    return asked[1] if asked else ""
