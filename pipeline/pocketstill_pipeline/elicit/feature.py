"""Feature knowledge: the teacher's own next-token distributions, as far as an API shows them.

Survey (Xu et al. 2024, arXiv 2402.13116), section 3.1.4: D = {(x, y, phi(x, y; teacher))}; here y is what the teacher
said and phi the k likeliest tokens at each of its places, with the mass that all others share. Kept sparsely, the way
word-level distillation over a truncated teacher needs them.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pocketstill.errors import UserError
from pocketstill_pipeline.asking import Reply
from pocketstill_pipeline.example import Elicited, Question
from pocketstill_pipeline.question_file import select
from pocketstill_pipeline.teacher.protocol import count_tokens

from . import zero_shot
from .base import Context, Planned, Settings
from .sampling import (
    REPLY_TOKENS,
    options_of,
    question_messages,
    read_reply,
    read_sample,
    two_steps,
    units,
)

# What the API says of a token that is unlikelier than all that it lists.
UNLIKELY = -9999.0
_UNLIKELY_BELOW = -9000.0
# float16 has few digits left below 6e-5, and a certain token's logprob is -1e-7; no probability is near exp(-255).
_SCALE, _LOWEST = 256.0, -255.875
_VERSION = 1
# So many answers without one distribution mean that the teacher has none to give.
_ENOUGH_WITHOUT = 16
Entry = Mapping[str, Any]


class TopLogprobsSettings(Settings):
    """Ask every question of the skills, for the distributions behind each token too."""

    method: Literal["top_logprobs"] = "top_logprobs"
    skills: list[str] = Field(default_factory=list, description="whose questions; all when left out")
    k: int = Field(20, ge=1, le=20, description="likeliest tokens a place; the API gives at most 20")


@dataclass(frozen=True)
class TopLogprobs:
    """The distributions of one example, over the tokens of its replies one after the other.

    Attributes:
        tokens: each byte string that occurs, once.
        starts: (places + 1,) int64; place p has the pairs starts[p] to starts[p + 1].
        ids: (pairs,) int64 into `tokens`.
        logprobs: (pairs,) float32, natural logarithms; `UNLIKELY` where the API would not say.
        chosen: (places,) int64; which pair is the token that was said.
        tail: (places,) float32; the mass of all tokens that are in no pair, 0 to 1.
        parts: how many places each reply has.
    """

    tokens: tuple[bytes, ...]
    starts: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float32]
    chosen: npt.NDArray[np.int64]
    tail: npt.NDArray[np.float32]
    parts: tuple[int, ...]

    def said(self, place: int) -> bytes:
        """The token that was said at a place."""
        return self.tokens[int(self.ids[self.chosen[place]])]

    def pairs(self, place: int) -> list[tuple[bytes, float]]:
        """(token, logprob) of a place, in the order in which the API gave them."""
        span = slice(int(self.starts[place]), int(self.starts[place + 1]))
        return [(self.tokens[i], float(p)) for i, p in zip(self.ids[span], self.logprobs[span], strict=True)]


def pack_logprobs(*replies: Sequence[Entry]) -> bytes:
    """The `logprobs.content` of one or more replies, in at most about 100 bytes a place at k = 20.

    A token is known by its bytes (`bytes`, or else its text in UTF-8), so that halves of a character stay apart. A
    token that was said but not listed joins the pairs of its place. Kept exactly: tokens and their order. Logprobs
    and the tail, 1 - sum(exp(logprob)), are rounded to float16 at 256 times their value: to a relative error under
    5e-4 from 2.4e-7 up, under 1e-2 from 1.2e-8 up; what lies below -255 reads -255.875.

    Raises:
        ValueError: an entry has no token, or a logprob that is no logarithm of a probability.
    """
    table: dict[bytes, int] = {}
    counts: list[int] = []
    chosen: list[int] = []
    ids: list[int] = []
    values: list[float] = []
    for entry in (entry for reply in replies for entry in reply):
        pairs, place = _pairs(entry)
        counts.append(len(pairs))
        chosen.append(place)
        for token, logprob in pairs:
            # 0 stands for the next token that was not met before: zlib makes nothing of these.
            known = table.get(token)
            ids.append(0 if known is None else known + 1)
            if known is None:
                table[token] = len(table)
            values.append(logprob)
    exact = np.array(values, dtype=np.float64)
    starts = _starts(np.array(counts, dtype=np.int64))
    mass = np.add.reduceat(np.exp(exact), starts[:-1]) if counts else np.zeros(0)
    numbers = [_VERSION, len(replies), *(len(reply) for reply in replies), len(table)]
    numbers += [*map(len, table), *counts, *chosen]
    fields = [_varints(numbers), _varints(ids), b"".join(table)]
    fields += [_planes(exact), _planes(np.clip(1.0 - mass, 0.0, 1.0))]
    head = _varints([len(field) for field in fields[:3]])
    return zlib.compress(head + b"".join(fields), 9)


def unpack_logprobs(packed: bytes) -> TopLogprobs:
    """What `pack_logprobs` packed.

    Raises:
        ValueError: these bytes are something else, or damaged.
    """
    try:
        raw = zlib.decompress(packed)
        sizes, at = _read_varints(raw, 3)
        ends = np.cumsum([at, *sizes])
        head, refs, text = (raw[ends[i] : ends[i + 1]] for i in range(3))
        numbers, _ = _read_varints(head)
        if numbers[0] != _VERSION:
            raise ValueError(f"version {numbers[0]}")
        replies = int(numbers[1])
        parts = numbers[2 : 2 + replies]
        places, unique = int(parts.sum()), int(numbers[2 + replies])
        lengths, counts, chosen = np.split(numbers[3 + replies :], [unique, unique + places])
        read, _ = _read_varints(refs)
        new = read == 0
        ids = np.where(new, np.cumsum(new) - 1, read - 1)
        logprobs, at = _read_planes(raw, int(ends[3]), len(ids))
        tail, at = _read_planes(raw, at, places)
        starts = _starts(counts)
        if at != len(raw) or starts[-1] != len(ids) or len(chosen) != places or int(lengths.sum()) != len(text):
            raise ValueError("its parts do not fit together")
    except (zlib.error, IndexError, ValueError) as error:
        raise ValueError(f"no packed logprobs: {error}") from None
    cuts = _starts(lengths)
    tokens = tuple(text[a:b] for a, b in pairwise(cuts))
    return TopLogprobs(tokens, starts, ids, logprobs, starts[:-1] + chosen, tail, tuple(map(int, parts)))


def _pairs(entry: Entry) -> tuple[list[tuple[bytes, float]], int]:
    """The pairs of one place, and which of them was said."""
    listed = [(_token(other), _logprob(other)) for other in entry.get("top_logprobs") or ()]
    said = _token(entry)
    place = next((index for index, (token, _) in enumerate(listed) if token == said), None)
    if place is None:
        listed.append((said, _logprob(entry)))
        place = len(listed) - 1
    return listed, place


def _token(entry: Entry) -> bytes:
    given, text = entry.get("bytes"), entry.get("token")
    if given is not None:
        return bytes(given)
    if not isinstance(text, str):
        raise ValueError("a logprobs entry has neither token nor bytes")
    return text.encode("utf-8", "surrogatepass")


def _logprob(entry: Entry) -> float:
    value = entry.get("logprob")
    if value is None or value <= _UNLIKELY_BELOW:
        return UNLIKELY
    # Servers round: a certain token may come out a hair above 0.
    if not isinstance(value, (int, float)) or not value < 1e-3:
        raise ValueError(f"logprob {value!r} is no logarithm of a probability")
    return min(float(value), 0.0)


def _starts(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


def _varints(numbers: Sequence[int]) -> bytes:
    """LEB128: seven bits a byte, the lowest first."""
    made = bytearray()
    for number in numbers:
        while number >= 0x80:
            made.append(number & 0x7F | 0x80)
            number >>= 7
        made.append(number)
    return bytes(made)


def _read_varints(raw: bytes, count: int | None = None) -> tuple[npt.NDArray[np.int64], int]:
    """All numbers of `raw`, or its first `count`, and where they end."""
    # A number has at most five bytes here.
    data = np.frombuffer(raw if count is None else raw[: 5 * count], dtype=np.uint8)
    last = np.flatnonzero(data < 0x80)[:count]
    if (count is not None and len(last) < count) or (count is None and len(data) and data[-1] >= 0x80):
        raise ValueError("a number is cut off")
    if not len(last):
        return np.zeros(0, dtype=np.int64), 0
    end = int(last[-1]) + 1
    firsts = np.concatenate(([0], last[:-1] + 1))
    within = np.arange(end) - np.repeat(firsts, last - firsts + 1)
    parts = (data[:end] & 0x7F).astype(np.int64) << (7 * np.minimum(within, 8))
    return np.add.reduceat(parts, firsts), end


def _planes(values: npt.NDArray[np.float64]) -> bytes:
    """Scaled float16, all high bytes before all low ones: alike bytes stand together. -inf stands for `UNLIKELY`."""
    scaled = _SCALE * np.where(values <= _UNLIKELY_BELOW, -np.inf, np.maximum(values, _LOWEST))
    return bytes(scaled.astype(">f2").view(np.uint8).reshape(-1, 2).T.tobytes())


def _read_planes(raw: bytes, at: int, count: int) -> tuple[npt.NDArray[np.float32], int]:
    planes = np.frombuffer(raw, dtype=np.uint8, count=2 * count, offset=at).reshape(2, count)
    values = np.ascontiguousarray(planes.T).view(">f2").reshape(count).astype(np.float32) / np.float32(_SCALE)
    return np.where(np.isneginf(values), np.float32(UNLIKELY), values), at + 2 * count


async def top_logprobs(settings: TopLogprobsSettings, context: Context) -> AsyncIterator[Elicited]:
    """Questions of graded skills in the two steps of zero-shot-CoT, others as they stand, with their distributions.

    Raises:
        UserError: the teacher's answers have no logprobs.
    """
    extra = {"logprobs": True, "top_logprobs": settings.k}

    async def one(unit: tuple[Question, int]) -> Elicited:
        question, sample = unit
        options = extra | options_of(settings, question, sample)
        if not _graded(question, context):
            reply = await context.teacher.ask(question_messages(question), **options)
            return _with_distributions(read_reply(question, sample, reply, graded=False), (reply,))
        replies = await two_steps(context.teacher, question, options)
        made = read_sample(question, sample, replies)
        if made.rationale:
            # As it was written: the distributions belong to its very tokens.
            made = replace(made, rationale=replies[0].text.strip())
        return _with_distributions(made, replies)

    given = without = 0
    async for found in context.teacher.map(one, units(context.of_skills(settings.skills), settings, context)):
        given += found.top_logprobs is not None
        without += found.detail == _NONE_SENT
        if without == _ENOUGH_WITHOUT and not given:
            raise UserError(
                f"elicit: {settings.entry}: {_NONE_SENT} in {without} answers; "
                "take a teacher whose API has them, or another method"
            )
        yield found


_NONE_SENT = "the teacher sent no logprobs"


def _with_distributions(item: Elicited, replies: tuple[Reply, ...]) -> Elicited:
    """The sample with what the replies' tokens could have been."""
    item = replace(item, route="feature", method="top_logprobs")
    if item.reason is not None:
        return item
    contents = [reply.logprobs or [] for reply in replies]
    if not all(contents):
        return replace(item, reason="no_logprobs", detail=_NONE_SENT)
    try:
        spelt = [b"".join(_token(entry) for entry in content) for content in contents]
        packed = pack_logprobs(*contents)
    except (ValueError, TypeError, AttributeError) as error:
        return replace(item, reason="no_logprobs", detail=str(error)[:200])
    if any(reply.text.strip().encode() not in text for reply, text in zip(replies, spelt, strict=True)):
        return replace(item, reason="no_logprobs", detail="the tokens sent do not spell the answer")
    return replace(item, top_logprobs=packed)


def _graded(question: Question, context: Context) -> bool:
    return bool(context.skills[question.skill].graded)


def plan_top_logprobs(settings: TopLogprobsSettings, context: Context) -> list[Planned]:
    """As zero-shot-CoT for graded skills, one request a sample for others; logprobs cost no tokens."""
    questions = context.of_skills(settings.skills)
    reasoned = select(questions, lambda question: _graded(question, context))
    outright = select(questions, lambda question: not _graded(question, context))
    like = zero_shot.ZeroShot(samples=settings.samples)
    planned = zero_shot.plan(like, replace(context, questions=reasoned)) if reasoned else []
    sizes = [count_tokens(question.text) for question, _ in units(outright, settings, context)]
    if sizes:
        mean = sum(sizes) / len(sizes)
        planned.append(Planned("answers", (len(sizes), len(sizes)), (mean, mean), REPLY_TOKENS))
    return planned
