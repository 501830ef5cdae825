"""The continuations of parity: do all engines say the same greedy words, and end where they should?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pocketstill.engines import Engine
from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.parity.causes import CACHE, ROPE, WEIGHTS
from pocketstill_export.parity.logits import MAX_KL, Logits, Reference
from pocketstill_export.parity.text import TextCheck

# How far below the best logit another token's may lie and still be a tie, in units of the logits' own spread.
# llama.cpp keeps its cache in half precision, and its quantized kernels round a batch otherwise than a single token:
# on a random model with flat logits that moved some by 0.3. Reading a wrong cache is off by 3 and more.
TIE_EXACT, TIE_QUANTIZED = 0.1, 1.0
_DECODE_STEPS = 16
_MOST_PROMPTS, _MOST_TOKENS = 16, 32
# Tokens that the reference may decode, by its parameters: about a minute on a slow core.
_DECODE_WORK = 2.5e11


@dataclass(frozen=True)
class GenerationCheck:
    """Greedy continuations of a variant against those of `against`: the checkpoint, or another variant.

    `same` is the share of `prompts` on which all `tokens` are equal, `prefix_mean` the mean number of tokens before
    the first other one; both with standard errors over prompts. Only unquantized variants are held to them, and a
    difference between two tokens that are as likely to the checkpoint is a tie, no failure; `ties` counts those.
    """

    variant: str
    against: str
    prompts: int
    tokens: int
    same: float
    same_error: float
    prefix_mean: float
    prefix_error: float
    ties: int
    passed: bool
    difference: str | None = None
    cause: str | None = None


@dataclass(frozen=True)
class Continuations:
    """Prompts and the checkpoint's greedy continuations of them, `tokens` long each or up to a stop id."""

    prompts: tuple[tuple[int, ...], ...]
    expected: tuple[tuple[int, ...], ...]
    tokens: int


