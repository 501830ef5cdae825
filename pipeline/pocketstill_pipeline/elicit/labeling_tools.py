"""Labeling with tools: the teacher answers by calling one, in OpenAI's `tools` form, and each call is checked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from pydantic import Field
from referencing import Registry
from referencing.exceptions import Unresolvable

from pocketstill import grading
from pocketstill.errors import UserError
from pocketstill_pipeline import problems
from pocketstill_pipeline.asking import Messages, Reply, ToolCall
from pocketstill_pipeline.example import Elicited, Question
from pocketstill_pipeline.question_file import select
from pocketstill_pipeline.teacher.protocol import count_tokens

from .base import Context, Planned, Settings, system_turns, trouble
from .prompts.labeling import result_request
from .sampling import options_of, question_messages, unanswered, units, untouched

_CALL_TOKENS, _RESULT_TOKENS, _REPLY_TOKENS = (12.0, 40.0), (10.0, 60.0), (8.0, 60.0)
_LONGEST_EXCHANGE = 100.0
Tool = dict[str, Any]


class ToolCalls(Settings):
    """Ask every question of the skills with tools at hand; the right answer is a call."""

    FILES: ClassVar[tuple[str, ...]] = ("tools",)

    method: Literal["tool_calls"] = "tool_calls"
    skills: list[str] = Field(default_factory=list, description="whose questions; all of kind json when left out")
    tools: str = Field("", description="JSON file, a list of OpenAI's tool definitions; the phone's when left out")
    system: str = Field("", description="a system message, for the teacher alone")
    results: bool = Field(False, description="go on: the teacher also makes up the tool's result, and the last reply")


async def tool_calls(settings: ToolCalls, context: Context) -> AsyncIterator[Elicited]:
    """One sample after the other, question by question; held-out questions once, greedily.

    With `results`, each right training call is followed by the reply to what it returns, as a conversation of its own.

    Raises:
        UserError: the file of tools is broken, or no skill has answers of kind json.
    """
    tools = read_tools(settings.tools)

    async def one(unit: tuple[Question, int]) -> list[Elicited]:
        question, sample = unit
        options = options_of(settings, question, sample)
        request = system_turns(settings.system) + question_messages(question)
        reply = await context.teacher.ask(request, tools=tools, tool_choice="auto", **options)
        found = read_call(question, sample, reply, tools, graded=context.skills[question.skill].graded)
        # What a wrong call would return is not worth asking for.
        wrong = found.gold is not None and not grading.equal(found.answer, found.gold, "json")
        if not settings.results or found.reason is not None or wrong or question.split != "train":
            return [found]
        return [found, await _followed(context, found, request, reply, tools, options)]

    async for several in context.teacher.map(one, units(_asked(settings, context), settings, context)):
        for found in several:
            yield found


def read_call(question: Question, sample: int, reply: Reply, tools: list[Tool], *, graded: bool = True) -> Elicited:
    """The calls of a reply: one as `{"tool": ..., "arguments": ...}`, several as a list of such."""
    problem = trouble(reply, calls=True)
    answer = None
    if problem is None:
        calls, problem = checked(reply.tool_calls, tools)
        if problem is None:
            answer = calls_text(calls)
        elif not reply.tool_calls:
            problem = problem[0], reply.text.strip()[:200]
    reason, detail = problem or (None, "")
    return replace(
        unanswered(question, sample, "tool_calls", graded=graded),
        answer=answer,
        completion=reply.text or _raw(reply.tool_calls),
        source=(reply.key,),
        tools=json.dumps(tools, ensure_ascii=False),
        reason=reason,
        detail=detail,
    )


async def _followed(
    context: Context, call: Elicited, request: Messages, reply: Reply, tools: list[Tool], options: dict[str, Any]
) -> Elicited:
    """The conversation that goes on from a call: its result, and what the teacher says to that."""
    results: list[tuple[ToolCall, Reply]] = []
    for made in reply.tool_calls:
        tool = next(tool for tool in tools if tool["function"]["name"] == made.name)
        asked_for = result_request(_one_call(made.name, json.loads(made.arguments)), json.dumps(tool))
        results.append((made, await context.teacher.ask(asked_for, **options | {"about": None})))
    source = (*call.source, *(answer.key for _, answer in results))
    problem = next((found for _, answer in results if (found := _bad_result(answer))), None)
    said: Reply | None = None
    if problem is None:
        turns: Messages = [_called(reply.tool_calls)]
        for made, answer in results:
            turns.append({"role": "tool", "tool_call_id": made.id, "content": _result(answer)})
        said = await context.teacher.ask(request + turns, tools=tools, **options)
        problem, source = trouble(said, calls=True), (*source, said.key)
        if problem is None and said.tool_calls:
            problem = "no_answer", f"it calls again: {_raw(said.tool_calls)[:200]}"
    shown = question_turns(call, results)
    text = untouched(said.text) if said is not None else ""
    made_of = replace(call, id=f"{call.id}/reply", messages=shown, answer=text or None, completion=text, kind="text")
    reason, detail = problem or (None, "")
    return replace(made_of, gold=None, source=source, reason=reason, detail=detail, group=call.question)


def question_turns(call: Elicited, results: list[tuple[ToolCall, Reply]]) -> Messages:
    """The conversation as the student sees it: every turn is text, a call and a result are JSON."""
    turns = [*call.messages, {"role": "assistant", "content": call.answer or ""}]
    return turns + [{"role": "tool", "content": _result(answer)} for _, answer in results]


def read_tools(path: str) -> list[Tool]:
    """The tools that are offered, as OpenAI's API takes them.

    Raises:
        UserError: the file cannot be read, or a tool in it has no name, or no schema of its parameters.
    """
    if not path:
        return [{"type": "function", "function": tool} for tool in problems.TOOLS]
    try:
        tools = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a JSON file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); it needs a list of tool definitions") from None
    if not isinstance(tools, list) or not tools:
        raise UserError(f"{path}: it needs a list of tool definitions, each with type and function")
    for number, tool in enumerate(tools, start=1):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            said = 'it needs {"type": "function", "function": {"name": ..., "parameters": {...}}}'
            raise UserError(f"{path}, tool {number}: {said}")
        parameters = function.get("parameters", {})
        if not isinstance(parameters, dict):
            raise UserError(f"{path}, tool {number}: parameters must be a JSON schema, an object")
        try:
            Draft202012Validator.check_schema(parameters)
        except SchemaError as error:
            place = error.json_path[1:]
            raise UserError(f"{path}, tool {number}: parameters{place} is no JSON schema: {error.message}") from None
    return tools


@dataclass(frozen=True)
class Call:
    """A checked call."""

    tool: str
    arguments: dict[str, Any]


def checked(calls: tuple[ToolCall, ...], tools: list[Tool]) -> tuple[list[Call], tuple[str, str] | None]:
    """The calls, or (reason, detail) of the first that no tool can take."""
    schemas = {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in tools}
    found: list[Call] = []
    if not calls:
        return found, ("no_tool_call", "")
    for call in calls:
        if call.name not in schemas:
            return found, ("unknown_tool", call.name[:200])
        try:
            arguments = json.loads(call.arguments)
            # An escape may spell half a character, which cannot be written down again.
            json.dumps(arguments, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            return found, ("bad_arguments", f"{call.name}: not JSON: {call.arguments[:200]}")
        if not isinstance(arguments, dict):
            return found, ("bad_arguments", f"{call.name}: not an object: {call.arguments[:200]}")
        misfit = unfit(arguments, schemas[call.name], "arguments")
        if misfit is not None:
            return found, ("bad_arguments", f"{call.name}: {misfit}")
        found.append(Call(call.name, arguments))
    return found, None


def unfit(value: Any, schema: Mapping[str, Any], where: str) -> str | None:
    """What of a value does not fit its JSON schema (draft 2020-12), in words; None when all does.

    A key that the schema does not name is an error unless it allows further ones: a model that makes up a parameter
    calls another tool.

    Raises:
        UserError: the schema refers to another one that is not in it.
    """
    try:
        # Without a registry of its own, a reference to an address would be fetched.
        error = best_match(Draft202012Validator(_closed(schema), registry=Registry()).iter_errors(value))
    except Unresolvable as lost:
        raise UserError(f"tools: the schema of {where} refers to {lost.ref!r}, which is not in it") from None
    return None if error is None else f"{where}{error.json_path[1:]}: {error.message[:200]}"


def _closed(schema: Any) -> Any:
    """The schema with every object that names its properties closed to others, unless it says something of them."""
    if not isinstance(schema, dict):
        return schema
    made = dict(schema)
    for key in ("properties", "patternProperties", "$defs", "definitions"):
        if key in made:
            made[key] = {name: _closed(part) for name, part in made[key].items()}
    for key in ("anyOf", "oneOf", "prefixItems"):
        if key in made:
            made[key] = [_closed(part) for part in made[key]]
    for key in ("items", "additionalProperties"):
        if key in made:
            made[key] = _closed(made[key])
    if "properties" in made and not made.keys() & {"additionalProperties", "unevaluatedProperties"}:
        made["unevaluatedProperties"] = False
    return made


def calls_text(calls: list[Call]) -> str:
    """The answer that calls are: one object, or a list of them."""
    said = [_one_call(call.tool, call.arguments) for call in calls]
    return said[0] if len(said) == 1 else f"[{', '.join(said)}]"


def _one_call(name: str, arguments: dict[str, Any]) -> str:
    return json.dumps({"tool": name, "arguments": arguments}, ensure_ascii=False)


def _raw(calls: tuple[ToolCall, ...]) -> str:
    return "\n".join(f"{call.name}({call.arguments})" for call in calls)


def _called(calls: tuple[ToolCall, ...]) -> dict[str, Any]:
    """The assistant's turn that made these calls, as the API wants it back."""
    made = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]
    return {"role": "assistant", "content": None, "tool_calls": made}


