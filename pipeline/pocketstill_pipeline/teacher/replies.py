"""What a chat completion's body says: whether it can be used, what it cost, and the Reply that it is."""

from __future__ import annotations

import json
import re
from typing import Any

from pocketstill_pipeline.asking import Reply, ToolCall
from pocketstill_pipeline.compact import HALVES
from pocketstill_pipeline.ledger import Row

FILTERED = "stopped by the teacher's content filter"
# Reasons to finish that servers have for an answer that broke off: OpenRouter's and vLLM's.
_BROKEN_OFF = ("error", "abort")
# What a model thought aloud, as servers without a parser for it leave it in the text; some leave out the first tag.
_THOUGHT = re.compile(r"\A\s*(?:<think>)?(?:(?!<think>).)*?</think>", re.DOTALL)


def unusable(body: Any) -> str | None:
    """Why a body with status 200 is no answer; None when it is one.

    An answer has text, calls of tools, or a refusal. One that was filtered is an answer too, and so is one without
    text whose tokens ran out, in reasoning that is not shown: to ask again would cost as much and end the same.
    """
    try:
        choice = body["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        content, calls = message.get("content"), message.get("tool_calls")
    except (KeyError, IndexError, TypeError, AttributeError):
        return "the teacher's answer has no choices" + _told(body)
    if reason in _BROKEN_OFF or choice.get("error"):
        return "the teacher's answer broke off" + _told(choice)
    if calls:
        try:
            _calls(calls)
        except (KeyError, TypeError, AttributeError):
            return "the teacher's answer has tool calls that cannot be read"
        return None
    if isinstance(content, str) or isinstance(message.get("refusal"), str) or reason in ("content_filter", "length"):
        return None
    return "the teacher's answer has no text"


def _told(holder: Any) -> str:
    """What the `error` of a body or a choice says, behind a colon."""
    said = holder.get("error") if isinstance(holder, dict) else None
    said = said.get("message") if isinstance(said, dict) else said
    return f": {' '.join(str(said).split())[:300]}" if said else ""


def usage_of(body: Any) -> tuple[int | None, int | None]:
    """Tokens of the prompt and of the completion, as the body reports them."""
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return None, None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return prompt if isinstance(prompt, int) else None, completion if isinstance(completion, int) else None


def reply_of(key: str, body: Any, *, cached: bool = False) -> Reply:
    """The reply of a usable body. Thinking aloud up to </think> is no part of its text; the ledger keeps it."""
    choice = body["choices"][0]
    message = choice["message"]
    reason = choice.get("finish_reason") or "stop"
    content, refusal, logprobs = message.get("content"), message.get("refusal"), choice.get("logprobs")
    entries = logprobs.get("content") if isinstance(logprobs, dict) else None
    listed = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    return Reply(
        key,
        _sound(_spoken(content)) if isinstance(content, str) else "",
        reason,
        cached=cached,
        tool_calls=_calls(message.get("tool_calls") or ()),
        logprobs=entries if listed else None,
        refusal=_sound(str(refusal)) if refusal else FILTERED if reason == "content_filter" else None,
    )


def _spoken(text: str) -> str:
    return _THOUGHT.sub("", text, count=1) if "</think>" in text else text


def _sound(text: str) -> str:
    return HALVES.sub("\ufffd", text)


def stored_reply(row: Row | None) -> Reply | None:
    """The reply that a ledger row holds; None if it was never answered, nor failed."""
    if row is None or row.state == "pending":
        return None
    if row.state == "failed" or row.response is None:
        return Reply(row.key, error=row.error or "failed", cached=True)
    return reply_of(row.key, json.loads(row.response), cached=True)


def _calls(calls: Any) -> tuple[ToolCall, ...]:
    found = []
    for call in calls:
        function = call["function"]
        arguments = function.get("arguments") or "{}"
        # Some servers give the arguments as an object.
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        found.append(ToolCall(_sound(str(call.get("id") or "")), _sound(str(function["name"])), _sound(text)))
    return tuple(found)
