"""What all problem modules share: the types, the names, and the part of everything that is held out."""

from __future__ import annotations

import hashlib
import random
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from pocketstill.grading import Kind

_HELD_OUT_SHARE = 10
_ONSETS = "b br c ch d dr f fr g gr h j k kr l m n p pr r s sh st t th tr v w y z".split()
_VOWELS = "a e i o u ai ea ee ia io".split()
_CODAS = ["", "", "", *"b d f g k l ll m n nd ng nn p r rd rt s sh ss st t tt th x".split()]
_FIRST_NAMES = """
Aaron Abby Abdul Ada Adam Adele Adrian Agnes Ahmed Aidan Alan Albert Alex Alma Amanda Amber Amir Amy Ana Andre
Andrea Angela Anita Ann Anton April Ari Arthur Ash Astrid Ava Barbara Ben Beth Bianca Bill Boris Brad Brenda Brian
Bruno Bryn Caleb Cara Carl Carmen Carol Cecil Celia Chad Chen Chloe Chris Cindy Clara Colin Cora Craig Cyril Daisy
Dan Dana Daphne Darius David Dawn Dean Deb Della Denis Diana Diego Dolly Don Dora Doug Duncan Earl Eddie Edgar Edith
Edna Eli Elise Ella Ellen Elsa Emil Emma Eric Erin Esther Ethan Eva Evan Faith Fatima Felix Fern Fiona Flora Floyd
Fran Frank Gail Gary Gavin Gemma Gene George Gina Glen Gloria Grace Grant Greg Greta Gus Guy Hana Hank Harry Hazel
Heidi Helen Henry Holly Hope Hugh Hugo Ian Ida Ike Imani Ines Ingrid Ira Irene Iris Isaac Ivan Ivy Jack Jade James
Jan Jasper Jay Jean Jed Jenna Jess Jill Jim Joan Joel John Jonah Jose Joy Juan Judy Julia June Kai Kara Karen Kate
Kay Keith Ken Kim Kirk Kofi Kurt Kyle Lana Lars Laura Leah Lee Lena Leo Leon Leslie Levi Lila Linda Lisa Liu Lola
Lou Lucas Lucy Luis Luke Lydia Mabel Mae Maria Mark Marta Martin Mary Matt Maud Max Maya Megan Mei Mia Mike Mila
Milo Mina Miriam Mohan Molly Mona Nadia Nancy Naomi Nash Neil Nell Nick Nina Noah Noor Nora Norm Olga Olive Omar
Opal Oscar Otto Owen Pablo Pam Pat Paul Pearl Penny Percy Peter Petra Phil Piper Priya Quinn Rachel Ralph Ramon Raul
Ray Rex Rhea Rita Rob Robin Roger Rosa Ross Roy Ruby Ruth Ryan Sada Saul Scott Sean Seth Shay Sid Simon Sofia Stan
Stella Steve Sue Suki Susan Sven Tamar Tara Ted Tess Theo Tim Tina Todd Tom Toni Tracy Troy Tyra Umar Una Ursula Uma
Val Vera Victor Vijay Vince Viola Wade Walt Wanda Wendy Will Wren Xavier Yara Yoko Yusuf Yves Zack Zane Zara Zelda
Zoe
""".split()


@dataclass(frozen=True)
class Problem:
    """A question, the skill that it asks for, and its right answer."""

    skill: str
    question: str
    gold: str
    kind: Kind
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Solution:
    """How a question was reasoned through, and the answer that the reasoning leads to."""

    rationale: str
    answer: str


def normalise(text: str) -> str:
    """The form in which two questions are one: lower case, white space folded, accents within their letters (NFC)."""
    text = re.sub(r"\s+", " ", text).strip().lower()
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def held_out(text: str) -> bool:
    """Whether a question or a name belongs to the fixed tenth that nothing may train on."""
    return hashlib.sha256(normalise(text).encode()).digest()[0] % _HELD_OUT_SHARE == 0


def draw_name(rng: random.Random, *, unseen: bool = False) -> str:
    """A first name, common or made from syllables, from the pool for training or from the one that it never sees."""
    while True:
        if rng.random() < 0.25:
            name = rng.choice(_FIRST_NAMES)
        else:
            name = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((1, 1, 2))))
            name = (name + rng.choice(_CODAS)).capitalize()
        if held_out(name) == unseen:
            return name


def draw_names(rng: random.Random, count: int, *, unseen: bool = False) -> list[str]:
    """Different names, as `draw_name` draws them."""
    names: list[str] = []
    while len(names) < count:
        name = draw_name(rng, unseen=unseen)
        if name not in names:
            names.append(name)
    return names


def slots_pattern(text: str, slot: Callable[[str], str]) -> str:
    """A regular expression for a text with `{slots}`: a named group each, of what `slot(name)` matches.

    A slot that comes again must be filled as it was before.
    """
    seen: set[str] = set()

    def group(match: re.Match[str]) -> str:
        name = match[1]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>{slot(name)})"

    return re.sub(r"\\\{(\w+)\\\}", group, re.escape(text))


def draw_style(rng: random.Random) -> int:
    """Which of a skill's three styles of rationale: the first one is the commonest, as real teachers have a habit."""
    return rng.choices((0, 1, 2), (0.7, 0.15, 0.15))[0]


def join_and(parts: list[str]) -> str:
    """English enumeration: "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
