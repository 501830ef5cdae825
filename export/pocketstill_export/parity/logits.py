"""The numbers of parity: how far a variant's next-token distributions lie from the checkpoint's.

KL divergences are of the variant's distribution from the checkpoint's, in nats, a token each, as llama.cpp's
perplexity tool reports them: mean, 99.9th percentile, maximum, agreement of the most likely token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketstill_export.checkpoint import Checkpoint, load_model
from pocketstill_export.parity.causes import logits_cause, no_numbers_cause

Logits = Callable[[Sequence[int]], npt.NDArray[np.float32]]
Floats = npt.NDArray[np.floating[Any]]

EXACT_KL = 1e-4
# Rounding a weight to half precision moves it by at most 2^-11 of itself, and llama.cpp rounds the activations meeting
# it too. With independent roundings a logit of spread s, summed over r rounded products in a row, moves by about
# s * sqrt(2 r / 3) * 2^-11 (KL is half of that squared): for r = 7 x 32 layers and s = 5 that is a KL of 0.45e-3. This
# is ten times that.
F16_KL = 5e-3
# Even an f32 file is run by llama.cpp with a cache of keys and values in half precision: two of those seven roundings.
CACHED_KL = F16_KL * 2 / 7
# bfloat16 keeps 8 significant bits where half precision keeps 11: roundings are 2^3 times as large, and a KL, which
# goes with their square, 2^6 times.
BF16_KL = 64 * F16_KL
# The mean is held to the estimate itself. The single worst token of thousands is where two tokens are as likely and the
# spread is three times the usual: a faithful f16 file of a trained student had one of 8.6e-3. A transposed, permuted or
# missing tensor costs 1e-1 and more, of the mean too.
MAX_KL: dict[str, float] = {
    "onnx-fp32": EXACT_KL,
    "gguf-f32": 10 * CACHED_KL,
    "onnx-fp16": 10 * F16_KL,
    "gguf-f16": 10 * F16_KL,
    "gguf-bf16": BF16_KL,
}
_MEAN_KL: dict[str, float] = {
    "gguf-f32": CACHED_KL / 10,
    "onnx-fp16": F16_KL / 10,
    "gguf-f16": F16_KL / 10,
    "gguf-bf16": BF16_KL / 10,
}
_CLUSTERS = 16
_RESAMPLES = 200


@dataclass(frozen=True)
class LogitsCheck:
    """One variant's numbers against the checkpoint's.

    `bound` is the gate on `kl_max`, `mean_bound` that on `kl_mean`; None where there is none. The errors are standard
    errors over texts (see `standard_error` and `quantile_error`), since tokens of one text are alike. `cause` is
    the likely one of `difference`.
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
    kl_mean_error: float = 0.0
    kl_p999_error: float = 0.0
    top1_error: float = 0.0
    mean_bound: float | None = None
    cause: str | None = None


@dataclass(frozen=True)
class Reference:
    """The checkpoint run by transformers, fp32 on the CPU."""

    model: Any

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits after each of `ids`, shape (len(ids), vocabulary)."""
        import torch

        with torch.inference_mode():
            output: npt.NDArray[np.float32] = self.model(torch.tensor([list(ids)]), use_cache=False).logits[0].numpy()
        return output

    def greedy(self, ids: Sequence[int], new_tokens: int) -> list[int]:
        """The most likely continuation by transformers' `generate`; it does not end at any id."""
        import torch
        from transformers import GenerationConfig

        prompt = torch.tensor([list(ids)])
        # Its own settings, not the checkpoint's, which may sample, and end at a stop id.
        config = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, pad_token_id=0)
        own, self.model.generation_config = self.model.generation_config, config
        try:
            with torch.inference_mode():
                output = self.model.generate(prompt, attention_mask=torch.ones_like(prompt))
        finally:
            self.model.generation_config = own
        return [int(token) for token in output[0, prompt.shape[1] :]]


def load_reference(checkpoint: Checkpoint) -> Reference:
    """The checkpoint as a Reference."""
    return Reference(load_model(checkpoint))


def reference_logits(checkpoint: Checkpoint) -> Logits:
    """The checkpoint run by transformers, fp32 on the CPU: ids to logits of shape (len(ids), vocabulary)."""
    return load_reference(checkpoint).logits


