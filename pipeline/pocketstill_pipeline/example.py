"""The one schema that every knowledge route produces and every objective eats."""

from __future__ import annotations

import base64
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from typing import Any, Literal

from pocketstill.grading import Kind

from .asking import Message, Messages, user_text

# Behind the name of a skill: its held-out questions with names that are in no training text, reported apart.
UNSEEN_SUFFIX = "_unseen"
Route = Literal["labeling", "expansion", "curation", "feature", "feedback", "self_knowledge"]
Split = Literal["train", "heldout"]


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to ask the teacher, with the answer that a right completion ends in.

    `occurrence` counts the equal questions before it in its source: a file may hold one more than once, and each is
    asked for samples of its own. `before` are the turns that went before it, `tools` the tools on offer (OpenAI's JSON
    as text, or "").
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
    before: tuple[Message, ...] = ()
    tools: str = ""

    @property
    def whole(self) -> str:
        """All that it asks: the turns of the user, one after the other."""
        return user_text([*self.before, {"role": "user", "content": self.text}])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; `from_dict` reads it back."""
        return asdict(self) | {"tags": list(self.tags)}

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Question:
        return cls(**(row | {name: tuple(row.get(name, ())) for name in ("tags", "before")}))


@dataclass(frozen=True)
class Elicited:
    """One thing that a route made, before curation: what the student would be asked, and what the teacher said.

    Attributes:
        id: unique within its entry, and the same in every run.
        messages: what the student is asked, ending with a user's or a tool's turn.
        answer: what was extracted by `kind`, or the whole reply where the form is free; None when there is none.
        completion: the teacher's last reply, as it came.
        gold: the right answer; None where there is nothing to compare with.
        source: keys of the ledger rows that it was made from.
        group: what a cap per question and a split by template count by; "" stands for the question's text.
        demonstrations: turns of user and assistant that go before `messages` (k-shot).
        candidates: {"completion", "score"}, best first, for objectives that rank.
        top_logprobs: packed, see `elicit/feature.py`.
        tools: the tools that were offered, OpenAI's JSON as text.
        scores: such as quality and complexity.
        reason, detail: why the route itself rejects it; None when nothing speaks against it so far.
    """

    id: str
    skill: str
    route: Route
    method: str
    messages: Messages
    answer: str | None
    completion: str
    kind: Kind
    rationale: str = ""
    gold: str | None = None
    split: Split = "train"
    source: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    group: str = ""
    demonstrations: list[Message] = field(default_factory=list)
    candidates: list[dict[str, Any]] = field(default_factory=list)
    top_logprobs: bytes | None = None
    tools: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    reason: str | None = None
    detail: str = ""

    @property
    def question(self) -> str:
        """The text of the last turn, which the student is to answer."""
        return str(self.messages[-1].get("content") or "")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form without what is empty; `from_dict` reads it back."""
        row = {name: value for name, default in _defaults() if (value := getattr(self, name)) != default}
        if self.top_logprobs is not None:
            row["top_logprobs"] = base64.b85encode(self.top_logprobs).decode()
        return row

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Elicited:
        made = dict(row)
        for name in ("source", "tags"):
            made[name] = tuple(row.get(name, ()))
        if "top_logprobs" in row:
            made["top_logprobs"] = base64.b85decode(row["top_logprobs"])
        return cls(**made)


@cache
def _defaults() -> list[tuple[str, Any]]:
    """Each field of `Elicited` with what it is when nothing is said of it; required ones have a value of their own."""
    made = []
    for item in fields(Elicited):
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        made.append((item.name, default))
    return made


@dataclass(frozen=True)
class Example:
    """One training or held-out example (survey, section 3: knowledge elicitation).

    `messages` ends with the user's turn; `rationale` and `answer` are what the teacher said. `source` names the
    ledger rows that the example was made from, so that each can be traced to what was paid for. The other fields are
    those of `Elicited`; `weight` is what it counts in training.
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
    top_logprobs: bytes | None = None
    method: str = ""
    tools: str = ""
    weight: float = 1.0
    scores: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
