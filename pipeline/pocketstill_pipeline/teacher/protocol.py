"""The OpenAI chat protocol as a server sees it: what a request says, and the JSON that answers it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from typing import Any

LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Which of a question's samples is meant. OpenAI's parameters have no place for it; other servers ignore it.
SAMPLE_HEADER = "x-sample-index"
NOT_RECORDED = "not_recorded"
# What a teacher says in place of an object that it will not write; it goes out as the message's `refusal`.
REFUSED = "I'm sorry, but I can't help with that."
_MOST_CHOICES = 128
_MOST_ALTERNATIVES = 20
_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])\s*$|\s*(?:\w+|[^\w\s])")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ROLES = ("system", "developer", "user", "assistant", "tool")


class ProtocolError(Exception):
    """A request that is refused, with its HTTP status, OpenAI's error fields and further headers."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class ChatRequest:
    """A checked request; `sample` is the index of its first choice.

    `messages` are (role, text) with role system, user, assistant or tool; the text of an assistant's tool call is
    the JSON that a teacher says for it (see `called`). `json_schema` is the schema that the answer must fit, of any
    object when only JSON was asked for. `top_logprobs` is None where no log probabilities were asked for.
    """

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
    top_p: float = 1.0
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: str | dict[str, Any] | None = None
    json_schema: dict[str, Any] | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Choice:
    """One completion, cut to the request's limits.

    `tool_calls` are (name, arguments as JSON text); with them, or with a `refusal`, the text is empty.
    `logprobs` are the objects of OpenAI's `logprobs.content`, one a token.
    """

    text: str
    finish_reason: str
    tokens: int
    tool_calls: tuple[tuple[str, str], ...] = ()
    logprobs: tuple[dict[str, Any], ...] | None = None
    refusal: str | None = None


def parse_chat(body: bytes, sample_header: str | None = None) -> ChatRequest:
    """Read the body of POST /v1/chat/completions.

    Raises:
        ProtocolError: 400, naming the parameter that is wrong.
    """
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError):
        raise ProtocolError(400, "The request body is not valid JSON.") from None
    return read_chat(raw, int(sample_header) if sample_header and sample_header.isdecimal() else 0)


def read_chat(raw: Any, sample: int = 0) -> ChatRequest:
    """Check a request that is read from JSON already.

    Raises:
        ProtocolError: 400, naming the parameter that is wrong.
    """
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
        sample=sample,
        top_p=float(_number(raw, "top_p", 1.0, 0.0, 1.0) or 0.0),
        tools=_tools(raw.get("tools")),
        tool_choice=_tool_choice(raw.get("tool_choice")),
        json_schema=_schema(raw.get("response_format")),
        top_logprobs=_alternatives(raw),
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
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise ProtocolError(400, f"'{where}.role' must be one of {', '.join(_ROLES)}.", param=where)
    role, content = message["role"], message.get("content")
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise ProtocolError(400, f"'{where}.tool_call_id' must be given.", param=where)
    if role == "assistant" and message.get("tool_calls"):
        return role, _said_calls(message["tool_calls"], where)
    if isinstance(content, list):
        texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        content = "".join(texts) if len(texts) == len(content) else None
    if role == "assistant" and content is None and isinstance(message.get("refusal"), str):
        content = message["refusal"]
    if not isinstance(content, str):
        raise ProtocolError(400, f"'{where}.content' must be text.", param=where)
    # OpenAI's newer name for the same place in a conversation.
    return "system" if role == "developer" else role, content


def _said_calls(calls: Any, where: str) -> str:
    said = []
    try:
        for call in calls:
            function = call["function"]
            name, arguments = function["name"], json.loads(function["arguments"])
            if not isinstance(name, str):
                raise TypeError
            said.append(json.dumps({"tool": name, "arguments": arguments}, ensure_ascii=False))
    except (TypeError, KeyError, ValueError, RecursionError):
        raise ProtocolError(
            400, f"'{where}.tool_calls' must be calls of functions by name, with arguments in JSON.", param=where
        ) from None
    return said[0] if len(said) == 1 else f"[{', '.join(said)}]"


