"""What a GGUF file says of the model besides its weights: sizes, rotary scaling, attention windows.

The keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, the values those that
llama.cpp's own converter gives, but where that would make another model of the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.errors import ExportError

# Of each architecture: the name that `gguf.MODEL_ARCH` has, the activation that llama.cpp computes.
ARCHITECTURES = {
    "LlamaForCausalLM": ("LLAMA", ("silu", "swish")),
    "MistralForCausalLM": ("LLAMA", ("silu", "swish")),
    "Qwen2ForCausalLM": ("QWEN2", ("silu", "swish")),
    "Qwen3ForCausalLM": ("QWEN3", ("silu", "swish")),
    "Gemma3ForCausalLM": ("GEMMA3", ("gelu_pytorch_tanh", "gelu_new")),
    "Phi3ForCausalLM": ("PHI3", ("silu", "swish")),
    "GPT2LMHeadModel": ("GPT2", ("gelu_new", "gelu_pytorch_tanh")),
}
_LLAMA = ("LlamaForCausalLM", "MistralForCausalLM")
# llama.cpp takes every sixth layer of Gemma 3 to attend to the whole context when nothing is said.
_GEMMA_PATTERN = 6
_SAMPLING = {
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "temperature": "temp",
    "repetition_penalty": "penalty_repeat",
}


def head_size(config: Any) -> int:
    """The width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def check_gguf(checkpoint: Checkpoint, context_length: int) -> None:
    """Refuses what llama.cpp would compute otherwise than transformers.

    Raises:
        ExportError: an activation, attention or rotary embedding that it lacks, or a context in which it would
            differ.
    """
    config, architecture = checkpoint.config, checkpoint.architecture
    if architecture not in ARCHITECTURES:
        raise ExportError(
            f"{checkpoint.folder}: {architecture} can go into GGUF by llama.cpp's own converter only; "
            "name it with --converter"
        )
    keys = ("hidden_activation", "activation_function", "hidden_act")
    activation = next(value for key in keys if (value := getattr(config, key, None)) is not None)
    if activation not in ARCHITECTURES[architecture][1]:
        raise _refused(checkpoint, f"activation {activation} is not known to GGUF for {architecture}")
    for key, usual in (
        ("attn_logit_softcapping", None),
        ("use_bidirectional_attention", False),
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if getattr(config, key, usual) not in (usual, None):
            raise _refused(checkpoint, f"{key} {getattr(config, key)} is not known to GGUF")
    if architecture not in _LLAMA and getattr(config, "attention_bias", False):
        raise _refused(checkpoint, f"llama.cpp has no attention biases in {architecture}")
    if architecture == "Phi3ForCausalLM" and head_size(config) * config.num_attention_heads != config.hidden_size:
        raise _refused(checkpoint, "llama.cpp wants the heads of Phi-3 to fill its width")
    _check_window(checkpoint, context_length)
    if hasattr(config, "rope_parameters"):
        _check_rope(checkpoint, context_length)


def _refused(checkpoint: Checkpoint, reason: str) -> ExportError:
    return ExportError(f"{checkpoint.folder}: {reason}; leave the gguf variants out")


def _check_window(checkpoint: Checkpoint, context_length: int) -> None:
    config = checkpoint.config
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None)
    if window is None or (layers and "sliding_attention" not in layers) or _is_gemma(checkpoint):
        return
    if context_length > int(window):
        raise ExportError(
            f"{checkpoint.folder}: llama.cpp ignores the sliding window of {checkpoint.architecture}, so its GGUF is "
            f"exact up to {window} tokens; export with a context length of at most {window}"
        )


