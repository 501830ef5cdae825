"""What the teacher is asked: the two requests of zero-shot chain of thought, and the one of a tool call.

Kojima et al. 2022, "Large Language Models are Zero-Shot Reasoners" (arXiv 2205.11916): first the question
with "Let's think step by step.", then, behind the rationale that came back, a request for the bare answer.
"""

from __future__ import annotations

import json
import re

from pocketstill.grading import Kind

from . import problems

Messages = list[dict[str, str]]
STEP_BY_STEP = "Let's think step by step."
_THEREFORE = re.compile(r"\s*Therefore,[^\n]{0,80}\banswer\b[^\n]{0,80}\bis\b[\s:]*", re.IGNORECASE)
_OPTION = re.compile(r"\(([A-Z])\)")


def reasons_first(kind: Kind) -> bool:
    """Whether a rationale is asked for before the answer; a tool call is answered outright."""
    return kind != "json"


def first_request(question: str, kind: Kind) -> Messages:
    """The request that a question starts with: for its rationale, or for the tool call itself."""
    if reasons_first(kind):
        return [{"role": "user", "content": f"Q: {question}\nA: {STEP_BY_STEP}"}]
    return [{"role": "system", "content": TOOL_INSTRUCTION}, {"role": "user", "content": question}]


def answer_request(question: str, kind: Kind, rationale: str) -> Messages:
    """The second request: the first one, its rationale, and the words that ask for the answer."""
    return [
        *first_request(question, kind),
        {"role": "assistant", "content": rationale},
        {"role": "user", "content": answer_prompt(question, kind)},
    ]


def answer_prompt(question: str, kind: Kind) -> str:
    """The words that ask for the answer, by kind, as Kojima et al. wrote them."""
    if kind == "number":
        return "Therefore, the answer (arabic numerals) is"
    if kind == "yes_no":
        return "Therefore, the answer (Yes or No) is"
    if kind == "choice":
        letters = _OPTION.findall(question.rpartition("Answer Choices:")[2])
        return f"Therefore, among A through {max(letters, default='E')}, the answer is"
    return "Therefore, the answer is"


def asked_kind(prompt: str) -> Kind:
    """The kind of answer that the words of an answer request ask for: `answer_prompt` backwards."""
    low = prompt.lower()
    if "numerals" in low:
        return "number"
    if "yes or no" in low:
        return "yes_no"
    return "choice" if "among" in low else "text"


def asked_question(content: str) -> str | None:
    """The question inside a first request; None if the text does not ask to think step by step."""
    text = content.strip().removesuffix(".")
    if not text.endswith(STEP_BY_STEP[:-1]):
        return None
    text = text.removesuffix(STEP_BY_STEP[:-1]).rstrip()
    if text == "A:" or (text.endswith("A:") and text[-3].isspace()):
        text = text[:-2].rstrip()
    return text.removeprefix("Q:").lstrip()


def asks_for_answer(content: str) -> bool:
    """Whether a user's turn is the words of an answer request."""
    return _THEREFORE.fullmatch(content) is not None


def fold(text: str) -> str:
    """White space folded, so that texts that differ only in it compare equal."""
    return " ".join(text.split())


def _tool_instruction() -> str:
    lines = [json.dumps(tool, ensure_ascii=False) for tool in problems.TOOLS]
    return (
        "You are the assistant of a phone. Turn the user's command into one call of one of these tools. "
        'Reply with one JSON object {"tool": name, "arguments": {...}} and nothing else.\n' + "\n".join(lines)
    )


TOOL_INSTRUCTION = _tool_instruction()
