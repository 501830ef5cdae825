"""Labeling with tools: calls over HTTP, what is wrong with some of them, and the conversations that go on from them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from labeling_runs import requests_of, right, samples_of, tools_recipe
from teaching import chat_app, recipe_of, serving, write_rows

from pocketstill.errors import UserError
from pocketstill_pipeline.asking import ToolCall
from pocketstill_pipeline.elicit.labeling_tools import checked, read_tools, unfit


def rates(mistakes: float, noise: float) -> dict[str, Any]:
    return {"embedded": {"mistakes": mistakes, "noise": noise}}


def test_questions_are_answered_by_calls_of_tools(tmp_path: Path) -> None:
    made = samples_of(tools_recipe(rates(0.0, 0.0)), tmp_path)["tool_calls"]
    assert all(right(sample) for sample in made)
    asked = requests_of(tmp_path)
    assert all(request["extra"]["tools"] == read_tools("") for request in asked)
    # The tools are in the request's own place for them, not in a text.
    assert all([turn["role"] for turn in request["messages"]] == ["user"] for request in asked)
    assert all(json.loads(sample["tools"]) == read_tools("") for sample in made)


def test_calls_that_no_tool_can_take_are_rejected(tmp_path: Path) -> None:
    made = samples_of(tools_recipe(rates(0.2, 0.5), samples=3), tmp_path)["tool_calls"]
    reasons = Counter(sample.get("reason") for sample in made)
    assert set(reasons) == {None, "no_tool_call", "unknown_tool", "bad_arguments"}
    for sample in made:
        if sample.get("reason") is None:
            assert sample["answer"] == json.dumps(json.loads(sample["answer"]), ensure_ascii=False)


def test_a_conversation_goes_on_from_the_result_of_a_call(tmp_path: Path) -> None:
    made = samples_of(tools_recipe(rates(0.2, 0.2), results=True), tmp_path)["tool_calls"]
    calls = {sample["id"]: sample for sample in made if not sample["id"].endswith("/reply")}
    replies = [sample for sample in made if sample["id"].endswith("/reply")]
    # Training calls that are right, and none else.
    assert [sample["id"].removesuffix("/reply") for sample in replies] == [
        name for name, sample in calls.items() if right(sample) and sample.get("split", "train") == "train"
    ]
    good = [sample for sample in replies if sample.get("reason") is None]
    assert {sample.get("reason") for sample in replies} == {None, "bad_result"}
    for sample in good:
        user, call, result = sample["messages"]
        assert (user["role"], call["role"], result["role"]) == ("user", "assistant", "tool")
        named = json.loads(call["content"])["tool"]
        assert json.loads(result["content"])["tool"] == named
        assert named.replace("_", " ") in sample["answer"]
        assert sample.get("gold") is None
        assert len(sample["source"]) == 3
    # The API is given a call in its own form back, by its id.
    followed = [r["messages"] for r in requests_of(tmp_path) if r["messages"][-1]["role"] == "tool"]
    assert followed
    for _, called, result in followed:
        assert called["tool_calls"][0]["id"] == result["tool_call_id"]


@pytest.mark.parametrize("said", ['{"sky": "sunny"}', '```json\n{"sky": "sunny"}\n```', 'Here:\n{"sky": "sunny"}'])
def test_a_result_is_the_json_that_the_teacher_wrote(tmp_path: Path, said: str) -> None:
    from starlette.responses import JSONResponse

    seen: list[str] = []

    def answer(body: dict[str, Any], _: int) -> Any:
        last = body["messages"][-1]
        if "tools" not in body:
            return said
        if last["role"] == "tool":
            seen.append(last["content"])
            return "It is sunny."
        calls = [{"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"place": "Oslo"}'}}]
        choice = {"index": 0, "message": {"role": "assistant", "content": None, "tool_calls": calls}}
        return JSONResponse({"choices": [choice | {"finish_reason": "tool_calls"}]})

    parameters = {"type": "object", "properties": {"place": {"type": "string"}}}
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}]))
    rows = [{"question": "Weather?", "gold": '{"tool": "get_weather", "arguments": {"place": "Oslo"}}'}]
    skill = {
        "name": "weather", "kind": "json", "source": str(write_rows(tmp_path / "q.jsonl", rows)), "heldout": 0,
    }  # fmt: skip
    with serving(chat_app(answer)) as url:
        entry = {"method": "tool_calls", "tools": str(tools), "samples": 1, "results": True}
        made = samples_of(recipe_of({"base_url": url}, skills=[skill], elicit=[entry]), tmp_path / "out")["tool_calls"]
    _, reply = made
    assert (reply.get("reason"), reply["answer"], seen) == (None, "It is sunny.", ['{"sky": "sunny"}'])
    assert reply["messages"][-1] == {"role": "tool", "content": '{"sky": "sunny"}'}


def test_parallel_calls_and_broken_ones_as_they_come_over_http(tmp_path: Path) -> None:
    from starlette.responses import JSONResponse

    def call(name: str, arguments: str) -> dict[str, Any]:
        return {"id": f"c-{name}", "type": "function", "function": {"name": name, "arguments": arguments}}

    said = {
        "both": [call("add", '{"a": 1}'), call("add", '{"a": 2}')],
        "broken": [call("add", '{"a": ')],
        "list": [call("add", "[1]")],
        "second": [call("add", '{"a": 1}'), call("drop", "{}")],
        "word": [call("add", '{"a": "one"}')],
    }

    def answer(body: dict[str, Any], _: int) -> JSONResponse:
        assert body["tools"][0]["function"]["name"] == "add"
        message = {"role": "assistant", "content": None, "tool_calls": said[body["messages"][-1]["content"]]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return JSONResponse({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})

    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([{"type": "function", "function": {"name": "add", "parameters": parameters}}]))
    rows = [{"question": question, "gold": '{"tool": "add", "arguments": {"a": 1}}'} for question in said]
    skill = {
        "name": "adding", "kind": "json", "source": str(write_rows(tmp_path / "q.jsonl", rows)), "heldout": 0,
    }  # fmt: skip
    with serving(chat_app(answer)) as url:
        entry = {"method": "tool_calls", "tools": str(tools), "samples": 1}
        recipe = recipe_of({"base_url": url}, skills=[skill], elicit=[entry])
        made = samples_of(recipe, tmp_path / "out")["tool_calls"]
    found = {sample["messages"][0]["content"]: sample for sample in made}
    assert json.loads(found["both"]["answer"]) == [{"tool": "add", "arguments": {"a": n}} for n in (1, 2)]
    reasons = {name: (sample.get("reason"), sample.get("detail")) for name, sample in found.items()}
    assert reasons["broken"] == ("bad_arguments", 'add: not JSON: {"a": ')
    assert reasons["list"] == ("bad_arguments", "add: not an object: [1]")
    assert reasons["second"] == ("unknown_tool", "drop")
    assert reasons["word"] == ("bad_arguments", "add: arguments.a: 'one' is not of type 'integer'")


# Expected as by JSON Schema, draft 2020-12, with closed objects.
@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer"}, [1, 3.0, -2], [1.5, "1", True, None]),
        ({"type": "number", "minimum": 0, "maximum": 9}, [0, 9, 2.5], [-1, 9.5, "3", False]),
        ({"type": ["string", "null"]}, ["a", None], [1, []]),
        ({"type": "boolean"}, [True, False], [0, "true"]),
        ({"enum": ["on", "off"]}, ["on"], ["On", None]),
        ({"const": 3}, [3], [4]),
        ({"type": "string", "minLength": 1, "maxLength": 2}, ["a", "ab"], ["", "abc"]),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 2}, [[], [1, 2]], [[1, 2, 3], ["a"], 1]),
        ({"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 5}]}, ["a", 5], [4, None]),
        (
            {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"type": "string"}},
                                                    "required": ["b"]}}, "required": ["a"]},
            [{"a": {"b": "x"}}],
            [{}, {"a": {}}, {"a": {"b": 1}}, {"a": {"b": "x"}, "c": 1}],
        ),
        ({"type": "object", "properties": {}, "additionalProperties": {"type": "integer"}}, [{"x": 1}], [{"x": "1"}]),
        ({}, [1, "a", {}, None], []),
        ({"type": "string", "pattern": "^a+$"}, ["aa"], ["ab"]),
        (
            {"$defs": {"size": {"enum": ["s", "l"]}}, "properties": {"size": {"$ref": "#/$defs/size"}}},
            [{"size": "s"}, {}], [{"size": "m"}, {"colour": "red"}],
        ),
        (
            {"anyOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}, "required": ["b"]}]},
            [{"a": 1}, {"b": 1}], [{}, {"c": 1}, {"a": 1, "c": 1}],
        ),
        (
            {"properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
            [{"a": 1}, {"b": 1}, {"a": 1, "b": 1}], [{}, {"a": 1, "c": 1}],
        ),
    ],
)  # fmt: skip
def test_arguments_are_held_to_their_schema(schema: dict[str, Any], good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if unfit(value, schema, "it")] == []
    assert [value for value in bad if not unfit(value, schema, "it")] == []


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"type": "object", "properties": ["a"]}, "tool 1: parameters.properties is no JSON schema"),
        ({"properties": {"a": {"minimum": "3"}}}, "tool 1: parameters.properties.a.minimum is no JSON schema"),
        ({"type": "text"}, "tool 1: parameters.type is no JSON schema"),
    ],
)
def test_a_schema_that_is_none_is_said(tmp_path: Path, parameters: Any, said: str) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([{"type": "function", "function": {"name": "add", "parameters": parameters}}]))
    with pytest.raises(UserError, match=said):
        read_tools(str(path))


def test_a_schema_elsewhere_is_not_fetched() -> None:
    with pytest.raises(UserError, match=r"refers to .http://127\.0\.0\.1:9/x., which is not in it"):
        unfit({"a": 1}, {"properties": {"a": {"$ref": "http://127.0.0.1:9/x"}}}, "arguments")


def test_a_call_without_parameters_needs_none() -> None:
    tools = [{"type": "function", "function": {"name": "stop"}}]
    calls, problem = checked((ToolCall("1", "stop", "{}"),), tools)
    assert problem is None
    assert [(call.tool, call.arguments) for call in calls] == [("stop", {})]


@pytest.mark.parametrize("text", ["{", "{}", '[{"name": "add"}]', '[{"type": "function", "function": {}}]'])
def test_a_broken_file_of_tools_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"tools\.json"):
        read_tools(str(path))
