"""What a student is asked about its own answers, and the inverse of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pocketstill.grading import Kind
from pocketstill_pipeline.asking import Messages
from pocketstill_pipeline.prompts import STEP_BY_STEP

from .feedback import block, read_block

Turns = Sequence[tuple[str, str]]
_HINT = re.compile(r"Q: (?P<question>.*)\n\(Hint: the answer is (?P<gold>.*)\. (?P<how>[^\n]*)\)\nA: ", re.DOTALL)
_REASON_AS_IF = "Reason towards it as if it were not known, and do not mention it."
_JUDGE = "Review the reply to the question by the additive 5-point system:"
# The five steps of Yuan et al. 2024 (arXiv 2401.10020, figure 2), in other words.
_STEPS = (
    "one point when the reply is about the question and gives something of use, however incomplete;",
    "a second when it deals with a good part of the question;",
    "a third when it answers the question's essentials in a useful way;",
    "a fourth when it answers directly and in full, in good order, with steps that follow from each other;",
    "a fifth when nothing in it is wrong, missing or beside the point.",
)
_SCORE = re.compile(r"\bscore(?: \([^()\n]{1,20}\))?\W{0,4}(\d+(?:\.\d+)?)", re.IGNORECASE)


@dataclass(frozen=True)
class AskedHint:
    """`whole`: rationale and answer are wanted in one reply."""

    question: str
    gold: str
    whole: bool


def hint_request(question: str, gold: str, kind: Kind, *, whole: bool) -> Messages:
    """STaR's rationalization (Zelikman et al. 2022, arXiv 2203.14465, section 3.2): the answer as a hint."""
    said = f"({gold})" if kind == "choice" else gold
    end = 'End with a line "Answer: " and the answer alone.' if whole else STEP_BY_STEP
    return [{"role": "user", "content": f"Q: {question}\n(Hint: the answer is {said}. {_REASON_AS_IF})\nA: {end}"}]


def asked_hint(turns: Turns) -> AskedHint | None:
    """`hint_request` backwards."""
    content = turns[-1][1]
    found = _HINT.match(content)
    if turns[-1][0] != "user" or found is None or found["how"] != _REASON_AS_IF:
        return None
    gold = re.sub(r"^\(([A-Z])\)$", r"\1", found["gold"])
    return AskedHint(found["question"], gold, content[found.end() :].startswith("End with a line"))


@dataclass(frozen=True)
class AskedJudgement:
    question: str
    reply: str


def judgement_request(question: str, reply: str) -> Messages:
    """Points for one of the student's own replies: a short reason, then a line "Score: " and 0 to 5."""
    steps = "\n".join(f"- {step}" for step in _STEPS)
    content = (
        f"{_JUDGE}\n{steps}\n\n{block('question', question)}\n\n{block('reply', reply)}\n\n"
        'Say in a sentence why, then write a line "Score: " and the sum of the points, 0 to 5.'
    )
    return [{"role": "user", "content": content}]


def asked_judgement(turns: Turns) -> AskedJudgement | None:
    """`judgement_request` backwards."""
    role, content = turns[-1]
    question, reply = read_block("question", content), read_block("reply", content)
    if role != "user" or not content.startswith(_JUDGE) or question is None or reply is None:
        return None
    return AskedJudgement(question, reply)


def read_score(reply: str) -> float | None:
    """The points that a judgement ends in; None when there are none, or more than five."""
    found = _SCORE.findall(reply)
    return float(found[-1]) if found and float(found[-1]) <= 5 else None
