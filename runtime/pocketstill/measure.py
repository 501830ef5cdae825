"""Speed of a loaded model as llama-bench and onnxruntime-genai count it. Run it in a process of its own."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pocketstill.bundle import Bundle, Variant
from pocketstill.engines import Engine, open_engine

REPETITIONS = 5
_PREFILL, _DECODE, _TRIAL = 512, 128, 48


@dataclass(frozen=True)
class Speed:
    """Means over the repetitions after one warm-up; `_sd` is the standard deviation of the same.

    `ttft_ms` is prefill and first token of a real prompt; `prefill_tok_s` is `prefill_tokens` over the time
    to the first new token; `decode_tok_s` counts the tokens after the first, `decode_tokens` of them.
    """

    ttft_ms: float
    ttft_ms_sd: float
    prefill_tok_s: float
    prefill_tok_s_sd: float
    decode_tok_s: float
    decode_tok_s_sd: float
    prefill_tokens: int
    decode_tokens: int
    repetitions: int


def first_token_seconds(engine: Engine, ids: Sequence[int]) -> float:
    """Seconds from the call to the first new token."""
    start = time.perf_counter()
    for _ in engine.generate(ids, max_new_tokens=1, stop_ids=()):
        break
    return time.perf_counter() - start


def decode_rate(engine: Engine, ids: Sequence[int], tokens: int) -> float:
    """Tokens per second after the first, over `tokens` of them; no id stops it."""
    steps = engine.generate(ids, max_new_tokens=tokens + 1, stop_ids=())
    next(steps)
    start = time.perf_counter()
    count = sum(1 for _ in steps)
    return count / (time.perf_counter() - start) if count else 0.0


def measure(engine: Engine, prompt: Sequence[int], *, repetitions: int = REPETITIONS) -> Speed:
    """TTFT on `prompt`, prefill of 512 tokens and decode of 128; fewer where the context is shorter."""
    prompt = list(prompt)[: max(1, engine.context_length - 2)]
    n_prefill = max(1, min(_PREFILL, engine.context_length - 2))
    n_decode = max(1, min(_DECODE, engine.context_length // 2))
    long = (prompt * (n_prefill // len(prompt) + 1))[:n_prefill]
    short = prompt[: max(1, min(len(prompt), engine.context_length - n_decode - 1))]
    ttft: list[float] = []
    prefill: list[float] = []
    decode: list[float] = []
    for repetition in range(repetitions + 1):
        figures = (
            1000 * first_token_seconds(engine, prompt),
            n_prefill / first_token_seconds(engine, long),
            decode_rate(engine, short, n_decode),
        )
        if repetition:
            for values, figure in zip((ttft, prefill, decode), figures, strict=True):
                values.append(figure)
    return Speed(
        *_mean_sd(ttft),
        *_mean_sd(prefill),
        *_mean_sd(decode),
        prefill_tokens=n_prefill,
        decode_tokens=n_decode,
        repetitions=repetitions,
    )


def _mean_sd(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def thread_candidates(cores: int) -> list[int]:
    """Every count up to four; above, the powers of two and all cores, because each costs a load."""
    return sorted({n for n in range(1, cores + 1) if n <= 4 or n & (n - 1) == 0} | {cores})


def best_threads(bundle: Bundle, variant: Variant, prompt: Sequence[int], cores: int) -> tuple[int, dict[int, float]]:
    """The thread count that decodes fastest, and tokens/s of each that was tried (the better of two trials).

    It cannot be assumed: on a busy machine a small model may decode ten times slower with two threads.
    """
    rates: dict[int, float] = {}
    for threads in thread_candidates(cores):
        engine = open_engine(bundle.folder, variant, threads=threads, context_length=bundle.context_length)
        try:
            tokens = max(1, min(_TRIAL, engine.context_length // 2))
            ids = list(prompt)[: max(1, engine.context_length - tokens - 1)]
            decode_rate(engine, ids, min(8, tokens))
            rates[threads] = max(decode_rate(engine, ids, tokens) for _ in range(2))
        finally:
            engine.close()
    # A tie goes to fewer threads: they leave the device to others.
    return max(rates, key=lambda n: (rates[n], -n)), rates


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
