"""One request to a model behind the OpenAI protocol, and what came back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .ledger import canonical, request_key

Message = dict[str, Any]
Messages = list[Message]


def user_text(messages: Sequence[Message]) -> str:
    """The turns of the user, one after the other; the last turn where none is the user's."""
    turns = [turn for turn in messages if turn.get("role") == "user"] or messages[-1:]
    return "\n".join(str(turn.get("content") or "") for turn in turns)


@dataclass(frozen=True)
class Ask:
    """One request; `sample` is the index of the sample that it draws.

    `extra` has the further parameters of the API that change the answer (tools, response_format, logprobs, stop).
    """

    endpoint: str
    model: str
    messages: Messages
    temperature: float
    max_tokens: int
    seed: int
    sample: int
    extra: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def json(self) -> str:
        """The canonical JSON that is hashed: everything that determines the answer, and nothing else."""
        fields = {name: getattr(self, name) for name in Ask.__dataclass_fields__ if name != "extra" or self.extra}
        return canonical(fields)

    @cached_property
    def key(self) -> str:
        return request_key(self.json)


@dataclass(frozen=True)
class ToolCall:
    """A call that a model asks for; `arguments` is JSON text, as it came."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Reply:
    """What came back: `text`, or in `error` why there is none. `cached`: no request was sent for it.

    `logprobs` are the API's own entries, one a token; `refusal` is what a model said that would not answer.
    """

    key: str
    text: str = ""
    finish_reason: str = "stop"
    error: str | None = None
    cached: bool = False
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: list[dict[str, Any]] | None = None
    refusal: str | None = None


def draw_seed(seed: int, sample: int, about: str) -> int:
    """The seed sent with a request: from the recipe's, the sample's index and what is asked about."""
    material = f"{seed}|{sample}|{about}".encode()
    return int.from_bytes(hashlib.blake2b(material, digest_size=4).digest(), "big") >> 1
