"""New questions from those that the student gets wrong.

Lion (Jiang et al. 2023, arXiv 2305.12870, section 3): the teacher as referee tells hard questions, on which the
student falls behind by 1 point in 10 or more, from easy ones; as generator it makes new hard and, to keep what is
known, new easy ones, as many of each; ROUGE-L keeps them apart from what is there; and it answers them. Where a
question has a right answer, that decides instead of the referee.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, Field

from pocketstill import grading
from pocketstill_pipeline.asking import Reply
from pocketstill_pipeline.elicit.base import Context, Planned, Settings, ask_json, trouble
from pocketstill_pipeline.elicit.expansion.rouge import RougePool
from pocketstill_pipeline.elicit.prompts.feedback import question_request, referee_request
from pocketstill_pipeline.elicit.sampling import (
    PROMPT,
    REPLY_TOKENS,
    Prompting,
    mean_tokens,
    planned_samples,
    question_messages,
    read_sample,
    sampled,
)
from pocketstill_pipeline.example import Elicited, Question
from pocketstill_pipeline.sections import Rate

from .candidates import FRAME_TOKENS, JUDGE_TEMPERATURE, REASON_TOKENS, reply_of, shuffled

# Questions that come out too much like others are asked for again, in so many rounds in all.
_ROUNDS = 4
# Every try is another draw, in other rounds too.
_ROUND_DRAWS = 100_000


class Refereed(BaseModel):
    """Why first, so that the scores follow from it."""

    reason: str
    first: float = Field(ge=1, le=10)
    second: float = Field(ge=1, le=10)


class Made(BaseModel):
    question: str = Field(min_length=1)


class HarderSettings(Settings):
    """Ask the student, and make new questions from what it gets wrong."""

    method: Literal["harder"] = "harder"
    skills: list[str] = Field(default_factory=list, description="whose questions; all when left out")
    questions: int = Field(200, ge=1, description="training questions a skill that the student is asked")
    count: int = Field(100, ge=1, description="new questions to make")
    easy_share: float = Field(0.5, ge=0.0, lt=1.0, description="share of easy ones among the new")
    gap: float = Field(1.0, ge=0.0, le=9.0, description="points of 10 behind the teacher that make a question hard")
    similar: Rate = Field(0.7, gt=0.0, description="ROUGE-L F with any other question from which a new one is dropped")
    prompt: Prompting = PROMPT

    @property
    def needs_student(self) -> bool:
        """Always: what is hard is hard for the student."""
        return True


@dataclass(frozen=True)
class _Seed:
    question: Question
    hard: bool


@dataclass(frozen=True)
class _New:
    """A question to make, and what came of it."""

    name: str
    draw: int
    seed: _Seed
    text: str = ""
    key: str = ""
    reason: str | None = None
    detail: str = ""


async def harder(settings: HarderSettings, context: Context) -> AsyncIterator[Elicited]:
    """New questions, tagged `hard` or `easy`, with the teacher's answers; none when the student gets all right.

    Those that are refused for being like others come with their reason.
    """
    hard, easy = await _told_apart(settings, context)
    if not hard:
        return
    # Held-out ones too: nothing is to be made that is like them.
    pool = RougePool(question.text for question in context.questions)
    missing = {True: settings.count - round(settings.count * settings.easy_share)}
    missing[False] = settings.count - missing[True] if easy else 0
    used = {True: 0, False: 0}
    for number in range(_ROUNDS):
        wanted: list[_New] = []
        for is_hard, seeds in ((True, hard), (False, easy)):
            for _ in range(missing[is_hard]):
                name = f"{settings.entry}-{number}-{len(wanted)}"
                draw = _ROUND_DRAWS * number + len(wanted)
                wanted.append(_New(name, draw, seeds[used[is_hard] % len(seeds)]))
                used[is_hard] += 1
        accepted: list[_New] = []
        async for new in context.teacher.map(_maker(settings, context), wanted):
            new = _checked(new, pool, settings.similar)
            if new.reason is not None:
                yield _refused(new)
                continue
            pool.add(new.text)
            missing[new.seed.hard] -= 1
            accepted.append(new)
        units = [(new, sample) for new in accepted for sample in range(settings.samples or 1)]
        async for made in context.teacher.map(_labeller(settings, context), units):
            yield made


async def _told_apart(settings: HarderSettings, context: Context) -> tuple[list[_Seed], list[_Seed]]:
    """The questions that are hard for the student and those that are not, each shuffled."""
    student = context.asks_student()

    async def one(question: Question) -> _Seed | None:
        """None when the student, or the referee, did not answer."""
        graded = context.skills[question.skill].graded
        said = await sampled(student, question, 0, settings.prompt, graded=graded, temperature=0.0)
        if said.reason in ("failed_request", "refused"):
            return None
        if graded:
            return _Seed(question, not grading.equal(said.answer, question.gold, question.kind))
        return await _refereed(settings, context, question, said)

    told = [seed async for seed in student.map(one, _asked(settings, context)) if seed is not None]
    hard, easy = ([seed for seed in told if seed.hard is value] for value in (True, False))
    about = f"{context.seed}/{settings.entry}"
    return shuffled(hard, f"{about}/hard"), shuffled(easy, f"{about}/easy")


def _asked(settings: HarderSettings, context: Context) -> list[Question]:
    counted: dict[str, int] = {}
    found = []
    for question in context.of_skills(settings.skills):
        if question.split == "train" and not question.occurrence:
            counted[question.skill] = counted.get(question.skill, 0) + 1
            if counted[question.skill] <= settings.questions:
                found.append(question)
    return found


async def _refereed(settings: HarderSettings, context: Context, question: Question, student: Elicited) -> _Seed | None:
    """The referee's word, the mean of both orders as in Lion's section 3.2."""
    reply = await context.teacher.ask(question_messages(question), max_tokens=settings.max_tokens)
    if trouble(reply) is not None:
        return None
    both, gap = (reply.text.strip(), reply_of(student)), 0.0
    for swapped in (False, True):
        request = referee_request(question.text, *(reversed(both) if swapped else both))
        found, _ = await ask_json(context.teacher, request, Refereed, temperature=JUDGE_TEMPERATURE)
        if found is None:
            return None
        gap += (found.second - found.first if swapped else found.first - found.second) / 2
    return _Seed(question, gap >= settings.gap)


def _maker(settings: HarderSettings, context: Context) -> Any:
    async def make(new: _New) -> _New:
        request = question_request(new.seed.question.text, hard=new.seed.hard)
        found, reply = await ask_json(
            context.teacher, request, Made, sample=new.draw, temperature=settings.temperature,
            max_tokens=settings.max_tokens,
        )  # fmt: skip
        if found is None:
            reason, detail = trouble(reply) or ("no_question", reply.text.strip()[:200])
            return replace(new, key=reply.key, reason=reason, detail=detail)
        return replace(new, key=reply.key, text=found.question.strip())

    return make


def _checked(new: _New, pool: RougePool, threshold: float) -> _New:
    """With the reason when it is too like a question that is there."""
    if new.reason is not None:
        return new
    twin = pool.nearest(new.text, threshold)
    if twin is None:
        return replace(new, reason="in_pool") if new.text in pool else new
    return replace(new, reason="similar_to_pool", detail=f"ROUGE-L {twin.score:.2f} with {twin.text[:160]!r}")


def _question(new: _New) -> Question:
    seed = new.seed.question
    tags = (*seed.tags, "hard" if new.seed.hard else "easy")
    return replace(seed, id=new.name, text=new.text, gold="", route="feedback", tags=tags, occurrence=0)


def _refused(new: _New) -> Elicited:
    made = read_sample(_question(new), 0, (Reply(new.key, "-"),))
    return replace(
        made, method="harder", answer=None, completion="", rationale="", gold=None, reason=new.reason, detail=new.detail
    )


def _labeller(settings: HarderSettings, context: Context) -> Any:
    async def label(unit: tuple[_New, int]) -> Elicited:
        new, sample = unit
        question = _question(new)
        graded = context.skills[question.skill].graded
        made = await sampled(
            context.teacher, question, sample, "two_step", graded=graded, temperature=settings.temperature,
            max_tokens=settings.max_tokens,
        )  # fmt: skip
        # Nobody knows the right answer to a question that has just been made.
        return replace(made, route="feedback", method="harder", gold=None, source=(new.key, *made.source))

    return label


def plan_harder(settings: HarderSettings, context: Context) -> list[Planned]:
    """The student's answers, the referee's words on what has no right one, the new questions, their answers."""
    questions = _asked(settings, context)
    tokens = mean_tokens(questions)
    size = (tokens, tokens)
    free = [question for question in questions if not context.skills[question.skill].graded]
    planned = [planned_samples("the student's answers", questions, 1, settings.prompt, context, "student")]
    around = tokens + FRAME_TOKENS
    if free:
        count = len(free)
        shown = (around + 2 * REPLY_TOKENS[0], around + 2 * REPLY_TOKENS[1])
        planned.append(Planned("replies to compare", (count, count), size, REPLY_TOKENS))
        planned.append(Planned("referee", (2 * count, 2 * count), shown, REASON_TOKENS))
    labels = settings.count * (settings.samples or 1) * (2 if len(free) < len(questions) else 1)
    planned.append(Planned("new questions", (0, _ROUNDS * settings.count), (around, around), REPLY_TOKENS))
    planned.append(Planned("their answers", (0, labels), (tokens, tokens + REPLY_TOKENS[1]), REPLY_TOKENS))
    return planned
