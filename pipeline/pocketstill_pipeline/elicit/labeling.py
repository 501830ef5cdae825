"""Labeling by worked examples, and in the voices of many system messages.

Few-shot chain of thought: Wei et al. 2022 (arXiv 2201.11903, section 2); examples that are drawn from earlier samples
follow Zhang et al. 2022, "Automatic Chain of Thought Prompting" (arXiv 2210.03493, section 4): the teacher's own
rationales, short ones, of questions that differ. System messages: Orca (Mukherjee et al. 2023, arXiv 2306.02707,
section 3.1).
"""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from pocketstill import grading
from pocketstill.errors import UserError
from pocketstill_pipeline.asking import Messages
from pocketstill_pipeline.example import UNSEEN_SUFFIX, Elicited, Question
from pocketstill_pipeline.jsonl import read_jsonl
from pocketstill_pipeline.problems.base import normalise
from pocketstill_pipeline.teacher.protocol import count_tokens

from .base import Context, Planned, Settings, system_turns
from .prompts.labeling import (
    STOPS,
    SYSTEM_MESSAGES,
    Form,
    Shot,
    few_shot_request,
    shot_messages,
    system_request,
)
from .sampling import ANSWER_TOKENS, RATIONALE_TOKENS, options_of, read_reply, units

# Auto-CoT's rule of thumb for an example that is simple enough to follow (section 4.2): words of a question, steps.
_SIMPLE_WORDS, _SIMPLE_STEPS = 60, 5
# Among so many right samples of a skill, the most different ones are looked for.
_CANDIDATES = 200
_POOL = 32
_STEP = re.compile(r"\n+|(?<=[.!?])\s+")


class FewShot(Settings):
    """Ask every question of the skills behind k worked examples."""

    FILES: ClassVar[tuple[str, ...]] = ("examples",)

    method: Literal["few_shot_cot"] = "few_shot_cot"
    skills: list[str] = Field(default_factory=list, description="whose questions; all when left out")
    shots: int = Field(4, ge=1, le=_POOL, description="k, examples before each question")
    examples: str = Field("", description="JSONL file of question, rationale, answer and, if it has several, skill")
    of: str = Field("", description="or an earlier [[elicit]] entry, whose right samples are the examples")
    shuffle: bool = Field(False, description="the examples in another order for each sample")
    redraw: bool = Field(False, description="other examples for each sample, from a pool of 32")
    form: Form = Field("turns", description="turns of a chat, or one text as in the paper")
    keep_shots: bool = Field(False, description="the student is asked k-shot, too")

    @model_validator(mode="after")
    def _one_source(self) -> FewShot:
        if bool(self.examples) == bool(self.of):
            raise ValueError("few_shot_cot needs either examples, a file, or of, an earlier entry")
        return self


async def few_shot(settings: FewShot, context: Context) -> AsyncIterator[Elicited]:
    """One sample after the other, question by question; held-out questions once, greedily.

    Raises:
        UserError: the file of examples is broken, the source is no earlier entry, or a skill has too few examples.
    """
    questions = context.of_skills(settings.skills)
    pools = _pools(settings, context, questions)

    async def one(unit: tuple[Question, int]) -> Elicited:
        question, sample = unit
        shots = choose_shots(settings, context.seed, pools[question.skill], question, sample)
        reply = await context.teacher.ask(
            behind_examples(question, shots, settings.form),
            **options_of(settings, question, sample),
            stop=STOPS,
        )
        graded = context.skills[question.skill].graded
        found = read_reply(question, sample, reply, graded=graded, method="few_shot_cot")
        if graded and any(shot.rationale for shot in shots):
            found = _in_form(found)
            if found.reason is None and not found.rationale:
                found = replace(found, reason="empty", detail="an answer without a rationale")
        kept = [turn for shot in shots for turn in shot_messages(shot)] if settings.keep_shots else []
        return replace(found, demonstrations=kept)

    async for found in context.teacher.map(one, units(questions, settings, context)):
        yield found


def behind_examples(question: Question, shots: list[Shot], form: Form) -> Messages:
    """A question behind worked examples; a conversation that it ends stands between the two."""
    *examples, asked_last = few_shot_request(question.text, shots, form)
    return [*examples, *question.before, asked_last]


