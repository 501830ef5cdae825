"""The forms that rows come in, each read into `DataRow`s."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from pocketstill_pipeline.asking import Messages

from . import chat, traces
from .choices import with_choices
from .layout import RECORDED, Fields, Layout
from .rows import DataRow, Record, RowError, split_named

# The last line of a solution of GSM8K (Cobbe et al. 2021, arXiv 2110.14168), and its marks for a calculator.
_GSM8K = re.compile(r"\A(.*?)\n?####[ \t]*([^\n]+?)\s*\Z", re.DOTALL)
_CALCULATED = re.compile(r"<<[^<>\n]*>>")


def convert(record: Record, layout: Layout) -> list[DataRow]:
    """The rows that a record of a layout is: one, or one for each choice of an answer.

    Raises:
        RowError: it cannot be used; the reason is given.
        StepError: it is a step of a trace that is no call of a model.
    """
    if record.row is None:
        raise RowError(record.why)
    return _CONVERTERS[layout.form](record, layout)


def _data_row(
    messages: Messages,
    record: Record,
    fields: Fields,
    *,
    turn: Mapping[str, Any] | None = None,
    tools: Any = None,
    **parts: str | None,
) -> DataRow:
    """A row of a conversation; `turn`, or else its last turn if that is the assistant's, is its completion."""
    messages = [dict(message) for message in messages]
    if turn is None and messages[-1]["role"] == "assistant":
        turn = messages.pop()
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        whose = messages[-1]["role"] if messages else "assistant"
        raise RowError(f"the last turn to be answered is not from the user, but from the {whose}")
    offered = fields.take("tools")
    split = fields.split() or record.split
    extra = fields.extra()
    if turn is not None:
        if turn.get("tool_calls"):
            extra["tool_calls"] = turn["tool_calls"]
        if turn.get("finish_reason"):
            extra["finish_reason"] = turn["finish_reason"]
        parts = {"completion": chat.completion_of(turn), "rationale": turn.get("reasoning")} | parts
    for message in messages:
        message.pop("reasoning", None)
    text = chat.tools_text(tools or offered)
    return DataRow(messages, split=split, tools=text, where=record.where, extra=extra, **parts)


def _plain_row(record: Record, layout: Layout) -> list[DataRow]:
    """Question and gold, or prompt and completion; a prompt may be turns."""
    fields = Fields(record.row or {}, layout)
    prompt = fields.take("question")
    if isinstance(prompt, list) or chat.is_turns(chat.loaded(prompt)):
        messages = chat.turns(prompt, layout.columns["question"])
    else:
        asked = fields.text("question") or ""
        # Alpaca's input belongs to its instruction, whatever its output is called.
        has_input = layout.columns["question"] == "instruction" and "input" not in layout.columns.values()
        given = fields.text("input") if has_input else None
        messages = [{"role": "user", "content": f"{asked}\n\n{given}" if given else asked}]
    completion = fields.take("completion")
    turn = None
    if isinstance(completion, list) or chat.is_turns(chat.loaded(completion)):
        # TRL's preference form repeats the prompt in what was chosen.
        turn = next((t for t in reversed(chat.turns(completion, "completion")) if t["role"] == "assistant"), None)
    else:
        text = fields.text("completion")
        turn = {"role": "assistant", "content": text} if text else None
    gold = fields.answer("gold")
    choices = chat.loaded(fields.take("choices"))
    if choices is not None:
        text, gold = with_choices(messages[-1]["content"], choices, gold)
        messages[-1] = messages[-1] | {"content": text}
    rationale = fields.text("rationale")
    if gold is not None and (match := _GSM8K.match(gold)) and match[1].strip():
        rationale, gold = rationale or _CALCULATED.sub("", match[1]).strip(), match[2]
    if gold is None and rationale is not None:
        gold = _boxed(rationale)
    context, bare = fields.text("context"), messages[-1]["content"]
    if context is not None:
        messages[-1] = messages[-1] | {"content": f"{context}\n\n{bare}"}
    system = fields.text("system")
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    parts = {"gold": gold, "context": context} | ({"rationale": rationale} if rationale else {})
    row = _data_row(messages, record, fields, turn=turn, **parts)
    if context is not None:
        row.extra["question"] = bare
    return [row]


