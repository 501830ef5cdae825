"""Which form rows come in, told by their columns, and which column is which part."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pocketstill.errors import UserError
from pocketstill_pipeline.example import Split

from . import chat
from .rows import RowError, split_named

FORMS = (
    "question", "completion", "alpaca", "chat", "sharegpt", "recorded", "log", "stored", "batch", "langfuse",
    "langsmith",
)  # fmt: skip
# What each part of a plain row may be called, the likeliest first.
ALIASES: dict[str, tuple[str, ...]] = {
    "question": ("question", "prompt", "instruction", "query", "problem", "input"),
    "gold": (
        "gold",
        "answer",
        "target",
        "label",
        "final_answer",
        "expected_output",
        "reference",
        "answers",
        "answerKey",
        "output",
    ),
    "completion": ("completion", "response", "reply", "chosen"),
    "rationale": ("rationale", "reasoning", "explanation", "chain_of_thought", "cot", "solution"),
    "split": ("split",),
    "context": ("context", "passage"),
    "choices": ("choices", "options"),
    "system": ("system", "system_prompt"),
    "tools": ("tools", "functions"),
}
# The other fields that a mapping of columns may name.
_FIELDS = (
    "messages", "conversations", "instruction", "input", "output", "history", "inputs", "outputs", "request",
    "response", "choices", "custom_id", "body", "expected_output", "metadata", "reasoning", "answer_prompt",
    "answer_completion",
)  # fmt: skip
RECORDED = ("reasoning", "answer_prompt", "answer_completion")
_LANGFUSE = frozenset(
    "traceId trace_id observations sessionId session_id projectId project_id startTime start_time datasetId dataset_id "
    "expectedOutput parentObservationId parent_observation_id sourceTraceId source_trace_id trace".split()
)


@dataclass(frozen=True)
class Layout:
    """How the rows of a source are read: the form, the column of each part, and the parts that each row needs."""

    form: str
    columns: Mapping[str, str]
    needed: frozenset[str]


def find_layout(rows: Sequence[dict[str, Any]], source: str, form: str, columns: Mapping[str, str]) -> Layout:
    """The layout that most of the first rows of a source have.

    Raises:
        UserError: the form or a field is unknown, a mapping names a column that is not there, or no form fits.
    """
    if form != "auto" and form not in FORMS:
        nearest = difflib.get_close_matches(form, FORMS, n=1, cutoff=0.0)
        raise UserError(f"{form!r} is no form of data; nearest: {nearest[0]!r}, known: auto, {', '.join(FORMS)}")
    for field, column in columns.items():
        _check_mapping(rows, source, field, column)
    if form == "auto":
        form = _most_common(rows, source, columns)
    chosen = dict(columns)
    for part, aliases in ALIASES.items():
        if part not in chosen:
            taken = set(chosen.values())
            # In a conversation or a trace a column "answer" or "label" may be anything.
            aliases = aliases if form in ("question", "completion") or part in ("tools", "system") else aliases[:1]
            found = [name for name in aliases if name not in taken and _share(rows, name) > 0.5]
            chosen[part] = found[0] if found else part
    needed = frozenset(part for part in _needed(form) if part == "question" or _share(rows, chosen[part]) > 0.5)
    return Layout(form, chosen, needed)


def _check_mapping(rows: Sequence[dict[str, Any]], source: str, field: str, column: str) -> None:
    fields = dict.fromkeys((*ALIASES, *_FIELDS))
    if field not in fields:
        nearest = difflib.get_close_matches(field, fields, n=1, cutoff=0.0)[0]
        raise UserError(f"columns.{field}: no field is called so; nearest: {nearest!r}, known: {', '.join(fields)}")
    if rows and all(_get(row, column) is None for row in rows):
        names = _names(rows)
        nearest = ", ".join(map(repr, difflib.get_close_matches(column, names, n=1, cutoff=0.0)))
        raise UserError(f"{source}: columns.{field} names {column!r}, which no row has; nearest: {nearest}")


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(" ".join(name.split())[:60] for row in rows for name in row))


def _share(rows: Sequence[dict[str, Any]], column: str) -> float:
    """The share of rows that have something in a column."""
    return sum(_get(row, column) is not None for row in rows) / len(rows) if rows else 0.0


def _most_common(rows: Sequence[dict[str, Any]], source: str, columns: Mapping[str, str]) -> str:
    counted = Counter(found for row in rows if (found := _form_of(row, set(columns))) is not None)
    if not counted:
        names = ", ".join(_names(rows)[:12])
        raise UserError(
            f"{source}: its columns ({names}) fit no form of data; say which is which with columns, such as "
            f'columns = {{ question = "{names.partition(",")[0]}" }}, or name the form: {", ".join(FORMS)}'
        )
    return counted.most_common(1)[0][0]


def _form_of(row: Mapping[str, Any], mapped: set[str]) -> str | None:
    names = {name for name, value in row.items() if value is not None} | mapped
    if names >= {"question", *RECORDED}:
        return "recorded"
    if "custom_id" in names and names & {"body", "response"}:
        return "batch"
    answered = isinstance(chat.loaded(row.get("response")), Mapping)
    if "response" in names and ("request" in names or (answered and names & {"messages", "prompt", "input"})):
        return "log"
    if "choices" in names and (row.get("object") == "chat.completion" or "messages" in names):
        return "stored"
    if "run_type" in names or names >= {"inputs", "outputs"}:
        return "langsmith"
    if names & _LANGFUSE and names & {"input", "output", "observations", "trace"}:
        return "langfuse"
    for form, field in (("sharegpt", "conversations"), ("sharegpt", "conversation"), ("chat", "messages")):
        if field in names:
            return form
    # With "output" mapped elsewhere the row is no longer Alpaca's.
    if names >= {"instruction", "output"} and not mapped & {"question", "gold", "completion"}:
        return "alpaca"
    if mapped & {"question"} or names & set(ALIASES["question"]):
        return "completion" if names & set(ALIASES["completion"]) else "question"
    return None


def _needed(form: str) -> tuple[str, ...]:
    return {"question": ("question", "gold"), "completion": ("question", "completion"), "recorded": ("gold",)}.get(
        form, ()
    )


def _get(row: Mapping[str, Any], column: str) -> Any:
    """What a column holds; `a.b` is looked for inside of `a` where there is no column of that name."""
    if column in row or "." not in column:
        return row.get(column)
    first, _, rest = column.partition(".")
    inner = chat.loaded(row.get(first))
    return _get(inner, rest) if isinstance(inner, Mapping) else None


class Fields:
    """The fields of one row under a layout; what is not taken is left over as `extra`."""

    def __init__(self, row: Mapping[str, Any], layout: Layout) -> None:
        self._row, self._layout = row, layout
        self._taken: set[str] = set()

    def take(self, field: str) -> Any:
        column = self._layout.columns.get(field, field)
        self._taken.add(column)
        return _get(self._row, column)

    def text(self, field: str) -> str | None:
        """A text that is not blank; None where the field is missing and need not be there."""
        return self._checked(field, self.take(field))

    def _checked(self, field: str, value: Any) -> str | None:
        name = self._layout.columns.get(field, field)
        if value is None:
            if field in self._layout.needed:
                raise RowError(f"the field {name!r} is missing")
            return None
        if not isinstance(value, str):
            raise RowError(f"the field {name!r} is not a string")
        if not value.strip():
            if field in self._layout.needed:
                raise RowError(f"the field {name!r} is empty")
            return None
        return value

    def answer(self, field: str) -> str | None:
        """As `text`, but numbers and objects are written out, and of several right answers the first is taken."""
        value = self.take(field)
        name = self._layout.columns.get(field, field)
        if isinstance(value, Mapping) and isinstance(value.get("text"), list):
            value = value["text"]
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            if not value:
                raise RowError(f"the field {name!r} is empty")
            if len(value) > 1:
                self._taken.discard(name)
            value = value[0]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, Mapping):
            return json.dumps(value, ensure_ascii=False)
        return self._checked(field, value)

    def split(self) -> Split | None:
        value = self.take("split")
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if value is None or value == "":
            return None
        found = split_named(value) if isinstance(value, str) else None
        if found is None:
            raise RowError(f"split is {value!r}; it must be 'train' or 'test'")
        return found

    def extra(self) -> dict[str, Any]:
        return {name: value for name, value in self._row.items() if name not in self._taken and value is not None}
