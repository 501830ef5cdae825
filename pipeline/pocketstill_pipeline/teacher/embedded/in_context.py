"""The embedded teacher learns in context: it finds the task that explains the demonstrations, and goes on with it."""

from __future__ import annotations

import difflib
import json
import random
from collections.abc import Sequence

from pocketstill_pipeline.elicit.prompts.in_context import Pair, asked_choice, asked_label, asked_pairs
from pocketstill_pipeline.problems.families import Form, find_task, infer, read_input
from pocketstill_pipeline.teacher import TeacherConfig
from pocketstill_pipeline.teacher.protocol import ChatRequest

_AT_A_LOSS = "I cannot tell what the task is."


def respond(config: TeacherConfig, request: ChatRequest, rng: random.Random) -> str | None:
    """Answer a query behind its demonstrations, make new demonstrations, or choose among given ones."""
    label = asked_label(request.messages)
    if label is not None:
        return _answer(config, *label, rng)
    wanted = asked_pairs(request.messages)
    if wanted is not None:
        return _make(config, *wanted, rng)
    choice = asked_choice(request.messages)
    return None if choice is None else _choose(config, *choice, rng)


def _answer(config: TeacherConfig, shown: list[Pair], query: str, rng: random.Random) -> str:
    mistaken, noisy = rng.random() < config.mistakes, rng.random() < config.noise
    if not shown:
        return _AT_A_LOSS
    form, pairs, text = _without_form(shown, query)
    task = find_task(pairs, text)
    said = task.apply(text) if task is not None else None
    if said is None:
        # No rule that it knows: it says what the likest demonstration said.
        said = max(pairs, key=lambda pair: _likeness(pair[0], text))[1]
    if mistaken:
        said = _slip(said, [output for _, output in pairs], rng)
    return _untidy(said, form, rng) if noisy else said


def _without_form(shown: Sequence[Pair], query: str) -> tuple[Form, list[Pair], str]:
    """Demonstrations and query without the surface form that all of them share."""
    form, text = read_input(query)
    read = [read_input(asked) for asked, _ in shown]
    if any(other != form for other, _ in read):
        return Form("bare", "{}"), list(shown), query
    return form, [(asked, said) for (_, asked), (_, said) in zip(read, shown, strict=True)], text


def _likeness(first: str, second: str) -> float:
    return difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()


def _slip(said: str, others: Sequence[str], rng: random.Random) -> str:
    """A wrong output: another demonstration's, or this one with a letter lost or said twice."""
    different = [other for other in others if other != said]
    if different and rng.random() < 0.5:
        return rng.choice(different)
    at = rng.randrange(len(said)) if said else 0
    lost = said[:at] + said[at + 1 :]
    return lost if lost and lost != said and rng.random() < 0.5 else said[: at + 1] + said[at:] or "none"


def _untidy(said: str, form: Form, rng: random.Random) -> str:
    cue = form.around.partition("{}")[2].strip()
    return (f"{cue} {said}", f'"{said}"', f"{said}.", f"  {said}\n", f"{said}\n\nThis follows the examples above.")[
        rng.randrange(5)
    ]


def _make(config: TeacherConfig, examples: list[Pair], wanted: int, rng: random.Random) -> str:
    found = infer(examples)
    # Without a rule that it knows it repeats what it was shown, which whoever asked will not take.
    made = found[0].pairs(rng, wanted) if found else examples
    outputs = [said for _, said in examples]
    rows: list[dict[str, str]] = []
    for asked, said in made:
        if rng.random() < config.mistakes:
            said = _slip(said, outputs, rng)
        if rng.random() < config.noise:
            asked, said = rng.choice([(asked, ""), rng.choice(examples), ("", said)])
        rows.append({"input": asked, "output": said})
    return json.dumps({"examples": rows}, ensure_ascii=False)


def _choose(config: TeacherConfig, candidates: list[Pair], query: str, count: int, rng: random.Random) -> str:
    """The numbers of the candidates nearest to the query: those with the output that it will have, then the likest."""
    numbers = list(range(1, len(candidates) + 1))
    if rng.random() < config.mistakes:
        rng.shuffle(numbers)
    else:
        text = read_input(query)[1]
        task = find_task(candidates, text)
        said = task.apply(text) if task is not None else None
        numbers.sort(key=lambda n: (candidates[n - 1][1] == said, _likeness(candidates[n - 1][0], text)))
    chosen = numbers[-count:] if count else []
    if chosen and rng.random() < config.noise / 4:
        chosen[0] = len(candidates) + 1
    return json.dumps({"numbers": chosen})
