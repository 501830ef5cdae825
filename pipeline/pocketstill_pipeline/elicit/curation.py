"""Curation of knowledge: questions from meta-information alone, and from a user's own documents.

Xu et al. 2024 (arXiv 2402.13116, section 3.1.3, data curation): what is asked for is laid out by topics, personas and
difficulties (UltraChat, Ding et al. 2023; Persona Hub, Ge et al. 2024) instead of being grown from seed questions.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pocketstill_pipeline.asking import Reply
from pocketstill_pipeline.example import Elicited
from pocketstill_pipeline.reading import read_documents
from pocketstill_pipeline.sections import Rate
from pocketstill_pipeline.teacher.protocol import count_tokens

from .base import Asker, Context, Planned, Settings, ask_json, declined, trouble
from .prompts.curation import (
    NOT_IN_TEXT,
    Persona,
    TextQuestion,
    TextQuestions,
    grounded_request,
    question_request,
    read_topics,
    text_request,
    topics_request,
)
from .prompts.evolving import unquoted
from .sampling import tidy

_PERSONAS = [
    "a school child", "a student before an exam", "a busy parent", "an engineer", "a nurse on a night shift",
    "a retired gardener", "a journalist", "a shop owner", "a traveller in a hurry", "somebody new to the subject",
]  # fmt: skip
_DIFFICULTIES = ["easy", "moderately hard", "hard"]
_QUESTION_TOKENS, _ANSWER_TOKENS, _TEXT_QUESTION_TOKENS = (10.0, 60.0), (15.0, 200.0), (30.0, 120.0)
# How often topics are asked for when fewer than half of those wanted come.
_NAMINGS = 3
_WORD = re.compile(r"\S+")
_Words = Annotated[str, Field(pattern=r"\S")]


class FromTopics(Settings):
    """Questions about topics, as different people would ask them, and their answers."""

    method: Literal["from_topics"] = "from_topics"
    skill: str = Field(description="that the examples count as")
    who: str = Field("a helpful assistant", description="whom the questions are for")
    topics: Annotated[list[_Words], Field(min_length=1)] | Annotated[int, Field(ge=1)] = Field(
        20, description="the topics, or how many the teacher is to name"
    )
    personas: list[_Words] = Field(_PERSONAS, min_length=1, description="who asks")
    difficulties: list[_Words] = Field(_DIFFICULTIES, min_length=1, description="how hard the questions are")
    count: int = Field(200, ge=1, description="questions; drawn from all combinations, each at most once a round")


async def from_topics(settings: FromTopics, context: Context) -> AsyncIterator[Elicited]:
    """A question and its answer for each combination that is drawn."""
    teacher = context.teacher
    topics = settings.topics
    if isinstance(topics, int):
        topics, reply = await _named(settings, topics, teacher)
        if not topics:
            reason, detail = trouble(reply) or ("no_topics", reply.text[:200])
            yield _elicited(settings, "topics", "", "", (reply.key,), reason, detail)
            return

    async def one(unit: tuple[int, Persona]) -> Elicited:
        number, wanted = unit
        options = {"sample": number, "temperature": settings.temperature, "max_tokens": settings.max_tokens}
        asked = await teacher.ask(question_request(wanted), **options)  # type: ignore[arg-type]
        tags = (f"topic:{wanted.topic}", f"persona:{wanted.persona}", f"difficulty:{wanted.difficulty}")
        name, question = f"{settings.entry}-{number}", tidy(unquoted(asked.text))
        if (problem := trouble(asked) or declined(question)) is not None:
            return _elicited(settings, name, question, "", (asked.key,), *problem, tags=tags)
        said = await teacher.ask([{"role": "user", "content": question}], **options)  # type: ignore[arg-type]
        reason, detail = trouble(said) or (None, "")
        return _elicited(settings, name, question, said.text, (asked.key, said.key), reason, detail, tags=tags)

    async for found in teacher.map(one, enumerate(_drawn(settings, topics, context.seed))):
        yield found


async def _named(settings: FromTopics, count: int, teacher: Asker) -> tuple[list[str], Reply]:
    """The topics that the teacher names, and its last reply: all else hangs on them, so too few are asked for again."""
    best: list[str] = []
    for sample in range(_NAMINGS):
        reply = await teacher.ask(
            topics_request(count, settings.who), sample=sample, temperature=settings.temperature,
            max_tokens=settings.max_tokens,
        )  # fmt: skip
        problem, named = trouble(reply), read_topics(reply.text)
        if problem is not None:
            # The last one is what a token limit cut.
            named = named[:-1] if problem[0] == "truncated" else []
        best = max(best, named[:count], key=len)
        if 2 * len(best) >= count or reply.error is not None:
            break
    return best, reply


def _drawn(settings: FromTopics, topics: list[str], seed: int) -> Iterator[Persona]:
    """All combinations in random order, again and again, so that each is drawn as often as any other."""
    rng = random.Random(f"{seed}/{settings.entry}")
    every = [
        Persona(persona, topic, settings.who, difficulty)
        for topic, persona, difficulty in itertools.product(topics, settings.personas, settings.difficulties)
    ]
    for start in range(0, settings.count, len(every)):
        rng.shuffle(every)
        yield from every[: settings.count - start]


def _elicited(
    settings: FromTopics, name: str, question: str, said: str, keys: tuple[str, ...], reason: str | None, detail: str,
    *, tags: tuple[str, ...] = (),
) -> Elicited:  # fmt: skip
    return Elicited(
        id=name,
        skill=settings.skill,
        route="curation",
        method=settings.method,
        messages=[{"role": "user", "content": question}],
        answer=said.strip() or None,
        completion=said,
        kind="text",
        source=keys,
        tags=tags,
        reason=reason,
        detail=detail,
    )


def plan_topics(settings: FromTopics, context: Context) -> list[Planned]:
    """A request for the topics, or a few, one a question, and one an answer."""
    context.check_skill(settings.skill)
    prompt = float(count_tokens(question_request(Persona("a school child", "x", settings.who, "hard"))[0]["content"]))
    count = settings.count
    found = [
        Planned("questions", (count, count), (prompt, prompt + 20), _QUESTION_TOKENS),
        Planned("answers", (0, count), _QUESTION_TOKENS, _ANSWER_TOKENS),
    ]
    if isinstance(settings.topics, int):
        named = (2.0 * settings.topics, 6.0 * settings.topics)
        found.insert(0, Planned("topics", (1, _NAMINGS), (20.0, 30.0), named))
    return found


class FromDocuments(Settings):
    """Questions on a user's own texts, answered from the text alone."""

    FILES: ClassVar[tuple[str, ...]] = ("documents",)

    method: Literal["from_documents"] = "from_documents"
    skill: str = Field(description="that the examples count as")
    documents: str = Field(description="a folder or file of .txt, .md, .html, or of rows with a text")
    passage_words: int = Field(160, ge=20, description="most words of the passage that a question is on")
    overlap_words: int = Field(20, ge=0, description="words that a passage shares with the one before it")
    questions: int = Field(4, ge=1, description="questions a passage")
    unanswerable: Rate = Field(0.2, description="share of questions that the passage does not answer")

    @model_validator(mode="after")
    def _moves_on(self) -> FromDocuments:
        if self.overlap_words >= self.passage_words:
            raise ValueError("overlap_words must be less than passage_words")
        return self


