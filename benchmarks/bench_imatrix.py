"""What an importance matrix is worth: KL divergence of quantized GGUF files made with it and without it.

    python benchmarks/bench_imatrix.py CHECKPOINT CALIBRATION HELDOUT [--kinds q4_k_m,q3_k_m] [--tokens 40000]

CALIBRATION and HELDOUT are files that `pocketstill export --calibrate` takes. The matrix is computed on the first,
the KL divergence of the next-token distribution from the checkpoint's (transformers, fp32) on the second, in nats a
token, with its standard error (texts are taken as independent, the tokens of one text are not). "head too" passes
the inputs of the head as well, which llama.cpp's own tool leaves out; the last columns are the changes over the
same tokens. It prints a Markdown table, and one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pocketstill.bundle import Variant
from pocketstill.engines import open_engine
from pocketstill_export.calibration import read_calibration
from pocketstill_export.checkpoint import Checkpoint, read_checkpoint
from pocketstill_export.gguf.imatrix import Imatrix, compute_imatrix
from pocketstill_export.gguf.quantize import needs_imatrix, quantize_gguf
from pocketstill_export.gguf.write import write_gguf
from pocketstill_export.parity.logits import reference_logits

MATRICES = ("without", "with", "head too")
KINDS = "q4_k_m,q3_k_m,iq4_xs,q4_0,q2_k"


@dataclass(frozen=True)
class Result:
    """One file over all held-out tokens: KL a token, and whether its likeliest token is the checkpoint's."""

    bytes: int
    kl: list[npt.NDArray[np.float64]]
    agrees: list[npt.NDArray[np.float64]]


def mean_and_error(texts: Sequence[npt.NDArray[np.float64]]) -> tuple[float, float]:
    """The mean over all tokens, and its standard error with one independent draw a text."""
    tokens = sum(values.size for values in texts)
    mean = sum(float(values.sum()) for values in texts) / tokens
    squares = sum(float((values - mean).sum()) ** 2 for values in texts)
    return mean, math.sqrt(squares * len(texts) / (len(texts) - 1)) / tokens


def change(after: Result, before: Result) -> tuple[float, float]:
    """By how much the KL differs, token by token."""
    return mean_and_error([a - b for a, b in zip(after.kl, before.kl, strict=True)])


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)), dtype=np.float64)


def measure(
    folder: Path,
    file: str,
    sequences: Sequence[Sequence[int]],
    expected: Sequence[npt.NDArray[np.float64]],
    threads: int,
) -> Result:
    """Runs the file over every sequence, in one pass each."""
    engine = open_engine(folder, Variant(file, "gguf", file, (file,), 0), threads=threads)
    divergences, agreements = [], []
    try:
        for ids, reference in zip(sequences, expected, strict=True):
            found = log_softmax(engine.logits(ids))
            divergences.append((np.exp(reference) * (reference - found)).sum(axis=-1))
            agreements.append((found.argmax(axis=-1) == reference.argmax(axis=-1)).astype(np.float64))
    finally:
        engine.close()
    return Result((folder / file).stat().st_size, divergences, agreements)


def compare(
    checkpoint: Checkpoint,
    kinds: Sequence[str],
    matrices: dict[str, Imatrix | None],
    heldout: Sequence[Sequence[int]],
    threads: int,
) -> dict[str, dict[str, Result]]:
    """Every kind made with each of the matrices, by kind and name of the matrix."""
    reference = reference_logits(checkpoint)
    expected = [log_softmax(reference(ids)) for ids in heldout]
    length = int(checkpoint.config.max_position_embeddings)
    results: dict[str, dict[str, Result]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-imatrix-") as name:
        folder = Path(name)
        write_gguf(checkpoint, folder / "f32.gguf", precision="f32", context_length=length, name="bench")
        for kind in kinds:
            results[kind] = {}
            for what, matrix in matrices.items():
                if matrix is None and needs_imatrix(kind):
                    continue
                print(f"{kind} {what}", file=sys.stderr, flush=True)
                quantize_gguf(folder / "f32.gguf", folder / "model.gguf", kind, imatrix=matrix)  # type: ignore[arg-type]
                results[kind][what] = measure(folder, "model.gguf", heldout, expected, threads)
    return results


def markdown(results: dict[str, dict[str, Result]]) -> str:
    """A row a kind; KL in thousandths of a nat."""
    names = ["type", "MiB", *(f"{figure}, {what}" for what in MATRICES for figure in ("KL", "top-1 %"))]
    names += ["with less without", "head too less with"]
    lines = ["| " + " | ".join(names) + " |", "|---|" + "--:|" * (len(names) - 1)]
    for kind, by_matrix in results.items():
        cells = [kind, f"{by_matrix['with'].bytes / 2**20:.2f}"]
        for what in MATRICES:
            if what in by_matrix:
                cells += [
                    cell(mean_and_error(by_matrix[what].kl), 1e3),
                    cell(mean_and_error(by_matrix[what].agrees), 1e2),
                ]
            else:
                cells += ["refused", "refused"]
        for after, before in (("with", "without"), ("head too", "with")):
            known = before in by_matrix
            cells.append(cell(change(by_matrix[after], by_matrix[before]), 1e3, "+") if known else "refused")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "KL in 10⁻³ nats a token."])


def cell(value: tuple[float, float], scale: float, sign: str = "") -> str:
    return f"{scale * value[0]:{sign}.2f} ± {scale * value[1]:.2f}"


def figures(results: dict[str, dict[str, Result]]) -> dict[str, dict[str, dict[str, float]]]:
    """The same as plain numbers."""
    plain: dict[str, dict[str, dict[str, float]]] = {}
    for kind, by_matrix in results.items():
        plain[kind] = {}
        for what, result in by_matrix.items():
            kl, kl_error = mean_and_error(result.kl)
            top1, top1_error = mean_and_error(result.agrees)
            plain[kind][what] = {
                "bytes": result.bytes,
                "tokens": sum(values.size for values in result.kl),
                "kl_mean": kl,
                "kl_mean_error": kl_error,
                "top1": top1,
                "top1_error": top1_error,
            }
    return plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("heldout", type=Path)
    parser.add_argument("--kinds", default=KINDS, help="llama.cpp's names, with commas between")
    parser.add_argument("--tokens", type=int, default=40000, help="held-out tokens, about")
    parser.add_argument("--calibration-tokens", type=int, default=65536)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    checkpoint = read_checkpoint(arguments.checkpoint)
    texts = read_calibration(arguments.calibration, checkpoint, max_tokens=arguments.calibration_tokens)
    heldout = read_calibration(arguments.heldout, checkpoint, max_tokens=arguments.tokens)
    made = [compute_imatrix(checkpoint, texts, dataset=arguments.calibration.name, head=head) for head in (False, True)]
    matrices = dict(zip(MATRICES, [None, *made], strict=True))
    results = compare(checkpoint, arguments.kinds.split(","), matrices, heldout, arguments.threads)
    print(markdown(results))
    print(json.dumps(figures(results)))


if __name__ == "__main__":
    main()
