"""The questions of a recipe, drawn from its seed: what to train on, and apart from it what is held out."""

from __future__ import annotations

import difflib
import hashlib
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from pocketstill.errors import UserError
from pocketstill.grading import Kind

from . import problems
from .asking import Message
from .curating.templates import split_by_template
from .elicit.sampling import reasons_and_answer
from .example import UNSEEN_SUFFIX, Question, Route, Split
from .ledger import canonical
from .problems.base import normalise
from .question_file import open_questions, write_questions
from .reading import BadRow, DataRow, iter_data
from .recipe import Recipe, Skill

UNSEEN = "unseen_names"
_UNSEEN_SKILL = "last_letters"
# After so many draws for each question wanted, the rules of a skill cannot make enough different ones.
_DRAWS_PER_QUESTION = 400
# Hexadecimal digits of a question's hash in its id.
_ID_DIGITS = 12


def build_questions(recipe: Recipe, bad: list[BadRow] | None = None) -> list[Question]:
    """All questions of a recipe, as a list; see `iter_questions`."""
    return list(iter_questions(recipe, bad))


def iter_questions(recipe: Recipe, bad: list[BadRow] | None = None) -> Iterator[Question]:
    """The questions of a recipe, skill by skill, training before held-out ones; the same for the same seed.

    A generated question is held out when `problems.held_out` says so of its text; a row of a file when its
    `split` says "test", or by the seed when the file has no splits. Added questions (`expand`) come last and never
    equal a held-out one.

    Rows of data files that cannot be used are added to `bad`. Rows wait in a temporary file for their turn, not in
    memory; generated and added questions, and what a split by template compares, are held.

    Raises:
        UserError: a file is missing or broken, a skill is unknown, or has too few different questions.
    """
    bad = [] if bad is None else bad
    own: dict[str, list[str]] = {skill.name: [] for skill in recipe.skills if skill.expand}
    heldout: set[str] = set()
    for skill in recipe.skills:
        for question in _of_skill(skill, recipe.seed, bad):
            yield question
            if own and question.split == "heldout":
                heldout.add(normalise(question.text))
            elif question.skill in own:
                own[question.skill].append(question.text)
    for skill in recipe.skills:
        if skill.expand:
            yield from _expanded(skill, own[skill.name], heldout, random.Random(f"{recipe.seed}/{skill.name}/expand"))


def has_unseen(skill: Skill) -> bool:
    """Whether a skill is also asked held-out questions with names that training never sees."""
    return skill.source == "embedded" and skill.name == _UNSEEN_SKILL and skill.heldout > 0


def _of_skill(skill: Skill, seed: int, bad: list[BadRow]) -> Iterator[Question]:
    if skill.source == "embedded":
        rng = random.Random(f"{seed}/{skill.name}")
        yield from _generated(skill, rng)
        if has_unseen(skill):
            yield from _unseen_names(skill, rng)
    elif skill.source != "none":
        yield from _from_data(skill, seed, bad)


def _question(
    skill: str, text: str, gold: str, kind: Kind, split: Split, route: Route = "labeling",
    tags: tuple[str, ...] = (), whole: str = "",
) -> Question:  # fmt: skip
    """`whole` is the conversation that the text is the end of, if it is one."""
    identity = f"{skill}-{hashlib.sha256((whole or text).encode()).hexdigest()[:_ID_DIGITS]}"
    return Question(identity, skill, text, gold, kind, split, route, tags)


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
            f"{skill.name}{UNSEEN_SUFFIX}",
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


def _from_data(skill: Skill, seed: int, bad: list[BadRow]) -> Iterator[Question]:
    sides: list[Split | None] = []
    hashes = array("Q")

    def read() -> Iterator[Question]:
        for row in _usable(skill, bad):
            # "And why?" behind another conversation is another question.
            whole = canonical({"before": row.before, "text": row.text}) if row.before else row.text
            question = _question(skill.name, row.text, row.gold, skill.kind, "train", whole=whole)
            sides.append(row.side)
            hashes.append(int(question.id[-_ID_DIGITS:], 16))
            yield replace(question, before=row.before, tools=row.tools)

    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_questions(path, read())
        with open_questions(path) as rows:
            split = _split(skill, f"{seed}/{skill.name}", sides, rows)
            occurrences = _occurrences(hashes)
            for side, most in (("train", skill.questions), ("heldout", None)):
                for index in islice((at for at, found in enumerate(split) if found == side), most):
                    occurrence = occurrences.get(index, 0)
                    identity = rows[index].id + (f"-{occurrence + 1}" if occurrence else "")
                    yield replace(rows[index], id=identity, split=split[index], occurrence=occurrence)


def _split(skill: Skill, seed: str, sides: Sequence[Split | None], rows: Sequence[Question]) -> list[Split]:
    """The side of each row: what it says itself, or as the recipe has them drawn."""
    named = sum(side is not None for side in sides)
    if 0 < named < len(rows):
        raise UserError(
            f"{skill.source}: {len(rows) - named} of {len(rows)} rows have no 'split'; give it to all or to none"
        )
    count = min(skill.heldout, len(rows) // 2)
    if not named and skill.split == "template":
        return split_by_template([row.whole for row in rows], count, seed)
    split: list[Split] = [side or "train" for side in sides]
    if not named:
        for index in random.Random(seed).sample(range(len(rows)), count):
            split[index] = "heldout"
    return split


def _occurrences(hashes: Sequence[int]) -> dict[int, int]:
    """How many equal ones stand before each that is not the first of its kind, by index."""
    again = {left for left, right in pairwise(sorted(hashes)) if left == right}
    counted: dict[int, int] = {}
    found = {}
    for index, one in enumerate(hashes):
        if one in again:
            found[index] = counted.get(one, 0)
            counted[one] = found[index] + 1
    return found


def _usable(skill: Skill, bad: list[BadRow]) -> Iterator[_Row]:
    unusable, count = [], 0
    for row in iter_data(skill.source, form=skill.form, columns=skill.columns, most_bad=skill.most_bad):
        if isinstance(row, BadRow):
            unusable.append(row)
            continue
        gold = _gold(skill, row)
        if gold is None and skill.graded:
            unusable.append(BadRow(row.where, f"holds no answer of the kind {skill.kind!r} to grade by"))
            continue
        *before, last = row.messages
        count += 1
        yield _Row(str(last["content"]), gold or "", row.split, tuple(before), row.tools)
    bad += unusable
    if not count or len(unusable) > skill.most_bad:
        shown = "; ".join(f"{row.where}: {row.why}" for row in unusable[:3])
        raise UserError(f"skill {skill.name!r}: {len(unusable)} rows cannot be used: {shown}; mend or remove them")


def _gold(skill: Skill, row: DataRow) -> str | None:
    """The right answer of a row: as it stands, or the one that its completion comes to."""
    if not skill.graded or row.gold is not None:
        return row.gold
    return None if row.completion is None else reasons_and_answer(row.completion, skill.kind)[1]


def _expanded(skill: Skill, texts: list[str], heldout: set[str], rng: random.Random) -> list[Question]:
    """New questions that vary the texts."""
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
