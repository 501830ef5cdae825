"""Conversations in whatever words their tools use for who speaks, as OpenAI chat messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pocketstill_pipeline.asking import Messages

from .rows import RowError, plain

# OpenAI's roles; those of ShareGPT and of the sets made of it; LangChain's types and class names.
_ROLES = {
    "system": "system", "developer": "system", "systemmessage": "system", "systemmessagechunk": "system",
    "user": "user", "human": "user", "prompter": "user", "humanmessage": "user", "humanmessagechunk": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "ai": "assistant", "aimessage": "assistant", "aimessagechunk": "assistant", "bing": "assistant",
    "bard": "assistant", "tool": "tool", "function": "tool", "toolmessage": "tool", "functionmessage": "tool",
    "observation": "tool", "function_response": "tool", "function-response": "tool", "tool_response": "tool",
    "function_call": "call", "function-call": "call", "tool_call": "call", "function_call_output": "tool",
}  # fmt: skip
_TEXTS = ("text", "input_text", "output_text")


def loaded(value: Any) -> Any:
    """A value that a table had to write as JSON text, read; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return plain(json.loads(value))
        except (ValueError, RecursionError, RowError):
            return value
    return value


def is_turns(value: Any) -> bool:
    """Whether a value is a list of turns, by the looks of the first."""
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], Mapping)
        and bool({"role", "from"} & set(value[0]))
    )


def turns(value: Any, name: str = "messages") -> Messages:
    """The turns of a conversation; `name` is the field that holds it.

    Raises:
        RowError: it is no list of turns, a turn is of nobody known or empty, or holds what is no text.
    """
    value = loaded(value)
    if value is None:
        raise RowError(f"the field {name!r} is missing")
    if not isinstance(value, list):
        raise RowError(f"the field {name!r} is not a list of turns")
    found: Messages = []
    for number, item in enumerate(value, start=1):
        turn = _turn(item, f"turn {number}", found)
        if turn is not None:
            found.append(turn)
    if not found:
        raise RowError(f"the field {name!r} is empty")
    return found


def _turn(item: Any, where: str, before: Messages) -> dict[str, Any] | None:
    if not isinstance(item, Mapping):
        raise RowError(f"{where} is not an object")
    inner, said = _inner(item)
    if said == "reasoning":
        # What a reasoning model keeps to itself is a turn of nobody.
        return None
    role = _ROLES.get(said.lower())
    if role is None:
        raise RowError(f"{where} is of {said!r}; known are system, user, assistant, tool (human, gpt, observation)")
    content = next((inner[key] for key in ("content", "value", "output") if inner.get(key) is not None), None)
    if role == "call":
        return _as_call(inner, content, where, len(before))
    text = _text(content, where)
    if role == "system" and not text.strip():
        return None
    turn: dict[str, Any] = {"role": role, "content": text}
    if role == "assistant":
        if calls := _calls(inner, where, len(before)):
            turn["tool_calls"] = calls
        reasons = inner.get("reasoning_content") or inner.get("reasoning")
        if isinstance(reasons, str) and reasons.strip():
            turn["reasoning"] = reasons
    if role == "tool":
        turn["tool_call_id"] = _answered(inner, before)
    elif not text.strip() and "tool_calls" not in turn:
        raise RowError(f"{where} is empty")
    if isinstance(inner.get("name"), str) and inner["name"]:
        turn["name"] = inner["name"]
    return turn