def continue_texts(
    reference: Reference,
    checkpoint: Checkpoint,
    sequences: Sequence[Sequence[int]],
    context_length: int,
) -> Continuations:
    """The first half of each of the first texts, and what transformers' `generate` makes of it.

    At most 16 prompts of 32 tokens, fewer for a large student.
    """
    tokens = max(1, min(_MOST_TOKENS, context_length // 2))
    parameters = max(1, checkpoint.parameters)
    count = max(2, min(_MOST_PROMPTS, int(_DECODE_WORK / parameters / tokens)))
    halves = (tuple(ids[: max(1, min(len(ids) // 2, context_length - tokens - 1))]) for ids in sequences)
    prompts = tuple(dict.fromkeys(halves))[:count]
    expected = tuple(_to_stop(reference.greedy(prompt, tokens), checkpoint.stop_ids) for prompt in prompts)
    return Continuations(prompts, expected, tokens)


def _to_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> tuple[int, ...]:
    """`ids` up to the first stop id, which is kept: onnxruntime-genai ends by itself there."""
    end = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return tuple(ids[: end + 1])


def continue_by(engine: Engine, continuations: Continuations, stop_ids: Sequence[int]) -> list[tuple[int, ...]]:
    """The engine's own greedy continuations of the same prompts."""
    found = []
    for prompt in continuations.prompts:
        new = engine.generate(prompt, max_new_tokens=continuations.tokens, stop_ids=())
        found.append(_to_stop(list(new), stop_ids))
    return found


def compare_continuations(
    variant: str,
    against: str,
    continuations: Continuations,
    found: Sequence[Sequence[int]],
    expected: Sequence[Sequence[int]],
    logits: Logits,
) -> GenerationCheck:
    """Agreement of `found` with `expected`; `logits` are the checkpoint's, which say what is a tie."""
    lengths, equal, ties = [], [], 0
    difference = cause = None
    for number, (prompt, ours, theirs) in enumerate(zip(continuations.prompts, found, expected, strict=True)):
        pairs = zip(ours, theirs, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
        lengths.append(float(at))
        equal.append(float(tuple(ours) == tuple(theirs)))
        if equal[-1]:
            continue
        gap = math.inf
        if at < min(len(ours), len(theirs)):
            row = logits([*prompt, *theirs[:at]])[-1]
            gap = float(abs(row[theirs[at]] - row[ours[at]]) / (row.std() + 1e-9))
        if gap <= TIE_EXACT:
            ties += 1
        elif difference is None:
            difference = (
                f"prompt {number}, token {at}: {list(ours[at : at + 3])} instead of {list(theirs[at : at + 3])}, "
                f"{gap:.2g} standard deviations of the logits apart"
            )
            cause = f"{CACHE}, or {ROPE}" if at else WEIGHTS
    gated = variant in MAX_KL
    prompts = len(lengths)
    same = float(np.mean(equal)) if prompts else 1.0
    return GenerationCheck(
        variant=variant,
        against=against,
        prompts=prompts,
        tokens=continuations.tokens,
        same=same,
        same_error=math.sqrt(same * (1 - same) / max(1, prompts - 1)),
        prefix_mean=float(np.mean(lengths)) if prompts else 0.0,
        prefix_error=float(np.std(lengths, ddof=1) / math.sqrt(prompts)) if prompts > 1 else 0.0,
        ties=ties,
        passed=not gated or difference is None,
        difference=difference if gated else None,
        cause=cause if gated else None,
    )


def compare_engines(
    continuations: Continuations, found: Mapping[str, Sequence[Sequence[int]]], logits: Logits
) -> list[GenerationCheck]:
    """Each unquantized variant against the first one of the other engine."""
    exact = [name for name in found if name in MAX_KL]
    checks = []
    for i, name in enumerate(exact):
        other = next((o for o in exact[:i] if o.split("-")[0] != name.split("-")[0]), None)
        if other is not None:
            checks.append(compare_continuations(name, other, continuations, found[name], found[other], logits))
    return checks


def check_decode(
    variant: str, engine: Engine, ids: Sequence[int], context_length: int, stop_ids: Sequence[int]
) -> TextCheck:
    """Greedy decoding, a token at a time through the cache, must agree with the same engine's logits in one
    pass.
    """
    prompt = list(ids)[: max(1, min(len(ids), context_length - _DECODE_STEPS - 1))]
    steps = min(_DECODE_STEPS, context_length - len(prompt) - 1)
    new = list(engine.generate(prompt, max_new_tokens=steps, stop_ids=()))
    tie = TIE_EXACT if variant in MAX_KL else TIE_QUANTIZED
    difference = None
    # onnxruntime-genai ends by itself after an end token.
    if len(new) != steps and not (new and new[-1] in stop_ids):
        difference = f"{len(new)} tokens decoded, {steps} asked for"
    else:
        rows = engine.logits([*prompt, *new])[len(prompt) - 1 : -1]
        for position, (row, token) in enumerate(zip(rows, new, strict=True)):
            gap = float((row.max() - row[token]) / (row.std() + 1e-9))
            if gap > tie:
                best = int(row.argmax())
                difference = f"step {position}: decoding chose token {token}, one pass says {best}"
                break
    cause = None if difference is None else CACHE
    return TextCheck("greedy tokens of decode and prefill", variant, len(new), difference is None, difference, 0, cause)


def check_stops(
    variant: str,
    engine: Engine,
    continuations: Continuations,
    found: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
) -> TextCheck:
    """Generation ends before a stop id, and at no other token.

    A prompt whose continuation has one of the student's stop ids is asked again with all of them; of the others, the
    token that comes up last for the first time is made the stop id.
    """
    difference = None
    for number, (prompt, free) in enumerate(zip(continuations.prompts, found, strict=True)):
        if not free:
            continue
        natural = free[-1] in stop_ids
        at = len(free) - 1 if natural else max(i for i, token in enumerate(free) if token not in free[:i])
        stops = tuple(stop_ids) if natural else (free[at],)
        ended = list(engine.generate(prompt, max_new_tokens=continuations.tokens, stop_ids=stops))
        if ended != list(free[:at]):
            difference = (
                f"prompt {number}: {len(ended)} tokens came, and token {free[at]} should have ended them after {at}"
            )
            break
    cause = None if difference is None else "the engine does not heed the stop ids that it is given"
    what = "generation up to a stop id"
    return TextCheck(what, variant, len(continuations.prompts), difference is None, difference, 0, cause)
