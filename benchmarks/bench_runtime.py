"""Decode speed through pocketstill's interface against the engines called directly, in the same run.

    python benchmarks/bench_runtime.py BUNDLE [--variant NAME] [--repetitions 15] [--tokens 128] [--threads 1]

Both sides of a pair decode the same tokens from the same prompt, greedily, in alternating order; the ratio is
the median over pairs. It prints a table, and one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pocketstill.bundle import Bundle, Variant
from pocketstill.engines import open_engine
from pocketstill.model import load

# Takes (prompt ids, new tokens); returns the new ids and the tokens per second after the first.
Decode = Callable[[list[int], int], tuple[list[int], float]]


def direct_onnx(bundle: Bundle, variant: Variant, threads: int) -> Decode:
    """onnxruntime-genai as its own examples call it."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime_genai as og

    config = og.Config(str(bundle.folder))
    session = {"intra_op_num_threads": threads}
    # As in our engine: the end token is no padding, so that both decode the same tokens.
    decoder = {"filename": variant.file, "session_options": session}
    config.overlay(json.dumps({"model": {"pad_token_id": -1, "decoder": decoder}}))
    model = og.Model(config)

    def decode(ids: list[int], tokens: int) -> tuple[list[int], float]:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=len(ids) + tokens, do_sample=False)
        generator = og.Generator(model, parameters)
        generator.append_tokens(ids)
        generator.generate_next_token()
        new = [generator.get_next_tokens()[0]]
        start = time.perf_counter()
        while not generator.is_done():
            generator.generate_next_token()
            new.append(generator.get_next_tokens()[0])
        seconds = time.perf_counter() - start
        return [int(i) for i in new], (len(new) - 1) / seconds

    return decode


def direct_gguf(bundle: Bundle, variant: Variant, threads: int) -> Decode:
    """The low-level API of llama-cpp-python: one decode and one greedy sample a token."""
    import llama_cpp as llama

    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    parameters = llama.llama_model_default_params()
    if b"AMX" in llama.llama_print_system_info():
        parameters.use_extra_bufts = False
    model = llama.llama_model_load_from_file(os.fsencode(bundle.folder / variant.file), parameters)
    options = llama.llama_context_default_params()
    options.n_ctx = bundle.context_length
    options.n_threads = options.n_threads_batch = threads
    context = llama.llama_init_from_model(model, options)
    sampler = llama.llama_sampler_init_greedy()

    def decode(ids: list[int], tokens: int, _keep: object = quiet) -> tuple[list[int], float]:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        prompt = (llama.llama_token * len(ids))(*ids)
        llama.llama_decode(context, llama.llama_batch_get_one(prompt, len(ids)))
        new = [llama.llama_sampler_sample(sampler, context, -1)]
        start = time.perf_counter()
        while len(new) < tokens:
            one = (llama.llama_token * 1)(new[-1])
            llama.llama_decode(context, llama.llama_batch_get_one(one, 1))
            new.append(llama.llama_sampler_sample(sampler, context, -1))
        return new, (len(new) - 1) / (time.perf_counter() - start)

    return decode


def ours(bundle: Bundle, variant: Variant, threads: int) -> Decode:
    """The engine interface of the runtime."""
    engine = open_engine(bundle.folder, variant, threads=threads, context_length=bundle.context_length)

    def decode(ids: list[int], tokens: int) -> tuple[list[int], float]:
        steps = engine.generate(ids, max_new_tokens=tokens, stop_ids=())
        new = [next(steps)]
        start = time.perf_counter()
        for token in steps:
            new.append(token)
        return new, (len(new) - 1) / (time.perf_counter() - start)

    return decode


def compare(
    bundle: Bundle, variant: Variant, ids: list[int], tokens: int, repetitions: int, threads: int
) -> dict[str, float | str | int]:
    """Tokens/s of both (mean, standard deviation), and the pairs' ratio (median, quartiles)."""
    direct = {"onnx": direct_onnx, "gguf": direct_gguf}[variant.engine](bundle, variant, threads)
    sides = {"direct": direct, "ours": ours(bundle, variant, threads)}
    rates: dict[str, list[float]] = {"direct": [], "ours": []}
    for repetition in range(repetitions + 1):
        said = {}
        for name in sorted(sides, reverse=bool(repetition % 2)):
            said[name], rate = sides[name](ids, tokens)
            if repetition:
                rates[name].append(rate)
        if said["direct"] != said["ours"]:
            raise SystemExit(f"{variant.name}: the two ways give different tokens; the comparison means nothing")
    ratios = [a / b for a, b in zip(rates["ours"], rates["direct"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "variant": variant.name,
        "threads": threads,
        "tokens": tokens,
        "repetitions": repetitions,
        "direct_tok_s": round(statistics.fmean(rates["direct"]), 1),
        "direct_sd": round(statistics.stdev(rates["direct"]), 1),
        "ours_tok_s": round(statistics.fmean(rates["ours"]), 1),
        "ours_sd": round(statistics.stdev(rates["ours"]), 1),
        "ratio": round(middle, 4),
        "ratio_q1": round(low, 4),
        "ratio_q3": round(high, 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", action="append", help="by name; may be given again; all of them otherwise")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    bundle = Bundle.load(options.bundle)
    chosen = [bundle.variant(name) for name in options.variant] if options.variant else list(bundle.variants)
    with load(options.bundle, chosen[0].name) as model:
        ids = model.prompt_ids(bundle.suite()[0].messages)
    tokens = min(options.tokens, bundle.context_length - len(ids))
    rows = [compare(bundle, v, ids, tokens, max(2, options.repetitions), options.threads) for v in chosen]

    table = Table(title=f"decode, tokens/s, {tokens} tokens after {len(ids)}, {options.threads} thread(s)")
    for heading in ("variant", "direct", "pocketstill", "ratio (quartiles)"):
        table.add_column(heading)
    for row in rows:
        table.add_row(
            str(row["variant"]),
            f"{row['direct_tok_s']} ± {row['direct_sd']}",
            f"{row['ours_tok_s']} ± {row['ours_sd']}",
            f"{row['ratio']} ({row['ratio_q1']} to {row['ratio_q3']})",
        )
    Console(stderr=False).print(table)
    passed = all(float(row["ratio"]) >= 0.95 for row in rows)
    print(json.dumps({"benchmark": "runtime", "passed": passed, "floor": 0.95, "rows": rows}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
