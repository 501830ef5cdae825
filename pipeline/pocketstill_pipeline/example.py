"""The one schema that every knowledge route produces and every objective eats."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pocketstill.grading import Kind

Route = Literal["labeling", "expansion", "curation", "feature", "feedback", "self_knowledge"]
Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class Question:
    """One thing to ask the teacher, with the answer that a right completion ends in.

    `occurrence` counts the equal questions before it in its source: a file may hold one more than once, and each is
    asked for samples of its own.
    """

    id: str
    skill: str
    text: str
    gold: str
    kind: Kind
    split: Split
    route: Route = "labeling"
    tags: tuple[str, ...] = ()
    occurrence: int = 0

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; `from_dict` reads it back."""
        return asdict(self) | {"tags": list(self.tags)}

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Question:
        return cls(**(row | {"tags": tuple(row.get("tags", ()))}))


@dataclass(frozen=True)
class Example:
    """One training or held-out example (survey, section 3: knowledge elicitation).

    `messages` ends with the user's turn; `rationale` and `answer` are what the teacher said. `source` names the
    ledger rows that the example was made from, so that each can be traced to what was paid for.
    """

    id: str
    skill: str
    route: Route
    messages: list[dict[str, str]]
    rationale: str
    answer: str
    answer_kind: Kind
    gold: str
    split: Split
    source: list[str]
    tags: list[str] = field(default_factory=list)
    demonstrations: list[dict[str, str]] = field(default_factory=list)
    candidates: list[dict[str, Any]] = field(default_factory=list)
    top_logprobs: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
