"""What Self-Instruct asks a teacher, and how its requests and replies are read again.

The steps are those of Wang et al. 2022 (arXiv 2212.10560, section 2.2 and the templates of its appendix), in words
of our own and for a model that chats: a list of instructions to continue, the question whether a task classifies,
and instances of a task, input first or, for tasks that classify, label first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pocketstill_pipeline.asking import Message, Messages

_PROPOSE = "Below is the beginning of a list of tasks that people give to an assistant that reads and writes text."
_CLASSIFIES = "Is a task a classification task: must its output be one of a few labels that are known beforehand?"
_INPUT_FIRST = "Come up with examples for the last of these tasks: an input where the task needs one, then its output."
_LABEL_FIRST = (
    "The last of these tasks is a classification task. Name each label that it can have, "
    "and behind every label an input that belongs to it."
)
_ITEM = re.compile(r"^\s*\**(\d{1,3})\s?[.)]\**(?:\s+|$)(.*)$")
_BULLET = re.compile(r"^\s*[-*•]()\s+(.*)$")
_HEADING = re.compile(r"^\s*(?:#{1,6}\s.*|\*\*[^*]+\*\*:?|-{3,}|\*{3,})\s*$")
_BOLD = re.compile(r"(?<![\w*])\*\*(?=\S)(.+?)(?<=\S)\*\*(?![\w*])")
_UP_TO = re.compile(r"^Write numbers (\d+) to (\d+)\b", re.MULTILINE)
_TASK = re.compile(r"^Task: ", re.MULTILINE)
_COUNT = re.compile(r"^Give (\d+) examples\b", re.MULTILINE)
# What may stand before a field's name: the number of the example, and signs of Markdown.
_LEAD = r"^[#*\- ]*(?:\d{1,2}[.)][* ]*)?"
_EXAMPLE = re.compile(r"^[#* ]*Example\s*\d*\s*[.:]?[* ]*$", re.MULTILINE | re.IGNORECASE)
_BETWEEN = re.compile(r"[ ]*(?:-{3,}|\*{3,}|[#* ]*Example\s*\d*\s*[.:]?[* ]*)", re.IGNORECASE)
_INPUT = re.compile(_LEAD + r"Input\s*\d*\s*:[* ]*", re.MULTILINE | re.IGNORECASE)
_OUTPUT = re.compile(_LEAD + r"Output\s*\d*\s*:[* ]*", re.MULTILINE | re.IGNORECASE)
_LABEL = re.compile(_LEAD + r"(?:Class )?Label\s*\d*\s*:[* ]*", re.MULTILINE | re.IGNORECASE)
_NO_INPUT = re.compile(r"\W*(?:none|n/a|no input(?: (?:needed|required|necessary))?)\W*", re.IGNORECASE)


@dataclass(frozen=True)
class Instance:
    """An input of a task, "" where it needs none, and its output."""

    input: str
    output: str


@dataclass(frozen=True)
class Shown:
    """A task with instances, as an example of how they are written."""

    instruction: str
    classifies: bool
    instances: tuple[Instance, ...]


@dataclass(frozen=True)
class Proposals:
    """What a request for new instructions says: those that it shows, and the numbers of those that it wants."""

    instructions: tuple[str, ...]
    first: int
    last: int


@dataclass(frozen=True)
class Instances:
    """What a request for instances of a task says."""

    instruction: str
    classifies: bool
    count: int


def propose_request(instructions: Sequence[str], count: int) -> Messages:
    """Ask for `count` instructions behind the given ones."""
    lines = [f"{number}. {_one_line(text)}" for number, text in enumerate(instructions, 1)]
    first = len(lines) + 1
    return _user(
        f"{_PROPOSE} Continue it with other tasks, unlike each other and unlike those given, in as many forms and "
        "about as many subjects as you can; each must be complete without any attachment.\n\n"
        + "\n".join(lines)
        + f"\n\nWrite numbers {first} to {first + count - 1}, one a line, and nothing else."
    )


def asked_proposals(content: str) -> Proposals | None:
    """`propose_request` backwards; None for another text."""
    numbers = _UP_TO.search(content)
    if not content.startswith(_PROPOSE) or numbers is None:
        return None
    shown = (_ITEM.match(line) for line in content[: numbers.start()].splitlines())
    return Proposals(tuple(item[2] for item in shown if item), int(numbers[1]), int(numbers[2]))


def read_list(text: str) -> list[str]:
    """The items of a numbered list, else of one with bullets, white space folded, further lines joined to their item.

    Headings between items are no part of them, nor is what follows the list: more paragraphs than any other item has.
    """
    lines = text.splitlines()
    mark = _ITEM if any(map(_ITEM.match, lines)) else _BULLET
    items: list[list[str]] = []
    for line in lines:
        item = mark.match(line)
        if item:
            items.append([item[2]])
        elif items and not line.strip():
            items[-1].append("")
        elif items and not _HEADING.match(line):
            items[-1][-1] += f" {line}"
    parts = [[part for said in item if (part := _one_line(_BOLD.sub(r"\1", said)))] for item in items]
    if parts:
        parts[-1] = parts[-1][: max(map(len, parts[:-1]), default=1) or 1]
    return [said for item in parts if (said := " ".join(item).strip("*").strip())]


def classify_request(instruction: str, shown: Iterable[Shown]) -> Messages:
    """Ask whether a task classifies, behind tasks for which that is known."""
    known = [f"Task: {_one_line(s.instruction)}\nClassification: {'Yes' if s.classifies else 'No'}" for s in shown]
    last = f"Task: {_one_line(instruction)}\nClassification:"
    return _user("\n\n".join([f"{_CLASSIFIES} Answer Yes or No.", *known, last]))


def asked_classify(content: str) -> str | None:
    """The task that `classify_request` asks about; None for another text."""
    if not content.startswith(_CLASSIFIES):
        return None
    return _last_task(content).removesuffix("\nClassification:").strip()


def read_classify(text: str) -> bool:
    """Whether a reply says that a task classifies: only a plain yes does, as in the paper's code."""
    return re.match(r"\W*yes\b", text, re.IGNORECASE) is not None


