"""From a checkpoint to a folder that four runtimes read: ONNX and GGUF, tokenizer, template, index."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from pocketstill.bundle import INDEX, Variant, write_bundle_json
from pocketstill_export.checkpoint import Checkpoint, read_checkpoint
from pocketstill_export.companions import write_companions
from pocketstill_export.errors import ExportError
from pocketstill_export.gguf import write_gguf
from pocketstill_export.onnx import FILES, Precision, build_onnx
from pocketstill_export.parity import Parity, measure_parity
from pocketstill_export.quantize import QuantKind, fallback_note, quantize_gguf

VARIANTS = ("onnx-fp32", "onnx-int4", "gguf-f16", "gguf-q8_0", "gguf-q4_k_m")
_DEFAULT_ORDER = ("onnx-int4", "gguf-q4_k_m", "gguf-q8_0", "gguf-f16", "onnx-fp32")


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote. `notes` are things worth knowing that are no failures; `seconds` is by step."""

    folder: Path
    variants: tuple[Variant, ...]
    stop_ids: tuple[int, ...]
    parity: Parity
    notes: tuple[str, ...]
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "folder": str(self.folder),
            "variants": [asdict(variant) | {"files": list(variant.files)} for variant in self.variants],
            "stop_ids": list(self.stop_ids),
            "parity": self.parity.to_dict(),
            "notes": list(self.notes),
            "seconds": dict(self.seconds),
        }


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    variants: Sequence[str] = VARIANTS,
    context_length: int,
    generation: Mapping[str, Any],
    skills: Mapping[str, Mapping[str, Any]],
    name: str,
    parity_texts: Sequence[str] = (),
) -> ExportResult:
    """Writes the bundle folder `out`, or nothing.

    All is written beside `out` under a name that starts with a dot and renamed at the end, after every file
    has been held to the checkpoint. An `out` from an earlier export is replaced; any other folder is left
    alone.

    Args:
        checkpoint: a Hugging Face folder of a Llama, Qwen2 or Qwen3 student with its tokenizer.json and chat
            template.
        out: the folder to make.
        variants: of VARIANTS.
        context_length: positions that the exported files allow, at most the checkpoint's own.
        generation: defaults, {"max_new_tokens": int, "temperature": float}.
        skills: name to {"kind", "gate"}, as pocketstill.json has them.
        name: of the bundle and of the model inside of the GGUF files.
        parity_texts: what the student is for; the logits are compared over these.

    Raises:
        ExportError: the checkpoint cannot be exported as asked, the disk is full, or a converted file
            differs.
    """
    out = Path(out)
    _check_request(out, variants)
    started = time.perf_counter()
    source = read_checkpoint(checkpoint)
    _check_context(source, context_length)
    notes = _notes(source, variants)
    for note in notes:
        _progress(note)
    seconds = {"read": time.perf_counter() - started}
    for stale in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        shutil.rmtree(stale, ignore_errors=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        made = _write(source, partial, variants, context_length, generation, name, seconds)
        bundle = write_bundle_json(
            partial,
            name=name,
            variants=made,
            default=next(v for v in _DEFAULT_ORDER if v in variants),
            stop_ids=source.stop_ids,
            generation=generation,
            context_length=context_length,
            skills=skills,
        )
        step = time.perf_counter()
        _progress(f"comparing {len(made)} variants with the checkpoint")
        parity = measure_parity(source, partial, bundle.variants, parity_texts, context_length=context_length)
        seconds["parity"] = time.perf_counter() - step
        if not parity.passed:
            raise ExportError(f"the export of {checkpoint} is not faithful and was removed: {parity.failures[0]}")
        _put_in_place(partial, out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ExportError(
                f"no space left for {out}: free some, or leave out a variant, then export again"
            ) from error
        raise ExportError(f"cannot write {out}: {error.strerror or error}; mend the path or its permissions") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ExportResult(out, bundle.variants, source.stop_ids, parity, tuple(notes), seconds)


def _check_request(out: Path, variants: Sequence[str]) -> None:
    for variant in variants:
        if variant not in VARIANTS:
            raise ExportError(f"there is no variant {variant!r}; choose from {', '.join(VARIANTS)}")
    if not variants or len(set(variants)) != len(variants):
        raise ExportError(f"variants must name each one once, at least one of {', '.join(VARIANTS)}")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ExportError(f"{out} is not a folder; choose another place for the export")
    if out.is_dir() and any(out.iterdir()) and not (out / INDEX).is_file():
        raise ExportError(f"{out} holds other files and no {INDEX}; choose an empty place for the export")


def _check_context(checkpoint: Checkpoint, context_length: int) -> None:
    most = int(checkpoint.config.max_position_embeddings)
    if not 2 <= context_length <= most:
        raise ExportError(f"context_length is {context_length}; the checkpoint was made for 2 to {most} positions")


def _notes(checkpoint: Checkpoint, variants: Sequence[str]) -> list[str]:
    kinds: tuple[QuantKind, ...] = get_args(QuantKind)
    found = (fallback_note(checkpoint, kind) for kind in kinds if f"gguf-{kind}" in variants)
    return [note for note in found if note]


def _write(
    source: Checkpoint,
    folder: Path,
    variants: Sequence[str],
    context_length: int,
    generation: Mapping[str, Any],
    name: str,
    seconds: dict[str, float],
) -> list[Variant]:
    """Every variant and the files beside them; `seconds` gets an entry a step."""
    made = []
    genai_config = None
    precisions: list[Precision] = [p for p in get_args(Precision) if f"onnx-{p}" in variants]
    if precisions:
        step = time.perf_counter()
        _progress(f"building ONNX {' and '.join(precisions)}")
        genai_config = build_onnx(source, folder, precisions, context_length=context_length)
        for precision in precisions:
            files = (FILES[precision], FILES[precision] + "_data")
            made.append(Variant(f"onnx-{precision}", "onnx", files[0], files, 0))
        seconds["onnx"] = time.perf_counter() - step
    for variant in variants:
        if variant.startswith("gguf-"):
            step = time.perf_counter()
            _progress(f"writing {variant}")
            file = f"model-{variant.removeprefix('gguf-')}.gguf"
            _write_gguf_variant(source, folder, variant, file, context_length, name)
            made.append(Variant(variant, "gguf", file, (file,), 0))
            seconds[variant] = time.perf_counter() - step
    (folder / ".f32.gguf").unlink(missing_ok=True)
    write_companions(
        source,
        folder,
        context_length=context_length,
        generation=generation,
        onnx=precisions,
        genai_config=genai_config,
    )
    return sorted(made, key=lambda variant: list(variants).index(variant.name))


def _write_gguf_variant(
    source: Checkpoint, folder: Path, variant: str, file: str, context_length: int, name: str
) -> None:
    if variant == "gguf-f16":
        write_gguf(source, folder / file, precision="f16", context_length=context_length, name=name)
        return
    full = folder / ".f32.gguf"
    if not full.exists():
        # Quantized from full precision, so that nothing is rounded twice; shared by the quantized variants.
        write_gguf(source, full, precision="f32", context_length=context_length, name=name)
    kind: QuantKind = "q8_0" if variant == "gguf-q8_0" else "q4_k_m"
    quantize_gguf(full, folder / file, kind)


def _put_in_place(partial: Path, out: Path) -> None:
    """Renames; between the two renames of a replacement there is no `out` at all, never half of one."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _progress(text: str) -> None:
    print(f"export: {text}", file=sys.stderr, flush=True)
