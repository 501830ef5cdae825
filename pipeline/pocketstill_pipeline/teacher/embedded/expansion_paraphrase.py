"""The embedded teacher as one that says a problem in other words, and understands these."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

from pocketstill_pipeline.elicit.prompts.evolving import Paraphrases, asked_paraphrases
from pocketstill_pipeline.problems.base import draw_name, slots_pattern
from pocketstill_pipeline.teacher import TeacherConfig
from pocketstill_pipeline.teacher.protocol import ChatRequest

from . import problems
from .expansion_wordings import PIECES

_SLOTS = {
    "side": "heads|tails", "a": r"\d+", "b": r"\d+", "c": r"\d+", "d": r"\d+", "item": "[a-z]+", "quoted": '[^"]+',
    "name": r"[^\W\d_]+", "x": r"[^\W\d_]+", "y": r"[^\W\d_]+", "z": r"[^\W\d_]+",
    "minutes": r"\d+", "hour": r"\d+", "minute": r"\d+", "level": r"\d+", "degrees": r"\d+", "state": "on|off",
    "day": "today|tomorrow|[A-Z][a-z]+day",
}  # fmt: skip
_ASKED_AGAIN = "Please answer this: "
_ANY = r"[^\s.,:?][^.,:?]*?"


@dataclass(frozen=True)
class _Wording:
    """A text with slots, what finds it, and a part of it that every text with it contains."""

    text: str
    pattern: re.Pattern[str]
    part: str


def _wording(text: str) -> _Wording:
    pattern = re.compile(r"(?<!\w)" + slots_pattern(text, lambda slot: _SLOTS.get(slot, _ANY)))
    return _Wording(text, pattern, max(re.split(r"\{\w+\}", text), key=len))


_WORDINGS = [tuple(_wording(text) for text in piece) for piece in PIECES]
# Most texts have none of these, which is seen soonest so.
_SIGNS = (_ASKED_AGAIN, *(other.part for wordings in _WORDINGS for other in wordings[1:]))


def respond(config: TeacherConfig, request: ChatRequest, rng: random.Random) -> str | None:
    """Other wordings where they are asked for, and an answer to a problem in one of them; None for another request."""
    asked = asked_paraphrases(request.messages[-1][1])
    if asked is not None:
        return _reword(config, asked, rng)
    messages = tuple((role, plain(text) if role == "user" else text) for role, text in request.messages)
    if messages == request.messages:
        return None
    return problems.answer(config, replace(request, messages=messages), 0)


def reworded(question: str, way: int) -> str | None:
    """The question in the first or second other wording, on one line; None when it has no known form."""
    text = found = " ".join(question.split())
    for wordings in _WORDINGS:
        text = _turned(text, wordings[0], wordings[way])
    return None if text == found else text


def plain(text: str) -> str:
    """The text with all other wordings turned back into those of `problems`."""
    if not any(sign in text for sign in _SIGNS):
        return text
    for wordings in _WORDINGS:
        for other in wordings[1:]:
            text = _turned(text, other, wordings[0])
    return text.replace(_ASKED_AGAIN, "")


def _turned(text: str, what: _Wording, into: _Wording) -> str:
    if what.part not in text:
        return text
    return what.pattern.sub(lambda match: into.text.format(**match.groupdict()), text)


def _reword(config: TeacherConfig, asked: Paraphrases, rng: random.Random) -> str:
    if rng.random() < config.noise / 8:
        return "I would leave the question as it is."
    lines = []
    for number in range(1, asked.count + 1):
        text = reworded(asked.question, number) if number < 3 else None
        # Out of ideas: the question again, hardly changed.
        text = text or _ASKED_AGAIN + " ".join(asked.question.split())
        if rng.random() < config.mistakes:
            text = _slip(text, rng)
        lines.append(f"{number}. {text[:1].upper()}{text[1:]}")
    return "\n".join(lines)


def _slip(text: str, rng: random.Random) -> str:
    """The text with one number or one name changed."""
    number = re.search(r"\d+", text)
    if number is not None:
        return f"{text[: number.start()]}{int(number[0]) + rng.randint(1, 5)}{text[number.end() :]}"
    names = re.findall(r"(?<=\w )[A-Z][a-z]+", text)
    return text.replace(rng.choice(names), draw_name(rng)) if names else text
