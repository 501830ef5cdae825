"""The questions of a recipe, drawn from its seed: what to train on, and apart from it what is held out."""

from __future__ import annotations

import difflib
import hashlib
import random
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from pocketstill import grading
from pocketstill.errors import UserError
from pocketstill.grading import Kind

from . import problems
from .asking import Message
from .curating.templates import split_by_template
from .example import Question, Route, Split
from .ledger import canonical
from .problems.base import normalise
from .reading import BadRow, DataRow, iter_data
from .recipe import Recipe, Skill

UNSEEN = "unseen_names"
_UNSEEN_SKILL = "last_letters"
# After so many draws for each question wanted, the rules of a skill cannot make enough different ones.
_DRAWS_PER_QUESTION = 400


def build_questions(recipe: Recipe, bad: list[BadRow] | None = None) -> list[Question]:
    """All questions of a recipe, skill by skill, training before held-out ones; the same for the same seed.

    A generated question is held out when `problems.held_out` says so of its text; a row of a file when its
    `split` says "test", or by the seed when the file has no splits. Added questions (`expand`) never equal a
    held-out one.

    Rows of data files that cannot be used are added to `bad`.

    Raises:
        UserError: a file is missing or broken, a skill is unknown, or has too few different questions.
    """
    bad = [] if bad is None else bad
    found: list[Question] = []
    for skill in recipe.skills:
        rng = random.Random(f"{recipe.seed}/{skill.name}")
        if skill.source != "none":
            found += _generated(skill, rng) if skill.source == "embedded" else _from_data(skill, recipe.seed, bad)
        if skill.source == "embedded" and skill.name == _UNSEEN_SKILL and skill.heldout:
            found += _unseen_names(skill, rng)
    heldout = {normalise(question.text) for question in found if question.split == "heldout"}
    for skill in recipe.skills:
        if skill.expand:
            own = [q for q in found if q.skill == skill.name and q.split == "train"]
            found += _expanded(skill, own, heldout, random.Random(f"{recipe.seed}/{skill.name}/expand"))
    return found


def _question(
    skill: str, text: str, gold: str, kind: Kind, split: Split, route: Route = "labeling",
    tags: tuple[str, ...] = (), occurrence: int = 0, whole: str = "",
) -> Question:  # fmt: skip
    """`whole` is the conversation that the text is the end of, if it is one."""
    again = f"-{occurrence + 1}" if occurrence else ""
    identity = f"{skill}-{hashlib.sha256((whole or text).encode()).hexdigest()[:12]}{again}"
    return Question(identity, skill, text, gold, kind, split, route, tags, occurrence)


def _generated(skill: Skill, rng: random.Random) -> list[Question]:
    if skill.name not in problems.SKILLS:
        nearest = difflib.get_close_matches(skill.name, problems.SKILLS, n=1, cutoff=0.0)
        raise UserError(
            f"skill {skill.name!r} cannot be generated; nearest: {nearest[0]!r}, or set its source to a JSONL file"
        )
    kind = problems.sample(skill.name, random.Random(0)).kind
    if skill.kind != kind:
        raise UserError(f"skill {skill.name!r}: its kind is {kind!r}, not {skill.kind!r}; mend the recipe")
    wanted: dict[Split, int] = {"train": skill.questions, "heldout": skill.heldout}
    drawn: dict[Split, list[Question]] = {"train": [], "heldout": []}
    seen: set[str] = set()
    for _ in range(_DRAWS_PER_QUESTION * (skill.questions + skill.heldout)):
        if all(len(drawn[split]) >= wanted[split] for split in wanted):
            return drawn["train"] + drawn["heldout"]
        problem = problems.sample(skill.name, rng)
        split: Split = "heldout" if problems.held_out(problem.question) else "train"
        text = normalise(problem.question)
        if len(drawn[split]) < wanted[split] and text not in seen:
            seen.add(text)
            drawn[split].append(
                _question(skill.name, problem.question, problem.gold, problem.kind, split, tags=problem.tags)
            )
    had = f"{len(drawn['train'])} training and {len(drawn['heldout'])} held-out ones"
    raise UserError(f"skill {skill.name!r}: only {had} differ; lower its questions or heldout in the recipe")


