"""Self-Instruct (Wang et al. 2022, arXiv 2212.10560): from a few tasks of people to many of the teacher's own.

Instructions are drawn round by round, each shown some of the seeds and some of those found before, and kept when
they are unlike all before them. Every one that is kept is then given instances, input first or, where the task
classifies, label first.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from pocketstill.errors import UserError
from pocketstill_pipeline.asking import Messages, Reply
from pocketstill_pipeline.elicit.base import Context, Planned, Settings, trouble
from pocketstill_pipeline.elicit.prompts.expansion import (
    Instance,
    Shown,
    classify_request,
    instances_request,
    propose_request,
    read_classify,
    read_instances,
    read_list,
)
from pocketstill_pipeline.example import Elicited
from pocketstill_pipeline.problems.base import normalise
from pocketstill_pipeline.sections import Rate
from pocketstill_pipeline.teacher.protocol import count_tokens

from .rouge import RougePool
from .seeds import as_asked, read_seeds

_SHORTEST, _LONGEST = 4, 150
# What a model that only reads and writes text cannot do; the list of the paper's code, and its kin.
_BEYOND_TEXT = re.compile(
    r"\b(images?|graphs?|pictures?|photos?|files?|maps?|draw|plot|go to|videos?|audio)\b", re.IGNORECASE
)
# As many tasks as show the teacher what is asked of it, of either kind.
_SHOWN = 4
# After so many rounds in a row that give too little, more will not help.
_POOR_ROUNDS = 3


class SelfInstruct(Settings):
    """Make new instructions, and instances of them, from seed tasks."""

    FILES: ClassVar[tuple[str, ...]] = ("seeds",)

    method: Literal["self_instruct"] = "self_instruct"
    skill: str = Field(description="that the examples count as")
    seeds: str = Field(description="JSONL of seed tasks: instruction, is_classification, instances")
    count: int = Field(1000, ge=1, description="instructions to find")
    shown: int = Field(8, ge=1, description="instructions that a request shows")
    shown_found: int = Field(2, ge=0, description="of these, how many that were found before")
    proposals: int = Field(8, ge=1, description="new instructions that a request asks for")
    requests: int = Field(16, ge=1, description="requests a round")
    similar: Rate = Field(0.7, description="ROUGE-L F with any instruction before from which a new one is dropped")
    instances: int = Field(3, ge=1, le=10, description="instances that are asked for an instruction")
    least_yield: Rate = Field(0.03, description="share of a round's proposals that must be new for it to go on")


@dataclass(frozen=True)
class Found:
    """An instruction that was kept, the round that it came in, and the request that it came by."""

    id: str
    text: str
    round: int
    source: str


@dataclass
class Pool:
    """The seeds and what was found, to compare with."""

    seeds: list[str]
    rouge: RougePool
    found: list[Found] = field(default_factory=list)
    known: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, seeds: list[Shown]) -> Pool:
        texts = [seed.instruction for seed in seeds]
        return cls(texts, RougePool(texts), known={normalise(text) for text in texts})

    def add(self, found: Found) -> None:
        self.found.append(found)
        self.known.add(normalise(found.text))
        self.rouge.add(found.text)


async def self_instruct(settings: SelfInstruct, context: Context) -> AsyncIterator[Elicited]:
    """Proposals that were dropped, round by round, then the instances of those that were kept.

    Raises:
        UserError: the seeds cannot be read or are too few, or the recipe has no such skill.
    """
    context.check_skill(settings.skill)
    seeds = _seeds(settings)
    pool = Pool.of(seeds)
    number = poor = 0
    while len(pool.found) < settings.count and poor < _POOR_ROUNDS:
        number += 1
        proposed, before = 0, len(pool.found)
        async for dropped in _round(number, settings, context, pool):
            proposed += dropped.reason != "over_count"
            yield dropped
        new = len(pool.found) - before
        poor = 0 if new and new >= settings.least_yield * (proposed + new) else poor + 1
    if len(pool.found) < settings.count:
        yield _stopped_short(settings, len(pool.found), number)
    shown = [seed for kind in (True, False) for seed in [s for s in seeds if s.classifies is kind][:_SHOWN]]

    async def one(found: Found) -> list[Elicited]:
        return await _instances_of(found, settings, context, shown)

    async for items in context.teacher.map(one, pool.found):
        for item in items:
            yield item


async def _round(number: int, settings: SelfInstruct, context: Context, pool: Pool) -> AsyncIterator[Elicited]:
    """One round of requests; what is new enters the pool, in the order of the requests, the rest is yielded."""
    rng = random.Random(f"{context.seed}/{settings.entry}/{number}")
    prompts = [propose_request(_drawn(pool, settings, rng), settings.proposals) for _ in range(settings.requests)]
    first = (number - 1) * settings.requests

    async def one(unit: tuple[int, Messages]) -> Reply:
        sample, messages = unit
        return await context.teacher.ask(
            messages, sample=sample, temperature=settings.temperature, max_tokens=settings.max_tokens
        )

    request = first - 1
    async for reply in context.teacher.map(one, list(enumerate(prompts, first))):
        request += 1
        told = trouble(reply)
        proposals = [] if told is not None and told[0] != "truncated" else read_list(reply.text)
        if not proposals:
            said = str(prompts[request - first][0]["content"]), reply.text
            unread = told or ("no_list", reply.text.strip()[:200])
            yield _dropped(settings, f"{request}", said, reply, number, unread)
        for index, text in enumerate(proposals):
            identity = f"{request}/{index}"
            # The last one is what a token limit cut.
            problem = told if told is not None and index == len(proposals) - 1 else _judge(text, pool, settings)
            if problem is None:
                pool.add(Found(identity, text, number, reply.key))
            else:
                yield _dropped(settings, identity, (text, text), reply, number, problem)


def _judge(text: str, pool: Pool, settings: SelfInstruct) -> tuple[str, str] | None:
    """Why a proposal cannot be used, as (reason, detail); None when it can."""
    words = len(text.split())
    beyond = _BEYOND_TEXT.search(text)
    if not _SHORTEST <= words <= _LONGEST:
        return "too_short" if words < _SHORTEST else "too_long", f"{words} words"
    if text[0] in string.punctuation:
        return "starts_with_punctuation", text[0]
    if not text[0].isascii():
        return "not_english", text[0]
    if beyond is not None:
        return "beyond_text", beyond[0]
    if text.lower().startswith("write a program"):
        return "asks_for_program", ""
    if normalise(text) in pool.known:
        return "in_pool", ""
    similar = pool.rouge.nearest(text, settings.similar)
    if similar is not None:
        return "similar_to_pool", f"{similar.score:.3f} with {similar.text!r}"
    return ("over_count", f"{settings.count} are wanted") if len(pool.found) >= settings.count else None


def _drawn(pool: Pool, settings: SelfInstruct, rng: random.Random) -> list[str]:
    """Some instructions found before, filled up with seeds, in any order (section 2.2 of the paper)."""
    found = rng.sample(pool.found, min(settings.shown_found, settings.shown, len(pool.found)))
    texts = [one.text for one in found]
    texts += rng.sample(pool.seeds, min(settings.shown - len(texts), len(pool.seeds)))
    rng.shuffle(texts)
    return texts


def _dropped(
    settings: SelfInstruct, identity: str, said: tuple[str, str], reply: Reply, number: int, problem: tuple[str, str]
) -> Elicited:
    """A proposal, or a whole request, that gave nothing; `said` is what was asked for and how it was answered."""
    asked, completion = said
    return Elicited(
        id=identity, skill=settings.skill, route="expansion", method="self_instruct",
        messages=[{"role": "user", "content": asked}], answer=None, completion=completion, kind="text",
        source=(reply.key,), tags=(f"round:{number}",), reason=problem[0], detail=problem[1],
    )  # fmt: skip


def _stopped_short(settings: SelfInstruct, found: int, rounds: int) -> Elicited:
    """That it gave up is to be seen among what was dropped."""
    said = (
        f"{found} of {settings.count} instructions after {rounds} rounds: the last {_POOR_ROUNDS} gave too few new ones"
    )
    return Elicited(
        id="stopped_short", skill=settings.skill, route="expansion", method="self_instruct",
        messages=[{"role": "user", "content": ""}], answer=None, completion="", kind="text",
        reason="stopped_short", detail=said,
    )  # fmt: skip


async def _instances_of(found: Found, settings: SelfInstruct, context: Context, shown: list[Shown]) -> list[Elicited]:
    """Whether a task classifies, and then instances of it."""
    judged = await context.teacher.ask(classify_request(found.text, shown), temperature=0.0)
    told = trouble(judged)
    if told is not None:
        return [_instance(found, settings, Instance("", ""), (judged,), (), 0, told)]
    classifies = read_classify(judged.text)
    reply = await context.teacher.ask(
        instances_request(found.text, classifies, settings.instances, shown),
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
    )
    tags = ("classification" if classifies else "generation",)
    told = trouble(reply)
    if told is not None and told[0] != "truncated":
        return [_instance(found, settings, Instance("", ""), (judged, reply), tags, 0, told)]
    instances = read_instances(reply.text, classifies)
    if not instances:
        told = told or ("no_instance", reply.text[:200])
        return [_instance(found, settings, Instance("", ""), (judged, reply), tags, 0, told)]
    reasons = check_instances(instances)
    if told is not None:
        reasons[-1] = told
    return [
        _instance(found, settings, one, (judged, reply), tags, index, reason)
        for index, (one, reason) in enumerate(zip(instances, reasons, strict=True))
    ]


def check_instances(instances: list[Instance]) -> list[tuple[str, str] | None]:
    """Why each instance of a task cannot be used, as (reason, detail), or None.

    Wang et al. 2022, section 2.2 and its code: output missing or equal to the input, either of them unfinished,
    the same as another one, or the same input with another output.
    """
    outputs: dict[str, set[str]] = {}
    for one in instances:
        outputs.setdefault(normalise(one.input), set()).add(normalise(one.output))
    seen: set[tuple[str, str]] = set()
    reasons: list[tuple[str, str] | None] = []
    for one in instances:
        given, said = normalise(one.input), normalise(one.output)
        reason: tuple[str, str] | None = None
        if not said:
            reason = "empty", ""
        elif given == said:
            reason = "input_is_output", ""
        elif one.input.endswith(":") or one.output.endswith(":"):
            reason = "unfinished", "ends with a colon"
        elif given and len(outputs[given]) > 1:
            reason = "conflicting", "the same input has several outputs"
        elif (given, said) in seen:
            reason = "same_instance", ""
        seen.add((given, said))
        reasons.append(reason)
    return reasons


def _instance(
    found: Found, settings: SelfInstruct, one: Instance, replies: tuple[Reply, ...], tags: tuple[str, ...],
    index: int, told: tuple[str, str] | None,
) -> Elicited:  # fmt: skip
    reason, detail = told or (None, "")
    return Elicited(
        id=f"{found.id}/{index}",
        skill=settings.skill,
        route="expansion",
        method="self_instruct",
        messages=[{"role": "user", "content": as_asked(found.text, one.input)}],
        answer=one.output or None,
        # Its own part of the reply, which holds all instances of the task.
        completion=one.output,
        kind="text",
        source=(found.source, *(reply.key for reply in replies)),
        tags=(f"round:{found.round}", *tags, *(("with_input",) if one.input else ())),
        group=f"{settings.entry}/{found.id}",
        reason=reason,
        detail=detail,
    )


def _seeds(settings: SelfInstruct) -> list[Shown]:
    seeds = read_seeds(Path(settings.seeds))
    if len(seeds) < 2:
        raise UserError(f"{settings.seeds}: {len(seeds)} seed task; {settings.entry} needs 2 or more")
    return seeds


def plan(settings: SelfInstruct, context: Context) -> list[Planned]:
    """Rounds of proposals, of which a fifth to nine tenths are new, and two requests an instruction."""
    seeds = _seeds(settings)
    size = sum(count_tokens(seed.instruction) for seed in seeds) / len(seeds)
    fewest = -(-settings.count // settings.proposals)
    rounds = [-(-int(fewest / share) // settings.requests) * settings.requests for share in (0.9, 0.2)]
    shown = seeds[: 2 * _SHOWN]
    classify = count_tokens(str(classify_request("", shown)[0]["content"])) + size
    sizes = [count_tokens(str(instances_request("", kind, 1, shown)[0]["content"])) + size for kind in (False, True)]
    prompt = 90 + settings.shown * (size + 2)
    listed = settings.proposals * (size + 2)
    tasks = (settings.count, settings.count)
    return [
        Planned("proposals", (rounds[0], rounds[1]), (prompt, prompt), (0.5 * listed, 2 * listed)),
        Planned("classification", tasks, (classify, classify), (1.0, 3.0)),
        Planned("instances", tasks, (min(sizes), max(sizes)), (20.0 * settings.instances, 120.0 * settings.instances)),
    ]
