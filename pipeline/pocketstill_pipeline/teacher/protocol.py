"""The OpenAI chat protocol as a server sees it: what a request says, and the JSON that answers it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Which of a question's samples is meant. OpenAI's parameters have no place for it; other servers ignore it.
SAMPLE_HEADER = "x-sample-index"
NOT_RECORDED = "not_recorded"
_MOST_CHOICES = 128
_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])\s*$|\s*(?:\w+|[^\w\s])")


class ProtocolError(Exception):
    """A request that is refused, with its HTTP status and OpenAI's error fields."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {
            "error": {"message": message, "type": "invalid_request_error", "param": param, "code": code},
        }


@dataclass(frozen=True)
class ChatRequest:
    """A checked request. `messages` are (role, text); `sample` is the index of its first choice."""

    model: str
    messages: tuple[tuple[str, str], ...]
    n: int
    temperature: float
    seed: int | None
    max_tokens: int | None
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    sample: int


@dataclass(frozen=True)
class Choice:
    """One completion, cut to the request's limits."""

    text: str
    finish_reason: str
    tokens: int


def parse_chat(body: bytes, sample_header: str | None = None) -> ChatRequest:
    """Read the body of POST /v1/chat/completions.

    Raises:
        ProtocolError: 400, naming the parameter that is wrong.
    """
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError):
        raise ProtocolError(400, "The request body is not valid JSON.") from None
    if not isinstance(raw, dict):
        raise ProtocolError(400, "The request body must be a JSON object.")
    if not isinstance(raw.get("model"), str):
        raise ProtocolError(400, "You must provide a model parameter, a string.", param="model")
    messages = raw.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ProtocolError(400, "'messages' must be a list of at least one message.", param="messages")
    options = raw.get("stream_options") or {}
    limit = _number(raw, "max_completion_tokens", None, 1, 1 << 20, whole=True)
    if limit is None:
        limit = _number(raw, "max_tokens", None, 1, 1 << 20, whole=True)
    seed = _number(raw, "seed", None, -(1 << 63), (1 << 63) - 1, whole=True)
    return ChatRequest(
        model=raw["model"],
        messages=tuple(_message(message, index) for index, message in enumerate(messages)),
        n=int(_number(raw, "n", 1, 1, _MOST_CHOICES, whole=True) or 1),
        temperature=float(_number(raw, "temperature", 1.0, 0.0, 2.0) or 0.0),
        seed=None if seed is None else int(seed),
        max_tokens=None if limit is None else int(limit),
        stop=_stop(raw.get("stop")),
        stream=raw.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        sample=int(sample_header) if sample_header and sample_header.isdecimal() else 0,
    )


def _number(
    raw: dict[str, Any], name: str, default: float | None, low: float, high: float, whole: bool = False
) -> float | None:
    value = raw.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise ProtocolError(400, f"'{name}' must be {'an integer' if whole else 'a number'}.", param=name)
    if not low <= value <= high:
        raise ProtocolError(400, f"'{name}' is {value}; it must lie between {low} and {high}.", param=name)
    return value


def _message(message: Any, index: int) -> tuple[str, str]:
    where = f"messages[{index}]"
    if not isinstance(message, dict) or message.get("role") not in (
        "system",
        "developer",
        "user",
        "assistant",
    ):
        raise ProtocolError(400, f"'{where}.role' must be system, developer, user or assistant.", param=where)
    content = message.get("content")
    if isinstance(content, list):
        texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        content = "".join(texts) if len(texts) == len(content) else None
    if not isinstance(content, str):
        raise ProtocolError(400, f"'{where}.content' must be text.", param=where)
    return message["role"], content


def _stop(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(s, str) and s for s in stops):
        raise ProtocolError(400, "'stop' must be a string or a list of at most four.", param="stop")
    return tuple(stops)


def count_tokens(text: str) -> int:
    """Words and punctuation marks: a rule of thumb that needs no tokenizer."""
    return len(pieces(text)) if text and not text.isspace() else 0


def pieces(text: str) -> list[str]:
    """The text in the pieces that `count_tokens` counts, white space with the piece that it precedes."""
    if not text or text.isspace():
        return [text] if text else []
    return _TOKEN.findall(text)


def cut(text: str, request: ChatRequest) -> Choice:
    """Apply the request's stop texts, then its token limit."""
    for stop in request.stop:
        text = text.partition(stop)[0]
    parts = pieces(text)
    if request.max_tokens is not None and len(parts) > request.max_tokens:
        return Choice("".join(parts[: request.max_tokens]), "length", request.max_tokens)
    return Choice(text, "stop", len(parts))


def _usage(request: ChatRequest, choices: list[Choice]) -> dict[str, int]:
    prompt = sum(count_tokens(content) for _, content in request.messages)
    completion = sum(choice.tokens for choice in choices)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def completion_json(request: ChatRequest, choices: list[Choice], identity: str, created: int) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    return {
        "id": identity,
        "object": "chat.completion",
        "created": created,
        "model": request.model,
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ],
        "usage": _usage(request, choices),
    }


def stream_events(request: ChatRequest, choices: list[Choice], identity: str, created: int) -> Iterator[bytes]:
    """The server-sent events of a streamed answer: role, pieces, finish reason, usage if asked, [DONE]."""

    def event(choice: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
        chunk: dict[str, Any] = {
            "id": identity,
            "object": "chat.completion.chunk",
            "created": created,
            "model": request.model,
            "choices": choice,
        }
        if request.include_usage:
            chunk["usage"] = usage
        return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"

    def delta(index: int, what: dict[str, str], reason: str | None = None) -> bytes:
        return event([{"index": index, "delta": what, "logprobs": None, "finish_reason": reason}], None)

    for index, choice in enumerate(choices):
        yield delta(index, {"role": "assistant", "content": ""})
        for piece in pieces(choice.text):
            yield delta(index, {"content": piece})
        yield delta(index, {}, choice.finish_reason)
    if request.include_usage:
        yield event([], _usage(request, choices))
    yield b"data: [DONE]\n\n"
