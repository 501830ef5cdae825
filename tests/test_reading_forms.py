"""The forms that others write, conversations and exported traces, as their makers document them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the workshop extra")

import pyarrow
import pyarrow.parquet
from teaching import write_rows

from pocketstill.errors import UserError
from pocketstill_pipeline.reading import Data, DataRow, read_data

USER = {"role": "user", "content": "Weather in Oslo?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
ANSWER = {"role": "assistant", "content": "Rain."}


def read(folder: Path, *rows: dict[str, Any], **how: Any) -> Data:
    return read_data(str(write_rows(folder / "a.jsonl", list(rows))), **how)


def only(data: Data, form: str) -> DataRow:
    assert data.form == form and not data.bad and len(data.rows) == 1, data
    return data.rows[0]


def roles(row: DataRow) -> str:
    return " ".join(turn["role"] for turn in row.messages)


def test_alpaca(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Say hi.", "input": "", "output": "hi", "system": "Be kind.", "history": [["a", "b"]]},
        {"instruction": "Say nothing.", "input": "", "output": ""},
    ]
    data = read(tmp_path, *rows)
    assert data.form == "alpaca"
    assert data.rows[0].messages == [{"role": "user", "content": "Add.\n\n1 and 2"}]
    assert (data.rows[0].completion, data.rows[0].gold) == ("3", None)
    assert roles(data.rows[1]) == "system user assistant user"
    assert [row.why for row in data.bad] == ["the field 'output' is empty"]


@pytest.mark.parametrize("name", ["response", "answer"])
def test_an_input_goes_below_its_instruction_whatever_the_output_is_called(tmp_path: Path, name: str) -> None:
    data = read(tmp_path, {"instruction": "Add.", "input": "1, 2", name: "3"}, {"instruction": "Go.", name: "So."})
    assert [row.messages[0]["content"] for row in data.rows] == ["Add.\n\n1, 2", "Go."]
    assert not data.bad and not data.rows[0].extra
    other = read(tmp_path, {"instruction": "Add.", "input": "x", "out": "3"}, columns={"gold": "input"})
    assert (other.rows[0].messages[0]["content"], other.rows[0].gold) == ("Add.", "x")


def test_prompt_and_completion(tmp_path: Path) -> None:
    row = only(read(tmp_path, {"prompt": "p", "completion": "c", "score": 3}), "completion")
    assert (row.messages, row.completion, row.extra) == ([{"role": "user", "content": "p"}], "c", {"score": 3})
    row = only(read(tmp_path, {"prompt": [USER], "completion": [ANSWER]}), "completion")
    assert (row.messages, row.completion) == ([USER], "Rain.")
    row = only(read(tmp_path, {"prompt": "p", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}), "completion")
    assert (row.completion, list(row.extra)) == ("Rain.", ["rejected"])
    # A completion that is JSON is a text all the same.
    assert only(read(tmp_path, {"prompt": "[1]", "completion": "[1, 2]"}), "completion").completion == "[1, 2]"


def test_a_question_about_a_passage(tmp_path: Path) -> None:
    row = only(read(tmp_path, {"context": "Oslo is wet.", "question": "Is it?", "answer": "yes", "id": 1}), "question")
    assert row.messages == [{"role": "user", "content": "Oslo is wet.\n\nIs it?"}]
    assert (row.context, row.extra) == ("Oslo is wet.", {"id": 1, "question": "Is it?"})
    row = only(read(tmp_path, {"instruction": "Is it?", "context": "", "response": "yes"}), "completion")
    assert (row.context, row.messages[0]["content"]) == (None, "Is it?")


@pytest.mark.parametrize(
    ("choices", "gold"),
    [
        ({"choices": {"text": ["wet", "dry"], "label": ["A", "B"]}, "answerKey": "B"}, "B"),
        ({"choices": {"text": ["wet", "dry"], "label": ["1", "2"]}, "answerKey": "2"}, "B"),
        ({"choices": ["wet", "dry"], "answer": 1}, "B"),
        ({"options": ["A)wet", "B)dry"], "answer": "dry"}, "B"),
        ({"options": {"A": "wet", "B": "dry"}, "answer": "A"}, "A"),
    ],
)
def test_choices_go_behind_the_question(tmp_path: Path, choices: dict[str, Any], gold: str) -> None:
    row = only(read(tmp_path, {"question": "How is Oslo?"} | choices), "question")
    assert row.messages[0]["content"] == "How is Oslo?\nAnswer Choices: (A) wet (B) dry"
    assert row.gold == gold


@pytest.mark.parametrize(
    ("choices", "gold", "listed"),
    [
        (["A) wet", "B) dry"], "B) dry", "(A) wet (B) dry"),
        (["U.S.", "E.U."], "E.U.", "(A) U.S. (B) E.U."),
        (["C. Jones", "A. Smith"], "A. Smith", "(A) C. Jones (B) A. Smith"),
    ],
)
def test_labels_are_told_from_what_only_begins_like_one(
    tmp_path: Path, choices: list[str], gold: str, listed: str
) -> None:
    row = only(read(tmp_path, {"question": "Which?", "choices": choices, "answer": gold}), "question")
    assert (row.messages[0]["content"], row.gold) == (f"Which?\nAnswer Choices: {listed}", "B")


def test_choices_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    good = {"question": "q", "choices": ["wet", "dry"], "answer": "A"}
    data = read(tmp_path, good, good | {"answer": "E"}, good | {"choices": ["wet"]}, good | {"choices": [1, 2]})
    few = "the choices are not a list of 2 to 26 texts"
    assert [row.why for row in data.bad] == ["the right answer 'E' is none of the choices", few, few]


def test_sharegpt_keeps_its_turns(tmp_path: Path) -> None:
    said = [("system", "s"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]
    row = only(read(tmp_path, {"conversations": [{"from": f, "value": v} for f, v in said]}), "sharegpt")
    assert roles(row) == "system user assistant user"
    assert (row.messages[-1]["content"], row.completion) == ("c", "d")


def test_a_system_message_may_be_empty(tmp_path: Path) -> None:
    said = [("system", ""), ("human", "a"), ("gpt", "b")]
    data = read(
        tmp_path,
        {"conversations": [{"from": f, "value": v} for f, v in said]},
        {"conversations": [{"from": "system", "value": ""}]},
    )
    assert [row.messages for row in data.rows] == [[{"role": "user", "content": "a"}]]
    assert [row.why for row in data.bad] == ["the field 'conversations' is empty"]


def test_sharegpt_with_tools(tmp_path: Path) -> None:
    called = json.dumps({"name": "weather", "arguments": {"city": "Oslo"}})
    said = [("human", "a"), ("function_call", called), ("observation", "rain"), ("gpt", "It rains.")]
    tools = json.dumps([{"name": "weather", "description": "d", "parameters": {}}])
    row = only(
        read(tmp_path, {"conversations": [{"from": f, "value": v} for f, v in said], "tools": tools}), "sharegpt"
    )
    assert roles(row) == "user assistant tool"
    assert row.messages[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert row.messages[2]["tool_call_id"] == row.messages[1]["tool_calls"][0]["id"]
    assert json.loads(row.tools)[0]["function"]["name"] == "weather"


def test_openai_messages_with_tool_calls(tmp_path: Path) -> None:
    asks = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    told = {"role": "tool", "tool_call_id": "c1", "content": "rain"}
    row = only(read(tmp_path, {"messages": [USER, asks, told, ANSWER], "tools": [TOOL]}), "chat")
    assert roles(row) == "user assistant tool" and row.completion == "Rain."
    assert row.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert json.loads(row.tools) == [TOOL]
    # A call as the last turn is the completion, in the form that answers of the kind json have.
    row = only(read(tmp_path, {"messages": [USER, asks]}), "chat")
    assert json.loads(row.completion or "") == {"tool": "weather", "arguments": {"city": "Oslo"}}
    assert row.extra["tool_calls"] == [CALL]


def test_parts_of_text_and_reasons_beside_the_answer(tmp_path: Path) -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    row = only(read(tmp_path, {"messages": [parts, ANSWER | {"reasoning_content": "Clouds."}]}), "chat")
    assert (row.messages[0]["content"], row.rationale) == ("a\nb", "Clouds.")


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        (
            [{"role": "system", "content": "s"}],
            "the last turn to be answered is not from the user, but from the system",
        ),
        ([USER, ANSWER, ANSWER], "the last turn to be answered is not from the user, but from the assistant"),
        ([ANSWER], "the last turn to be answered is not from the user, but from the assistant"),
        ([], "the field 'messages' is empty"),
        ("hello", "the field 'messages' is not a list of turns"),
        (["hello"], "turn 1 is not an object"),
        ([USER, {"role": "assistant", "content": ""}], "turn 2 is empty"),
        ([{"role": "user", "content": 7}], "the content of turn 1 is not a string"),
        ([{"role": "narrator", "content": "x"}], "turn 1 is of 'narrator'; known are system, user"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "turn 1 holds 'image_url', which is no",
        ),
        ([USER, {"role": "assistant", "tool_calls": [{"function": {}}]}], "a tool call of turn 2 has no name"),
        (
            [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            "the arguments of a tool call of turn 2 are not JSON",
        ),
    ],
)
def test_a_conversation_that_cannot_be_used_says_why(tmp_path: Path, messages: Any, why: str) -> None:
    data = read(tmp_path, {"messages": [USER]}, {"messages": messages}, form="chat")
    assert len(data.rows) == 1 and len(data.bad) == 1
    assert data.bad[0].why.startswith(why) and data.bad[0].where.endswith("line 2")


def test_logs_of_requests_and_responses(tmp_path: Path) -> None:
    request = {"model": "m", "messages": [USER], "tools": [TOOL], "temperature": 0}
    response = {"choices": [{"message": ANSWER, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}
    logs = [
        {"request": request, "response": response, "at": "2025-01-01"},
        {"request": json.dumps(request), "response": json.dumps(response)},
        {"request": {"body": request}, "response": {"body": response, "status": 200}},
        {"messages": [USER], "tools": [TOOL], "response": response},
    ]
    for log in logs:
        row = only(read(tmp_path, log), "log")
        assert (row.messages, row.completion, json.loads(row.tools)) == ([USER], "Rain.", [TOOL])
    failed = {"request": request, "response": {"status": 429, "body": {"error": {"message": "slow"}}}}
    assert only(read(tmp_path, failed), "log").completion is None


def test_every_choice_of_a_response_is_a_row(tmp_path: Path) -> None:
    choices = [{"message": {"role": "assistant", "content": f"a{i}"}, "finish_reason": "length"} for i in range(3)]
    data = read(tmp_path, {"request": {"messages": [USER]}, "response": {"choices": choices}})
    assert [row.completion for row in data.rows] == ["a0", "a1", "a2"]
    assert data.rows[1].where.endswith("line 1, choice 2") and data.rows[1].extra["finish_reason"] == "length"


def test_logs_of_the_responses_api(tmp_path: Path) -> None:
    request = {"model": "m", "instructions": "Be brief.", "input": "Weather?"}
    output = [
        {"type": "reasoning", "id": "r", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Rain."}]},
        {"type": "function_call", "name": "weather", "arguments": "{}", "call_id": "c9"},
    ]
    row = only(read(tmp_path, {"request": request, "response": {"object": "response", "output": output}}), "log")
    assert roles(row) == "system user" and row.completion == "Rain."
    assert row.extra["tool_calls"][0]["id"] == "c9"


def test_stored_completions_need_their_messages(tmp_path: Path) -> None:
    stored = {"id": "x", "object": "chat.completion", "choices": [{"index": 0, "message": ANSWER}]}
    rows = [
        stored | {"messages": [USER]},
        stored | {"messages": {"object": "list", "data": [USER | {"id": "x-0"}]}},
        stored,
    ]
    data = read(tmp_path, *rows)
    assert data.form == "stored" and [row.messages for row in data.rows] == [[USER], [USER]]
    assert [row.why[:39] for row in data.bad] == ["a stored completion without its message"]


def test_a_batch_is_joined_from_its_files(tmp_path: Path) -> None:
    def line(number: int, **more: Any) -> dict[str, Any]:
        return {"custom_id": f"r{number}"} | more

    body = {"model": "m", "messages": [USER]}
    requests = [line(i, method="POST", url="/v1/chat/completions", body=body) for i in range(4)]
    answer = {"status_code": 200, "body": {"choices": [{"message": ANSWER}]}}
    failed = {"status_code": 500, "body": {"error": {"message": "x"}}}
    outputs = [line(2, response=answer, error=None), line(0, response=answer, error=None)]
    errors = [line(1, response=failed, error=None), line(3, response=None, error={"code": "batch_expired"})]
    write_rows(tmp_path / "input.jsonl", requests)
    write_rows(tmp_path / "output.jsonl", [*outputs, line(9, response=answer)])
    write_rows(tmp_path / "errors.jsonl", errors)
    data = read_data(str(tmp_path))
    assert data.form == "batch"
    assert [row.extra["custom_id"] for row in data.rows] == ["r0", "r1", "r2", "r3"]
    assert [row.completion for row in data.rows] == ["Rain.", None, "Rain.", None]
    assert [row.why for row in data.bad] == [
        "the request of custom_id 'r9' is not here; put the batch's input file beside it"
    ]


def test_langfuse_observations(tmp_path: Path) -> None:
    core = {"id": "o", "traceId": "t", "startTime": "2025-01-01T00:00:00Z", "model": "m"}
    rows = [
        core | {"type": "GENERATION", "input": [USER], "output": ANSWER},
        core | {"type": "GENERATION", "input": {"messages": [USER], "tools": [TOOL]}, "output": {"content": "Rain."}},
        core | {"type": "GENERATION", "input": json.dumps([USER]), "output": json.dumps(ANSWER)},
        core | {"type": "GENERATION", "input": "Weather in Oslo?", "output": '{"sky": "grey"}'},
        core | {"type": "SPAN", "input": {"a": 1}, "output": None},
        core | {"type": "GENERATION", "input": None, "output": ANSWER},
    ]
    data = read(tmp_path, *rows)
    assert data.form == "langfuse" and dict(data.skipped) == {"SPAN": 1}
    assert [row.messages for row in data.rows] == [[USER]] * 4
    assert [row.completion for row in data.rows] == ["Rain."] * 3 + ['{"sky": "grey"}']
    assert json.loads(data.rows[1].tools) == [TOOL]
    assert [row.why for row in data.bad] == ["its request holds no messages"]


def test_langfuse_trace_and_data_set_items(tmp_path: Path) -> None:
    generation = {"type": "GENERATION", "traceId": "t", "input": [USER], "output": ANSWER}
    trace = {"trace": {"id": "t", "input": "x"}, "observations": [{"type": "SPAN"}, generation, generation]}
    (tmp_path / "trace.json").write_text(json.dumps(trace))
    data = read_data(str(tmp_path / "trace.json"))
    assert [row.where.rpartition(", ")[2] for row in data.rows] == ["call 1", "call 2"]
    item = {"id": "i", "datasetId": "d", "input": {"question": "q"}, "expectedOutput": "gold", "sourceTraceId": None}
    row = only(read(tmp_path, item), "langfuse")
    assert (row.messages[0]["content"], row.gold) == ("q", "gold")


def test_langsmith_runs(tmp_path: Path) -> None:
    def constructed(kind: str, **kwargs: Any) -> dict[str, Any]:
        return {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", kind], "kwargs": kwargs}

    wrapped = {
        "id": "1",
        "run_type": "llm",
        "inputs": {"messages": [USER]},
        "outputs": {"choices": [{"message": ANSWER}]},
    }
    asks = {"name": "weather", "args": {"city": "Oslo"}, "id": "c1"}
    chain = {
        "id": "2",
        "run_type": "llm",
        "inputs": {"messages": [[constructed("HumanMessage", content="Weather in Oslo?")]]},
        "outputs": {
            "generations": [[{"text": "", "message": constructed("AIMessage", content="", tool_calls=[asks])}]]
        },
        "extra": {"invocation_params": {"tools": [TOOL]}},
    }
    nested = {
        "id": "3",
        "run_type": "chain",
        "inputs": {},
        "outputs": {},
        "child_runs": [wrapped, {"run_type": "tool"}],
    }
    data = read(tmp_path, wrapped, chain, nested, {"id": "4", "run_type": "tool", "inputs": {}, "outputs": {}})
    assert data.form == "langsmith" and not data.bad and dict(data.skipped) == {"tool": 1}
    assert [row.messages for row in data.rows] == [[USER]] * 3
    assert data.rows[1].completion == '{"tool": "weather", "arguments": {"city": "Oslo"}}'
    assert json.loads(data.rows[1].tools) == [TOOL]


def test_langsmith_examples_and_bulk_exports(tmp_path: Path) -> None:
    example = {"inputs": {"question": "q"}, "outputs": {"answer": "a"}, "metadata": {"dataset_split": ["test"]}}
    row = only(read(tmp_path, example), "langsmith")
    assert (row.messages[0]["content"], row.gold, row.split) == ("q", "a", "heldout")
    row = only(read(tmp_path, {"inputs": {"messages": [USER]}, "outputs": {"message": ANSWER}}), "langsmith")
    assert (row.messages, row.completion, row.gold) == ([USER], "Rain.", None)
    bulk = {"run_type": "llm", "inputs": json.dumps({"messages": [USER]}), "outputs": json.dumps({"output": "Rain."})}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([bulk]), tmp_path / "runs.parquet")
    row = only(read_data(str(tmp_path / "runs.parquet")), "langsmith")
    assert (row.messages, row.completion) == ([USER], "Rain.")


def test_steps_alone_are_no_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no call of a model \(2 tool\)"):
        read(tmp_path, *[{"run_type": "tool", "inputs": {}, "outputs": {}}] * 2)


def test_parquet_keeps_conversations(tmp_path: Path) -> None:
    rows = [
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
        {"messages": [USER, ANSWER]},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    data = read_data(str(tmp_path / "a.parquet"))
    assert [row.messages for row in data.rows] == [[USER], [USER]]
    assert data.rows[0].extra["tool_calls"] == [CALL] and data.rows[1].completion == "Rain."


DOCS = Path(__file__).resolve().parents[1] / "docs" / "data.md"
EXAMPLES = re.findall(r"\*\*`(\w+)`\*\*.*?```json\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(("form", "examples"), EXAMPLES)
def test_the_examples_of_the_docs_are_what_they_say(tmp_path: Path, form: str, examples: str) -> None:
    (tmp_path / "a.jsonl").write_text(examples, encoding="utf-8")
    data = read_data(str(tmp_path / "a.jsonl"))
    assert data.form == form and not data.bad and data.rows


def test_half_a_character_inside_of_a_column_of_json_costs_its_row_alone(tmp_path: Path) -> None:
    def line(said: str) -> str:
        turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": said}]
        return json.dumps({"messages": json.dumps(turns)}) + "\n"

    path = tmp_path / "chats.jsonl"
    path.write_text(line("Yes.") + line("Cut \ud83d") + line("No."), encoding="utf-8")
    data = read_data(str(path))
    assert [row.completion for row in data.rows] == ["Yes.", "No."]
    assert [row.where for row in data.bad] == [f"{path}, line 2"]