def _in_form(found: Elicited) -> Elicited:
    """The same, rejected where no words say which part of the reply is the answer: a first number is none."""
    text = found.completion.strip()
    if found.reason is not None or found.kind == "json" or grading.split_completion(text)[1] != text:
        return found
    return replace(found, answer=None, reason="no_answer", detail=text[-200:])


def choose_shots(settings: FewShot, seed: int, pool: list[Shot], question: Question, sample: int) -> list[Shot]:
    """The k examples of one sample: the pool's first, or drawn; never the question itself."""
    asked_about = normalise(question.text)
    others = [shot for shot in pool if normalise(shot.question) != asked_about]
    rng = random.Random(f"{seed}/{settings.entry}/{question.id}/{sample}")
    if settings.redraw:
        return rng.sample(others, min(settings.shots, len(others)))
    chosen = others[: settings.shots]
    if settings.shuffle:
        rng.shuffle(chosen)
    return chosen


def _pools(settings: FewShot, context: Context, questions: Iterable[Question]) -> dict[str, list[Shot]]:
    """The examples of each skill.

    Raises:
        UserError: there are fewer than k of one.
    """
    skills = list(dict.fromkeys(question.skill for question in questions))
    if settings.examples:
        found = _from_file(Path(settings.examples), skills)
    else:
        found = {skill: [] for skill in skills}
        for skill, shots in _from_entry(settings.of, context).items():
            # A skill's unseen part is asked with the skill's own examples.
            for name in (skill, f"{skill}{UNSEEN_SUFFIX}"):
                if name in found:
                    found[name] = different(shots, _POOL)
    for skill, shots in found.items():
        if len(shots) < settings.shots:
            where = settings.examples or f"the entry {settings.of!r}"
            raise UserError(
                f"elicit {settings.entry}: {where} has {len(shots)} examples of {skill!r}, fewer than "
                f"shots = {settings.shots}; add some, or lower it"
            )
    return found


def _from_file(path: Path, skills: list[str]) -> dict[str, list[Shot]]:
    rows = read_jsonl(path, ("question", "rationale", "answer"), ("skill",))
    return {
        skill: [
            Shot(row["question"].strip(), row["rationale"].strip(), row["answer"].strip())
            for row in rows
            if row.get("skill", skill) in (skill, skill.removesuffix(UNSEEN_SUFFIX))
        ]
        for skill in skills
    }


def _from_entry(entry: str, context: Context) -> dict[str, list[Shot]]:
    """The first right sample of each training question by skill, simple ones first, in the entry's order."""
    seen: set[tuple[str, str]] = set()
    simple: dict[str, list[Shot]] = {}
    other: dict[str, list[Shot]] = {}
    for item in context.earlier(entry):
        right = item.gold is not None and grading.equal(item.answer, item.gold, item.kind)
        name = item.skill, normalise(item.question)
        if item.reason is not None or not right or item.split != "train" or name in seen:
            continue
        seen.add(name)
        easy = len(item.question.split()) <= _SIMPLE_WORDS and len(_STEP.split(item.rationale)) <= _SIMPLE_STEPS
        # A rationale that states its answer would state it twice.
        rationale = grading.split_completion(item.rationale)[0] or item.rationale
        shot = Shot(item.question, rationale, item.answer or "")
        (simple if easy else other).setdefault(item.skill, []).append(shot)
    return {skill: simple.get(skill, []) + other.get(skill, []) for skill in {**simple, **other}}


def different(shots: list[Shot], count: int) -> list[Shot]:
    """The first one, then each time the one least like those chosen, by the words of the questions (Jaccard).

    Auto-CoT takes one question of each cluster of sentence embeddings; this needs no model for the same end.
    """
    rest = shots[:_CANDIDATES]
    words = {id(shot): frozenset(re.findall(r"\w+", shot.question.lower())) for shot in rest}
    chosen, nearest = rest[:1], dict.fromkeys(words, 0.0)
    rest = rest[1:]
    while rest and len(chosen) < count:
        last = words[id(chosen[-1])]
        for shot in rest:
            mine = words[id(shot)]
            nearest[id(shot)] = max(nearest[id(shot)], len(mine & last) / (len(mine | last) or 1))
        chosen.append(min(rest, key=lambda shot: nearest[id(shot)]))
        rest.remove(chosen[-1])
    return chosen


