"""What each way of making ONNX smaller costs: KL divergence, file size and decode speed of every method.

    python benchmarks/bench_int4.py CHECKPOINT HELDOUT [--calibration FILE] [--variants NAMES] [--tokens 20000]

HELDOUT is a file that `pocketstill export --calibrate` takes. KL is of the next-token distribution from the
checkpoint's (transformers, fp32), in nats a token, with its standard error (texts are taken as independent, the
tokens of one text are not). With a calibration file, gptq is measured too. Decode speed is the median of five greedy
runs of 128 tokens, on one thread. It prints a Markdown table, and one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketstill.bundle import Variant
from pocketstill.engines import Engine, open_engine
from pocketstill_export.calibration import read_calibration
from pocketstill_export.checkpoint import read_checkpoint
from pocketstill_export.companions import write_companions
from pocketstill_export.onnx.build import build_onnx
from pocketstill_export.parity.logits import reference_logits
from pocketstill_export.variants import VariantSpec, parse_variant

BLOCKS = (16, 32, 64, 128, 256)
METHODS = ("kquant", "kquant-sym", "kmixed", "rtn", "rtn-sym", "hqq")
VARIANTS = [
    "onnx-fp32",
    "onnx-fp16",
    "onnx-int8",
    *(f"onnx-int4-{way}-b{block}" for way in METHODS for block in BLOCKS),
]
CALIBRATED = [f"onnx-int4-{way}-b{block}" for way in ("gptq", "gptq-sym") for block in BLOCKS]
STEPS = 128
# GPT-QModel runs every layer over all of them for each of its matrices.
CALIBRATION = 16384


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)), dtype=np.float64)


def mean_and_error(texts: Sequence[npt.NDArray[np.float64]]) -> tuple[float, float]:
    """The mean over all tokens, and its standard error with one independent draw a text."""
    tokens = sum(values.size for values in texts)
    mean = sum(float(values.sum()) for values in texts) / tokens
    squares = sum(float((values - mean).sum()) ** 2 for values in texts)
    return mean, math.sqrt(squares * len(texts) / (len(texts) - 1)) / tokens


def decode_speed(engine: Engine, prompt: Sequence[int]) -> float:
    """Tokens a second, the median of five runs after one that warms up."""
    speeds = []
    for _ in range(6):
        start = time.perf_counter()
        tokens = len(list(engine.generate(prompt, max_new_tokens=STEPS, stop_ids=())))
        speeds.append(tokens / (time.perf_counter() - start))
    return statistics.median(speeds[1:])


def measure(
    folder: Path,
    spec: VariantSpec,
    sequences: Sequence[Sequence[int]],
    expected: Sequence[npt.NDArray[np.float64]],
) -> dict[str, Any]:
    """One variant over every sequence, in one pass each."""
    files = (spec.file, spec.file + "_data")
    engine = open_engine(folder, Variant(spec.name, "onnx", spec.file, files, 0), threads=1)
    divergences, agreements = [], []
    try:
        for ids, reference in zip(sequences, expected, strict=True):
            found = log_softmax(engine.logits(ids))
            divergences.append((np.exp(reference) * (reference - found)).sum(axis=-1))
            agreements.append((found.argmax(axis=-1) == reference.argmax(axis=-1)).astype(np.float64))
        speed = decode_speed(engine, sequences[0][:16])
    finally:
        engine.close()
    kl, top1 = mean_and_error(divergences), mean_and_error(agreements)
    return {
        "variant": spec.name,
        "bytes": sum((folder / file).stat().st_size for file in files),
        "tokens": sum(values.size for values in divergences),
        "kl_mean": kl[0],
        "kl_mean_error": kl[1],
        "top1": top1[0],
        "top1_error": top1[1],
        "tokens_per_second": speed,
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A row a variant; KL in thousandths of a nat."""
    lines = ["| variant | MB | KL, 10⁻³ nats | top-1 % | tokens/s |", "|---|--:|--:|--:|--:|"]
    for row in rows:
        kl = f"{1e3 * row['kl_mean']:.3f} ± {1e3 * row['kl_mean_error']:.3f}"
        top1 = f"{1e2 * row['top1']:.2f} ± {1e2 * row['top1_error']:.2f}"
        speed = f"{row['tokens_per_second']:,.0f}"
        lines.append(f"| {row['variant']} | {row['bytes'] / 1e6:.2f} | {kl} | {top1} | {speed} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("heldout", type=Path)
    parser.add_argument("--calibration", type=Path, help="texts for gptq, which needs the extra of that name")
    parser.add_argument("--variants", help="names with commas between; all methods and blocks when left out")
    parser.add_argument("--tokens", type=int, default=20000, help="held-out tokens, about")
    arguments = parser.parse_args()
    checkpoint = read_checkpoint(arguments.checkpoint)
    names = arguments.variants.split(",") if arguments.variants else VARIANTS + CALIBRATED * bool(arguments.calibration)
    specs = [parse_variant(name) for name in names]
    texts = None
    if arguments.calibration:
        texts = read_calibration(arguments.calibration, checkpoint, max_tokens=CALIBRATION)
    heldout = read_calibration(arguments.heldout, checkpoint, max_tokens=arguments.tokens)
    reference = reference_logits(checkpoint)
    expected = [log_softmax(reference(ids)) for ids in heldout]
    length = int(checkpoint.config.max_position_embeddings)
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-int4-") as name:
        folder = Path(name)
        built = build_onnx(checkpoint, folder, specs, context_length=length, calibration=texts)
        write_companions(checkpoint, folder, context_length=length, generation={}, onnx=specs, genai_config=built)
        for spec in specs:
            print(spec.name, file=sys.stderr, flush=True)
            rows.append(measure(folder, spec, heldout, expected))
    print(markdown(rows))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