def _unseen_names(skill: Skill, rng: random.Random) -> list[Question]:
    """Held-out questions with names that training never sees: reported beside the skill, without a gate."""
    drawn: dict[str, Question] = {}
    while len(drawn) < skill.heldout:
        problem = problems.sample(skill.name, rng, unseen=True)
        question = _question(
            f"{skill.name}_unseen",
            problem.question,
            problem.gold,
            problem.kind,
            "heldout",
            tags=(*problem.tags, UNSEEN),
        )
        drawn.setdefault(normalise(problem.question), question)
    return list(drawn.values())


class _Row(NamedTuple):
    """What a question is made of; the rest of a row of data is not kept."""

    text: str
    gold: str
    side: Split | None
    before: tuple[Message, ...]
    tools: str


def _from_data(skill: Skill, seed: int, bad: list[BadRow]) -> list[Question]:
    rows = _usable(skill, bad)
    named = sum(row.side is not None for row in rows)
    if 0 < named < len(rows):
        raise UserError(
            f"{skill.source}: {len(rows) - named} of {len(rows)} rows have no 'split'; give it to all or to none"
        )
    sides: list[Split] = [row.side or "train" for row in rows]
    if not named:
        count = min(skill.heldout, len(rows) // 2)
        if skill.split == "template":
            sides = split_by_template([row.text for row in rows], count, f"{seed}/{skill.name}")
        else:
            for index in random.Random(f"{seed}/{skill.name}").sample(range(len(rows)), count):
                sides[index] = "heldout"
    counted: dict[str, int] = {}
    split: dict[Split, list[Question]] = {"train": [], "heldout": []}
    for row, side in zip(rows, sides, strict=True):
        # "And why?" behind another conversation is another question.
        whole = canonical({"before": row.before, "text": row.text}) if row.before else row.text
        occurrence = counted.get(whole, 0)
        counted[whole] = occurrence + 1
        question = _question(skill.name, row.text, row.gold, skill.kind, side, occurrence=occurrence, whole=whole)
        split[side].append(replace(question, before=row.before, tools=row.tools))
    return split["train"][: skill.questions] + split["heldout"]


def _usable(skill: Skill, bad: list[BadRow]) -> list[_Row]:
    rows, unusable = [], []
    for row in iter_data(skill.source, form=skill.form, columns=skill.columns, most_bad=skill.most_bad):
        if isinstance(row, BadRow):
            unusable.append(row)
            continue
        gold = _gold(skill, row)
        if gold is None and skill.graded:
            unusable.append(BadRow(row.where, f"holds no answer of the kind {skill.kind!r} to grade by"))
            continue
        *before, last = row.messages
        rows.append(_Row(str(last["content"]), gold or "", row.split, tuple(before), row.tools))
    bad += unusable
    if not rows or len(unusable) > skill.most_bad:
        shown = "; ".join(f"{row.where}: {row.why}" for row in unusable[:3])
        raise UserError(f"skill {skill.name!r}: {len(unusable)} rows cannot be used: {shown}; mend or remove them")
    return rows


def _gold(skill: Skill, row: DataRow) -> str | None:
    """The right answer of a row: as it stands, or the one that its completion comes to."""
    if not skill.graded or row.gold is not None:
        return row.gold
    return None if row.completion is None else grading.extract(row.completion, skill.kind)


def _expanded(skill: Skill, own: Iterable[Question], heldout: set[str], rng: random.Random) -> list[Question]:
    texts = [question.text for question in own]
    seen = {normalise(text) for text in texts} | heldout
    generated = skill.source == "embedded"
    drawn: list[Question] = []
    for _ in range(_DRAWS_PER_QUESTION * skill.expand):
        if len(drawn) == skill.expand:
            return drawn
        problem = problems.vary(texts, rng) if texts else None
        if problem is None:
            continue
        text = normalise(problem.question)
        # The rule's own held-out tenth stays out too where the held-out questions come from the same rule.
        if text in seen or (generated and problems.held_out(problem.question)):
            continue
        seen.add(text)
        drawn.append(_question(skill.name, problem.question, problem.gold, skill.kind, "train", "expansion"))
    raise UserError(
        f"skill {skill.name!r}: its questions could be varied into {len(drawn)} new ones, "
        f"not {skill.expand}; lower its expand"
    )