async def from_documents(settings: FromDocuments, context: Context) -> AsyncIterator[Elicited]:
    """For each passage its questions, each held to the words of the passage that it quotes."""

    async def one(unit: tuple[int, str, str, int, bool]) -> list[Elicited]:
        number, name, text, count, answerable = unit
        found, reply = await ask_json(
            context.teacher,
            text_request(text, count, answerable=answerable),
            TextQuestions,
            sample=number,
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
        )
        tags = (f"document:{name}", "answerable" if answerable else "unanswerable")
        identity = f"{settings.entry}-{number}"
        if found is None:
            reason, detail = trouble(reply) or ("no_json", reply.text.strip()[:200])
            empty = TextQuestion(question="", answer="", quote="")
            return [_grounded(settings, identity, text, empty, tags, (reply.key,), reason, detail)]
        return [
            _grounded(settings, f"{identity}/{at}", text, item, tags, (reply.key,), *_held(item, text, answerable))
            for at, item in enumerate(found.questions[:count])
        ]

    async for several in context.teacher.map(one, _units(settings, context.seed)):
        for found in several:
            yield found


def _units(settings: FromDocuments, seed: int) -> Iterator[tuple[int, str, str, int, bool]]:
    """(number, document, passage, how many questions, whether the passage answers them)."""
    rng = random.Random(f"{seed}/{settings.entry}")
    number = 0
    for document in read_documents(settings.documents):
        for text in passages(document.text, settings.passage_words, settings.overlap_words):
            without = sum(rng.random() < settings.unanswerable for _ in range(settings.questions))
            for count, answerable in ((settings.questions - without, True), (without, False)):
                if count:
                    yield number, document.name, text, count, answerable
                    number += 1


