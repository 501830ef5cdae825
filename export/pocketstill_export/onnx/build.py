"""A checkpoint as ONNX: onnxruntime-genai's model builder makes the graph, and what it gets wrong is mended.

The graph is built once in fp32, and once more in fp16 where that is asked for. Every variant of fewer bits is the fp32
graph with its matrices rounded (`nbits.py`). The files beside the model are `companions.py`'s.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.errors import ExportError
from pocketstill_export.gguf.params import head_size
from pocketstill_export.onnx.builder import Builder, started_builder
from pocketstill_export.onnx.gptq import calibrated, require_gptq
from pocketstill_export.onnx.mend import move_model
from pocketstill_export.onnx.nbits import EMBEDDING, HEAD, NbitsPlan, round_model
from pocketstill_export.onnx.rounding import Rounded, Rounding
from pocketstill_export.variants import VariantSpec

# Those of the builder's that are held to transformers' logits in the tests.
ARCHITECTURES = (
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Gemma3ForCausalLM",
    "Phi3ForCausalLM",
)  # fmt: skip
_ROPES = ("default", "linear", "llama3", "longrope", "yarn")
_ENDS = (HEAD, EMBEDDING)
_ROUNDINGS: dict[str, Rounding] = {"kquant": "kquant", "kmixed": "kquant", "rtn": "rtn", "hqq": "hqq", "gptq": "kquant"}


def build_onnx(
    checkpoint: Checkpoint,
    folder: str | Path,
    specs: Sequence[VariantSpec],
    *,
    context_length: int,
    eight_bit: Sequence[str] | None = None,
    calibration: Sequence[Sequence[int]] | None = None,
    builder: Builder | None = None,
) -> dict[str, Any]:
    """Writes `folder/onnx/model*.onnx` with external data, and returns the builder's genai_config for the CPU.

    Activations and cache are fp32, but for fp16, whose graph is in half precision throughout, cache included: that is
    what WebGPU and transformers.js expect of `model_fp16.onnx`; on a CPU it runs slower than fp32.

    Args:
        checkpoint: what to export.
        folder: the bundle being made.
        specs: the ONNX variants wanted.
        context_length: positions that the rotary tables cover.
        eight_bit: patterns (fnmatch) of the names of nodes that get 8 bits in the int4 variants, such as
            "*/mlp/down_proj/MatMul"; None takes those of each method, see `eight_bit_patterns`.
        calibration: token ids of texts, for gptq.
        builder: a process that was started before; None starts one.

    Raises:
        ExportError: the checkpoint cannot be exported so (see `onnx_note`), the builder or GPT-QModel failed, or a
            pattern names no node.
    """
    folder = Path(folder)
    for spec in specs:
        onnx_note(checkpoint, spec)
        if spec.method == "gptq" and not calibration:
            raise ExportError(f"{spec.name} is calibrated: give the texts to calibrate on with --calibrate FILE")
    head = head_size(checkpoint.config)
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=".build-"))
        builder = builder or stack.enter_context(started_builder())
        scratch = Path(name).resolve()
        builds = {"fp32": scratch / "fp32"} | ({"fp16": scratch / "fp16"} if _wants(specs, "fp16") else {})
        builder.build(checkpoint, builds, context_length)
        config: dict[str, Any] = json.loads((builds["fp32"] / "genai_config.json").read_text(encoding="utf-8"))
        ways = [(spec.block, spec.symmetric) for spec in specs if spec.method == "gptq"]
        ready = calibrated(checkpoint, calibration or (), ways, scratch)
        # fp32 last: its file is moved.
        for spec in sorted(specs, key=lambda spec: not spec.quantized):
            if spec.quantized:
                plan = _plan(checkpoint, spec, eight_bit, ready)
                round_model(builds["fp32"] / "model.onnx", folder / spec.file, head, plan)
            else:
                move_model(builds[spec.kind] / "model.onnx", folder / spec.file, head)
    return config


def onnx_note(checkpoint: Checkpoint, spec: VariantSpec) -> str | None:
    """What of a variant will be other than its name says, or None. Nothing is written.

    Raises:
        ExportError: the variant cannot be made of this checkpoint; the reason and a way out are in the message.
    """
    _check_architecture(checkpoint)
    if spec.kind != "int4":
        if spec.kind == "fp16" and checkpoint.config.model_type.startswith("gemma3"):
            return f"{spec.name}: Gemma 3 overflows half precision where its activations are large; the logits tell"
        return None
    if spec.method == "hqq" and spec.symmetric:
        raise ExportError(f"{spec.name}: hqq moves the zero points, and -sym has none; take onnx-int4-kquant-sym")
    widths = sorted({shape[-1] for name, shape in checkpoint.shapes.items() if len(shape) == 2})
    if spec.method == "gptq":
        require_gptq(spec.name)
        fits = [b for b in (256, 128, 64, 32, 16) if all(width % b == 0 for width in widths)]
        if spec.block not in fits:
            hint = f"; take -b{fits[0]}" if fits else "; take another method"
            raise ExportError(f"{spec.name}: the blocks must divide the widths {', '.join(map(str, widths))}{hint}")
    notes = []
    if spec.method == "hqq":
        notes.append("its zero points are no whole numbers, which CPUs are slow with (a tenth of the others' speed)")
    if odd := [str(width) for width in widths if width % spec.block]:
        notes.append(f"rows of {', '.join(odd)} weights are padded to whole blocks of {spec.block}")
    return f"{spec.name}: {' and '.join(notes)}" if notes else None


def eight_bit_patterns(spec: VariantSpec, layers: int) -> list[str]:
    """Names of the nodes, as patterns, that keep 8 bits in a variant unless others are named.

    Head and embedding always do: they are most of a small model, and cheap to look up. Measured on students of 4 and 5
    million parameters, k-quant with 8 bits for attention and the down projection, and 4 for gate and up, has half the
    KL of llama.cpp's mixture of layers (`kmixed`, which the builder offers) for a quarter more bytes.
    """
    if spec.kind == "int8":
        return ["*"]
    if spec.method == "kquant":
        return [*_ENDS, "*/attn/*", "*/mlp/down_proj/MatMul"]
    if spec.method == "kmixed":
        eighth = round(layers / 8)
        more = [i for i in range(layers) if i < layers / 8 or i >= 7 * layers / 8 or (i - eighth) % 3 == 2]
        return [
            *_ENDS,
            *(f"/model/layers.{i}/{part}/MatMul" for i in more for part in ("attn/*v_proj", "mlp/down_proj")),
        ]
    return [*_ENDS]


def _wants(specs: Sequence[VariantSpec], kind: str) -> bool:
    return any(spec.kind == kind for spec in specs)


def _check_architecture(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    if checkpoint.architecture not in ARCHITECTURES:
        raise ExportError(
            f"{checkpoint.folder}: onnxruntime-genai's builder has no {checkpoint.architecture}; leave the onnx "
            "variants out and take gguf ones, for instance gguf-f16, gguf-q8_0 and gguf-q4_k_m"
        )
    if head_size(config) % 16 or int(head_size(config) * getattr(config, "partial_rotary_factor", 1.0)) % 16:
        raise ExportError(
            f"{checkpoint.folder}: onnxruntime's attention takes heads, and the rotated part of them, by 16 numbers, "
            f"not {head_size(config)}; leave the onnx variants out and take gguf ones"
        )
    rope = config.rope_parameters or {}
    for kind in [part["rope_type"] for part in rope.values() if isinstance(part, dict)] or [rope.get("rope_type")]:
        own = {"longrope": ("Phi3ForCausalLM",), "llama3": ("LlamaForCausalLM",)}.get(str(kind))
        if kind not in _ROPES or (own and checkpoint.architecture not in own):
            raise ExportError(
                f"{checkpoint.folder}: onnxruntime-genai's builder does not scale rotary positions as {kind!r} for "
                f"{checkpoint.architecture}; leave the onnx variants out and take gguf ones"
            )


def _plan(
    checkpoint: Checkpoint,
    spec: VariantSpec,
    eight_bit: Sequence[str] | None,
    ready: Mapping[tuple[int, bool], Mapping[str, Rounded]],
) -> NbitsPlan:
    own = spec.kind == "int8" or eight_bit is None
    patterns = eight_bit_patterns(spec, int(checkpoint.config.num_hidden_layers)) if own else list(eight_bit or ())
    matrices = ready[spec.block, spec.symmetric] if spec.method == "gptq" else {}
    return NbitsPlan(_ROUNDINGS[spec.method], spec.block, spec.symmetric, patterns, matrices)
