"""What is asked for learning in context: the query behind its demonstrations, new demonstrations, and a choice of them.

Each builder has its inverse, which reads what was asked out of a request's (role, text) turns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from pydantic import BaseModel

from pocketstill import grading
from pocketstill_pipeline.asking import Messages

Pair = tuple[str, str]
Turns = Sequence[tuple[str, str]]

LABEL = (
    "Every message is an input of one and the same task. Answer the last one as those before it were answered: "
    "with the output alone, without any explanation."
)
LABEL_ALONE = "The message is an input. Answer with its output alone, without any explanation."
_GENERATE = "Each line below is an example of one and the same task: an input and its output.\n"
_WANTED = "\nWrite {} new examples of this task: other inputs of the same form, each with its right output."
_CHOOSE = "Somebody who does not know the task will be shown {} of the numbered examples below, and then asked this:\n"
_WHICH = "\nWhich {} of the examples help most to answer it? Give their numbers, the most helpful one last."
_NUMBERED = re.compile(r"(\d+)\. (.*)")


class NewPair(BaseModel):
    """An instance that the teacher made."""

    input: str
    output: str


class NewPairs(BaseModel):
    """The reply to `generate_request`."""

    examples: list[NewPair]


class Chosen(BaseModel):
    """The reply to `choose_request`."""

    numbers: list[int]


def demonstration_turns(pairs: Iterable[Pair]) -> Messages:
    """Demonstrations as turns: what the user says, what the assistant answers."""
    turns: Messages = []
    for asked, said in pairs:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return turns


def label_request(demonstrations: Messages, messages: Messages) -> Messages:
    """The query behind its demonstrations; with none of them the request is a zero-shot one."""
    return [{"role": "system", "content": LABEL if demonstrations else LABEL_ALONE}, *demonstrations, *messages]


def asked_label(turns: Turns) -> tuple[list[Pair], str] | None:
    """The demonstrations and the query of a `label_request`."""
    if turns[0] not in (("system", LABEL), ("system", LABEL_ALONE)) or turns[-1][0] != "user":
        return None
    shown = turns[1:-1]
    pairs = [(asked[1], said[1]) for asked, said in zip(shown[::2], shown[1::2], strict=False)]
    return pairs, turns[-1][1]


def read_output(reply: str, around: str) -> str | None:
    """The output that a reply gives: its first line, without the cue that ends the surface form `around`.

    Quotes, dots and blanks around it go, as `grading.extract` takes them off any text.
    """
    cue = around.partition("{}")[2].strip()
    text = reply.strip()
    if cue and text.startswith(cue):
        text = text.removeprefix(cue)
    lines = text.strip().splitlines()
    return grading.extract(lines[0], "text") if lines else None


def _line(pair: Pair) -> str:
    return json.dumps({"input": pair[0], "output": pair[1]}, ensure_ascii=False)


def _pair(line: str) -> Pair | None:
    try:
        read = NewPair.model_validate_json(line)
    except ValueError:
        return None
    return read.input, read.output


def generate_request(examples: Iterable[Pair], wanted: int) -> Messages:
    """Ask for new instances of the task that the examples describe; `NewPairs` is the form of the reply."""
    text = _GENERATE + "\n".join(_line(pair) for pair in examples) + _WANTED.format(wanted)
    return [{"role": "user", "content": text}]


def asked_pairs(turns: Turns) -> tuple[list[Pair], int] | None:
    """The examples of a `generate_request`, and how many new ones it asks for."""
    text = turns[-1][1]
    if not text.startswith(_GENERATE):
        return None
    shown, _, tail = text.removeprefix(_GENERATE).rpartition("\n")
    wanted = re.search(r"\d+", tail)
    pairs = [pair for line in shown.split("\n") if (pair := _pair(line))]
    return (pairs, int(wanted.group())) if wanted else None


def choose_request(candidates: Iterable[Pair], query: str, count: int) -> Messages:
    """Ask which candidates help most with a query; `Chosen` is the form of the reply, numbers from 1."""
    numbered = "\n".join(f"{number}. {_line(pair)}" for number, pair in enumerate(candidates, start=1))
    text = f"{_CHOOSE.format(count)}{json.dumps(query, ensure_ascii=False)}\n{numbered}{_WHICH.format(count)}"
    return [{"role": "user", "content": text}]


def asked_choice(turns: Turns) -> tuple[list[Pair], str, int] | None:
    """The candidates, the query, and how many are to be chosen, of a `choose_request`."""
    first, *lines = turns[-1][1].split("\n")
    start, _, _ = _CHOOSE.partition("{}")
    wanted = re.search(r"\d+", first)
    if not first.startswith(start) or wanted is None or not lines:
        return None
    try:
        query = json.loads(lines[0])
    except ValueError:
        return None
    numbered = (_NUMBERED.fullmatch(line) for line in lines[1:])
    pairs = [pair for match in numbered if match and (pair := _pair(match[2]))]
    return pairs, str(query), int(wanted.group())