def passages(text: str, words: int, overlap: int) -> Iterator[str]:
    """The text in pieces of at most so many words that share `overlap` of them, cut where a sentence ends if it can."""
    found = list(_WORD.finditer(text))
    start = 0
    while start < len(found):
        end = min(start + words, len(found))
        if end < len(found):
            # Not so early that the next piece would start no further on.
            earliest = start + max(words // 2, overlap)
            ends = (at for at in range(end, earliest, -1) if found[at - 1].group().endswith((".", "!", "?")))
            end = next(ends, end)
        yield text[found[start].start() : found[end - 1].end()]
        if end == len(found):
            return
        start = max(end - overlap, start + 1)


def _held(item: TextQuestion, text: str, answerable: bool) -> tuple[str | None, str]:
    """Why a question cannot stay: its proof is not in the text, or it has one where there should be none."""
    if not item.question.strip() or not item.answer.strip():
        return "empty", ""
    quoted = " ".join(item.quote.split())
    inside = bool(quoted) and quoted.lower() in " ".join(text.split()).lower()
    if answerable and not inside:
        return "quote_not_in_text", quoted[:200]
    if not answerable and inside:
        return "answerable_after_all", quoted[:200]
    return None, ""


def _grounded(
    settings: FromDocuments, name: str, text: str, item: TextQuestion, tags: tuple[str, ...], keys: tuple[str, ...],
    reason: str | None, detail: str,
) -> Elicited:  # fmt: skip
    answer = item.answer.strip() if "answerable" in tags else NOT_IN_TEXT
    return Elicited(
        id=name,
        skill=settings.skill,
        route="curation",
        method=settings.method,
        messages=grounded_request(text, item.question.strip()),
        answer=answer or None,
        completion=item.answer,
        kind="text",
        source=keys,
        tags=tags,
        group=f"{text}\n{item.question}",
        reason=reason,
        detail=detail,
    )


def plan_documents(settings: FromDocuments, context: Context) -> list[Planned]:
    """One or two requests a passage."""
    context.check_skill(settings.skill)
    units = list(_units(settings, context.seed))
    prompt = [count_tokens(text_request(text, count, answerable=True)[0]["content"]) for _, _, text, count, _ in units]
    mean, each = sum(prompt) / max(len(units), 1), sum(unit[3] for unit in units) / max(len(units), 1)
    low, high = _TEXT_QUESTION_TOKENS
    return [Planned("questions with answers", (len(units), 3 * len(units)), (mean, mean), (low * each, high * each))]