def _stop(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(s, str) and s for s in stops):
        raise ProtocolError(400, "'stop' must be a string or a list of at most four.", param="stop")
    return tuple(stops)


def _tools(value: Any) -> tuple[dict[str, Any], ...]:
    tools = [] if value is None else value
    if not isinstance(tools, list):
        raise ProtocolError(400, "'tools' must be a list.", param="tools")
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            said = f"'tools[{index}]' must be of type function, with a name of letters, digits, _ and -."
            raise ProtocolError(400, said, param="tools")
    return tuple(tools)


def _tool_choice(value: Any) -> str | dict[str, Any] | None:
    if value in (None, "none", "auto", "required") or (isinstance(value, dict) and value.get("type") == "function"):
        return value  # type: ignore[no-any-return]
    raise ProtocolError(400, "'tool_choice' must be none, auto, required or a function.", param="tool_choice")


def _schema(value: Any) -> dict[str, Any] | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if value is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    given = value.get("json_schema") if kind == "json_schema" else None
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise ProtocolError(400, "'response_format' must be text, json_object or json_schema.", param="response_format")
    schema = given.get("schema", {"type": "object"})
    if not isinstance(schema, dict):
        raise ProtocolError(400, "'response_format.json_schema.schema' must be an object.", param="response_format")
    return schema


def _alternatives(raw: dict[str, Any]) -> int | None:
    count = _number(raw, "top_logprobs", None, 0, _MOST_ALTERNATIVES, whole=True)
    if raw.get("logprobs") is True:
        return int(count or 0)
    if count is not None:
        raise ProtocolError(400, "'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs")
    return None


def count_tokens(text: str) -> int:
    """Words and punctuation marks: a rule of thumb that needs no tokenizer."""
    return len(pieces(text)) if text and not text.isspace() else 0


def pieces(text: str) -> list[str]:
    """The text in the pieces that `count_tokens` counts, white space with the piece that it precedes."""
    if not text or text.isspace():
        return [text] if text else []
    return _TOKEN.findall(text)


def prompt_tokens(request: ChatRequest) -> int:
    """What a request's messages count."""
    return sum(count_tokens(content) for _, content in request.messages)


def cut(text: str, request: ChatRequest) -> Choice:
    """Apply the request's stop texts, then its token limit."""
    for stop in request.stop:
        text = text.partition(stop)[0]
    parts = pieces(text)
    if request.max_tokens is not None and len(parts) > request.max_tokens:
        return Choice("".join(parts[: request.max_tokens]), "length", request.max_tokens)
    return Choice(text, "stop", len(parts))


def called(choice: Choice, request: ChatRequest) -> Choice:
    """The choice with a tool call for its text, or a refusal, where that is what the text says.

    Asked with tools, `{"tool": name, "arguments": {...}}`, or a list of such, is a call of them. Asked for an
    object, `REFUSED` is a refusal.
    """
    if choice.finish_reason != "stop":
        return choice
    if request.json_schema is not None and choice.text.strip() == REFUSED:
        return replace(choice, text="", refusal=REFUSED, logprobs=None)
    calls = _calls(choice.text) if request.tools and request.tool_choice != "none" else ()
    if not calls:
        return choice
    return Choice("", "tool_calls", choice.tokens, tool_calls=calls)


def _calls(text: str) -> tuple[tuple[str, str], ...]:
    if not text.lstrip().startswith(("{", "[")):
        return ()
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    calls = []
    for call in said if isinstance(said, list) else [said]:
        if not isinstance(call, dict) or not isinstance(call.get("tool"), str):
            return ()
        if not isinstance(call.get("arguments"), dict):
            return ()
        calls.append((call["tool"], json.dumps(call["arguments"], ensure_ascii=False)))
    return tuple(calls)


def usage_of(prompt: int, choices: list[Choice]) -> dict[str, int]:
    """OpenAI's `usage` of a request of `prompt` tokens."""
    completion = sum(choice.tokens for choice in choices)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def call_id(identity: str, index: int, number: int) -> str:
    """The id of a tool call: the same whenever the same request is answered."""
    return "call_" + hashlib.blake2b(f"{identity}/{index}/{number}".encode(), digest_size=12).hexdigest()
