"""The embedded teacher's side of OpenAI's chat protocol: tools, structured outputs, log probabilities."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from teaching import recorded, write_rows

from pocketstill_pipeline.prompts import first_request
from pocketstill_pipeline.teacher import TeacherConfig
from pocketstill_pipeline.teacher.protocol import REFUSED, parse_chat, pieces
from pocketstill_pipeline.teacher.server import running_teacher

COIN = "A coin is heads up. Ana flips the coin. Bob does not flip the coin. Is the coin still heads up?"
TIMER = first_request("Set a timer for 12 minutes.", "json")
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "set_timer",
        "parameters": {"type": "object", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"]},
    },
}
SCHEMA: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "Made", "schema": {"type": "object", "properties": {"a": {"type": "string"}}}},
}


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with (
        running_teacher(TeacherConfig(mistakes=0, noise=0)) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as api,
    ):
        yield api


def ask(client: openai.OpenAI, messages: Any, **settings: Any) -> Any:
    return client.chat.completions.create(model="embedded", messages=messages, temperature=0, **settings)


def parsed(**more: Any) -> Any:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]} | more
    return parse_chat(json.dumps(body).encode())


def test_call_is_a_tool_call_where_tools_are_offered(client: openai.OpenAI) -> None:
    choice = ask(client, TIMER, tools=[TOOL]).choices[0]
    call = choice.message.tool_calls[0]
    assert (choice.finish_reason, choice.message.content, call.type) == ("tool_calls", None, "function")
    assert (call.function.name, json.loads(call.function.arguments)) == ("set_timer", {"minutes": 12})
    assert call.id == ask(client, TIMER, tools=[TOOL]).choices[0].message.tool_calls[0].id


@pytest.mark.parametrize("settings", [{}, {"tools": [TOOL], "tool_choice": "none"}])
def test_call_is_text_where_no_tool_may_be_called(client: openai.OpenAI, settings: Any) -> None:
    choice = ask(client, TIMER, **settings).choices[0]
    assert choice.finish_reason == "stop" and choice.message.tool_calls is None
    assert json.loads(choice.message.content) == {"tool": "set_timer", "arguments": {"minutes": 12}}


def test_call_that_the_limit_cuts_is_no_call(client: openai.OpenAI) -> None:
    choice = ask(client, TIMER, tools=[TOOL], max_tokens=5).choices[0]
    assert choice.finish_reason == "length" and choice.message.tool_calls is None and choice.message.content


def test_streamed_call_is_put_together_by_the_official_client(client: openai.OpenAI) -> None:
    whole = ask(client, TIMER, tools=[TOOL]).choices[0].message.tool_calls[0]
    with client.chat.completions.stream(model="embedded", messages=TIMER, temperature=0, tools=[TOOL]) as stream:  # type: ignore[arg-type, list-item]
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls" and final.message.content is None
    found = final.message.tool_calls[0]
    assert (found.function.name, found.function.arguments) == (whole.function.name, whole.function.arguments)


def test_conversation_with_a_tool_s_result_is_understood() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "set_timer", "arguments": '{"minutes": 12}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "A timer."}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]
    assert parsed(messages=messages).messages == (
        ("system", "Be brief."),
        ("user", "A timer."),
        ("assistant", '{"tool": "set_timer", "arguments": {"minutes": 12}}'),
        ("tool", "done"),
    )


def test_schema_of_a_structured_output_is_read() -> None:
    assert parsed().json_schema is None and parsed(response_format={"type": "text"}).json_schema is None
    assert parsed(response_format={"type": "json_object"}).json_schema == {"type": "object"}
    assert parsed(response_format=SCHEMA).json_schema == SCHEMA["json_schema"]["schema"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": [{"type": "retrieval"}]}, "tools"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_p": 1.5}, "top_p"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages[0]"),
    ],
)
def test_bad_parameter_is_named(client: openai.OpenAI, change: Any, param: str) -> None:
    body = {"model": "embedded", "messages": [{"role": "user", "content": "x"}]} | change
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.param == param


def test_refusal_of_an_object_is_a_refusal(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "r.jsonl", [recorded("q", REFUSED, "1", "1")])
    messages = first_request("q", "number")
    with (
        running_teacher(TeacherConfig(replay=(str(path),))) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as api,
    ):
        refused = ask(api, messages, response_format=SCHEMA).choices[0].message
        assert (refused.content, refused.refusal) == (None, REFUSED)
        chunks = list(ask(api, messages, response_format=SCHEMA, stream=True))
        assert "".join(chunk.choices[0].delta.refusal or "" for chunk in chunks) == REFUSED
        plain = ask(api, messages).choices[0].message
        assert (plain.content, plain.refusal) == (REFUSED, None)
        with pytest.raises(openai.BadRequestError, match="not recorded"):
            ask(api, messages, logprobs=True)


@pytest.mark.parametrize("top", [0, 1, 20])
def test_log_probabilities_are_those_of_a_distribution(client: openai.OpenAI, top: int) -> None:
    choice = ask(client, first_request(COIN, "yes_no"), logprobs=True, top_logprobs=top).choices[0]
    tokens = choice.logprobs.content
    assert [token.token for token in tokens] == pieces(choice.message.content)
    for token in tokens:
        assert bytes(token.bytes).decode() == token.token
        ranked = [other.logprob for other in token.top_logprobs]
        assert len(ranked) == top and ranked == sorted(ranked, reverse=True)
        assert len({other.token for other in token.top_logprobs}) == top
        assert sum(map(math.exp, ranked)) <= 1 + 1e-6
        if top:
            assert (token.top_logprobs[0].token, ranked[0]) == (token.token, token.logprob)
        if top == 20:
            # The rest of the mass lies on words that may stand there, not on nothing.
            assert sum(map(math.exp, ranked)) > 0.9


def test_streamed_log_probabilities_are_the_same(client: openai.OpenAI) -> None:
    settings = {"logprobs": True, "top_logprobs": 2}
    whole = ask(client, first_request(COIN, "yes_no"), **settings).choices[0].logprobs.content
    chunks = ask(client, first_request(COIN, "yes_no"), stream=True, **settings)
    streamed = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert streamed == whole


def test_no_log_probabilities_unless_asked_for(client: openai.OpenAI) -> None:
    assert ask(client, first_request(COIN, "yes_no")).choices[0].logprobs is None