def compare_logits(
    variant: str,
    logits: Logits,
    sequences: Sequence[Sequence[int]],
    expected: Sequence[Floats],
    *,
    config: Any = None,
) -> LogitsCheck:
    """KL of `logits` from the `expected` log-probabilities over all positions of all sequences.

    A quantized variant has no bound on single tokens. Its mean must stay below half of `information(expected)`: what
    loses more than half of all that the checkpoint reads in its input is broken, not coarse. On a trained student
    of 3.6M parameters that is 1.6 nats; q4_k_m lost 0.1 and q2_k 0.6, and unpermuted q and k 3.5, a transposed
    matrix of one layer 7.

    Args:
        variant: its name chooses the bounds.
        logits: of the engine.
        sequences: token ids.
        expected: log-probabilities of the checkpoint, (len(ids), vocabulary) each.
        config: the checkpoint's, to name the likely cause of a difference by.
    """
    divergences, agreements = [], []
    where = (0.0, "")
    for number, (ids, reference) in enumerate(zip(sequences, expected, strict=True)):
        found = log_softmax(logits(ids))
        if found.shape != reference.shape:
            return _no_numbers(variant, f"shape {found.shape} instead of {reference.shape}", shape=True)
        kl = np.maximum((np.exp(reference) * (reference - found)).sum(axis=-1, dtype=np.float64), 0.0)
        if not np.isfinite(kl).all():
            return _no_numbers(variant, f"text {number}, token {int(np.isfinite(kl).argmin())} is no number")
        divergences.append(kl)
        agreements.append((found.argmax(axis=-1) == reference.argmax(axis=-1)).astype(np.float64))
        if kl.max() >= where[0]:
            where = (float(kl.max()), f"text {number}, token {int(kl.argmax())}, KL {kl.max():.3g}")
    kl, top1 = np.concatenate(divergences), np.concatenate(agreements)
    bound = MAX_KL.get(variant)
    mean_bound = _MEAN_KL.get(variant) if bound is not None else _half(information(expected))
    difference = None if bound is None or where[0] < bound else f"{where[1]}, bound {bound}"
    if difference is None and mean_bound is not None and kl.mean() > mean_bound:
        difference = f"mean KL {kl.mean():.3g}, bound {mean_bound:.3g}; worst at {where[1]}"
    limit = float(kl.max()) / 4 if bound is None else bound
    cause = None if difference is None else logits_cause(divergences, sequences, limit, config)
    return LogitsCheck(
        variant=variant,
        tokens=int(kl.size),
        kl_mean=float(kl.mean()),
        kl_p999=float(np.quantile(kl, 0.999)),
        kl_max=float(kl.max()),
        top1=float(top1.mean()),
        bound=bound,
        passed=difference is None,
        difference=difference,
        kl_mean_error=standard_error(divergences),
        kl_p999_error=quantile_error(divergences, 0.999),
        top1_error=standard_error(agreements),
        mean_bound=mean_bound,
        cause=cause,
    )


def _half(value: float | None) -> float | None:
    return None if value is None else value / 2


def _no_numbers(variant: str, difference: str, shape: bool = False) -> LogitsCheck:
    bound, cause = MAX_KL.get(variant), no_numbers_cause(shape)
    return LogitsCheck(variant, 0, math.inf, math.inf, math.inf, 0.0, bound, False, difference, cause=cause)


def information(expected: Sequence[Floats]) -> float | None:
    """What the checkpoint learns from its input: the mean KL of its average distribution from each, in nats.

    That is the divergence of the best answer that is the same whatever the input. None for fewer than 64 tokens, which
    give no such average, and for a checkpoint that answers the same to all.
    """
    tokens = sum(len(rows) for rows in expected)
    if tokens < 64:
        return None
    total = sum(np.exp(rows).sum(axis=0, dtype=np.float64) for rows in expected)
    average = np.log(np.maximum(np.asarray(total) / tokens, 1e-300))
    value = sum(float((np.exp(rows) * (rows - average)).sum(dtype=np.float64)) for rows in expected) / tokens
    return value if value > EXACT_KL else None


def standard_error(values: Sequence[npt.NDArray[np.float64]]) -> float:
    """The standard error of the mean over all tokens, when tokens of one text are alike.

    Linearized ratio of sums over clusters, W. G. Cochran, "Sampling Techniques", 3rd edition (1977), chapters 6 and
    9A: sqrt(G / (G - 1) * sum((s_i - mean * n_i)^2)) / N. With clusters of one token it is sd / sqrt(N), as in
    llama.cpp's perplexity tool. A cluster is a text; fewer than 16 texts are cut into about 16 pieces.
    """
    clusters = _clusters(values)
    count = sum(len(cluster) for cluster in clusters)
    if len(clusters) < 2:
        return 0.0
    mean = sum(float(cluster.sum()) for cluster in clusters) / count
    squares = sum((float(cluster.sum()) - mean * len(cluster)) ** 2 for cluster in clusters)
    return math.sqrt(len(clusters) / (len(clusters) - 1) * squares) / count


def quantile_error(values: Sequence[npt.NDArray[np.float64]], fraction: float) -> float:
    """The standard error of a quantile over all tokens: its spread when whole clusters are drawn again.

    Bootstrap over the clusters of `standard_error`, A. C. Davison and D. V. Hinkley, "Bootstrap Methods and their
    Application" (1997), section 3.8; 200 draws, always the same ones. A quantile beyond the last few tokens leans
    on them, and its error is then too small rather than too large.
    """
    clusters = _clusters(values)
    if len(clusters) < 2:
        return 0.0
    random = np.random.default_rng(0)
    draws = random.integers(len(clusters), size=(_RESAMPLES, len(clusters)))
    found = [np.quantile(np.concatenate([clusters[i] for i in draw]), fraction) for draw in draws]
    return float(np.std(found, ddof=1))


def _clusters(values: Sequence[npt.NDArray[np.float64]]) -> list[npt.NDArray[np.float64]]:
    if len(values) >= _CLUSTERS:
        return list(values)
    size = max(1, sum(map(len, values)) // _CLUSTERS)
    return [part[start : start + size] for part in values for start in range(0, len(part), size)]


def token_sequences(tokenizer: Any, texts: Iterable[str], longest: int, most: int) -> list[list[int]]:
    """Token ids of the texts, `longest` of each at most, until there are `most`; texts without a token are left out."""
    sequences: list[list[int]] = []
    left = most
    for text in texts:
        if left <= 0:
            break
        ids = list(tokenizer.encode(text, add_special_tokens=False).ids)[: min(longest, left)]
        if ids:
            sequences.append(ids)
            left -= len(ids)
    return sequences


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Log-probabilities, computed in double precision, shape as `logits`."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)), dtype=np.float64)
