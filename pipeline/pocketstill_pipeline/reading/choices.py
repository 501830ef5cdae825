"""Questions with choices as sets of them are kept: the choices apart, with a label or an index as gold."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

from .rows import RowError

_LABELLED = re.compile(r"\(?([A-Z])[).:]\s*")


def with_choices(question: str, choices: Any, gold: str | None) -> tuple[str, str | None]:
    """The question with its choices behind it, lettered from A, and the letter of the right one.

    `choices` is a list of texts, an object of labels and texts, or `{"text": [...], "label": [...]}`; `gold` one of the
    labels, a letter, an index from 0, or the text of a choice.

    Raises:
        RowError: the choices are no texts, or the gold answer is none of them.
    """
    labels, texts = _choices(choices)
    letters = string.ascii_uppercase[: len(texts)]
    if "Answer Choices:" not in question:
        listed = " ".join(f"({letter}) {text}" for letter, text in zip(letters, texts, strict=True))
        question = f"{question.rstrip()}\nAnswer Choices: {listed}"
    if gold is None:
        return question, None
    said = gold.strip()
    for place in (labels, list(letters), texts):
        if said in place:
            return question, letters[place.index(said)]
    if (bare := _LABELLED.sub("", said, count=1)) in texts:
        return question, letters[texts.index(bare)]
    if said.isdecimal() and int(said) < len(texts):
        return question, letters[int(said)]
    raise RowError(f"the right answer {gold[:40]!r} is none of the choices")


def _choices(value: Any) -> tuple[list[str], list[str]]:
    labels: Any = []
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        labels, value = value.get("label") or [], value["text"]
    elif isinstance(value, Mapping):
        labels, value = list(value), list(value.values())
    if not isinstance(value, list) or not 2 <= len(value) <= 26 or not all(isinstance(text, str) for text in value):
        raise RowError("the choices are not a list of 2 to 26 texts")
    found = [match[1] for text in value if (match := _LABELLED.match(text))]
    # "U.S." and "E.U." begin as labels do, but not with A and B.
    if found == list(string.ascii_uppercase[: len(value)]):
        value = [_LABELLED.sub("", text, count=1) for text in value]
    if not isinstance(labels, list) or len(labels) not in (0, len(value)):
        raise RowError("the choices have labels that do not go with them")
    return [str(label) for label in labels], value