def _boxed(text: str) -> str | None:
    r"""What the last \boxed{...} of a solution holds, as the sets of competition problems give their answers."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for at in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : at].strip() or None
    return None


def _recorded(record: Record, layout: Layout) -> list[DataRow]:
    """Our own recordings: what a teacher said to the two requests of zero-shot chain of thought."""
    needed = frozenset({"question", "gold", *RECORDED})
    fields = Fields(record.row or {}, Layout(layout.form, layout.columns, needed))
    question, gold = fields.text("question"), fields.text("gold")
    said = {}
    for name in RECORDED:
        # A teacher may have answered nothing, which is a recording too.
        value = fields.take(name)
        if not isinstance(value, str):
            raise RowError(f"the field {name!r} is {'missing' if value is None else 'not a string'}")
        said[name] = value
    completion = f"{said['reasoning'].strip()}\n{said['answer_prompt']} {said['answer_completion'].strip()}"
    messages = [{"role": "user", "content": question or ""}]
    row = _data_row(messages, record, fields, gold=gold, rationale=said["reasoning"], completion=completion)
    row.extra.update(said)
    return [row]


def _alpaca(record: Record, layout: Layout) -> list[DataRow]:
    needed = frozenset({"instruction", "output"})
    fields = Fields(record.row or {}, Layout(layout.form, layout.columns, needed))
    instruction, given = fields.text("instruction"), fields.text("input")
    content = f"{instruction}\n\n{given}" if given else instruction
    messages: Messages = []
    if system := fields.text("system"):
        messages.append({"role": "system", "content": system})
    history = chat.loaded(fields.take("history"))
    for pair in history if isinstance(history, list) else ():
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise RowError("the field 'history' is not a list of pairs of texts")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    messages.append({"role": "user", "content": content})
    return [_data_row(messages, record, fields, completion=fields.text("output"), gold=fields.answer("gold"))]


def _conversation(record: Record, layout: Layout) -> list[DataRow]:
    """ShareGPT's conversations, and OpenAI's messages as its fine-tuning takes them."""
    fields = Fields(record.row or {}, layout)
    names = ("messages", "conversations", "conversation")
    name = next((name for name in names if fields.take(name) is not None), names[layout.form == "sharegpt"])
    messages = chat.turns(fields.take(name), layout.columns.get(name, name))
    system = fields.text("system")
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return [_data_row(messages, record, fields, gold=fields.answer("gold"))]


def _traced(record: Record, request: Any, response: Any, fields: Fields, *places: Any, **parts: Any) -> list[DataRow]:
    messages = traces.asked(request)
    tools = traces.tools_of(request, *places)
    answers = traces.said(response)
    if not answers:
        return [_data_row(messages, record, fields, tools=tools, **parts)]
    rows = []
    for number, turn in enumerate(answers, start=1):
        where = record.where if len(answers) == 1 else f"{record.where}, choice {number}"
        at = Record(where, record.row, split=record.split)
        rows.append(_data_row(messages, at, fields, turn=turn, tools=tools, **parts))
    return rows


def _log(record: Record, layout: Layout) -> list[DataRow]:
    """Request and response as a proxy logs them, or the request's own fields beside the response."""
    fields = Fields(record.row or {}, layout)
    request, response = fields.take("request"), fields.take("response")
    if request is None:
        request = {name: fields.take(name) for name in ("messages", "prompt", "input", "tools", "functions")}
    return _traced(record, request, _succeeded(response), fields)


def _succeeded(response: Any) -> Any:
    """A response that is an answer; None for one that is an error."""
    response = chat.loaded(response)
    if not isinstance(response, Mapping):
        return response
    status = response.get("status_code", response.get("status", 200))
    if (isinstance(status, int) and status >= 400) or response.get("error"):
        return None
    return chat.loaded(response["body"]) if response.get("body") else response


def _stored(record: Record, layout: Layout) -> list[DataRow]:
    fields = Fields(record.row or {}, layout)
    request = {name: chat.loaded(fields.take(name)) for name in ("messages", "input")}
    for name, value in request.items():
        if isinstance(value, Mapping) and "data" in value:
            request[name] = value["data"]
    if not any(request.values()):
        raise RowError("a stored completion without its messages; export those of .../messages with it")
    return _traced(record, request, {"choices": fields.take("choices")}, fields, {"tools": fields.take("tools")})


def _batch(record: Record, layout: Layout) -> list[DataRow]:
    """A line of a Batch API's input, joined with its line of the output."""
    fields = Fields(record.row or {}, layout)
    body, identity = fields.take("body"), fields.take("custom_id")
    if body is None:
        raise RowError(f"the request of custom_id {identity!r} is not here; put the batch's input file beside it")
    rows = _traced(record, body, _succeeded(fields.take("response")), fields)
    for row in rows:
        row.extra["custom_id"] = identity
    return rows


def _langfuse(record: Record, layout: Layout) -> list[DataRow]:
    row = record.row or {}
    traces.check_kind(row)
    fields = Fields(row, layout)
    expected = next((row[name] for name in ("expectedOutput", "expected_output") if row.get(name) is not None), None)
    gold = None
    if expected is not None:
        answers = traces.said(chat.loaded(expected))
        gold = chat.completion_of(answers[0]) if answers else None
    model = row.get("modelParameters") or row.get("model_parameters")
    return _traced(record, fields.take("input"), fields.take("output"), fields, model, row.get("metadata"), gold=gold)


def _langsmith(record: Record, layout: Layout) -> list[DataRow]:
    row = record.row or {}
    traces.check_kind(row)
    fields = Fields(row, layout)
    request, outputs = chat.loaded(fields.take("inputs")), chat.loaded(fields.take("outputs"))
    extra = chat.loaded(row.get("extra"))
    places = [extra.get("invocation_params"), extra] if isinstance(extra, Mapping) else []
    gold = None
    if "run_type" not in row and isinstance(outputs, Mapping) and len(outputs) == 1:
        # An example of a data set: its one short output is what a run is compared with.
        only = next(iter(outputs.values()))
        gold = only if isinstance(only, str) and only.strip() else None
        outputs = only if gold else outputs
    metadata = chat.loaded(row.get("metadata"))
    side = metadata.get("dataset_split") if isinstance(metadata, Mapping) else None
    name = side[0] if isinstance(side, list) and len(side) == 1 else side
    split = record.split or (split_named(name) if isinstance(name, str) else None)
    return _traced(Record(record.where, row, split=split), request, outputs, fields, *places, gold=gold)


_CONVERTERS: dict[str, Callable[[Record, Layout], list[DataRow]]] = {
    "question": _plain_row,
    "completion": _plain_row,
    "alpaca": _alpaca,
    "chat": _conversation,
    "sharegpt": _conversation,
    "recorded": _recorded,
    "log": _log,
    "stored": _stored,
    "batch": _batch,
    "langfuse": _langfuse,
    "langsmith": _langsmith,
}
