"""The replies that feedback is given on: samples of an earlier entry, as a judge reads them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, TypeVar

from pydantic import Field

from pocketstill import grading
from pocketstill_pipeline.asking import Message
from pocketstill_pipeline.elicit.base import Context, Planned, Settings
from pocketstill_pipeline.elicit.sampling import REPLY_TOKENS, mean_tokens, reasons_and_answer
from pocketstill_pipeline.example import Elicited
from pocketstill_pipeline.ledger import canonical
from pocketstill_pipeline.question_file import select

T = TypeVar("T")
# What a judge writes, in tokens, and what the words around a question and a reply take.
REASON_TOKENS, FRAME_TOKENS = (20.0, 90.0), 110.0
# Not 0: an answer that does not fit its form is asked for again, and must be able to come out otherwise.
JUDGE_TEMPERATURE = 0.2


class OfEarlier(Settings):
    """An entry that works on what an earlier one made."""

    of: str = Field(description="the earlier [[elicit]] entry whose samples it takes")

    @property
    def options(self) -> dict[str, Any]:
        """How a judge is asked."""
        temperature = JUDGE_TEMPERATURE if self.temperature is None else self.temperature
        return {"temperature": temperature, "max_tokens": self.max_tokens}


@dataclass(frozen=True)
class Candidate:
    """A reply to judge, and the sample that it would be for training."""

    item: Elicited
    text: str


def reply_of(item: Elicited) -> str:
    """A sample as one reply: its rationale, then its answer; where it has no rationale, the answer alone."""
    answer = item.answer or ""
    return f"{item.rationale}\nAnswer: {answer}" if item.rationale else answer


def question_of(item: Elicited) -> str:
    """What a sample replies to, for a judge to read: the question, or the conversation up to it."""
    turns = [*item.demonstrations, *item.messages]
    return item.question if len(turns) == 1 else "\n".join(map(_turn, turns))


def _turn(message: Message) -> str:
    return f"{str(message['role']).capitalize()}: {message.get('content') or ''}"


def read_reply(item: Elicited, text: str, *, graded: bool) -> Elicited:
    """The sample with another reply: whole when it is free, else its rationale and its answer."""
    if not graded or item.kind == "json":
        answer = grading.extract(text, item.kind) if graded else text.strip()
        return _with(item, text, "", answer or None)
    return _with(item, text, *reasons_and_answer(text, item.kind))


def _with(item: Elicited, text: str, rationale: str, answer: str | None) -> Elicited:
    return replace(item, completion=text, rationale=rationale, answer=answer, top_logprobs=None, scores={})


def to_judge(items: Iterable[Elicited]) -> Iterator[Elicited]:
    """The training samples that nothing speaks against yet; held-out ones measure the teacher alone."""
    return (item for item in items if item.split == "train" and item.reason is None and reply_of(item))


def by_question(items: Iterable[Elicited]) -> Iterator[list[Candidate]]:
    """The different replies to each question, in their order; samples of a question follow each other."""
    for _, group in groupby(to_judge(items), key=_identity):
        texts: dict[str, Candidate] = {}
        for item in group:
            texts.setdefault(" ".join(reply_of(item).split()), Candidate(item, reply_of(item)))
        yield list(texts.values())


def _identity(item: Elicited) -> tuple[str, str]:
    return item.skill, canonical({"before": item.demonstrations, "asked": item.messages})


def ranked(candidates: Sequence[Candidate], scores: Sequence[float]) -> list[dict[str, Any]]:
    """For objectives that rank: best first; the earlier one of equals first."""
    order = sorted(range(len(candidates)), key=lambda index: (-scores[index], index))
    return [{"completion": candidates[index].text, "score": scores[index]} for index in order]


def shuffled(items: Sequence[T], seed: str) -> list[T]:
    """The items in an order of their own."""
    return random.Random(seed).sample(items, len(items))


def is_graded(item: Elicited, context: Context) -> bool:
    """Whether the sample's skill has answers of a kind; else any reply will do."""
    return bool(context.skills[item.skill].graded)


@dataclass(frozen=True)
class Expected:
    """How much of an earlier entry there will be.

    Attributes:
        samples, questions: (low, high).
        each: most samples of one question.
        question_tokens: of one question.
    """

    samples: tuple[int, int]
    questions: tuple[int, int]
    each: int
    question_tokens: float

    def judged(self, what: str, requests: tuple[int, int], replies: int = 1) -> Planned:
        """Requests that show a question and some replies to it."""
        around = self.question_tokens + FRAME_TOKENS
        low, high = (replies * tokens for tokens in REPLY_TOKENS)
        return Planned(what, requests, (around + low, around + high), REASON_TOKENS)


def expected(of: str, context: Context) -> Expected:
    """Counted where the entry has run already, else from the questions that it asks: one to D samples of each."""
    first = context.entries.get(of)
    while first is not None and first.builds_on in context.entries:
        first = context.entries[first.builds_on]
    train = select(context.of_skills(getattr(first, "skills", [])), lambda question: question.split == "train")
    tokens = mean_tokens(train)
    if (context.samples / f"{of}.jsonl").is_file():
        sizes = [len(group) for group in by_question(context.earlier(of))]
        return Expected((sum(sizes),) * 2, (len(sizes),) * 2, max(sizes, default=0), tokens)
    each = (first.samples if first is not None else None) or context.samples_a_question
    most = len(train) * each
    return Expected((len(train), most), (len(train) if each > 1 else 0, len(train)), each, tokens)
