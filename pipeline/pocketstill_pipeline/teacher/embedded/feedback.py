"""The embedded teacher as a judge, a critic and a maker of questions.

It solves the question itself and compares. At half the rate of its mistakes it misjudges; at the rate of its noise it
favours the reply that stands first, or spoils the JSON that was asked for: what the routes' own filters are for.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

from pocketstill import grading
from pocketstill.grading import Kind
from pocketstill_pipeline import problems
from pocketstill_pipeline.elicit.prompts import feedback as prompts
from pocketstill_pipeline.prompts import fold
from pocketstill_pipeline.teacher import TeacherConfig
from pocketstill_pipeline.teacher.protocol import ChatRequest

# Of the noisy answers that should be JSON, the share that is none, or lacks a field.
_SPOILT = 0.5
_STYLES = 12
_DRAWS = 8
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def respond(config: TeacherConfig, request: ChatRequest, rng: random.Random) -> str | None:
    """Answer a request of `elicit/prompts/feedback.py`; None when it is none."""
    turns = request.messages
    if (score := prompts.asked_score(turns)) is not None:
        return _spoil(config, rng, _score(config, score, rng))
    if (pair := prompts.asked_preference(turns)) is not None:
        return _spoil(config, rng, _prefer(config, pair, rng))
    if (pair := prompts.asked_referee(turns)) is not None:
        return _spoil(config, rng, _referee(config, pair, rng))
    if (ranking := prompts.asked_ranking(turns)) is not None:
        return _spoil(config, rng, _rank(config, ranking, rng))
    if (revision := prompts.asked_revision(turns)) is not None:
        if revision.critique is None:
            return _spoil(config, rng, _critique(config, revision, rng))
        return _revise(config, revision, rng)
    if (wanted := prompts.asked_for_question(turns)) is not None:
        return _spoil(config, rng, {"question": _make(config, wanted, rng)})
    return None


def kind_of(answer: str) -> Kind:
    """The kind of an answer by rule."""
    if answer.startswith("{"):
        return "json"
    if answer in ("yes", "no"):
        return "yes_no"
    if re.fullmatch(r"[A-Z]", answer):
        return "choice"
    return "number" if _NUMBER.fullmatch(answer) else "text"


def is_right(question: str, reply: str) -> bool | None:
    """Whether a reply ends in the right answer; None when the question has no known form."""
    solution = problems.solve(question, random.Random(0))
    if solution is None:
        return None
    kind = kind_of(solution.answer)
    return grading.equal(grading.extract(reply, kind), solution.answer, kind)


def merit(question: str, reply: str) -> float:
    """How good a reply is, 0 to 1: right before wrong, then with reasons, then tidy."""
    right = is_right(question, reply)
    lines = [line for line in reply.splitlines() if line.strip()]
    tidy = reply == reply.strip() and "  " not in reply and "\n\n" not in reply
    if right is None:
        return min(len(fold(reply).split()), 80) / 100 + (0.1 if tidy else 0.0)
    return (0.6 if right else 0.0) + (0.25 if len(lines) > 1 or "{" in reply else 0.0) + (0.1 if tidy else 0.0)


def wrong_step(question: str, solution: str) -> str | None:
    """The first line of a solution that differs from the right one told in the same style; None when none does."""
    given = [fold(line) for line in solution.splitlines() if line.strip()]
    given = [line for line in given if not line.startswith("Answer:")]
    told: list[list[str]] = []
    for seed in range(_STYLES):
        right = problems.solve(question, random.Random(seed))
        told.append([fold(line) for line in right.rationale.splitlines()] if right is not None else [])
    alike = max(told, key=lambda lines: sum(line.rstrip(".") in {g.rstrip(".") for g in given} for line in lines))
    known = {line.rstrip(".") for line in alike}
    return next((line for line in given if line.rstrip(".") not in known), None)


def _spoil(config: TeacherConfig, rng: random.Random, said: dict[str, Any]) -> str:
    text = json.dumps(said, ensure_ascii=False)
    if rng.random() >= config.noise * _SPOILT:
        return text
    spoilers: tuple[Callable[[], str], ...] = (
        lambda: json.dumps(dict(list(said.items())[:-1]), ensure_ascii=False),
        lambda: f"Here is what I think: {text}",
        lambda: text[: len(text) // 2],
    )
    return rng.choice(spoilers)()


def _errs(config: TeacherConfig, rng: random.Random) -> bool:
    # To judge is easier than to do.
    return rng.random() < config.mistakes / 2


def _score(config: TeacherConfig, asked: prompts.AskedScore, rng: random.Random) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name in asked.criteria:
        if name == "complexity":
            solution = problems.solve(asked.question, random.Random(0))
            steps = len(solution.rationale.splitlines()) if solution else len(asked.question.split()) // 12
            points, reason = 1 + steps // 2, f"It takes about {steps} steps."
        else:
            good = merit(asked.question, asked.reply)
            points = 1 + round(4 * good)
            reason = "The answer is right." if good >= 0.6 else "The answer cannot be trusted."
        if _errs(config, rng):
            points, reason = points + rng.choice((-2, 2)), "At a glance."
        said[name] = {"reason": reason, "score": max(1, min(5, points))}
    return said


def _prefer(config: TeacherConfig, asked: prompts.AskedPair, rng: random.Random) -> dict[str, Any]:
    first, second = (merit(asked.question, reply) for reply in (asked.first, asked.second))
    if first == second and rng.random() < 0.5:
        # Of equals, the shorter one.
        first, second = float(len(asked.second)), float(len(asked.first))
    if rng.random() < config.noise or first == second:
        # A judge that cannot tell takes what it read first.
        return {"reason": "It comes to the point at once.", "better": "first"}
    better = "first" if (first > second) != _errs(config, rng) else "second"
    return {"reason": "Its steps lead to the right answer.", "better": better}


def _referee(config: TeacherConfig, asked: prompts.AskedPair, rng: random.Random) -> dict[str, Any]:
    first, second = (2 + round(8 * merit(asked.question, reply)) for reply in (asked.first, asked.second))
    if rng.random() < config.noise:
        first += 1
    return {"reason": "By what each gets right.", "first": min(10, first), "second": min(10, second)}


def _rank(config: TeacherConfig, asked: prompts.AskedRanking, rng: random.Random) -> dict[str, Any]:
    order = sorted(asked.replies, key=lambda label: (-merit(asked.question, asked.replies[label]), label))
    if rng.random() < config.noise and len(order) > 1:
        at = rng.randrange(len(order) - 1)
        order[at], order[at + 1] = order[at + 1], order[at]
    if _errs(config, rng):
        order.reverse()
    return {"reason": "Right ones first, then those with reasons.", "order": order}


def _critique(config: TeacherConfig, asked: prompts.AskedRevision, rng: random.Random) -> dict[str, Any]:
    right, step = is_right(asked.question, asked.solution), wrong_step(asked.question, asked.solution)
    if right is None:
        return {"critique": "It could say more, and give an example.", "correct": False}
    if _errs(config, rng):
        right = not right
    if right:
        return {"critique": "Every step follows from the one before it.", "correct": True}
    said = f"The step {step!r} is wrong; what follows from it is too." if step else "The answer does not follow."
    return {"critique": said, "correct": False}


def _revise(config: TeacherConfig, asked: prompts.AskedRevision, rng: random.Random) -> str:
    if rng.random() < config.noise / 4:
        return asked.solution
    solution = problems.solve(asked.question, rng, mistaken=rng.random() < config.mistakes)
    if solution is None:
        return f"{asked.solution.strip()} For example, think of how you would explain it to a friend."
    return solution.answer if asked.bare else f"{solution.rationale}\nAnswer: {solution.answer}"


def _make(config: TeacherConfig, asked: prompts.AskedQuestion, rng: random.Random) -> str:
    """Of a few questions of the same skill the longest to solve, or the shortest."""
    if rng.random() < config.noise / 4:
        return asked.seed
    skill = _skill_of(asked.seed)
    if skill is None:
        return f"{'Explain in detail why' if asked.hard else 'Say in a word whether'} this is so: {fold(asked.seed)}"
    drawn = [text for text in (problems.sample(skill, rng).question for _ in range(_DRAWS)) if _trainable(text)]
    return max(drawn or [asked.seed], key=lambda text: (1 if asked.hard else -1) * _steps(text))


def _trainable(question: str) -> bool:
    return not problems.held_out(question)


def _steps(question: str) -> int:
    solution = problems.solve(question, random.Random(0))
    return len(solution.rationale.splitlines()) if solution else 0


def _skill_of(question: str) -> str | None:
    solution = problems.solve(question, random.Random(0))
    if solution is None:
        return None
    by_kind = {
        "json": "tool_call", "yes_no": "coin_flip", "choice": "shuffled_objects", "number": "arithmetic",
        "text": "last_letters",
    }  # fmt: skip
    return by_kind[kind_of(solution.answer)]