def _bad_result(reply: Reply) -> tuple[str, str] | None:
    problem = trouble(reply)
    if problem is not None:
        return problem
    return None if _result(reply) else ("bad_result", reply.text.strip()[:200])


def _result(reply: Reply) -> str:
    """The JSON that a tool returns, without the block of code or the words that a teacher puts it in; "" for none."""
    return grading.extract(reply.text, "json") or ""


def _asked(settings: ToolCalls, context: Context) -> Sequence[Question]:
    questions = select(context.of_skills(settings.skills), lambda question: question.kind == "json")
    if not questions:
        raise UserError(f"elicit {settings.entry}: no skill asked for has answers of kind json; name one in skills")
    return questions


def plan_tool_calls(settings: ToolCalls, context: Context) -> list[Planned]:
    """The calls; with `results`, what the tools return and the replies to that."""
    offered = count_tokens(json.dumps(read_tools(settings.tools))) + count_tokens(settings.system)
    count = training = tokens = 0
    for question, _ in units(_asked(settings, context), settings, context):
        count += 1
        training += question.split == "train"
        tokens += count_tokens(question.text)
    mean = offered + tokens / max(count, 1)
    found = [Planned("tool calls", (count, count), (mean, mean), _CALL_TOKENS)]
    if settings.results:
        found.append(Planned("results", (0, training), (60.0, 200.0), _RESULT_TOKENS))
        found.append(Planned("replies", (0, training), (mean, mean + _LONGEST_EXCHANGE), _REPLY_TOKENS))
    return found