def instances_request(instruction: str, classifies: bool, count: int, shown: Iterable[Shown]) -> Messages:
    """Ask for instances of a task: input first, or label first for one that classifies.

    Asked input first, a model tends to write inputs of one label only (Wang et al. 2022, section 2.2).
    """
    examples = [_written(task) for task in shown if task.instances and task.classifies == classifies]
    last = f"Task: {_one_line(instruction)}\nGive {count} examples."
    return _user("\n\n".join([_LABEL_FIRST if classifies else _INPUT_FIRST, *examples, last]))


def asked_instances(content: str) -> Instances | None:
    """`instances_request` backwards; None for another text."""
    if not content.startswith((_LABEL_FIRST, _INPUT_FIRST)):
        return None
    last = _last_task(content)
    count = _COUNT.search(last)
    if count is None:
        return None
    return Instances(last[: count.start()].strip(), content.startswith(_LABEL_FIRST), int(count[1]))


def write_instances(instances: Sequence[Instance], classifies: bool) -> str:
    """Instances in the form that the request shows."""
    if classifies:
        return "\n\n".join(f"Label: {one.output}\nInput: {one.input}" for one in instances)
    lines = []
    for number, one in enumerate(instances, 1):
        given = f"Input: {one.input}\n" if one.input else ""
        lines.append(f"Example {number}\n{given}Output: {one.output}")
    return "\n\n".join(lines)


def read_instances(text: str, classifies: bool) -> list[Instance]:
    """The instances of a reply; none when it has no form that is known.

    A reply to a request that wants labels first has the label before its input, and any other the input first,
    which may be missing. A teacher that turns the order round is read as it wrote.
    """
    if not classifies:
        return [_input_first(part, _OUTPUT) for part in _EXAMPLE.split(text) if _OUTPUT.search(part)]
    label, given = _LABEL.search(text), _INPUT.search(text)
    if label and given and given.start() < label.start():
        turned = [_input_first(part, _LABEL) for part in _INPUT.split(text)[1:] if _LABEL.search(part)]
        return [Instance(one.input, one.output.strip("* ")) for one in turned]
    return [_label_first(part) for part in _LABEL.split(text)[1:]]


def _label_first(part: str) -> Instance:
    label, _, rest = part.strip().partition("\n")
    return Instance(_own(_INPUT.sub("", rest, count=1)), label.strip("* "))


def _input_first(part: str, output: re.Pattern[str]) -> Instance:
    given, said = output.split(part, maxsplit=1)
    # Another pair may follow without a heading of its own.
    said = _own(_INPUT.split(said, maxsplit=1)[0])
    given = _INPUT.sub("", given.strip(), count=1).strip()
    return Instance("" if _NO_INPUT.fullmatch(given) and given != said else given, said)


def _own(text: str) -> str:
    """The text without the rule or the heading that leads on to the next example."""
    lines = text.strip().split("\n")
    while lines and (not lines[-1].strip() or _BETWEEN.fullmatch(lines[-1])):
        lines.pop()
    return "\n".join(lines).strip()


def _written(task: Shown) -> str:
    return f"Task: {_one_line(task.instruction)}\n{write_instances(task.instances, task.classifies)}"


def _last_task(content: str) -> str:
    return _TASK.split(content)[-1].strip()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _user(content: str) -> Messages:
    message: Message = {"role": "user", "content": content}
    return [message]
