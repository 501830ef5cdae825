"""What Evol-Instruct and paraphrasing ask a teacher, and how these requests are read again.

The operations are those of Xu et al. 2023 (WizardLM, arXiv 2304.12244, section 3 and appendices A to F), in words of
our own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from pocketstill_pipeline.asking import Messages

Operation = Literal["constraints", "deepen", "concretize", "reasoning", "complicate_input", "breadth"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)

_REWRITE = (
    "You rewrite prompts. Make the given prompt somewhat harder for an AI system, so that people can still understand "
    "and answer it. Keep all of its parts, also tables, code and any input. Add at most 10 to 20 words"
)
_CREATE = (
    "You invent prompts. Take the given prompt as an inspiration for a brand new one of the same domain, but rarer, "
    "about as long and as difficult, that people can understand and answer."
)
_HOW: dict[Operation, str] = {
    "constraints": "add one more constraint or requirement to it",
    "deepen": "let it ask for more depth and breadth on its subject",
    "concretize": "replace general notions in it by more specific ones",
    "reasoning": "if a few simple steps of thought solve it, let it ask explicitly for several steps of reasoning",
    "complicate_input": "give it input data to work on, such as a table, JSON or a text (here more words are fine)",
}
_GIVEN, _WANTED = "#Given Prompt#:", "#Rewritten Prompt#:"
_COMPARE = (
    "Do these two instructions ask for the same? They do when they have the same constraints and requirements, and "
    "ask for the same depth and breadth. Answer only: Equal or Not Equal."
)
# Words of these requests that no prompt of its own has: with one of them in it, an evolved one copies them.
COPIED = re.compile(
    r"\b(?:given|rewritten|created|new|evolved)[ _-]prompt\b|\bprompt (?:rewriter|creator)\b|\brewrite prompts\b",
    re.IGNORECASE,
)
_PARAPHRASE = "Say the question below in other words"
_ROUTES = re.compile(r"Way: (.*)\. The words")
_COUNT = re.compile(r"in (\d+) different ways")


@dataclass(frozen=True)
class Evolve:
    """A request to evolve an instruction."""

    instruction: str
    operation: Operation


@dataclass(frozen=True)
class Paraphrases:
    """A request for a question in other words."""

    question: str
    count: int


def evolve_request(instruction: str, operation: Operation) -> Messages:
    """Ask for a harder version of an instruction, or with "breadth" for another one of its domain."""
    task = _CREATE if operation == "breadth" else f"{_REWRITE}. Way: {_HOW[operation]}"
    said = (
        f"{task}. The words 'given prompt', 'rewritten prompt' and '#Rewritten Prompt#' must not be part of it.\n"
        f"{_GIVEN}\n{instruction}\n{_WANTED}"
    ).replace("..", ".")
    return [{"role": "user", "content": said}]


def asked_evolve(content: str) -> Evolve | None:
    """`evolve_request` backwards; None for another text."""
    if not content.startswith((_REWRITE, _CREATE)) or not content.endswith(f"\n{_WANTED}"):
        return None
    head, _, rest = content.partition(f"\n{_GIVEN}\n")
    instruction = rest.removesuffix(f"\n{_WANTED}")
    if content.startswith(_CREATE):
        return Evolve(instruction, "breadth")
    way = _ROUTES.search(head)
    operation = next((name for name, how in _HOW.items() if way and way[1] == how), None)
    return Evolve(instruction, operation) if operation else None


def read_evolved(text: str) -> str:
    """The instruction that a reply gives: all of it, without a heading that repeats what was asked for."""
    text = text.strip()
    for heading in (_WANTED, "#Created Prompt#:"):
        text = text.removeprefix(heading).strip()
    return unquoted(text)


def unquoted(text: str) -> str:
    """The text without quotation marks around all of it, which teachers like to put."""
    text = text.strip()
    quoted = text[:1] + text[-1:] in ('""', "“”") and len(text) > 1 and not set('"“”') & set(text[1:-1])
    return text[1:-1].strip() if quoted else text


def compare_request(one: str, other: str) -> Messages:
    """Ask whether an evolved instruction asks for nothing more than the one that it was made of."""
    content = f"{_COMPARE}\n\nThe first instruction:\n{one}\n\nThe second instruction:\n{other}\n\nJudgement:"
    return [{"role": "user", "content": content}]


def asked_compare(content: str) -> tuple[str, str] | None:
    """`compare_request` backwards; None for another text."""
    if not content.startswith(_COMPARE):
        return None
    both = content.removesuffix("\n\nJudgement:").partition("The first instruction:\n")[2]
    one, between, other = both.partition("\n\nThe second instruction:\n")
    return (one, other) if between else None


def read_compare(text: str) -> bool | None:
    """Whether a reply says that two instructions are equal; None when it says neither."""
    said = re.search(r"\b(not |un|in)?equal\b", text, re.IGNORECASE)
    return None if said is None else said[1] is None


def paraphrase_request(question: str, count: int) -> Messages:
    """Ask for a question in other words, `count` times."""
    content = (
        f"{_PARAPHRASE}, in {count} different ways. Keep every number, every name, every quoted word and all answer "
        "choices; the right answer must stay the same. Do not answer it. Reply with a numbered list, one wording a "
        f"line.\n\nQuestion:\n{question}"
    )
    return [{"role": "user", "content": content}]


def asked_paraphrases(content: str) -> Paraphrases | None:
    """`paraphrase_request` backwards; None for another text."""
    head, between, question = content.partition("\n\nQuestion:\n")
    count = _COUNT.search(head)
    if not head.startswith(_PARAPHRASE) or not between or count is None:
        return None
    return Paraphrases(question, int(count[1]))