def plan_few_shot(settings: FewShot, context: Context) -> list[Planned]:
    """One request a sample, longer by k examples; those of an earlier entry are taken to be of the usual size."""
    questions = context.of_skills(settings.skills)
    sizes = [count_tokens(question.text) + 4 for question, _ in units(questions, settings, context)]
    mean = sum(sizes) / max(len(sizes), 1)
    if settings.examples:
        pools = _pools(settings, context, questions)
        each = [count_tokens(f"{s.question} {s.rationale} {s.answer}") + 9 for pool in pools.values() for s in pool]
        low = high = sum(each) / max(len(each), 1)
    else:
        low, high = (mean + tokens for tokens in RATIONALE_TOKENS)
    prompt = (mean + settings.shots * low, mean + settings.shots * high)
    completion = (RATIONALE_TOKENS[0] + ANSWER_TOKENS[0], RATIONALE_TOKENS[1] + ANSWER_TOKENS[1])
    return [Planned("answers by example", (len(sizes), len(sizes)), prompt, completion)]


class SystemMessages(Settings):
    """Ask every question of the skills under a system message that is drawn for each sample."""

    method: Literal["system_messages"] = "system_messages"
    skills: list[str] = Field(default_factory=list, description="whose questions; all when left out")
    voices: list[str] = Field(default_factory=list, description="which of the built-in ones; all 16 when left out")
    messages: list[str] = Field(default_factory=list, description="your own system messages, beside the named voices")
    keep_system: bool = Field(False, description="the student is given the system message, too")

    @model_validator(mode="after")
    def _known(self) -> SystemMessages:
        unknown = next((name for name in self.voices if name not in SYSTEM_MESSAGES), None)
        if unknown is not None:
            raise ValueError(f"there is no voice {unknown!r}; there are {', '.join(SYSTEM_MESSAGES)}")
        return self

    @property
    def drawn_from(self) -> list[tuple[str, str]]:
        """(name, system message) of all that may be drawn."""
        own = [(f"own-{index}", text) for index, text in enumerate(self.messages, 1)]
        named = self.voices or ([] if own else list(SYSTEM_MESSAGES))
        return [(name, SYSTEM_MESSAGES[name]) for name in named] + own


async def system_messages(settings: SystemMessages, context: Context) -> AsyncIterator[Elicited]:
    """One sample after the other, question by question; held-out questions once, greedily."""

    async def one(unit: tuple[Question, int]) -> Elicited:
        question, sample = unit
        name, system = voice_of(settings, context.seed, question, sample)
        skill = context.skills[question.skill]
        reply = await context.teacher.ask(
            in_voice(question, system, graded=skill.graded),
            **options_of(settings, question, sample),
        )
        found = read_reply(question, sample, reply, graded=skill.graded, method="system_messages")
        found = _in_form(found) if skill.graded else found
        before = system_turns(system if settings.keep_system else "")
        return replace(found, messages=before + found.messages, tags=(*found.tags, f"voice:{name}"))

    async for found in context.teacher.map(one, units(context.of_skills(settings.skills), settings, context)):
        yield found


def in_voice(question: Question, system: str, *, graded: bool) -> Messages:
    """A question under a system message, with the conversation that it ends."""
    first, last = system_request(system, question.text, question.kind if graded else None)
    return [first, *question.before, last]


def voice_of(settings: SystemMessages, seed: int, question: Question, sample: int) -> tuple[str, str]:
    """(name, system message) of one sample; a question's samples have different ones as long as there are some."""
    drawn = settings.drawn_from
    random.Random(f"{seed}/{settings.entry}/{question.id}").shuffle(drawn)
    return drawn[sample % len(drawn)]


def plan_system_messages(settings: SystemMessages, context: Context) -> list[Planned]:
    """One request a sample."""
    sizes = [
        count_tokens(question.text) for question, _ in units(context.of_skills(settings.skills), settings, context)
    ]
    voices = [count_tokens(text) for _, text in settings.drawn_from]
    mean = sum(sizes) / max(len(sizes), 1) + sum(voices) / len(voices) + 13
    low, high = RATIONALE_TOKENS
    return [Planned("answers", (len(sizes), len(sizes)), (mean, mean), (low / 2, high + ANSWER_TOKENS[1]))]
