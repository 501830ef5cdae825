"""The JSON of an answer: whole, and as the server-sent events of a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .protocol import ChatRequest, Choice, call_id, pieces, usage_of


def completion_json(
    request: ChatRequest, choices: list[Choice], prompt: int, identity: str, created: int
) -> dict[str, Any]:
    """The body of an answer that is not streamed; `prompt` is the number of the request's tokens."""
    return {
        "id": identity,
        "object": "chat.completion",
        "created": created,
        "model": request.model,
        "choices": [
            {
                "index": index,
                "message": _message(choice, identity, index),
                "logprobs": _logprobs(choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ],
        "usage": usage_of(prompt, choices),
    }


def _message(choice: Choice, identity: str, index: int) -> dict[str, Any]:
    said = None if choice.tool_calls or choice.refusal is not None else choice.text
    message: dict[str, Any] = {"role": "assistant", "content": said, "refusal": choice.refusal}
    if choice.tool_calls:
        message["tool_calls"] = [
            {
                "id": call_id(identity, index, number),
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
            for number, (name, arguments) in enumerate(choice.tool_calls)
        ]
    return message


def _logprobs(tokens: Any) -> dict[str, Any] | None:
    return None if tokens is None else {"content": list(tokens), "refusal": None}


def stream_events(
    request: ChatRequest, choices: list[Choice], prompt: int, identity: str, created: int
) -> Iterator[bytes]:
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

    for index, choice in enumerate(choices):
        for delta, tokens in _deltas(choice, identity, index):
            said = {"index": index, "delta": delta, "logprobs": _logprobs(tokens), "finish_reason": None}
            yield event([said], None)
        last = {"index": index, "delta": {}, "logprobs": None, "finish_reason": choice.finish_reason}
        yield event([last], None)
    if request.include_usage:
        yield event([], usage_of(prompt, choices))
    yield b"data: [DONE]\n\n"


_Delta = tuple[dict[str, Any], Any]


def _deltas(choice: Choice, identity: str, index: int) -> Iterator[_Delta]:
    if choice.tool_calls:
        yield {"role": "assistant", "content": None}, None
        for number, (name, arguments) in enumerate(choice.tool_calls):
            head = {"id": call_id(identity, index, number), "type": "function"}
            yield _call(number, head | {"function": {"name": name, "arguments": ""}})
            for piece in pieces(arguments):
                yield _call(number, {"function": {"arguments": piece}})
        return
    if choice.refusal is not None:
        yield {"role": "assistant", "content": None, "refusal": ""}, None
        for piece in pieces(choice.refusal):
            yield {"refusal": piece}, None
        return
    yield {"role": "assistant", "content": ""}, None
    if choice.logprobs is None:
        for piece in pieces(choice.text):
            yield {"content": piece}, None
        return
    if "".join(token["token"] for token in choice.logprobs) != choice.text:
        # Tokens that end inside of a character have no text of their own.
        yield {"content": choice.text}, choice.logprobs
        return
    for token in choice.logprobs:
        yield {"content": token["token"]}, [token]


def _call(number: int, what: dict[str, Any]) -> _Delta:
    return {"tool_calls": [{"index": number} | what]}, None
