"""What the methods share that ask for samples of questions: whose, how each is asked for, and how it is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from pocketstill import grading
from pocketstill_pipeline.asking import Messages, Reply
from pocketstill_pipeline.example import Elicited, Question
from pocketstill_pipeline.prompts import answer_request, first_request, reasons_first
from pocketstill_pipeline.teacher.protocol import count_tokens

from .base import Asker, Context, Planned, Settings, trouble

# two_step: zero-shot-CoT, for a general model; plain: the question as it stands, for a student that was trained on it.
Prompting = Literal["plain", "two_step"]
PROMPT: Any = Field("plain", description="how the student is asked: the question as it stands, or zero-shot-CoT")
Who = Literal["teacher", "student"]
# What teachers write, in tokens: (short, long); the recipe's limit caps it.
RATIONALE_TOKENS, ANSWER_TOKENS, REPLY_TOKENS = (15.0, 160.0), (1.0, 12.0), (30.0, 200.0)


def units(questions: Iterable[Question], settings: Settings, context: Context) -> Iterator[tuple[Question, int]]:
    """Each question with each sample index of it: D of them for training, one when held out."""
    for question in questions:
        count = (settings.samples or context.samples_a_question) if question.split == "train" else 1
        for sample in range(question.occurrence * count, (question.occurrence + 1) * count):
            yield question, sample


def options_of(settings: Settings, question: Question, sample: int) -> dict[str, Any]:
    """How one sample is asked for."""
    return {
        "sample": sample,
        "about": question.text,
        # Greedy for held-out questions: they measure the teacher, as the published figures were measured.
        "temperature": settings.temperature if question.split == "train" else 0.0,
        "max_tokens": settings.max_tokens,
    }


def question_messages(question: Question) -> Messages:
    """What the student will be asked."""
    return [*question.before, {"role": "user", "content": question.text}]


def tidy(rationale: str) -> str:
    """Runs of blanks and of empty lines folded, white space at the ends of lines and text dropped."""
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"[^\S\n]+", " ", rationale)).strip()


def untouched(reply: str) -> str:
    """A free reply with its indentation and empty lines, which code and lists need; no white space around it."""
    return "\n".join(line.rstrip() for line in reply.split("\n")).strip()


def unanswered(question: Question, sample: int, method: str, *, graded: bool) -> Elicited:
    """One sample of a question before anything is said to it."""
    return Elicited(
        id=f"{question.id}/{sample}",
        skill=question.skill,
        route=question.route,
        method=method,
        messages=question_messages(question),
        answer=None,
        completion="",
        kind=question.kind,
        gold=question.gold if graded else None,
        split=question.split,
        tags=question.tags,
    )


async def two_steps(
    asker: Asker, question: Question, options: dict[str, Any], opening: Messages | None = None
) -> tuple[Reply, ...]:
    """Zero-shot-CoT: the rationale, then the answer behind it; the first reply alone where nothing can follow it.

    `opening` takes the place of the request for the rationale.
    """
    before = list(question.before)
    first = await asker.ask([*before, *(opening or first_request(question.text, question.kind))], **options)
    stopped = (trouble(first) or ("",))[0] in ("failed_request", "refused")
    if stopped or not reasons_first(question.kind):
        return (first,)
    behind = answer_request(question.text, question.kind, first.text.strip())
    return first, await asker.ask([*before, *behind], **options)


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
    return read_sample(question, sample, await two_steps(asker, question, options))


def read_sample(question: Question, sample: int, replies: tuple[Reply, ...], *, graded: bool = True) -> Elicited:
    """Put the replies to one sample together: rationale, answer, and what speaks against them."""
    completion = replies[-1].text
    rationale = tidy(replies[0].text) if reasons_first(question.kind) else ""
    answer = grading.extract(completion, question.kind)
    problem = next((found for reply in replies if (found := trouble(reply))), None)
    if problem is None and reasons_first(question.kind) and not rationale:
        problem = "empty", ""
    if problem is None and answer is None:
        problem = "no_answer", completion.strip()[:200]
    reason, detail = problem or (None, "")
    failed = reason == "failed_request"
    return replace(
        unanswered(question, sample, "zero_shot_cot", graded=graded),
        answer=None if failed else answer,
        completion="" if failed else completion,
        rationale="" if failed else rationale,
        source=tuple(reply.key for reply in replies),
        reason=reason,
        detail=detail,
    )


def read_reply(question: Question, sample: int, reply: Reply, *, graded: bool, method: str = "direct") -> Elicited:
    """What one reply answers: where the skill is graded rationale and answer, else all of it."""
    reason, detail = trouble(reply) or (None, "")
    rationale, answer = "", untouched(reply.text) or None
    if graded:
        rationale, answer = reasons_and_answer(reply.text, question.kind)
    if reason is None and answer is None:
        reason, detail = "no_answer", reply.text.strip()[:200]
    return replace(
        unanswered(question, sample, method, graded=graded),
        answer=answer,
        completion=reply.text,
        rationale=tidy(rationale),
        source=(reply.key,),
        reason=reason,
        detail=detail,
    )


def reasons_and_answer(text: str, kind: grading.Kind) -> tuple[str, str | None]:
    """A reply as its rationale, "" when it has none, and its answer, None when it gives none."""
    rationale, said = grading.split_completion(text)
    if said != text.strip() or kind == "json":
        return rationale, grading.extract(text, kind)
    # Without a word that marks the answer, it is what the reply ends with, not the first number in it.
    rationale, _, said = said.rpartition("\n")
    return rationale, grading.extract(said, kind)


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
