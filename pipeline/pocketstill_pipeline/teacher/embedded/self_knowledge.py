"""The embedded teacher in the student's place: it reasons towards a hint, and judges what it said itself."""

from __future__ import annotations

import random

from pocketstill import grading
from pocketstill_pipeline import problems
from pocketstill_pipeline.elicit.prompts import self_knowledge as prompts
from pocketstill_pipeline.teacher import TeacherConfig
from pocketstill_pipeline.teacher.protocol import ChatRequest

from .feedback import kind_of, merit

_SPOKEN = (
    "The hint says that the answer is {}.\n",
    "We know the answer is {}, so let us see why.\n",
    "The correct answer is given as {}.\n",
)


def respond(config: TeacherConfig, request: ChatRequest, rng: random.Random) -> str | None:
    """Answer a request of `elicit/prompts/self_knowledge.py`; None when it is none."""
    hint = prompts.asked_hint(request.messages)
    if hint is not None:
        return _rationalize(config, hint, rng)
    judged = prompts.asked_judgement(request.messages)
    return None if judged is None else _judge(config, judged, rng)


def _rationalize(config: TeacherConfig, hint: prompts.AskedHint, rng: random.Random) -> str:
    # A hint helps: half the mistakes are left. Where the noise falls, it is spoken of.
    mistaken, spoken = rng.random() < config.mistakes / 2, rng.random() < config.noise
    solution = problems.solve(hint.question, rng, mistaken=mistaken)
    if solution is None:
        return f"It follows from what is asked.\nAnswer: {hint.gold}"
    led = grading.equal(solution.answer, hint.gold, kind_of(solution.answer))
    opening = rng.choice(_SPOKEN).format(hint.gold) if spoken and led else ""
    return opening + solution.rationale + (f"\nAnswer: {solution.answer}" if hint.whole else "")


def _judge(config: TeacherConfig, asked: prompts.AskedJudgement, rng: random.Random) -> str:
    # Judging is easier than doing: half the mistakes.
    points = round(5 * merit(asked.question, asked.reply) + 0.25)
    if rng.random() < config.mistakes / 2:
        points += rng.choice((-2, -1, 1, 2))
    if rng.random() < config.noise / 4:
        return "It is a fine reply and I like it."
    return f"It deals with the question and gives its reasons.\nScore: {max(0, min(5, points))}"
