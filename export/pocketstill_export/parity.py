"""Holds every exported file to the checkpoint: same ids, same prompt, same stop ids, same numbers.

KL divergences are of the variant's next-token distribution from the checkpoint's, in nats, a token each, as
llama.cpp's perplexity tool reports them (mean, 99.9th percentile, maximum, agreement of the most likely
token).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketstill.bundle import Variant
from pocketstill.engines import Engine, open_engine
from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.corpus import TEXTS
from pocketstill_export.parity_text import TextCheck, check_stop_ids, check_template, compare_ids

Logits = Callable[[Sequence[int]], npt.NDArray[np.float32]]

EXACT_KL = 1e-4
# Rounding a weight to half precision moves it by at most 2^-11 of itself, and llama.cpp rounds the
# activations that meet it too. With independent roundings a logit of spread s, summed over r rounded products
# in a row, moves by about s * sqrt(2 r / 3) * 2^-11 (KL is half of that squared): for r = 7 x 32 layers and s
# = 5 that is a KL of 0.45e-3. The bound is about ten times that for the single worst token of thousands; a
# transposed, permuted or missing tensor costs 1e-1 and more.
F16_KL = 5e-3
MAX_KL: dict[str, float] = {"onnx-fp32": EXACT_KL, "gguf-f32": EXACT_KL, "gguf-f16": F16_KL}

# How far below the best logit a decoded token's may lie in the one-pass logits, in units of the logits' own
# spread. llama.cpp keeps its cache in half precision, and its quantized kernels round a batch otherwise than
# a single token: on a random model with flat logits that moved some by 0.3. Reading a wrong cache is off by 3
# and more.
_TIE_EXACT, _TIE_QUANTIZED = 0.1, 1.0
_DECODE_STEPS = 16
_LONGEST = 1024
_SMALL = 50_000_000


@dataclass(frozen=True)
class LogitsCheck:
    """One variant's numbers against the checkpoint's. `bound` is the gate on `kl_max`; None where there is
    none.
    """

    variant: str
    tokens: int
    kl_mean: float
    kl_p999: float
    kl_max: float
    top1: float
    bound: float | None
    passed: bool
    difference: str | None = None


@dataclass(frozen=True)
class Parity:
    """What was compared and how it came out; `failures` names the first difference of each failed gate."""

    passed: bool
    texts: tuple[TextCheck, ...]
    logits: tuple[LogitsCheck, ...]
    failures: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: {"passed", "texts": [...], "logits": [...], "failures": [...]}."""
        return {
            "passed": self.passed,
            "texts": [asdict(check) for check in self.texts],
            "logits": [{k: None if v == math.inf else v for k, v in asdict(check).items()} for check in self.logits],
            "failures": list(self.failures),
        }


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
        texts: what the student is for, for instance whole prompts with completions; the KL figures are over
            these. The ids are compared over these and a corpus of scripts, emoji, digits and edge whitespace.
        context_length: no sequence is longer than this.
        max_tokens: about as many tokens are compared, so that a large student takes no hour.

    Returns:
        A Parity; a failed gate is in it, not raised.
    """
    from tokenizers import Tokenizer

    folder = Path(folder)
    tokenizer = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
    checks = [*check_template(checkpoint, folder), *check_stop_ids(checkpoint, folder, variants)]
    longest = min(context_length, _LONGEST) - 1
    sequences = _sequences(tokenizer, texts, longest, max_tokens) or _sequences(tokenizer, TEXTS, longest, max_tokens)
    reference = reference_logits(checkpoint)
    expected = [_log_softmax(reference(ids)) for ids in sequences]
    # More threads than one only slow a small student down, most of all on a busy machine.
    threads = 1 if sum(map(math.prod, checkpoint.shapes.values())) < _SMALL else None
    logits = []
    for variant in variants:
        engine = open_engine(folder, variant, threads=threads)
        try:
            checks.append(compare_ids(tokenizer, checkpoint, variant.name, engine.native_encode, (*texts, *TEXTS)))
            logits.append(compare_logits(variant.name, engine.logits, sequences, expected))
            checks.append(_check_decode(variant.name, engine, sequences[0], context_length, checkpoint.stop_ids))
        finally:
            engine.close()
    failures = [f"{c.variant}: {c.what} differ: {c.difference}" for c in checks if not c.passed]
    failures += [f"{c.variant}: logits differ: {c.difference}" for c in logits if not c.passed]
    return Parity(not failures, tuple(checks), tuple(logits), tuple(failures))


def reference_logits(checkpoint: Checkpoint) -> Logits:
    """The checkpoint run by transformers, fp32 on the CPU: ids to logits of shape (len(ids), vocabulary)."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint.folder,
            dtype=torch.float32,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
        ).eval()
    finally:
        if bars:
            logging.enable_progress_bar()

    def logits(ids: Sequence[int]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            output: npt.NDArray[np.float32] = model(torch.tensor([list(ids)]), use_cache=False).logits[0].numpy()
        return output

    return logits


def compare_logits(
    variant: str,
    logits: Logits,
    sequences: Sequence[Sequence[int]],
    expected: Sequence[npt.NDArray[np.float64]],
) -> LogitsCheck:
    """KL of `logits` from the `expected` log-probabilities over all positions of all sequences."""
    divergences, agreements = [], []
    where = (0.0, "")
    for number, (ids, reference) in enumerate(zip(sequences, expected, strict=True)):
        found = _log_softmax(logits(ids))
        if found.shape != reference.shape:
            return _no_numbers(variant, f"shape {found.shape} instead of {reference.shape}")
        kl = np.maximum((np.exp(reference) * (reference - found)).sum(axis=-1), 0.0)
        if not np.isfinite(kl).all():
            return _no_numbers(variant, f"text {number}, token {int(np.isfinite(kl).argmin())} is no number")
        divergences.append(kl)
        agreements.append(found.argmax(axis=-1) == reference.argmax(axis=-1))
        if kl.max() >= where[0]:
            where = (float(kl.max()), f"text {number}, token {int(kl.argmax())}, KL {kl.max():.3g}")
    kl, top1 = np.concatenate(divergences), np.concatenate(agreements)
    bound = MAX_KL.get(variant)
    passed = bound is None or float(kl.max()) < bound
    return LogitsCheck(
        variant=variant,
        tokens=int(kl.size),
        kl_mean=float(kl.mean()),
        kl_p999=float(np.quantile(kl, 0.999)),
        kl_max=float(kl.max()),
        top1=float(top1.mean()),
        bound=bound,
        passed=passed,
        difference=None if passed else f"{where[1]}, bound {bound}",
    )


def _no_numbers(variant: str, difference: str) -> LogitsCheck:
    return LogitsCheck(variant, 0, math.inf, math.inf, math.inf, 0.0, MAX_KL.get(variant), False, difference)


def _sequences(tokenizer: Any, texts: Sequence[str], longest: int, max_tokens: int) -> list[list[int]]:
    """Token ids of the texts, those without any left out, until there are enough of them."""
    sequences: list[list[int]] = []
    total = 0
    for text in texts:
        ids = list(tokenizer.encode(text, add_special_tokens=False).ids)[:longest]
        if ids and total < max_tokens:
            sequences.append(ids)
            total += len(ids)
    return sequences


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)), dtype=np.float64)


def _check_decode(
    variant: str, engine: Engine, ids: Sequence[int], context_length: int, stop_ids: Sequence[int]
) -> TextCheck:
    """Greedy decoding, a token at a time through the cache, must agree with the same engine's logits in one
    pass.
    """
    prompt = list(ids)[: max(1, min(len(ids), context_length - _DECODE_STEPS - 1))]
    steps = min(_DECODE_STEPS, context_length - len(prompt) - 1)
    new = list(engine.generate(prompt, max_new_tokens=steps, stop_ids=()))
    tie = _TIE_EXACT if variant in MAX_KL else _TIE_QUANTIZED
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
    return TextCheck("greedy tokens of decode and prefill", variant, len(new), difference is None, difference)
