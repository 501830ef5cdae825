"""What reading gives: rows that can be asked about or learned from, and rows that cannot be used with the reason."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pocketstill_pipeline.asking import Messages
from pocketstill_pipeline.example import Split

# Deeper than any data that is meant for people, and shallow enough for every later writer of JSON.
_DEEPEST = 64
_TRAIN = frozenset({"train", "training"})
_HELDOUT = frozenset({"test", "testing", "validation", "valid", "val", "dev", "eval", "heldout", "held_out"})


class RowError(Exception):
    """One row that cannot be used; the text says why, without saying where."""


class StepError(Exception):
    """One row that is no example and was never meant to be one, such as a span of a trace; the text names its kind."""


@dataclass(frozen=True)
class DataRow:
    """One row of a user's data.

    Attributes:
        messages: what is asked, OpenAI's chat messages with tool_calls, tool_call_id and name where they have them;
            ends with a user's or a tool's turn. A `context` is part of the last user's turn.
        gold: the right answer, where there is one.
        completion: an answer that somebody gave already; a call of tools as JSON text `{"tool": ..., "arguments": ...}`
            (a list of them for several), with OpenAI's own form in `extra["tool_calls"]`.
        rationale: the reasons for it, where they are apart.
        split: what the row, or in a folder the file's name, says of it.
        context: the passage that the question is about; the bare question is then in `extra["question"]`.
        tools: JSON text of the OpenAI tools on offer, "" for none.
        where: file and line, to tell people.
        extra: the other columns, fit for JSON.
    """

    messages: Messages
    gold: str | None = None
    completion: str | None = None
    rationale: str | None = None
    split: Split | None = None
    context: str | None = None
    tools: str = ""
    where: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: file and line, and why."""

    where: str
    why: str


@dataclass(frozen=True)
class Data:
    """All rows of a source. `skipped` counts, by kind, rows that are no examples: spans and tools of a trace."""

    rows: list[DataRow]
    bad: list[BadRow]
    form: str
    skipped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One record as a file holds it, or in `why` what is wrong with it. `split` is what the file's name says."""

    where: str
    row: dict[str, Any] | None
    why: str = ""
    split: Split | None = None


def split_named(name: str) -> Split | None:
    """The side that a name of a split stands for; None for a name that is none."""
    low = name.strip().lower()
    return "train" if low in _TRAIN else "heldout" if low in _HELDOUT else None


def split_within(name: str) -> Split | None:
    """The side that a word of a longer name stands for: `my_test.csv`, `train_sft`; None for none, or both."""
    words = [name, *re.split(r"[^a-z]+", name.lower())]
    sides = {side for word in words if (side := split_named(word)) is not None}
    return sides.pop() if len(sides) == 1 else None


def plain(value: Any, depth: int = 0) -> Any:
    """A value fit for JSON and UTF-8: without NULs, numbers that are none, bytes; times and decimals as text.

    Raises:
        RowError: it nests too deeply, or a text holds half a surrogate pair.
    """
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise RowError("a text holds half a surrogate pair, which is no Unicode") from None
        return value.replace("\x00", "") if "\x00" in value else value
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth > _DEEPEST:
        raise RowError(f"nests too deeply (more than {_DEEPEST} levels)")
    if isinstance(value, Mapping):
        pairs = ((plain(str(key)), item) for key, item in value.items() if not isinstance(item, (bytes, bytearray)))
        return {key: plain(item, depth + 1) for key, item in pairs}
    if isinstance(value, (list, tuple)):
        return [plain(item, depth + 1) for item in value if not isinstance(item, (bytes, bytearray))]
    return str(value)
