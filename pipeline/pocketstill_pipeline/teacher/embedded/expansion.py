"""The embedded teacher as one that makes up tasks, evolves them, and does them (Self-Instruct, Evol-Instruct)."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace

from pocketstill_pipeline.elicit.prompts.evolving import Evolve, asked_compare, asked_evolve
from pocketstill_pipeline.elicit.prompts.expansion import (
    Instance,
    Instances,
    Proposals,
    asked_classify,
    asked_instances,
    asked_proposals,
    write_instances,
)
from pocketstill_pipeline.teacher import TeacherConfig
from pocketstill_pipeline.teacher.protocol import ChatRequest

from . import expansion_grammar as grammar
from .expansion_topics import TOPICS

_NO_EXAMPLE = "I cannot think of a good one here."
_SENT = "Base it on the letter that I sent you yesterday."
_SORRY = "I'm sorry, but I have not seen what you sent me, so I cannot do this."
_FLAWED = (
    "List more.", "- Sum up what was said before in one line.", "Ünderline every verb of the sentence below.",
    "Draw what a visitor would see first in this place.", "Describe the people in the attached image to somebody.",
    "Write a program that counts the words of a text.", "Open the file and say what it contains in short.",
)  # fmt: skip


def respond(config: TeacherConfig, request: ChatRequest, rng: random.Random) -> str | None:
    """The reply to a request for instructions, instances, an evolution or a comparison; None for any other."""
    content = request.messages[-1][1]
    proposals = asked_proposals(content)
    if proposals is not None:
        return _propose(config, proposals, rng)
    task = asked_classify(content)
    if task is not None:
        read = grammar.read(task)
        yes = (read is not None and read.classifies) != (rng.random() < config.mistakes / 4)
        said = "Yes" if yes else "No"
        return f"{said}, I would say so." if rng.random() < config.noise else said
    instances = asked_instances(content)
    if instances is not None:
        return _instances(config, instances, rng)
    evolve = asked_evolve(content)
    if evolve is not None:
        return _evolve(config, evolve, rng)
    both = asked_compare(content)
    return None if both is None else _compare(config, *both, rng)


def answer(config: TeacherConfig, request: ChatRequest, rng: random.Random) -> str | None:
    """The answer to an instruction that stands alone; None for a conversation, or when no task is known in it."""
    said = [text for role, text in request.messages if role != "system"]
    if len(said) != 1 or request.tools or request.json_schema is not None:
        return None
    if _SENT in said[0]:
        return _SORRY
    read = grammar.read(said[0])
    if read is None:
        return None
    mistaken, noisy = rng.random() < config.mistakes, rng.random() < config.noise
    if noisy and rng.random() < 0.1:
        return rng.choice(("...", "Here it is.", ""))
    text = grammar.do(replace(read, rules=read.rules[1:]) if mistaken and read.rules else read, read.input)
    return rng.choice((f"\n\n{text}", f"{text}  ", f"Here it is:\n{text}")) if noisy else text


def _propose(config: TeacherConfig, asked: Proposals, rng: random.Random) -> str:
    mark = rng.choice((")", ".")) if rng.random() < config.noise else "."
    lines = []
    for number in range(asked.first, asked.last + 1):
        text = grammar.propose(rng)
        if rng.random() < config.mistakes:
            text = _echo(rng.choice(asked.instructions), rng) if asked.instructions else text
        elif rng.random() < config.noise / 4:
            text = rng.choice(_FLAWED)
        lines.append(f"{number}{mark} {text}")
    head = "Sure, here are more tasks:\n\n" if rng.random() < config.noise else ""
    return head + "\n".join(lines)


def _echo(text: str, rng: random.Random) -> str:
    """Nearly the same again, as models do that run out of ideas."""
    extra = rng.choice(("Please be exact.", "Thanks.", ""))
    return rng.choice((f"{text} {extra}", f"Please: {text} {extra}", text)).strip()


def _instances(config: TeacherConfig, asked: Instances, rng: random.Random) -> str:
    read = grammar.read(asked.instruction)
    if read is None or rng.random() < config.noise / 8:
        return _NO_EXAMPLE
    found: list[Instance] = []
    if asked.classifies and read.classifies:
        known = grammar.labels(read)
        for index in range(asked.count):
            found.append(Instance(grammar.new_input(read, rng, known[index % len(known)]), known[index % len(known)]))
    else:
        for _ in range(asked.count):
            label = rng.choice(grammar.labels(read)) if read.classifies else ""
            given = grammar.new_input(read, rng, label)
            found.append(Instance(given, grammar.do(read, given)))
            if not given:
                break
    if rng.random() < config.mistakes:
        found = _spoiled(found, rng)
    text = write_instances(found, asked.classifies)
    if rng.random() < config.noise:
        text = re.sub(r"^(Input|Output|Label):", r"**\1:**", text, flags=re.MULTILINE)
    return text


def _spoiled(found: list[Instance], rng: random.Random) -> list[Instance]:
    """One of the instances as it should not be."""
    index = rng.randrange(len(found))
    one = found[index]
    ways: list[Callable[[], list[Instance]]] = [
        lambda: [Instance(one.input, "")],
        lambda: [Instance(one.input, "The answer is:")],
        lambda: [Instance(one.input or "none", one.input or "none")],
        lambda: [one, one],
        lambda: [one, Instance(one.input, f"{one.output} or not")],
    ]
    return [*found[:index], *rng.choice(ways)(), *found[index + 1 :]]


def _evolve(config: TeacherConfig, asked: Evolve, rng: random.Random) -> str:
    if rng.random() < config.mistakes:
        return _failed_evolution(asked.instruction, rng)
    evolved = _evolved(asked, rng)
    return f"#Rewritten Prompt#:\n{evolved}" if rng.random() < config.noise / 2 else evolved


def _failed_evolution(text: str, rng: random.Random) -> str:
    instruction, gap, given = text.partition("\n\n")
    way = rng.randrange(3)
    if way == 0:
        return f"Please: {instruction}{gap}{given}"
    if way == 1:
        return f"Answer the given prompt with more care. {instruction}{gap}{given}"
    return f"{instruction} {_SENT}{gap}{given}"


def _evolved(asked: Evolve, rng: random.Random) -> str:
    instruction, gap, given = asked.instruction.partition("\n\n")
    read = grammar.read(asked.instruction)
    topic = grammar.topic_of(read) if read else ""
    known = tuple(rule for rule, _ in read.rules) if read else ()
    if asked.operation == "breadth":
        return grammar.another(topic, rng)
    if asked.operation == "complicate_input":
        return _with_input(instruction, given, rng)
    if asked.operation == "deepen" and rng.random() < 0.6:
        more = f"After that: {grammar.another(topic or rng.choice(list(TOPICS)), rng)}"
    else:
        use = asked.operation
        more = " ".join(grammar.demands(rng, 1, use, known) or grammar.demands(rng, 1, None, known))
    return f"{instruction.rstrip()} {more}{gap}{given}"


def _with_input(instruction: str, given: str, rng: random.Random) -> str:
    """More to work on: a longer input, or where there was none a table and what to find out in it."""
    if not given:
        table = "\n".join(f"{thing},{rng.randint(2, 60)}" for thing in rng.choice(list(TOPICS.values())).things[:4])
        wanted = rng.choice(("Sum the price column of the table.", "Identify the dearest product in the table."))
        return f"{instruction} In addition: {wanted}\n\nitem,price\n{table}"
    if re.search(r"^[\w ]+,\d+$", given, re.MULTILINE):
        things = rng.choice(list(TOPICS.values())).things[:3]
        return "\n".join([f"{instruction}\n\n{given}", *(f"{thing},{rng.randint(2, 60)}" for thing in things)])
    if re.fullmatch(r"[\d, ]+", given):
        more = ", ".join(str(rng.randint(100, 999)) for _ in range(4))
        return f"{instruction}\n\n{given}, {more}"
    fact = rng.choice(rng.choice(list(TOPICS.values())).facts)
    return f"{instruction}\n\n{given} {fact}."


def _compare(config: TeacherConfig, one: str, other: str, rng: random.Random) -> str:
    first, second = grammar.read(one), grammar.read(other)
    if first is not None and second is not None and _SENT not in other:
        equal = first.meaning == second.meaning
    else:
        # Unknown tasks: the same when the second says hardly anything that the first does not say.
        new = set(re.findall(r"\w+", other.lower())) - set(re.findall(r"\w+", one.lower()))
        equal = len(new) <= 2
    if rng.random() < config.mistakes / 4:
        equal = not equal
    said = "Equal" if equal else "Not Equal"
    return f"**{said}**." if rng.random() < config.noise else said
