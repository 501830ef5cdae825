"""The embedded teacher's answers: problems solved by rule, with mistakes and untidy formatting.

It is a stand-in for a large model, and behaves like one where it matters to the rest of the pipeline: it
answers in two steps (Kojima et al. 2022), its answer follows from its own rationale, right or wrong, and some
of what it says is badly formatted. Everything is drawn from the question and the request's seed, so that both
steps of a question agree without any state, and a run can be repeated.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pocketstill.grading import Kind
from pocketstill_pipeline import problems
from pocketstill_pipeline.prompts import asked_kind, asked_question, asks_for_answer, fold
from pocketstill_pipeline.teacher import TeacherConfig
from pocketstill_pipeline.teacher.protocol import ChatRequest

UNKNOWN = "I do not know how to answer that."
# How many choices of a first request are tried when its rationale comes back in a second one.
_REMEMBERED_CHOICES = 16
_LAST_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_LAST_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_LAST_OPTION = re.compile(r"\(([A-Z])\)")
_LAST_WORD = re.compile(r"\w+")
_REMARKS = (" I hope this helps!", " That follows from the steps above.", "\n\nLet me know if you need more.")


@dataclass(frozen=True)
class Asked:
    """What a chat request asks for: a question, and the rationale when it asks for the answer behind one."""

    question: str
    step_by_step: bool
    rationale: str | None = None
    prompt: str = ""


@dataclass(frozen=True)
class Drawn:
    """What the teacher says to one question in one draw."""

    rationale: str
    answer: str


def read_asked(messages: tuple[tuple[str, str], ...]) -> Asked:
    """Which of the requests of prompts.py these are; anything else is a question to answer outright."""
    content = messages[-1][1]
    if len(messages) >= 3 and messages[-2][0] == "assistant" and asks_for_answer(content):
        question = asked_question(messages[-3][1])
        if question is not None:
            return Asked(question, True, messages[-2][1], content)
    question = asked_question(content)
    return Asked(content.strip(), False) if question is None else Asked(question, True)


def answer(config: TeacherConfig, request: ChatRequest, index: int) -> str:
    """What the embedded teacher replies as choice `index` of a request, before any limit cuts it."""
    asked = read_asked(request.messages)
    seed = random.getrandbits(63) if request.seed is None else request.seed
    if asked.rationale is not None:
        return _behind_rationale(config, asked, asked.rationale, request, seed)
    drawn = draw(config, asked.question, _draw_seed(request.temperature, seed, request.sample + index))
    if drawn is None:
        return UNKNOWN
    if asked.step_by_step:
        return drawn.rationale
    return f"{drawn.rationale}\n{drawn.answer}" if drawn.rationale else drawn.answer


def draw(config: TeacherConfig, question: str, seed: str) -> Drawn | None:
    """Solve a question, with mistakes and noise at the configured rates; None if its form is unknown."""
    material = f"{config.seed}|{config.mistakes}|{config.noise}|{fold(question)}|{seed}".encode()
    rng = random.Random(int.from_bytes(hashlib.blake2b(material, digest_size=8).digest(), "big"))
    mistaken, noisy = rng.random() < config.mistakes, rng.random() < config.noise
    solution = problems.solve(question, rng, mistaken=mistaken)
    if solution is None:
        return None
    if not noisy:
        bare = solution.answer.startswith("{")
        return Drawn(solution.rationale, solution.answer if bare else f"{solution.answer}.")
    return Drawn(untidy_rationale(solution.rationale, rng), untidy_answer(solution.answer, rng))


def _draw_seed(temperature: float, seed: int, sample: int) -> str:
    return "greedy" if temperature == 0 else f"{seed}|{sample}"


def _behind_rationale(config: TeacherConfig, asked: Asked, rationale: str, request: ChatRequest, seed: int) -> str:
    given = fold(rationale)
    for drawn_seed in _candidates(request, seed):
        drawn = draw(config, asked.question, drawn_seed)
        if drawn is not None and fold(drawn.rationale) == given:
            return drawn.answer
    # Not one of ours, or cut short: say what the rationale says last.
    read = _read_rationale(rationale, asked_kind(asked.prompt))
    return UNKNOWN if read is None else f"{read}."


def _candidates(request: ChatRequest, seed: int) -> Iterator[str]:
    if request.temperature > 0:
        yield _draw_seed(request.temperature, seed, request.sample)
    yield _draw_seed(0.0, seed, 0)
    if request.temperature > 0:
        for sample in range(_REMEMBERED_CHOICES):
            yield _draw_seed(request.temperature, seed, sample)


def _read_rationale(rationale: str, kind: Kind) -> str | None:
    patterns = {"number": _LAST_NUMBER, "yes_no": _LAST_YES_NO, "choice": _LAST_OPTION}
    found = patterns.get(kind, _LAST_WORD).findall(rationale)
    return str(found[-1]) if found else None


def untidy_rationale(text: str, rng: random.Random) -> str:
    """The same words with untidy white space, or without the last full stop."""
    style = rng.randrange(4)
    if style == 0:
        return "\n\n" + text
    if style == 1:
        return text.replace("\n", " \n\n")
    if style == 2:
        return text.replace(". ", ".  ") + "  "
    return text.removesuffix(".")


def untidy_answer(text: str, rng: random.Random) -> str:
    """The same answer, badly formatted; an extractor that knows the kind still reads it."""
    if text.startswith("{"):
        wrap = ("```json\n{}\n```", "\n{}\n", "  {}  ", "Here is the call: {}")[rng.randrange(4)]
        return wrap.replace("{}", text)
    style = rng.randrange(7)
    if style == 5 and not text.isalpha():
        style = 0
    if style == 6 and (text.isalpha() and len(text) > 1 and text.lower() not in ("yes", "no")):
        # Behind a bare text a remark would be read as part of it.
        style = 1
    if style == 6:
        return f" {text}.{rng.choice(_REMARKS)}"
    return (
        f"the answer is: {text}.",
        f'"{text}".',
        f":\n\n{text}",
        f"   {text}",
        f"The answer is {text} .",
        text.lower(),
    )[style]
