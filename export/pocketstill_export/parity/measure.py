"""Holds every exported file to the checkpoint: same ids, same prompt, same stop ids, same numbers, same words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pocketstill.bundle import Variant
from pocketstill.engines import Engine, open_engine
from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.parity.corpus import TEXTS
from pocketstill_export.parity.corpus_lines import corpus_lines
from pocketstill_export.parity.generation import (
    Continuations,
    GenerationCheck,
    check_decode,
    check_stops,
    compare_continuations,
    compare_engines,
    continue_by,
    continue_texts,
)
from pocketstill_export.parity.logits import (
    Floats,
    LogitsCheck,
    Reference,
    compare_logits,
    load_reference,
    log_softmax,
    token_sequences,
)
from pocketstill_export.parity.text import TextCheck, check_stop_ids, check_template, compare_ids

_LONGEST = 1024
_FEWEST_TOKENS = 256
# Tokens times parameters: about a minute and a half for each variant on a slow core. And bytes of log-probabilities.
_WORK = 1e12
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Parity:
    """What was compared and how it came out; `failures` names the first difference of each failed gate, and its
    likely cause.
    """

    passed: bool
    texts: tuple[TextCheck, ...]
    logits: tuple[LogitsCheck, ...]
    failures: tuple[str, ...]
    generations: tuple[GenerationCheck, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: {"passed", "texts": [...], "logits": [...], "generations": [...], "failures": [...]}."""
        return {
            "passed": self.passed,
            "texts": [asdict(check) for check in self.texts],
            "logits": [{k: None if v == math.inf else v for k, v in asdict(check).items()} for check in self.logits],
            "generations": [asdict(check) for check in self.generations],
            "failures": list(self.failures),
        }


@dataclass(frozen=True)
class _Expected:
    """What the checkpoint makes of the texts, computed once for all variants."""

    sequences: list[list[int]]
    log_probabilities: list[Floats]
    continuations: Continuations


def measure_parity(
    checkpoint: Checkpoint,
    folder: str | Path,
    variants: Sequence[Variant],
    texts: Sequence[str],
    *,
    context_length: int,
    max_tokens: int = 4096,
) -> Parity:
    """Compares every variant in `folder` with the checkpoint it was made from.

    Args:
        checkpoint: the reference; its weights are loaded by transformers in fp32.
        folder: an exported bundle.
        variants: of that bundle.
        texts: what the student is for, for instance whole prompts with completions; the KL figures and the greedy
            continuations are over these. The ids are compared over these and thousands of lines of scripts, code,
            emoji, digits and edge whitespace.
        context_length: no sequence is longer than this.
        max_tokens: about as many tokens are compared, fewer for a large student or vocabulary, so that neither an
            hour nor the memory goes.

    Returns:
        A Parity; a failed gate is in it, not raised.
    """
    from tokenizers import Tokenizer

    folder = Path(folder)
    tokenizer = checkpoint.load_tokenizer()
    checks = [*check_template(checkpoint, folder, variants), *check_stop_ids(checkpoint, folder, variants)]
    reference = load_reference(checkpoint)
    expected = _expect(checkpoint, reference, tokenizer, texts, context_length, max_tokens)
    lines = (*texts, *TEXTS, *corpus_lines())
    shipped = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # What transformers, transformers.js and our own runtime read, whatever the engine's own tokenizer is.
    checks.append(compare_ids(tokenizer, checkpoint, "tokenizer.json", lambda text: _ids(shipped, text), lines))
    logits, generations = [], []
    continued = {}
    for variant in variants:
        engine = open_engine(folder, variant, threads=checkpoint.threads)
        try:
            checks.append(compare_ids(tokenizer, checkpoint, variant.name, engine.native_encode, lines))
            of_logits, of_texts, new = _compare_model(checkpoint, variant.name, engine, expected, context_length)
        finally:
            engine.close()
        logits.append(of_logits)
        checks += of_texts
        continued[variant.name] = new
        start = expected.continuations
        generations.append(
            compare_continuations(variant.name, "checkpoint", start, new, start.expected, reference.logits)
        )
    generations += compare_engines(expected.continuations, continued, reference.logits)
    failures = _failures(checks, logits, generations)
    return Parity(not failures, tuple(checks), tuple(logits), tuple(failures), tuple(generations))


def _expect(
    checkpoint: Checkpoint,
    reference: Reference,
    tokenizer: Any,
    texts: Sequence[str],
    context_length: int,
    max_tokens: int,
) -> _Expected:
    tokens = affordable_tokens(checkpoint, max_tokens)
    longest = min(context_length, _LONGEST) - 1
    sequences = token_sequences(tokenizer, texts, longest, tokens) or token_sequences(tokenizer, TEXTS, longest, tokens)
    return _Expected(
        sequences,
        [log_softmax(reference.logits(ids)).astype(np.float32) for ids in sequences],
        continue_texts(reference, checkpoint, sequences, context_length),
    )


def _compare_model(
    checkpoint: Checkpoint, name: str, engine: Engine, expected: _Expected, context_length: int
) -> tuple[LogitsCheck, list[TextCheck], list[tuple[int, ...]]]:
    """One engine's logits, decoding and stops, and its continuations."""
    stops = checkpoint.stop_ids
    check = compare_logits(
        name, engine.logits, expected.sequences, expected.log_probabilities, config=checkpoint.config
    )
    decode = check_decode(name, engine, expected.sequences[0], context_length, stops)
    new = continue_by(engine, expected.continuations, stops)
    return check, [decode, check_stops(name, engine, expected.continuations, new, stops)], new


def _failures(
    texts: Sequence[TextCheck], logits: Sequence[LogitsCheck], generations: Sequence[GenerationCheck]
) -> list[str]:
    found: list[tuple[str, str, TextCheck | LogitsCheck | GenerationCheck]] = []
    found += [(c.variant, c.what, c) for c in texts]
    found += [(c.variant, "logits", c) for c in logits]
    found += [(c.variant, f"greedy continuations and those of {c.against}", c) for c in generations]
    return [
        f"{variant}: {what} differ: {check.difference}" + (f"; likely cause: {check.cause}" if check.cause else "")
        for variant, what, check in found
        if not check.passed
    ]


def affordable_tokens(checkpoint: Checkpoint, max_tokens: int) -> int:
    """How many tokens are compared: what time and memory allow for a student of this size, 256 at the fewest."""
    by_time = int(_WORK / max(1, checkpoint.parameters))
    by_memory = _MOST_BYTES // (4 * int(checkpoint.config.vocab_size))
    return min(max_tokens, max(_FEWEST_TOKENS, min(by_time, by_memory)))


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)
