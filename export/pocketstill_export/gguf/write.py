"""A checkpoint as a GGUF file in full or half precision, whatever its vocabulary.

The converter that llama.cpp ships refuses tokenizers that it does not know by hash, so every student with a
vocabulary of its own. Where it accepts one, tensors and keys here are the same as its own. The tensor names
come from the `gguf` package.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.errors import ExportError
from pocketstill_export.gguf.params import (
    ARCHITECTURES,
    add_hyperparameters,
    attention_scale,
    check_gguf,
    rope_factors,
)
from pocketstill_export.gguf.vocab import add_tokenizer, model_name

GgufPrecision = Literal["f32", "bf16", "f16"]
_F16_MAX = 65504.0
_FILE_TYPES = {"f32": "ALL_F32", "bf16": "MOSTLY_BF16", "f16": "MOSTLY_F16"}
# Weights that GPT-2 stores with rows for inputs (its Conv1D).
_TRANSPOSED = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")


def write_gguf(
    checkpoint: Checkpoint,
    path: str | Path,
    *,
    precision: GgufPrecision,
    context_length: int,
    name: str,
) -> None:
    """Writes `path`. Matrices are stored in `precision`; vectors (norms, biases) and position embeddings in
    f32, as llama.cpp wants them.

    Weights are read and written one at a time, so memory stays at one tensor.

    Raises:
        ExportError: the tokenizer, attention, rotary embedding or a tensor has no counterpart in llama.cpp, or a
            weight is beyond f16; `path` is not left behind then.
    """
    import gguf

    check_gguf(checkpoint, context_length)
    targets = tensor_names(checkpoint)
    arch = getattr(gguf.MODEL_ARCH, ARCHITECTURES[checkpoint.architecture][0])
    writer = gguf.GGUFWriter(path=path, arch=gguf.MODEL_ARCH_NAMES[arch])
    writer.add_name(model_name(checkpoint, name))
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[precision]])
    add_tokenizer(writer, checkpoint)
    factors = rope_factors(checkpoint)
    for target, values in factors.items():
        writer.add_tensor_info(target, values.shape, values.dtype, values.nbytes)
    for source, shape in checkpoint.shapes.items():
        _announce(writer, targets[source], _stored_shape(source, shape, context_length), precision)
    add_hyperparameters(writer, checkpoint, context_length)
    done = False
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in factors.values():
            writer.write_tensor_data(values)
        for source, tensor in checkpoint.tensors():
            kind = _precision_of(targets[source], tensor.ndim, precision)
            tensor = _rearranged(checkpoint, source, tensor, context_length)
            writer.write_tensor_data(_converted(checkpoint, source, tensor, kind))
        done = True
    finally:
        writer.close()
        if not done:
            Path(path).unlink(missing_ok=True)


def tensor_names(checkpoint: Checkpoint) -> dict[str, str]:
    """The name in GGUF of each weight, both with their `.weight` or `.bias`.

    Raises:
        ExportError: a weight has none.
    """
    import gguf

    arch = getattr(gguf.MODEL_ARCH, ARCHITECTURES[checkpoint.architecture][0])
    names = gguf.get_tensor_name_map(arch, int(checkpoint.config.num_hidden_layers))
    found = {}
    for source in checkpoint.shapes:
        target = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ExportError(
                f"{checkpoint.folder}: the weight {source} has no name in GGUF; leave the gguf variants out"
            )
        found[source] = target
    return found


def _announce(writer: Any, target: str, shape: tuple[int, ...], precision: GgufPrecision) -> None:
    import gguf
    import numpy as np

    kind = _precision_of(target, len(shape), precision)
    dtype = np.dtype({"f32": np.float32, "bf16": np.int16, "f16": np.float16}[kind])
    size = math.prod(shape) * dtype.itemsize
    writer.add_tensor_info(target, shape, dtype, size, raw_dtype=gguf.GGMLQuantizationType[kind.upper()])


def _precision_of(target: str, dimensions: int, precision: GgufPrecision) -> GgufPrecision:
    return "f32" if dimensions == 1 or target == "position_embd.weight" else precision


def _stored_shape(source: str, shape: tuple[int, ...], context_length: int) -> tuple[int, ...]:
    if source.endswith(_TRANSPOSED):
        return shape[::-1]
    return (min(shape[0], context_length), *shape[1:]) if source.endswith(".wpe.weight") else shape


def _rearranged(checkpoint: Checkpoint, source: str, tensor: Any, context_length: int) -> Any:
    """The weight as llama.cpp reads it, still in the precision of the checkpoint where that is exact."""
    config = checkpoint.config
    if checkpoint.architecture in ("LlamaForCausalLM", "MistralForCausalLM"):
        if ".q_proj." in source:
            return _permuted(tensor, int(config.num_attention_heads))
        if ".k_proj." in source:
            return _permuted(tensor, int(config.num_key_value_heads))
    elif checkpoint.architecture == "Gemma3ForCausalLM" and source.endswith("norm.weight"):
        # Gemma's norms multiply by one more than their weight.
        scale = attention_scale(checkpoint) if source.endswith(".q_norm.weight") else 1.0
        return (tensor.float() + 1.0) * scale
    elif checkpoint.architecture == "GPT2LMHeadModel":
        if source.endswith(_TRANSPOSED):
            return tensor.t()
        if source.endswith(".wpe.weight"):
            # llama.cpp wants as many positions as the context has.
            return tensor[:context_length]
    return tensor


def _converted(checkpoint: Checkpoint, source: str, tensor: Any, precision: GgufPrecision) -> Any:
    """As a numpy array in the order of the rows; bf16, which numpy lacks, as int16 of the same bits."""
    import torch

    if precision == "f16" and tensor.dtype != torch.float16 and max(map(abs, torch.aminmax(tensor))) > _F16_MAX:
        raise ExportError(f"{checkpoint.folder}: {source} is too large for f16; leave gguf-f16 out")
    wide = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[precision]
    stored = tensor.to(wide).contiguous()
    return stored.view(torch.int16).numpy() if precision == "bf16" else stored.numpy()


def _permuted(tensor: Any, heads: int) -> Any:
    """Rows of each head from halves (transformers' rotate_half) to interleaved pairs (llama.cpp's rope for
    Llama).
    """
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)
