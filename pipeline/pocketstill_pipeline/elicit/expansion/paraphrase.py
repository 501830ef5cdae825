"""Paraphrase: a training question in other words, with the answer that it already has.

More wordings of the same questions, as data sets for mathematics are grown by rephrasing (Yu et al. 2024, MetaMath,
arXiv 2309.12284, section 3.1). A wording must keep the question's facts; whether it still asks the same is seen when
the teacher's answer to it equals the gold one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from pocketstill.errors import UserError
from pocketstill_pipeline.asking import Reply
from pocketstill_pipeline.elicit.base import Context, Planned, Settings, trouble
from pocketstill_pipeline.elicit.prompts.evolving import paraphrase_request
from pocketstill_pipeline.elicit.prompts.expansion import read_list
from pocketstill_pipeline.elicit.sampling import (
    ANSWER_TOKENS,
    RATIONALE_TOKENS,
    question_messages,
    read_sample,
    two_steps,
)
from pocketstill_pipeline.example import Elicited, Question
from pocketstill_pipeline.prompts import first_request, reasons_first
from pocketstill_pipeline.question_file import select
from pocketstill_pipeline.sections import Rate
from pocketstill_pipeline.teacher.protocol import count_tokens

from .openers import OPENERS
from .rouge import RougePool
from .stopwords import STOPWORDS

_NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*|\d+")
_QUOTED = re.compile(r'"([^"]+)"')
_CAPITAL = re.compile(r"(?<![\w'’])[^\W\d_a-z]\w*(?:-\w+)*")
_SENTENCE_END = re.compile(r"(?:^|^\w+, |[.!?:]\s+|\n)[\"'(]*$")
# Spelt-out numbers are the same facts; "one" is left out, because it is a pronoun too.
_SPELT = {
    word: str(value)
    for value, word in enumerate(
        "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen twenty".split(),
        start=2,
    )
}
_SPELT_WORD = re.compile(rf"\b(?:{'|'.join(_SPELT)})\b", re.IGNORECASE)


class Paraphrase(Settings):
    """Word training questions anew, and answer the new wordings."""

    method: Literal["paraphrase"] = "paraphrase"
    skills: list[str] = Field(default_factory=list, description="whose training questions; all when left out")
    limit: int | None = Field(None, ge=1, description="most questions to word anew")
    wordings: int = Field(3, ge=1, le=20, description="new wordings a question")
    similar: Rate = Field(0.9, description="ROUGE-L F from which a wording is too near to another one of its question")
    label: bool = Field(True, description="ask for a chain of thought to each; else the gold answer alone is kept")


async def paraphrase(settings: Paraphrase, context: Context) -> AsyncIterator[Elicited]:
    """Question by question, each with its new wordings in the order of the reply.

    Raises:
        UserError: the recipe has no such skill, or one without right answers is not to be labelled.
    """

    async def one(question: Question) -> list[Elicited]:
        reply = await context.teacher.ask(
            paraphrase_request(question.text, settings.wordings),
            sample=question.occurrence,
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
        )
        graded = context.skills[question.skill].graded
        told = trouble(reply)
        texts = [] if told and told[0] != "truncated" else read_list(reply.text)
        if not texts:
            reason, detail = told or ("no_list", reply.text.strip()[:200])
            return [_rejected(question, "", reply, (reason, detail), question.text, graded=graded)]
        pool, made = RougePool([question.text]), []
        for index, text in enumerate(texts[: settings.wordings]):
            cut = told if index == len(texts) - 1 else None
            problem = cut or check_wording(question, text, pool, settings.similar)
            if problem is not None:
                made.append(_rejected(question, f"/{index}", reply, problem, text, graded=graded))
                continue
            pool.add(text)
            made.append(await _labelled(question, f"/{index}", text, reply, settings, context))
        return made

    async for items in context.teacher.map(one, _questions(settings, context)):
        for item in items:
            yield item


def _questions(settings: Paraphrase, context: Context) -> Sequence[Question]:
    found = select(context.of_skills(settings.skills), lambda question: question.split == "train")[: settings.limit]
    free = next((q.skill for q in found if not context.skills[q.skill].graded), None)
    if free is not None and not settings.label:
        raise UserError(
            f"elicit {settings.entry}: skill {free!r} has no right answers to keep; leave label = false out"
        )
    return found


def check_wording(question: Question, text: str, pool: RougePool, similar: float) -> tuple[str, str] | None:
    """Why a wording cannot be used, as (reason, detail); None when it can."""
    changed = changed_facts(question.text, text)
    if changed:
        return "changed_facts", changed
    near = pool.nearest(text, similar) if similar > 0 else None
    if near is not None:
        return "similar_wording", f"{near.score:.3f} with {near.text!r}"
    return ("similar_wording", "word for word") if text in pool else None


def changed_facts(question: str, text: str) -> str:
    """What differs in numbers, quoted words, names or choices between two wordings; "" when nothing does.

    A name is a word with a capital letter, other than a common word that starts a sentence. Who does what to whom
    is not seen here.
    """
    before, after = _numbers(question), _numbers(text)
    if before != after:
        return f"numbers {_listed(before - after)} became {_listed(after - before)}"
    quoted = [part for part in _QUOTED.findall(question) if part not in text]
    if quoted:
        return f"{quoted[0]!r} is gone"
    said = {word.lower() for word in re.findall(r"\w+(?:-\w+)*", text)}
    gone = sorted(name for name in _names(question) if name.lower() not in said)
    if gone:
        return f"{gone[0]} is gone"
    known = {word.lower() for word in re.findall(r"\w+(?:-\w+)*", question)}
    new = sorted(name for name in _names(text, within=True) if name.lower() not in known)
    return f"{new[0]} is new" if new else ""


def _numbers(text: str) -> Counter[str]:
    digits = (found.replace(",", "").rstrip(".") for found in _NUMBER.findall(text))
    return Counter([*digits, *(_SPELT[word.lower()] for word in _SPELT_WORD.findall(text))])


def _listed(numbers: Counter[str]) -> str:
    return ", ".join(sorted(numbers.elements())) or "none"


def _names(text: str, *, within: bool = False) -> set[str]:
    """The names in a text; with `within`, only those that do not start a sentence, which are surer."""
    found = set()
    for word in _CAPITAL.finditer(text):
        if not word[0][0].isupper() or word[0] == "I" or (word[0].lower() in STOPWORDS and len(word[0]) > 1):
            continue
        starts = _SENTENCE_END.search(text[: word.start()]) is not None
        if not (starts and (within or word[0].lower() in OPENERS)):
            found.add(word[0])
    return found


async def _labelled(
    question: Question, index: str, text: str, reply: Reply, settings: Paraphrase, context: Context
) -> Elicited:
    """The new wording with the teacher's reasons and answer, or with the gold answer alone."""
    tags = (*question.tags, "paraphrase")
    worded = replace(question, id=f"{question.id}{index}", text=text, route="expansion", tags=tags, occurrence=0)
    if not settings.label:
        made = Elicited(
            id=worded.id, skill=worded.skill, route="expansion", method="paraphrase",
            messages=question_messages(worded), answer=question.gold, completion=question.gold, kind=question.kind,
            gold=question.gold, tags=tags,
        )  # fmt: skip
        return replace(made, source=(reply.key,), group=question.id)
    options: dict[str, Any] = {
        "about": text, "temperature": settings.temperature, "max_tokens": settings.max_tokens,
    }  # fmt: skip
    replies = await two_steps(context.teacher, worded, options)
    sample = read_sample(worded, 0, replies, graded=context.skills[question.skill].graded)
    return replace(sample, id=worded.id, method="paraphrase", source=(reply.key, *sample.source), group=question.id)