def _inner(item: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The fields of a turn and who speaks, out of LangChain's serialized forms too."""
    kwargs, data, name = item.get("kwargs"), item.get("data"), item.get("id")
    if isinstance(kwargs, Mapping) and isinstance(name, list) and name:
        return kwargs, str(kwargs.get("role") or name[-1])
    kind = item.get("type")
    if isinstance(data, Mapping) and isinstance(kind, str):
        return data, str(data.get("role") or kind)
    for key in ("role", "from"):
        if isinstance(item.get(key), str):
            return item, item[key]
    return item, kind if isinstance(kind, str) else "nobody"


def _text(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowError(f"the content of {where} is not a string")
    parts = []
    for part in content:
        if isinstance(part, str):
            parts.append(part)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str) and part.get("type", "text") in _TEXTS:
            parts.append(part["text"])
        elif isinstance(part, Mapping) and part.get("type") not in ("refusal", "thinking", "tool_use", "reasoning"):
            raise RowError(f"{where} holds {part.get('type')!r}, which is no text")
    return "\n".join(parts)


def _calls(inner: Mapping[str, Any], where: str, before: int) -> list[dict[str, Any]]:
    """The calls of a turn as OpenAI writes them, from LangChain's form and OpenAI's old one too."""
    more = inner.get("additional_kwargs")
    given = inner.get("tool_calls") or (more.get("tool_calls") if isinstance(more, Mapping) else None)
    if not given:
        old = inner.get("function_call")
        given = [old] if old else []
    given = loaded(given)
    if not isinstance(given, list):
        raise RowError(f"the tool_calls of {where} are not a list")
    return [_call(call, where, f"call_{before}_{number}") for number, call in enumerate(given)]


def _call(call: Any, where: str, otherwise: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError(f"a tool call of {where} has no name")
    arguments: Any = next((function[key] for key in ("arguments", "args") if function.get(key) is not None), {})
    if isinstance(arguments, str):
        try:
            plain(json.loads(arguments or "{}"))
        except (ValueError, RecursionError):
            raise RowError(f"the arguments of a tool call of {where} are not JSON") from None
        arguments = arguments or "{}"
    else:
        arguments = json.dumps(arguments, ensure_ascii=False)
    identity = next((call[key] for key in ("call_id", "id") if isinstance(call.get(key), str) and call[key]), otherwise)
    function = {"name": function["name"], "arguments": arguments}
    return {"id": identity, "type": "function", "function": function}


def _as_call(inner: Mapping[str, Any], content: Any, where: str, before: int) -> dict[str, Any]:
    """A turn that is a call by its name: its text is JSON with name and arguments, or it has them itself."""
    value = inner if isinstance(inner.get("name"), str) and "arguments" in inner else loaded(content)
    given = value if isinstance(value, list) else [value]
    calls = [_call(call, where, f"call_{before}_{number}") for number, call in enumerate(given)]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _answered(inner: Mapping[str, Any], before: Messages) -> str:
    """The id of the call that a tool's turn answers: the one it names, else the first that is still open."""
    for key in ("tool_call_id", "call_id"):
        if isinstance(inner.get(key), str) and inner[key]:
            return str(inner[key])
    asked = [call["id"] for turn in before for call in turn.get("tool_calls", ())]
    done = {turn.get("tool_call_id") for turn in before}
    return next((identity for identity in asked if identity not in done), asked[-1] if asked else "call_0")


def completion_of(turn: Mapping[str, Any]) -> str:
    """The text of an assistant's turn; of one that only calls tools, the calls as JSON text."""
    if turn["content"].strip() or not turn.get("tool_calls"):
        return str(turn["content"])
    calls = [
        {"tool": call["function"]["name"], "arguments": json.loads(call["function"]["arguments"])}
        for call in turn["tool_calls"]
    ]
    return json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)


def tools_text(value: Any, name: str = "tools") -> str:
    """The tools on offer as JSON text of OpenAI's form; "" for none. Bare functions are put into that form.

    Raises:
        RowError: it is no list of tools.
    """
    value = loaded(value)
    if value is None or value == "" or value == []:
        return ""
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowError(f"the field {name!r} is not a list of tools")
    return json.dumps([_tool(tool, name) for tool in value], ensure_ascii=False)


def _tool(tool: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if isinstance(tool.get("function"), Mapping):
        return tool
    if not isinstance(tool.get("name"), str):
        raise RowError(f"a tool of the field {name!r} has no name")
    function = {key: item for key, item in tool.items() if key not in ("type", "input_schema")}
    if "input_schema" in tool:
        function["parameters"] = tool["input_schema"]
    return {"type": "function", "function": function}