def _check_rope(checkpoint: Checkpoint, context_length: int) -> None:
    config = checkpoint.config
    rope = _rope(checkpoint)
    kind = rope.get("rope_type", "default")
    known = {"default", "linear"}
    if not _is_gemma(checkpoint):
        known |= {"yarn"}
    elif "sliding_attention" in config.layer_types:
        local = config.rope_parameters["sliding_attention"]
        if local.get("rope_type", "default") != "default":
            raise _refused(checkpoint, f"rope scaling {local['rope_type']} of the sliding layers is not known to GGUF")
    if checkpoint.architecture in _LLAMA:
        known |= {"llama3"}
    if checkpoint.architecture == "Phi3ForCausalLM":
        known = {"default", "longrope"}
    odd = [key for key in ("mscale", "mscale_all_dim", "attention_factor") if rope.get(key)]
    if kind not in known or (kind == "yarn" and (odd or rope.get("truncate") is False)):
        raise _refused(checkpoint, f"rope scaling {kind}{f' with {odd[0]}' if odd else ''} is not known to GGUF")
    partial = float(rope.get("partial_rotary_factor") or 1.0)
    if checkpoint.architecture != "Phi3ForCausalLM" and partial != 1.0:
        raise _refused(checkpoint, f"partial rotary embeddings are not known to GGUF for {checkpoint.architecture}")
    # llama.cpp rounds its context up to a multiple of 256.
    rounded = -(-context_length // 256) * 256
    if kind == "longrope" and rounded > (original := int(rope["original_max_position_embeddings"])):
        raise ExportError(
            f"{checkpoint.folder}: beyond {original} tokens llama.cpp takes longrope's long factors for every prompt, "
            f"transformers for long prompts alone; export with a context length of at most {original}"
        )


def _is_gemma(checkpoint: Checkpoint) -> bool:
    return checkpoint.architecture == "Gemma3ForCausalLM"


def _rope(checkpoint: Checkpoint) -> dict[str, Any]:
    """The rotary parameters of the layers that attend to everything."""
    rope = dict(checkpoint.config.rope_parameters)
    return dict(rope["full_attention"]) if "full_attention" in rope else rope


def add_hyperparameters(writer: Any, checkpoint: Checkpoint, context_length: int) -> None:
    """Adds all keys but those of the tokenizer to a `gguf.GGUFWriter`, which has its tensors already."""
    import gguf

    config, architecture = checkpoint.config, checkpoint.architecture
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_size_label(gguf.size_label(*writer.get_total_parameter_count()))
    for key, name in _SAMPLING.items():
        if checkpoint.generation_config.get(key) is not None:
            getattr(writer, f"add_sampling_{name}")(checkpoint.generation_config[key])
    writer.add_block_count(int(config.num_hidden_layers))
    writer.add_context_length(context_length)
    writer.add_embedding_length(int(config.hidden_size))
    writer.add_head_count(int(config.num_attention_heads))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if architecture == "GPT2LMHeadModel":
        writer.add_feed_forward_length(int(config.n_inner or 4 * config.hidden_size))
        writer.add_layer_norm_eps(float(config.layer_norm_epsilon))
        return
    writer.add_feed_forward_length(int(config.intermediate_size))
    writer.add_head_count_kv(int(config.num_key_value_heads))
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
    writer.add_rope_freq_base(float(_rope(checkpoint)["rope_theta"]))
    if architecture in _LLAMA:
        writer.add_vocab_size(int(config.vocab_size))
        writer.add_rope_dimension_count(head_size(config))
    if checkpoint.raw_config.get("head_dim") or head_size(config) * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(head_size(config))
        writer.add_value_length(head_size(config))
    if architecture == "Phi3ForCausalLM":
        _add_phi3(writer, checkpoint)
    elif _is_gemma(checkpoint):
        _add_gemma3(writer, checkpoint)
    if architecture != "Phi3ForCausalLM":
        _add_scaling(writer, _rope(checkpoint))


def _add_phi3(writer: Any, checkpoint: Checkpoint) -> None:
    config, rope = checkpoint.config, _rope(checkpoint)
    original = int(rope.get("original_max_position_embeddings") or config.original_max_position_embeddings)
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_rope_dimension_count(int(head_size(config) * float(rope.get("partial_rotary_factor", 1.0))))
    writer.add_sliding_window(int(config.sliding_window or 0))
    if rope.get("rope_type") == "longrope":
        # As transformers' _compute_longrope_parameters has it (https://arxiv.org/abs/2402.13753, section 3.2).
        scale = float(rope.get("factor") or config.max_position_embeddings / original)
        factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        writer.add_rope_scaling_attn_factors(float(rope.get("attention_factor") or factor))


def _add_gemma3(writer: Any, checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(float(config.final_logit_softcapping))
    slides = [kind == "sliding_attention" for kind in config.layer_types]
    if not any(slides):
        return
    writer.add_sliding_window(int(config.sliding_window))
    writer.add_rope_freq_base_swa(float(config.rope_parameters["sliding_attention"]["rope_theta"]))
    if slides != [layer % _GEMMA_PATTERN < _GEMMA_PATTERN - 1 for layer in range(len(slides))]:
        writer.add_sliding_window_pattern(slides)


def _add_scaling(writer: Any, rope: dict[str, Any]) -> None:
    import gguf

    kind = rope.get("rope_type", "default")
    if kind not in ("linear", "yarn"):
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType[kind.upper()])
    writer.add_rope_scaling_factor(float(rope["factor"]))
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
        # Absent keys mean 32 and 1 to both transformers and llama.cpp.
        setters: dict[str, Callable[[float], None]] = {
            "beta_fast": writer.add_rope_scaling_yarn_beta_fast,
            "beta_slow": writer.add_rope_scaling_yarn_beta_slow,
        }
        for key, setter in setters.items():
            if rope.get(key):
                setter(float(rope[key]))


def attention_scale(checkpoint: Checkpoint) -> float:
    """By how much queries must be scaled for llama.cpp to compute Gemma 3's attention; 1 for the others.

    llama.cpp divides the scores by the root of the head size (of width / heads with 62 layers, the 27B model),
    and has no key for another divisor.
    """
    config = checkpoint.config
    if not _is_gemma(checkpoint):
        return 1.0
    assumed = config.hidden_size // config.num_attention_heads if config.num_hidden_layers == 62 else head_size(config)
    return math.sqrt(assumed / float(config.query_pre_attn_scalar))


def rope_factors(checkpoint: Checkpoint) -> dict[str, npt.NDArray[np.float32]]:
    """The tensors that divide the rotary frequencies, each of shape (rotary size / 2,): GGUF name to values."""
    rope = _rope(checkpoint) if hasattr(checkpoint.config, "rope_parameters") else {}
    if rope.get("rope_type") == "longrope":
        return {
            f"rope_factors_{which}.weight": np.asarray(rope[f"{which}_factor"], dtype=np.float32)
            for which in ("long", "short")
        }
    if rope.get("rope_type") == "llama3":
        return {"rope_freqs.weight": _llama3_factors(rope, head_size(checkpoint.config))}
    return {}


def _llama3_factors(rope: dict[str, Any], width: int) -> npt.NDArray[np.float32]:
    """By how much Llama 3.1 divides each rotary frequency.

    Follows `_compute_llama3_parameters` of transformers' modeling_rope_utils: long waves are slowed by
    `factor`, short ones are left alone, those between are blended. In single precision, as the converter of
    llama.cpp computes it.
    """
    import torch

    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(rope["original_max_position_embeddings"])
    frequencies = 1.0 / (float(rope["rope_theta"]) ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
    wavelengths = 2 * math.pi / frequencies
    blend = (original / wavelengths - low) / (high - low)
    factors = 1.0 / ((1.0 - blend) / factor + blend)
    factors = torch.where(wavelengths > original / low, factor, factors)
    result: npt.NDArray[np.float32] = torch.where(wavelengths < original / high, 1.0, factors).numpy()
    return result
