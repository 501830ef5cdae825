"""A checkpoint as a GGUF file in full or half precision, whatever its vocabulary.

The converter that llama.cpp ships refuses tokenizers that it does not know by hash, so every student with a
vocabulary of its own. The tensor names come from the `gguf` package; the metadata keys are those of
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.errors import ExportError
from pocketstill_export.gguf_vocab import add_tokenizer

_F16_MAX = 65504.0
_ARCHITECTURES = {"LlamaForCausalLM": "LLAMA", "Qwen2ForCausalLM": "QWEN2", "Qwen3ForCausalLM": "QWEN3"}


def write_gguf(
    checkpoint: Checkpoint,
    path: str | Path,
    *,
    precision: Literal["f32", "f16"],
    context_length: int,
    name: str,
) -> None:
    """Writes `path`. Matrices are stored in `precision`, vectors (norms, biases) in f32, as llama.cpp wants
    them.

    Weights are read and written one at a time, so memory stays at one tensor.

    Raises:
        ExportError: the tokenizer, rope scaling or a tensor has no counterpart in llama.cpp, or a weight is
            beyond f16.
    """
    import gguf

    if checkpoint.config.hidden_act != "silu":
        raise ExportError(
            f"activation {checkpoint.config.hidden_act} is not known to GGUF; leave the gguf variants out"
        )
    arch = getattr(gguf.MODEL_ARCH, _ARCHITECTURES[checkpoint.architecture])
    names = gguf.get_tensor_name_map(arch, int(checkpoint.config.num_hidden_layers))
    writer = gguf.GGUFWriter(path=path, arch=gguf.MODEL_ARCH_NAMES[arch])
    writer.add_name(name)
    _add_hyperparameters(writer, checkpoint, context_length)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if precision == "f32" else gguf.LlamaFileType.MOSTLY_F16)
    add_tokenizer(writer, checkpoint)

    factors = _llama3_factors(checkpoint)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for source, shape in _stored(checkpoint):
        dtype = np.dtype(np.float32 if precision == "f32" or len(shape) == 1 else np.float16)
        target = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ExportError(
                f"{checkpoint.folder}: the weight {source} has no name in GGUF; leave the gguf variants out"
            )
        writer.add_tensor_info(target, shape, dtype, math.prod(shape) * dtype.itemsize)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for source, tensor in checkpoint.tensors():
            writer.write_tensor_data(_converted(checkpoint, source, tensor, precision))
    finally:
        writer.close()


def _stored(checkpoint: Checkpoint) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the order that `checkpoint.tensors()` yields them, without reading the weights
    again.
    """
    return list(checkpoint.shapes.items())


def _converted(
    checkpoint: Checkpoint, source: str, tensor: Any, precision: Literal["f32", "f16"]
) -> npt.NDArray[np.floating[Any]]:
    import torch

    array: npt.NDArray[np.float32] = tensor.to(torch.float32).numpy()
    config = checkpoint.config
    if checkpoint.architecture == "LlamaForCausalLM":
        if ".q_proj." in source:
            array = _permuted(array, int(config.num_attention_heads))
        elif ".k_proj." in source:
            array = _permuted(array, int(config.num_key_value_heads))
    if precision == "f32" or array.ndim == 1:
        return np.ascontiguousarray(array)
    if float(np.abs(array).max(initial=0.0)) > _F16_MAX:
        raise ExportError(f"{checkpoint.folder}: {source} is too large for f16; leave gguf-f16 out")
    return np.ascontiguousarray(array.astype(np.float16))


def _permuted(array: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows of each head from halves (transformers' rotate_half) to interleaved pairs (llama.cpp's rope for
    Llama).
    """
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


def head_size(config: Any) -> int:
    """The width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _add_hyperparameters(writer: Any, checkpoint: Checkpoint, context_length: int) -> None:
    config = checkpoint.config
    writer.add_vocab_size(int(config.vocab_size))
    writer.add_context_length(context_length)
    writer.add_embedding_length(int(config.hidden_size))
    writer.add_block_count(int(config.num_hidden_layers))
    writer.add_feed_forward_length(int(config.intermediate_size))
    writer.add_head_count(int(config.num_attention_heads))
    writer.add_head_count_kv(int(config.num_key_value_heads))
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_rope_dimension_count(head_size(config))
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
    _add_rope(writer, checkpoint)


def _add_rope(writer: Any, checkpoint: Checkpoint) -> None:
    import gguf

    rope = dict(checkpoint.config.rope_parameters)
    kind = rope.get("rope_type", "default")
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if getattr(checkpoint.config, "use_sliding_window", False):
        raise ExportError(
            f"{checkpoint.folder}: sliding-window attention is not exported; set use_sliding_window to false"
        )
    if float(rope.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ExportError(
            f"{checkpoint.folder}: partial rotary embeddings cannot go into GGUF; leave the gguf variants out"
        )
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind == "yarn" and not any(rope.get(key) for key in ("mscale", "mscale_all_dim", "attention_factor")):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
        # Absent keys mean 32 and 1 to both transformers and llama.cpp.
        setters: dict[str, Callable[[float], None]] = {
            "beta_fast": writer.add_rope_scaling_yarn_beta_fast,
            "beta_slow": writer.add_rope_scaling_yarn_beta_slow,
        }
        for key, setter in setters.items():
            if rope.get(key):
                setter(float(rope[key]))
    elif kind not in ("default", "llama3") or (kind == "llama3" and checkpoint.architecture != "LlamaForCausalLM"):
        raise ExportError(f"{checkpoint.folder}: rope scaling {kind} is not known to GGUF; leave the gguf variants out")


def _llama3_factors(checkpoint: Checkpoint) -> npt.NDArray[np.float32] | None:
    """By how much Llama 3.1 divides each rotary frequency, shape (head size / 2,).

    Follows `_compute_llama3_parameters` of transformers' modeling_rope_utils: long waves are slowed by
    `factor`, short ones are left alone, those between are blended.
    """
    rope = dict(checkpoint.config.rope_parameters)
    if rope.get("rope_type") != "llama3":
        return None
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(rope["original_max_position_embeddings"])
    width = head_size(checkpoint.config)
    wavelengths = 2 * math.pi * float(rope["rope_theta"]) ** (np.arange(0, width, 2, dtype=np.float64) / width)
    blend = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - blend) / factor + blend), dtype=np.float32)
