"""Instructions of the embedded teacher: how it makes them up, reads them again, and does what they say."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from .expansion_rules import RULES, Draft, Rule
from .expansion_tasks import CLASSIFICATION_TASKS, TOPIC_TASKS, Slots, Task, fill, pattern_of, sign_of
from .expansion_texts import NUMBER_TASKS, TEXT_TASKS

TASKS: tuple[Task, ...] = (*TOPIC_TASKS, *TEXT_TASKS, *NUMBER_TASKS, *CLASSIFICATION_TASKS)
# The share of each kind of task among what it makes up.
_KINDS = ((TOPIC_TASKS, 0.62), (TEXT_TASKS, 0.16), (NUMBER_TASKS, 0.08), (CLASSIFICATION_TASKS, 0.14))
_OPENERS = (
    "{person} from {place} is preparing a talk for {audience}.",
    "My evening course in {place} starts on {day}.",
    "This goes into the newsletter of a club in {place}.",
    "Imagine that you write for {audience}.",
    "We have a visitor from {place} on {day}.",
    "A radio host called {person} has asked for help.",
    "Our team meets every {day} and collects material.",
    "Before I travel to {place}, I want to learn something.",
    "{person} keeps a notebook that is called {word}.",
    "There is a competition in {place} and {audience} will vote.",
    "I teach {audience}, and lessons should be lively.",
    "Last {day} a colleague of {person} raised the matter.",
    "For a puzzle evening under the motto {word} some help is wanted.",
    "A small publisher in {place} pays for good texts.",
    "You are the assistant of {person}, who runs a shop in {place}.",
    "Please be patient with {audience}.",
    "The code name of this job is {word}, and {person} is in charge.",
    "Suppose it is {day} morning and {person} calls you.",
)
_PATTERNS = [(task, sign_of(wording), pattern_of(wording)) for task in TASKS for wording in task.wordings]
_RULE_PATTERNS = [(rule, pattern_of(wording)) for rule in RULES for wording in rule.wordings]
_RULE_WORDINGS = [(rule, wording) for rule in RULES for wording in rule.wordings]


@dataclass(frozen=True)
class Read:
    """An instruction understood: its tasks in their order, what it demands of the form, and its input."""

    tasks: tuple[tuple[Task, Slots], ...]
    rules: tuple[tuple[Rule, Slots], ...]
    input: str

    @property
    def classifies(self) -> bool:
        return bool(self.tasks[0][0].labels)

    @property
    def meaning(self) -> object:
        """Equal for two instructions that ask for the same."""

        def plain(slots: Slots) -> tuple[tuple[str, str], ...]:
            return tuple(sorted((key, value.lower()) for key, value in slots.items()))

        tasks = tuple((task.wordings, plain(slots)) for task, slots in self.tasks)
        return tasks, frozenset((rule.wordings, plain(slots)) for rule, slots in self.rules), self.input


def read(text: str) -> Read | None:
    """What an instruction asks for, with its input behind an empty line; None when no task is known in it."""
    instruction, _, given = text.strip().partition("\n\n")
    instruction = " ".join(instruction.split())
    low = instruction.lower()
    found = [
        (match.start(), -match.end(), task, match)
        for task, sign, pattern in _PATTERNS
        if sign in low and (match := pattern.search(instruction))
    ]
    if not found:
        return None
    tasks: list[tuple[Task, Slots]] = []
    upto = 0
    for start, end, task, match in sorted(found, key=lambda item: item[:2]):
        # A wording inside of a longer one is not meant.
        if start >= upto:
            tasks.append((task, match.groupdict()))
            upto = -end
    rules = [(rule, match.groupdict()) for rule, p in _RULE_PATTERNS if (match := p.search(instruction))]
    return Read(tuple(tasks), tuple(rules), given.strip())


def propose(rng: random.Random) -> str:
    """A new instruction: a task, often with words about the occasion before it and demands behind it."""
    tasks = rng.choices([tasks for tasks, _ in _KINDS], [share for _, share in _KINDS])[0]
    task = rng.choice(tasks)
    core, _ = fill(rng.choice(task.wordings), rng)
    parts = [core]
    if rng.random() < 0.7:
        parts.insert(0, fill(rng.choice(_OPENERS), rng)[0])
    if not task.labels:
        parts += demands(rng, rng.choices((0, 1, 2, 3), (0.2, 0.45, 0.25, 0.1))[0])
    return capitalised(" ".join(parts))


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def demands(rng: random.Random, count: int, use: str | None = None, known: tuple[Rule, ...] = ()) -> list[str]:
    """Demands on the form, of different rules, and none of those known already."""
    free = [(rule, w) for rule, w in _RULE_WORDINGS if rule not in known and (use is None or rule.use == use)]
    made: list[str] = []
    while len(made) < count and free:
        rule, wording = rng.choice(free)
        free = [item for item in free if item[0] is not rule]
        made.append(capitalised(fill(wording, rng)[0]))
    return made


def new_input(asked: Read, rng: random.Random, label: str = "") -> str:
    """An input for the first task that needs one; "" when none does."""
    for task, slots in asked.tasks:
        if task.make is not None:
            return task.make(rng, slots, label)
    return ""


def labels(asked: Read) -> list[str]:
    """The labels of a classification task."""
    task, slots = asked.tasks[0]
    return [label.format(**{key: value.lower() for key, value in slots.items()}) for label in task.labels]


def do(asked: Read, given: str) -> str:
    """The answer to an instruction with this input."""
    points = [point for task, slots in asked.tasks for point in task.do(slots, given)]
    if asked.classifies and len(asked.tasks) == 1 and not asked.rules:
        return points[0]
    draft = Draft(points)
    for rule in RULES:
        for known, slots in asked.rules:
            if known is rule:
                rule.apply(draft, slots)
    return draft.text()


def another(topic: str, rng: random.Random) -> str:
    """A task on a topic, in any wording."""
    task = rng.choice(TOPIC_TASKS)
    wording = rng.choice(task.wordings)
    core, slots = fill(wording, rng)
    if not topic or slots.get("other") == topic:
        return core
    return re.sub(re.escape(slots["topic"]), topic, core)


def topic_of(asked: Read) -> str:
    """The topic of the first task that has one; "" when none has."""
    return next((slots["topic"].lower() for _, slots in asked.tasks if "topic" in slots), "")
