"""The embedded teacher's answers to labeling: by example, in many voices, by programs, with tools."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pocketstill import grading
from pocketstill_pipeline import problems
from pocketstill_pipeline.elicit.prompts.labeling import (
    SYSTEM_MESSAGES,
    Shot,
    asked_few_shot,
    asked_program,
    asked_result,
    asked_system,
)
from pocketstill_pipeline.problems import Solution
from pocketstill_pipeline.teacher import TeacherConfig
from pocketstill_pipeline.teacher.protocol import ChatRequest

from .problems import UNKNOWN, untidy_rationale

# So many ways of saying it are compared with the examples; one in the commonest style is among as many.
_WAYS = 32
_PLAIN_TRIES = 64


def respond(config: TeacherConfig, request: ChatRequest, rng: random.Random) -> str | None:
    """What is said to a request of the labeling route; None when it is none."""
    messages = request.messages
    if (few := asked_few_shot(messages)) is not None:
        return _by_example(config, *few, rng)
    if (voiced := asked_system(messages)) is not None:
        return _in_voice(config, *voiced, rng)
    if (programmed := asked_program(messages)) is not None:
        return _program(config, *programmed, messages, rng)
    if (call := asked_result(messages)) is not None:
        return _tool_result(config, call, rng)
    if request.tools:
        return _with_tools(config, messages, rng)
    return None


def _drawn(config: TeacherConfig, rng: random.Random) -> tuple[bool, bool]:
    """Whether this answer is a mistaken one, and whether an untidy one."""
    return rng.random() < config.mistakes, rng.random() < config.noise


def _solve(question: str, rng: random.Random, mistaken: bool) -> Solution | None:
    """A solution whose rationale does not state its answer in the words that follow it anyway."""
    found = problems.solve(question, rng, mistaken=mistaken)
    if found is None:
        return None
    return Solution(grading.split_completion(found.rationale)[0] or found.rationale, found.answer)


def _by_example(config: TeacherConfig, question: str, shots: list[Shot], rng: random.Random) -> str:
    mistaken, noisy = _drawn(config, rng)
    first = _solve(question, rng, mistaken)
    if first is None:
        return UNKNOWN
    shown = [_shape(shot.rationale) for shot in shots]
    # The same answer in other words, until the words are those of the examples.
    ways = [first] + [way for _ in range(_WAYS) if (way := _solve(question, rng, mistaken)) is not None]
    chosen = max(ways, key=lambda way: sum(len(_shape(way.rationale) & shape) for shape in shown))
    rationale = chosen.rationale
    if shots and not any("\n" in shot.rationale for shot in shots):
        rationale = " ".join(rationale.splitlines())
    said = f"{rationale} The answer is {chosen.answer}." if rationale else chosen.answer
    if not noisy:
        return said
    style = rng.randrange(4)
    if style == 0:
        # It goes on with a question of its own, as models do that were only ever shown examples.
        return f"{said}\n\nQ: {shots[0].question}\nA: {shots[0].rationale} The answer is {shots[0].answer}."
    if style == 1 and rationale:
        return rationale
    if style == 2 and rationale:
        return f"The answer is {chosen.answer}."
    return untidy_rationale(said, rng)


def _shape(text: str) -> frozenset[str]:
    """The words and signs of a text that no name or number is among."""
    return frozenset(re.findall(r"\b[a-z]{2,}\b|[^\w\s]", text))


@dataclass(frozen=True)
class _Voice:
    """How a system message makes a rationale sound; with `last`, its last step alone is told."""

    step: str = "{step}"
    joint: str = "\n"
    opening: str = ""
    closing: str = ""
    last: bool = False


# By the names of the system messages; {n} is a step's number, {answer} the answer.
_VOICES: dict[str, _Voice] = {
    "brief": _Voice(last=True),
    "steps": _Voice("{n}. {step}"),
    "child": _Voice(
        "And look: {step}", opening="Let us play this with our fingers!\n", closing="\nWell done, you: it is {answer}!"
    ),
    "teacher": _Voice(
        "On the board I write: {step}", opening="Now, class, watch closely.\n", closing="\nAll clear? It is {answer}."
    ),
    "justify": _Voice("As the question says, or as the line before gives: {step}"),
    "facts": _Voice("- {step}", opening="Facts and what follows from them:\n"),
    "bullets": _Voice("* {step}"),
    "formal": _Voice("It is found that: {step}", " ", opening="The given question is considered. "),
    "check": _Voice(closing="\nChecked: going through it once more gives {answer} again."),
    "socratic": _Voice("What comes now? {step}", opening="Where do I start? With what is given.\n"),
    "conclusion": _Voice(opening="It will come out as {answer}.\n"),
    "paragraph": _Voice(joint=" "),
    "plan": _Voice(opening="Plan: go through the question in its order, one thing at a time.\n"),
    "friend": _Voice("Right, {step}", opening="Hey, easy one! ", closing="\nThere you go: {answer}."),
    "detective": _Voice(
        "Exhibit {n}: {step}", opening="The case is before us.\n", closing="\nThe case is closed: it was {answer}."
    ),
    "table": _Voice("| {n} | {step} |", opening="| step | result |\n|---|---|\n"),
}


def _in_voice(config: TeacherConfig, system: str, question: str, rng: random.Random) -> str | None:
    mistaken, noisy = _drawn(config, rng)
    found = _solve(question, rng, mistaken)
    if found is None:
        return None
    name = next((name for name, text in SYSTEM_MESSAGES.items() if text == system), "")
    voice = _VOICES.get(name, _Voice())
    lines = [line for line in found.rationale.splitlines() if line.strip()][-1 if voice.last else 0 :]
    told = voice.joint.join(voice.step.format(n=n, step=line) for n, line in enumerate(lines, 1))
    said = voice.opening.format(answer=found.answer) + told + voice.closing.format(answer=found.answer)
    if not noisy:
        return f"{said}\nAnswer: {found.answer}"
    style = rng.randrange(3)
    if style == 0:
        # The form that was asked for is forgotten.
        return f"{said}\nSo we are done."
    return f"{untidy_rationale(said, rng)}\n{('**Answer:**', 'answer:')[style - 1]} {found.answer}"


def _plain(question: str) -> Solution | None:
    """The right solution in the first style of its skill, which can be read again."""
    for index in range(_PLAIN_TRIES):
        found = problems.solve(question, random.Random(index))
        if found is None:
            return None
        if any(form.search(found.rationale) or form.search(question) for form, _ in _PROGRAMS):
            return found
    return None


def _arithmetic(question: str, rationale: str) -> str:
    lines, before = [], None
    for number, (left, sign, right, result) in enumerate(_SUM.findall(rationale), 1):
        # Where the step before leads on, its name stands.
        left, right = (f"step_{number - 1}" if before == value else value for value in (left, right))
        lines.append(f"step_{number} = {left} {'//' if sign == '/' else sign} {right}")
        before = result
    return "\n".join([*lines, f"answer = step_{len(lines)}"])


def _coin(question: str, rationale: str) -> str:
    acts = [act == "flip" for act in _FLIP.findall(rationale)]
    side = "heads" if "heads up" in question.split(".")[0] else "tails"
    lines = [f"side = start = {side!r}", f"for flipped in {acts}:", "    if flipped:"]
    lines += ["        side = 'tails' if side == 'heads' else 'heads'", "answer = 'yes' if side == start else 'no'"]
    return "\n".join(lines)


def _letters(question: str, rationale: str) -> str:
    match = _QUOTED.search(question)
    words = match[1] if match else ""
    return f"words = {words!r}.split()\nanswer = ''.join(word[-1] for word in words).lower()"


def _swaps(question: str, rationale: str) -> str:
    people = re.findall(r"(\w+?)\d", rationale.splitlines()[0])
    held = rationale.splitlines()[1].removeprefix("Start: ").removesuffix(".").split()
    pairs = re.findall(r"(\w+?)\d and (\w+?)\d swap", rationale)
    who = re.sub(r"\d", "", rationale.splitlines()[-1].split()[1])
    lines = [f"has = {dict(zip(people, held, strict=True))}", f"for a, b in {pairs}:"]
    return "\n".join([*lines, "    has[a], has[b] = has[b], has[a]", f"answer = has[{who!r}]"])


_SUM = re.compile(r"(-?\d+) ([-+*/]) (-?\d+) = (-?\d+)")
_FLIP = re.compile(r"^\w+: (flip|no flip), ", re.MULTILINE)
_QUOTED = re.compile(r'last letters?\b.*?"([^"]+)"')
_PROGRAMS: tuple[tuple[re.Pattern[str], Callable[[str, str], str]], ...] = (
    (re.compile(r"^People: "), _swaps),
    (_FLIP, _coin),
    (_QUOTED, _letters),
    (_SUM, _arithmetic),
)
# Slips that leave a program running and its answer wrong: the first that changes something is made.
_BUGS = (
    (" + ", " - "), (" - ", " + "), (" * ", " + "), ("if flipped", "if not flipped"), ("word[-1]", "word[-2:]"),
    ("has[b], has[a]", "has[a], has[b]"), ("'yes' if", "'no' if"),
)  # fmt: skip
_NAMES = ("step_", "value_", "part_", "result_")
_COMMENTS = ("", "# One line for each step of the question.\n", "# The question, step by step\n")
_PROSE = "First the numbers are taken from the question, then each step is worked out in turn."


def _program(
    config: TeacherConfig, question: str, result: str | None, messages: tuple[tuple[str, str], ...], rng: random.Random
) -> str:
    mistaken, noisy = _drawn(config, rng)
    if result is not None:
        return _explain(question, mistaken, rng)
    found = _plain(question)
    if found is None:
        return UNKNOWN
    write = next(write for form, write in _PROGRAMS if form.search(found.rationale) or form.search(question))
    program = rng.choice(_COMMENTS) + write(question, found.rationale).replace("step_", rng.choice(_NAMES))
    if mistaken:
        slips = [bug for bug in _BUGS if bug[0] in program]
        program = program.replace(*rng.choice(slips), 1) if slips else program + " + 1"
    if not noisy:
        return f"```python\n{program}\n```"
    return _untidy_program(program, rng)


def _untidy_program(program: str, rng: random.Random) -> str:
    style = rng.randrange(7)
    fenced = f"```python\n{program}\n```"
    if style == 0:
        return f"Here is the program.\n\n{fenced}\n\n{_PROSE}"
    if style == 1:
        return program
    if style == 2:
        return f"```python\nimport os\n{program}\nos.system('echo done')\n```"
    if style == 3:
        return f"```python\nanswer = None\nwhile answer is None:\n    pass\n{program}\n```"
    if style == 4:
        return fenced.replace("answer =", "result =")
    if style == 5:
        return f"```python\n{program}\nanswer = answer.value\n```"
    return f"```python\n{program.replace(' = ', ' == = ', 1)}\n```"


def _explain(question: str, mistaken: bool, rng: random.Random) -> str:
    found = _solve(question, rng, mistaken)
    return UNKNOWN if found is None else f"{found.rationale}\nAnswer: {found.answer}"


def _with_tools(config: TeacherConfig, messages: tuple[tuple[str, str], ...], rng: random.Random) -> str | None:
    if messages[-1][0] == "tool":
        return _spoken(messages[-1][1])
    mistaken, noisy = _drawn(config, rng)
    commands = re.split(r"\.? And then: ", messages[-1][1])
    found = [problems.solve(command, rng, mistaken=mistaken) for command in commands]
    said = [call.answer for call in found if call is not None and call.answer.startswith("{")]
    if not said:
        return None
    if not noisy:
        return said[0] if len(said) == 1 else f"[{', '.join(said)}]"
    style = rng.randrange(4)
    if style == 0:
        return f"I will do that for you: {said[0]}"
    call: dict[str, Any] = json.loads(said[0])
    if style == 1:
        call["tool"] = call["tool"].replace("_", "")
    elif style == 2:
        call["arguments"] |= {"please": True}
    else:
        call["arguments"] = {name: [value] for name, value in call["arguments"].items()}
    return json.dumps(call)


def _tool_result(config: TeacherConfig, call: str, rng: random.Random) -> str:
    _, noisy = _drawn(config, rng)
    try:
        said = json.loads(call)
        name, arguments = str(said["tool"]), dict(said["arguments"])
    except (ValueError, KeyError, TypeError):
        return json.dumps({"status": "error", "reason": "no such call"})
    result: dict[str, Any] = {"status": "ok", "tool": name, **arguments}
    if name == "get_weather":
        result |= {"sky": rng.choice(("sunny", "cloudy", "rain", "snow")), "degrees": rng.randint(-5, 30)}
    # An untidy tool is one that says it in prose.
    return f"{name}: done" if noisy else json.dumps(result)


def _spoken(result: str) -> str:
    """The reply to what a tool returned, made of it."""
    try:
        said = json.loads(result)
        name = str(said.pop("tool")).replace("_", " ")
        if said.pop("status") != "ok":
            return "That did not work, I am sorry."
    except (ValueError, KeyError, TypeError, AttributeError):
        return "I cannot tell whether that worked."
    told = ", ".join(f"{key} {value}" for key, value in said.items())
    return f"Done: {name} ({told})."
