"""One sample of one question from anybody, read into the same form however it was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pocketstill_pipeline.example import Elicited, Question
from pocketstill_pipeline.prompts import answer_request, first_request, reasons_first
from pocketstill_pipeline.teacher.protocol import count_tokens

from .base import Asker, Context, Planned
from .direct import read_reply
from .zero_shot import question_messages, read_sample

# two_step: zero-shot-CoT, for a general model; plain: the question as it stands, for a student that was trained on it.
Prompting = Literal["plain", "two_step"]
Who = Literal["teacher", "student"]
# A reply to a question, in tokens: (short, long).
REPLY_TOKENS = (30.0, 160.0)


async def sampled(
    asker: Asker,
    question: Question,
    sample: int,
    prompting: Prompting,
    *,
    graded: bool,
    temperature: float | None = None,
    max_tokens: int | None = None,
) -> Elicited:
    """Ask for one sample; free answers are always asked for as the question stands."""
    options: dict[str, Any] = {"sample": sample, "about": question.text}
    options |= {"temperature": temperature, "max_tokens": max_tokens}
    if prompting == "plain" or not graded:
        reply = await asker.ask(question_messages(question), **options)
        return read_reply(question, sample, reply, graded=graded)
    before = list(question.before)
    first = await asker.ask([*before, *first_request(question.text, question.kind)], **options)
    if first.error is not None or not reasons_first(question.kind):
        return read_sample(question, sample, (first,))
    behind = answer_request(question.text, question.kind, first.text.strip())
    second = await asker.ask([*before, *behind], **options)
    return read_sample(question, sample, (first, second))


def planned_samples(
    what: str, questions: Sequence[Question], count: int, prompting: Prompting, context: Context, who: Who
) -> Planned:
    """The requests for `count` samples of each question."""
    samples = requests = 0
    for question in questions:
        graded = bool(context.skills[question.skill].graded)
        samples += count
        requests += count * (2 if prompting == "two_step" and graded and reasons_first(question.kind) else 1)
    # The second step shows the rationale again.
    again = (requests - samples) / max(requests, 1)
    tokens, (low, high) = mean_tokens(questions), REPLY_TOKENS
    return Planned(what, (requests, requests), (tokens + again * low, tokens + again * high), REPLY_TOKENS, who)


def mean_tokens(questions: Sequence[Question]) -> float:
    """Tokens of a question."""
    return sum(count_tokens(question.text) for question in questions) / max(len(questions), 1)
