"""What the teacher is told when it labels: by examples, in the voice of a system message, or by a program.

Each request has its inverse here, which tells what was asked. None imports more than the standard library.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from pocketstill.grading import Kind, split_completion

Messages = list[dict[str, Any]]
Form = Literal["turns", "text"]
_NEXT = "\n\nQ:"
_ANSWER_IS = "The answer is"
# Where a base model goes on with a question of its own.
STOPS = ["\nQ:"]

# Who speaks, by name. Orca (Mukherjee et al. 2023, arXiv 2306.02707, table 2) draws one of sixteen for each question,
# so that a student sees answers of many lengths, voices and orders; these are in our own words.
SYSTEM_MESSAGES: dict[str, str] = {
    "brief": "You are a busy expert. Give the reason in one short line, then the answer, and nothing more.",
    "steps": "You are a careful assistant. Work through the question in numbered steps before you answer.",
    "child": "Explain your answer to a child of five: short words, a friendly tone, nothing left out.",
    "teacher": "You are a patient teacher at the blackboard. Show the class how the answer is found.",
    "justify": "Work step by step, and after each step say why it is allowed.",
    "facts": "First list the facts that the question gives. Then reason from them alone to the answer.",
    "bullets": "Answer in bullet points, one thought each, the answer last.",
    "formal": "Write as in a technical report: impersonal, exact, in full sentences.",
    "check": "Solve the question, and then check your own result before you state it.",
    "socratic": "Lead to the answer by asking yourself one small question after the other, and answering each.",
    "conclusion": "State in the first line what will come out, then show how one gets there.",
    "paragraph": "Explain your reasoning in one flowing paragraph, without lists or headings.",
    "plan": "Say first how you will go about it, then do it, then answer.",
    "friend": "You talk to a good friend who has asked you for help. Be relaxed, but get it right.",
    "detective": "You are a detective who closes a case: lay out the evidence piece by piece, then name the answer.",
    "table": "Write your steps as a table with the columns step and result, then answer.",
}
_END = re.compile(r"\n\nEnd with a line of the form: Answer: <[^<>\n]+>$")
_FORMS: dict[Kind, str] = {
    "number": "number", "yes_no": "yes or no", "choice": "letter", "text": "answer", "json": "JSON",
}  # fmt: skip

_PROGRAM = (
    "Write a Python program that works out the answer to this question and stores it in a variable called answer "
    "({form}). It may import only modules of the standard library for calculation, reads nothing and prints nothing. "
    "Reply with the program in one code block.\n\nQuestion: {question}"
)
_PROGRAM_FORMS: dict[Kind, str] = {
    "number": "a number", "yes_no": '"yes" or "no"', "choice": "the letter of the right choice", "text": "a string",
    "json": "a string of JSON",
}  # fmt: skip
_EXPLAIN = (
    "Run, the program gives: {result}\nNow explain in words how the answer to the question is found, step by step, "
    "without the program. End with a line of the form: Answer: <{form}>"
)
_ASKED_PROGRAM = re.compile(r"Write a Python program that works out .*?\n\nQuestion: (?P<question>.*)", re.DOTALL)
_ASKED_EXPLANATION = re.compile(r"Run, the program gives: (?P<result>.*)\nNow explain in words .*", re.DOTALL)
_FENCED = re.compile(r"```[ \t]*(?:[Pp]ython3?|py)?[ \t]*\n(?P<program>.*?)(?:\n```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Shot:
    """A worked example. `rationale` is empty where nothing is reasoned, as with a tool call."""

    question: str
    rationale: str
    answer: str


def shot_messages(shot: Shot) -> Messages:
    """A worked example as a turn of the user's and one of the assistant's (Wei et al. 2022, arXiv 2201.11903)."""
    return [{"role": "user", "content": _asking(shot.question)}, {"role": "assistant", "content": _answering(shot)}]


def few_shot_request(question: str, shots: list[Shot], form: Form) -> Messages:
    """Worked examples, then the question: as turns of a chat, or as the one text of the paper."""
    if form == "turns":
        turns = [turn for shot in shots for turn in shot_messages(shot)]
        return [*turns, {"role": "user", "content": _asking(question)}]
    blocks = [f"{_asking(shot.question)} {_answering(shot)}" for shot in shots]
    return [{"role": "user", "content": "\n\n".join([*blocks, _asking(question)])}]


def asked_few_shot(messages: tuple[tuple[str, str], ...]) -> tuple[str, list[Shot]] | None:
    """The question of a few-shot request and its examples; None when it is none."""
    turns = [(role, text.strip()) for role, text in messages if role != "system"]
    if len(turns) == 1:
        turns = [turn for block in turns[0][1].split(_NEXT) for turn in _split_block(block)]
    asked = [_asked(text) for role, text in turns if role == "user"]
    answers = [text for role, text in turns if role == "assistant"]
    if len(asked) < 2 or len(answers) != len(asked) - 1 or turns[-1][0] != "user":
        return None
    shots = []
    for question, answer in zip(asked, answers, strict=False):
        if question is None:
            return None
        rationale, said = split_completion(answer)
        shots.append(Shot(question, rationale, said.removesuffix(".")))
    return None if asked[-1] is None else (asked[-1], shots)


def _asking(question: str) -> str:
    return f"Q: {question}\nA:"


def _answering(shot: Shot) -> str:
    return f"{shot.rationale} {_ANSWER_IS} {shot.answer}." if shot.rationale else shot.answer


def _asked(text: str) -> str | None:
    if not text.startswith("Q:") or not text.endswith("\nA:"):
        return None
    return text[2:-3].strip()


def _split_block(block: str) -> list[tuple[str, str]]:
    question, mark, answer = block.removeprefix("Q:").partition("\nA:")
    asked = [("user", f"Q: {question.strip()}\nA:")] if mark else []
    return asked + ([("assistant", answer.strip())] if answer.strip() else [])


def system_request(system: str, question: str, kind: Kind | None) -> Messages:
    """A question under a system message; `kind` says which form of answer is asked for, None that any is good."""
    ending = f"\n\nEnd with a line of the form: Answer: <{_FORMS[kind]}>" if kind else ""
    return [{"role": "system", "content": system}, {"role": "user", "content": question + ending}]


def asked_system(messages: tuple[tuple[str, str], ...]) -> tuple[str, str] | None:
    """(system message, question) of a request under one; None when it is none of ours."""
    if len(messages) != 2 or [role for role, _ in messages] != ["system", "user"]:
        return None
    system, text = messages[0][1], messages[1][1]
    question = _END.sub("", text)
    return (system, question) if system in SYSTEM_MESSAGES.values() or question != text else None


def program_request(question: str, kind: Kind) -> Messages:
    """A request for a program that sets `answer` (Chen et al. 2022, arXiv 2211.12588, section 2)."""
    return [{"role": "user", "content": _PROGRAM.format(form=_PROGRAM_FORMS[kind], question=question)}]


def explain_request(question: str, kind: Kind, completion: str, result: str) -> Messages:
    """The program that was written, what it gives, and a request to say the same in words."""
    said = _EXPLAIN.format(result=result, form=_FORMS[kind])
    return [
        *program_request(question, kind),
        {"role": "assistant", "content": completion},
        {"role": "user", "content": said},
    ]


def asked_program(messages: tuple[tuple[str, str], ...]) -> tuple[str, str | None] | None:
    """(question, what its program gave, None if it is the program that is asked for); None when it is neither."""
    explained = _ASKED_EXPLANATION.fullmatch(messages[-1][1]) if len(messages) >= 3 else None
    asked = _ASKED_PROGRAM.fullmatch(messages[-3 if explained else -1][1])
    if asked is None:
        return None
    return asked["question"], explained["result"] if explained else None


def program_of(completion: str) -> str:
    """The program in a completion: its first code block, or all of it where there is none."""
    fenced = _FENCED.search(completion)
    return (fenced["program"] if fenced else completion).strip("\n")


TOOL_RESULT = (
    "You stand in for the tools of an assistant. For the call that you are given, reply with the JSON object that "
    "the tool would return, and nothing else."
)


def result_request(call: str, tool: str) -> Messages:
    """A request for what a tool returns; `call` and `tool`, its definition, are JSON."""
    return [
        {"role": "system", "content": TOOL_RESULT},
        {"role": "user", "content": f"Tool: {tool}\nCall: {call}"},
    ]


def asked_result(messages: tuple[tuple[str, str], ...]) -> str | None:
    """The call whose result is asked for, JSON; None when none is."""
    if len(messages) != 2 or messages[0] != ("system", TOOL_RESULT):
        return None
    return messages[1][1].rpartition("\nCall: ")[2]