def _rejected(
    question: Question, index: str, reply: Reply, problem: tuple[str, str], text: str, *, graded: bool
) -> Elicited:
    return Elicited(
        id=f"{question.id}{index}", skill=question.skill, route="expansion", method="paraphrase",
        messages=[{"role": "user", "content": text}], answer=None, completion=text if index else reply.text,
        kind=question.kind, gold=question.gold if graded else None, source=(reply.key,),
        tags=(*question.tags, "paraphrase"), group=question.id, reason=problem[0], detail=problem[1],
    )  # fmt: skip


def plan(settings: Paraphrase, context: Context) -> list[Planned]:
    """One request a question, and up to two for each of its wordings."""
    questions = _questions(settings, context)
    sizes = [count_tokens(question.text) for question in questions]
    mean = sum(sizes) / max(len(sizes), 1)
    listed = settings.wordings * (mean + 3)
    made = [Planned("wordings", (len(sizes), len(sizes)), (mean + 65, mean + 65), (0.7 * listed, 1.5 * listed))]
    if not settings.label:
        return made
    most = len(questions) * settings.wordings
    first = sum(count_tokens(m["content"]) for q in questions for m in first_request(q.text, q.kind))
    prompt = first / max(len(questions), 1)
    made.append(Planned("rationales", (0, most), (0.7 * prompt, 1.5 * prompt), RATIONALE_TOKENS))
    behind = sum(reasons_first(question.kind) for question in questions) * settings.wordings
    if behind:
        low, high = RATIONALE_TOKENS
        made.append(Planned("answers", (0, behind), (0.7 * prompt + low, 1.5 * prompt + high + 12), ANSWER_TOKENS))
    return made
