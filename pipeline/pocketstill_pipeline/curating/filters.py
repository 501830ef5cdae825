"""What speaks against one elicited thing by itself: the filters that need to see nothing else.

Their order is fixed, and the first that objects gives the reason, so that counts of reasons can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pocketstill import grading
from pocketstill_pipeline.example import Elicited

from .conclusions import leads_elsewhere
from .language import other_language
from .settings import Curate
from .texts import loops, refuses, stops_midway, words

# Reasons that the route itself gives ("failed_request", ...) come before these.
CONTENT_REASONS = (
    "empty", "refused", "truncated", "no_answer", "wrong", "rationale_mismatch", "language", "length", "repetition",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What is left out, and why: `reason` is one of a fixed set, `detail` is for people."""

    reason: str
    detail: str = ""


def correct(item: Elicited) -> bool | None:
    """Whether the answer equals the right one; None where there is none to compare with."""
    return None if item.gold is None else grading.equal(item.answer, item.gold, item.kind)


def said(item: Elicited) -> str:
    """All that the teacher says in the example: the rationale, then the answer."""
    return f"{item.rationale}\n{item.answer or ''}".strip()


def _is_program(item: Elicited) -> bool:
    """Whether the rationale is a program, which ran already: it is no prose to be read as such."""
    return "program" in item.tags


def judge(item: Elicited, rules: Curate) -> Verdict | None:
    """The first objection to an elicited thing, the route's own before all; None when there is none.

    A refusal is no refusal when the right answer stands in it.
    """
    if item.reason is not None and item.reason != "no_answer":
        return Verdict(item.reason, item.detail)
    for filter_ in _FILTERS:
        if (verdict := filter_(item, rules)) is not None:
            return verdict
    return None


def _empty(item: Elicited, rules: Curate) -> Verdict | None:
    return Verdict("empty") if not item.completion.strip() and not (item.answer or "").strip() else None


def _refused(item: Elicited, rules: Curate) -> Verdict | None:
    if not rules.refusals or _is_program(item) or correct(item):
        return None
    found = refuses(item.rationale or item.completion) or refuses(item.completion)
    return Verdict("refused", found) if found else None


def _truncated(item: Elicited, rules: Curate) -> Verdict | None:
    if not rules.midway or item.kind == "json" or _is_program(item):
        return None
    # A graded answer is a few words without a full stop; a free reply is prose.
    text = item.rationale if item.rationale or item.gold is not None else (item.answer or "")
    why = stops_midway(text, item.answer or "" if item.rationale else "")
    return Verdict("truncated", why) if why else None


def _no_answer(item: Elicited, rules: Curate) -> Verdict | None:
    if item.reason == "no_answer":
        return Verdict("no_answer", item.detail)
    if item.answer is None or not item.answer.strip():
        return Verdict("no_answer", item.completion.strip()[:200])
    return None


def _wrong(item: Elicited, rules: Curate) -> Verdict | None:
    if rules.answer_filter and correct(item) is False:
        return Verdict("wrong", f"{item.answer!r} instead of {item.gold!r}")
    return None


def _mismatch(item: Elicited, rules: Curate) -> Verdict | None:
    if not rules.rationale or not item.rationale or not item.answer or _is_program(item):
        return None
    if item.kind == "text" and item.gold is None:
        return None
    why = leads_elsewhere(item.rationale, item.answer, item.kind, item.question)
    return Verdict("rationale_mismatch", why) if why else None


def _language(item: Elicited, rules: Curate) -> Verdict | None:
    if rules.language == "any" or item.kind == "json" or _is_program(item):
        return None
    wanted = None if rules.language == "question" else rules.language
    text = item.rationale if item.rationale and item.gold is not None else said(item)
    why = other_language(item.question, text, wanted)
    return Verdict("language", why) if why else None


def _length(item: Elicited, rules: Curate) -> Verdict | None:
    if rules.min_words is None and rules.max_words is None:
        return None
    count = len(words(said(item)))
    if rules.min_words is not None and count < rules.min_words:
        return Verdict("length", f"{count} words, fewer than {rules.min_words}")
    if rules.max_words is not None and count > rules.max_words:
        return Verdict("length", f"{count} words, more than {rules.max_words}")
    return None


def _repetition(item: Elicited, rules: Curate) -> Verdict | None:
    found = loops(said(item), rules.repetition) if rules.repetition else None
    return Verdict("repetition", found) if found else None


_FILTERS: tuple[Callable[[Elicited, Curate], Verdict | None], ...] = (
    _empty, _refused, _truncated, _no_answer, _wrong, _mismatch, _language, _length, _repetition,
)  # fmt: skip
