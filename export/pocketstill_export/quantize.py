"""Quantized GGUF files, by llama.cpp's own quantizer in this process."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.errors import ExportError

QuantKind = Literal["q8_0", "q4_k_m"]
# Elements that one block of the type packs; a row must hold whole blocks.
BLOCK: dict[QuantKind, int] = {"q8_0": 32, "q4_k_m": 256}


def quantize_gguf(source: str | Path, target: str | Path, kind: QuantKind, *, threads: int | None = None) -> None:
    """Quantizes the GGUF file `source` (f32 or f16) into `target`.

    Raises:
        ExportError: with llama.cpp's last words when it fails, on a full disk for instance; `target` is
            removed then.
    """
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M}[kind]
    params.nthread = threads or min(8, os.cpu_count() or 1)
    with captured_log() as lines:
        status = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    if status != 0:
        Path(target).unlink(missing_ok=True)
        words = " ".join("".join(lines).split("\n")[-3:]).strip() or "no reason given"
        raise ExportError(
            f"llama.cpp could not quantize {source} to {kind} ({words}); free some space or leave the variant out"
        )


def fallback_note(checkpoint: Checkpoint, kind: QuantKind) -> str | None:
    """What llama.cpp will store in a larger type than asked, told before any work is done; None when nothing.

    Its k-quants pack 256 weights of a row, q8_0 packs 32; a matrix with other rows falls back to a larger
    type.
    """
    matrices = {name: shape for name, shape in checkpoint.shapes.items() if len(shape) == 2}
    odd = {name: shape[-1] for name, shape in matrices.items() if shape[-1] % BLOCK[kind]}
    if not odd:
        return None
    name, width = next(iter(odd.items()))
    return (
        f"gguf-{kind}: {len(odd)} of {len(matrices)} matrices have rows that are no multiple of "
        f"{BLOCK[kind]} ({name}: {width}), and will be stored in a larger type"
    )


@contextlib.contextmanager
def captured_log() -> Iterator[deque[str]]:
    """Keeps llama.cpp's last log lines instead of letting it write them to stderr."""
    import llama_cpp

    lines: deque[str] = deque(maxlen=64)

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
    def keep(_level: int, text: bytes, _data: int | None) -> None:
        lines.append(text.decode("utf-8", errors="replace"))

    before, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    try:
        yield lines
    finally:
        llama_cpp.llama_log_set(before, data)
