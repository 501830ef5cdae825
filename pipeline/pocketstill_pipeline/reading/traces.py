"""What was asked and answered in exported traces, whichever tool wrote them down.

Read are OpenAI's chat completions and responses as they are stored or logged, its Batch API's files, and the exports
of Langfuse (observations, traces, items of a data set) and LangSmith (runs and examples).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pocketstill_pipeline.asking import Messages

from .chat import loaded, turns
from .rows import RowError, StepError

_ASKED = ("messages", "input", "inputs", "prompt", "prompts", "question", "query", "text", "content", "kwargs")
_STRUCTURED = frozenset({"role", "from", "messages", "message", "choices", "generations", "kwargs", "body"})
_SAID = ("answer", "output", "outputs", "text", "completion", "response", "result", "body", "parsed")
# Langfuse's kinds of observations that are a model's call.
_MODEL_CALLS = ("GENERATION", "llm", "LLM", "chat_model")


def asked(value: Any) -> Messages:
    """The turns of a request: a text, messages, or an object that holds one of them.

    Raises:
        RowError: there are none.
    """
    value = _structured(value)
    if isinstance(value, str) and value.strip():
        return [{"role": "user", "content": value}]
    if isinstance(value, list) and value:
        first = _structured(value[0])
        # LangChain logs a list of conversations, and of prompts, with one of them in it.
        return asked(first) if isinstance(first, (list, str)) else turns(value, "messages")
    if isinstance(value, Mapping):
        if isinstance(value.get("body"), (Mapping, str)):
            return asked(value["body"])
        system = next((value[key] for key in ("instructions", "system") if value.get(key)), None)
        for key in _ASKED:
            if value.get(key):
                found = asked(value[key])
                lead = turns([{"role": "system", "content": system}]) if system else []
                return [*lead, *found]
    raise RowError("its request holds no messages")


def said(value: Any) -> list[dict[str, Any]]:
    """The assistant's turns that answer a request, one a choice; none where nothing was answered.

    Each is a turn as `chat.turns` gives it, with `finish_reason` where it is known.

    Raises:
        RowError: an answer is there, but of no known form.
    """
    value = _structured(value)
    if value is None or value == "" or value == [] or value == {}:
        return []
    if isinstance(value, str):
        return [_said_turn({"role": "assistant", "content": value})]
    if isinstance(value, list):
        return _said_list(value)
    if not isinstance(value, Mapping):
        raise RowError("its answer is of no known form")
    if isinstance(value.get("choices"), list):
        return [_choice(choice) for choice in value["choices"]]
    if value.get("generations"):
        return said(value["generations"])
    if value.get("message"):
        return said(value["message"])
    if isinstance(value.get("messages"), list):
        return _said_list(value["messages"])
    if _is_turn(value):
        return [_said_turn(value)]
    for key in _SAID:
        if value.get(key):
            return said(value[key])
    # An answer by a schema, which the tool has parsed.
    return [_said_turn({"role": "assistant", "content": json.dumps(value, ensure_ascii=False)})]


def _structured(value: Any) -> Any:
    """JSON text that is a conversation or a response, read; a text that happens to be other JSON stays a text."""
    found = loaded(value)
    first = found[0] if isinstance(found, list) and found else found
    first = first[0] if isinstance(first, list) and first else first
    is_known = isinstance(first, Mapping) and bool(_STRUCTURED & set(first))
    return found if is_known or not isinstance(value, str) else value


def _is_turn(value: Mapping[str, Any]) -> bool:
    return bool(value.get("content") or value.get("tool_calls") or value.get("kwargs") or value.get("refusal"))


def _said_turn(value: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(value.get("refusal"), str) and not value.get("content"):
        value = {"role": "assistant", "content": value["refusal"]}
    if not any(key in value for key in ("role", "type", "kwargs", "from")):
        value = {"role": "assistant", **value}
    found = turns([value], "answer")
    if not found or found[-1]["role"] != "assistant":
        raise RowError("its answer is not the assistant's")
    return found[-1]


def _choice(choice: Any) -> dict[str, Any]:
    if not isinstance(choice, Mapping):
        raise RowError("a choice of its answer is not an object")
    message = choice.get("message") or {"role": "assistant", "content": choice.get("text")}
    if not isinstance(message, Mapping):
        raise RowError("a choice of its answer has no message")
    turn = _said_turn({"role": "assistant"} | dict(message))
    reason = choice.get("finish_reason")
    return turn | ({"finish_reason": reason} if isinstance(reason, str) else {})


def _said_list(value: list[Any]) -> list[dict[str, Any]]:
    if not value:
        return []
    if isinstance(value[0], (list, str)):
        return said(value[0])
    if isinstance(value[0], Mapping) and ("generation_info" in value[0] or set(value[0]) & {"text", "message"}):
        return [
            turn
            for item in value
            if isinstance(item, Mapping)
            for turn in said(item.get("message") or item.get("text"))
        ]
    # The parts of one answer, as the Responses API has them: the words, and the calls beside them.
    found = [turn for turn in turns(value, "answer") if turn["role"] == "assistant"]
    if not found:
        raise RowError("its answer is not the assistant's")
    last = found[-1]
    words = [turn["content"] for turn in found if turn["content"].strip()]
    if isinstance(value[0], Mapping) and value[0].get("type") in ("message", "function_call", "reasoning"):
        calls = [call for turn in found for call in turn.get("tool_calls", ())]
        last = {"role": "assistant", "content": "\n".join(words)} | ({"tool_calls": calls} if calls else {})
    return [last]


def tools_of(*places: Any) -> Any:
    """The tools that a request offers, looked for in each place in turn."""
    for place in places:
        place = loaded(place)
        if isinstance(place, Mapping):
            inner = loaded(place.get("body"))
            for value in (place, inner if isinstance(inner, Mapping) else {}):
                for key in ("tools", "functions"):
                    if value.get(key):
                        return value[key]
    return None


def observations(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The model's calls inside a Langfuse trace or a LangSmith run; the row itself where it holds none apart."""
    calls = []
    for inside in (row.get("observations"), row.get("child_runs")):
        for item in inside if isinstance(inside, list) else ():
            if isinstance(item, dict):
                calls += [found for found in observations(item) if _is_model_call(found)]
    trace = row.get("trace")
    return calls or [dict(trace) if isinstance(trace, Mapping) else row]


def _is_model_call(row: Mapping[str, Any]) -> bool:
    return row.get("type") in _MODEL_CALLS or row.get("run_type") in _MODEL_CALLS


def check_kind(row: Mapping[str, Any]) -> None:
    """Raises StepError for a step of a trace that is no call of a model."""
    kind = row.get("run_type") or row.get("type")
    # A trace itself, an item of a data set and an example have no type.
    if isinstance(kind, str) and not _is_model_call(row):
        raise StepError(" ".join(kind.split())[:40])
