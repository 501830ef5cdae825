"""Every variant's weights, written into one folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from pocketstill.bundle import Variant
from pocketstill_export.adapters import check_names, read_adapter
from pocketstill_export.checkpoint import ARCHITECTURES, Checkpoint
from pocketstill_export.errors import ExportError
from pocketstill_export.gguf.adapters import write_gguf_adapter
from pocketstill_export.gguf.converter import convert_by_llama_cpp
from pocketstill_export.gguf.imatrix import Imatrix, compute_imatrix
from pocketstill_export.gguf.params import check_gguf
from pocketstill_export.gguf.quantize import fallback_note, needs_imatrix, plan_gguf, quantize_gguf
from pocketstill_export.gguf.write import write_gguf
from pocketstill_export.onnx.adapters import add_onnx_adapters
from pocketstill_export.onnx.build import build_onnx, onnx_note
from pocketstill_export.onnx.builder import Builder
from pocketstill_export.variants import GgufKind, VariantSpec

FULL = ".f32.gguf"


@dataclass(frozen=True)
class Settings:
    """How the weights are to be written.

    Attributes:
        name: of the model, inside of the GGUF files.
        context_length: positions that the files allow.
        calibration: token ids of texts that the model is for; with some, quantized GGUF weights are rounded by an
            importance matrix over them, and calibrated ONNX methods use them.
        imatrix: an importance matrix that was made before, instead.
        dataset: name of the calibration texts, noted in the GGUF files.
        tensor_types: regular expression over GGUF tensor names to the type of the tensors it finds.
        converter: llama.cpp's convert_hf_to_gguf.py, for architectures that our own writer does not know.
        adapters: PEFT's LoRA folders by name, kept apart from the base.
    """

    name: str
    context_length: int
    calibration: Sequence[Sequence[int]] = ()
    imatrix: Imatrix | None = None
    dataset: str = "calibration"
    tensor_types: Mapping[str, str] = field(default_factory=dict)
    converter: Path | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)

    @property
    def calibrated(self) -> bool:
        """Whether GGUF weights are rounded by an importance matrix."""
        return bool(self.calibration) or self.imatrix is not None


@dataclass(frozen=True)
class Written:
    """What `write_weights` made: variants in the order asked, the builder's genai_config (None without ONNX), the
    importance matrix (None without calibration or GGUF to quantize), and seconds by step.
    """

    variants: tuple[Variant, ...]
    genai_config: dict[str, Any] | None
    imatrix: Imatrix | None
    seconds: dict[str, float]


def weight_notes(checkpoint: Checkpoint, specs: Sequence[VariantSpec], settings: Settings) -> list[str]:
    """What will come out otherwise than asked, told before any work is done.

    Raises:
        ExportError: a variant cannot be made as asked.
    """
    notes = []
    if settings.calibration and checkpoint.architecture not in ARCHITECTURES:
        raise ExportError(
            f"{checkpoint.architecture} is known to llama.cpp's converter alone, so no importance matrix can be made; "
            "leave --calibrate out, or give a matrix by llama-imatrix with --calibrate FILE.gguf"
        )
    check_names(settings.adapters)
    for adapter in settings.adapters.values():
        read_adapter(checkpoint, adapter)
    if settings.converter is None and any(spec.engine == "gguf" for spec in specs):
        check_gguf(checkpoint, settings.context_length)
    for spec in specs:
        if spec.engine == "onnx":
            notes.append(onnx_note(checkpoint, spec))
        elif spec.quantized:
            kind = cast(GgufKind, spec.kind)
            if needs_imatrix(kind) and not settings.calibrated:
                raise ExportError(
                    f"{spec.name} is too coarse without an importance matrix; "
                    "give a text that the model is for with --calibrate FILE, or leave the variant out"
                )
            if settings.tensor_types and (settings.imatrix or not needs_imatrix(kind)):
                plan_gguf(checkpoint, kind, imatrix=settings.imatrix, tensor_types=settings.tensor_types)
            notes.append(fallback_note(checkpoint, kind, calibrated=settings.calibrated))
    return [note for note in notes if note]


def write_weights(
    checkpoint: Checkpoint, folder: Path, specs: Sequence[VariantSpec], settings: Settings, builder: Builder | None
) -> Written:
    """Writes every variant's files into `folder`, and a full GGUF file under FULL where one was quantized from it.

    `builder` is the process that builds ONNX graphs, where one was started before.

    Raises:
        ExportError: a variant cannot be made.
    """
    seconds: dict[str, float] = {}
    genai_config = None
    onnx = [spec for spec in specs if spec.engine == "onnx"]
    if onnx:
        started = time.perf_counter()
        progress(f"building ONNX {', '.join(spec.name.removeprefix('onnx-') for spec in onnx)}")
        genai_config = build_onnx(
            checkpoint,
            folder,
            onnx,
            context_length=settings.context_length,
            calibration=settings.calibration or None,
            builder=builder,
        )
        seconds["onnx"] = time.perf_counter() - started
    gguf = [spec for spec in specs if spec.engine == "gguf"]
    imatrix = settings.imatrix
    if imatrix is None and settings.calibration and any(spec.quantized for spec in gguf):
        started = time.perf_counter()
        progress(f"importance matrix over {sum(map(len, settings.calibration)):,} tokens")
        imatrix = compute_imatrix(checkpoint, settings.calibration, dataset=settings.dataset)
        seconds["imatrix"] = time.perf_counter() - started
    for spec in gguf:
        started = time.perf_counter()
        progress(f"writing {spec.name}")
        _write_gguf(checkpoint, folder, spec, settings, imatrix)
        seconds[spec.name] = time.perf_counter() - started
    adapters: dict[str, dict[str, str]] = {}
    if settings.adapters:
        started = time.perf_counter()
        progress(f"adapters {', '.join(settings.adapters)}")
        adapters = _write_adapters(checkpoint, folder, specs, settings.adapters)
        seconds["adapters"] = time.perf_counter() - started
    variants = tuple(
        Variant(spec.name, spec.engine, spec.file, _files(spec), 0, adapters.get(spec.name, {})) for spec in specs
    )
    return Written(variants, genai_config, imatrix, seconds)


def _write_adapters(
    checkpoint: Checkpoint, folder: Path, specs: Sequence[VariantSpec], adapters: Mapping[str, Path]
) -> dict[str, dict[str, str]]:
    """The files of the adapters in `folder`/adapters, by variant and adapter."""
    (folder / "adapters").mkdir(exist_ok=True)
    found = {spec.name: {name: f"adapters/{name}.gguf" for name in adapters} for spec in specs if spec.engine == "gguf"}
    for name, adapter in adapters.items() if found else ():
        write_gguf_adapter(checkpoint, adapter, folder / "adapters" / f"{name}.gguf", name=name)
    onnx = [spec for spec in specs if spec.engine == "onnx"]
    if onnx:
        files = add_onnx_adapters(checkpoint, folder, onnx, adapters)
        for spec in onnx:
            # A graph in half precision wants adapters in half precision, in files of their own.
            half = spec.kind == "fp16"
            found[spec.name] = {n: next(f for f in files[n] if f.endswith("-fp16.onnx_adapter") == half) for n in files}
    return found


def _files(spec: VariantSpec) -> tuple[str, ...]:
    return (spec.file, spec.file + "_data") if spec.engine == "onnx" else (spec.file,)


def _write_gguf(
    checkpoint: Checkpoint, folder: Path, spec: VariantSpec, settings: Settings, imatrix: Imatrix | None
) -> None:
    if not spec.quantized:
        full_gguf(checkpoint, folder / spec.file, cast(Literal["f32", "bf16", "f16"], spec.kind), settings)
        return
    full = folder / FULL
    if not full.exists():
        # Quantized from full precision, so that nothing is rounded twice; shared by the quantized variants.
        full_gguf(checkpoint, full, "f32", settings)
    quantize_gguf(
        full, folder / spec.file, cast(GgufKind, spec.kind), imatrix=imatrix, tensor_types=settings.tensor_types
    )


def full_gguf(checkpoint: Checkpoint, path: Path, precision: Literal["f32", "bf16", "f16"], settings: Settings) -> None:
    """An unquantized GGUF file, by our own writer or the converter that the settings name."""
    if settings.converter is None:
        write_gguf(checkpoint, path, precision=precision, context_length=settings.context_length, name=settings.name)
    else:
        convert_by_llama_cpp(settings.converter, checkpoint, path, precision=precision, name=settings.name)


def progress(text: str) -> None:
    """One line on stderr."""
    print(f"export: {text}", file=sys.stderr, flush=True)
