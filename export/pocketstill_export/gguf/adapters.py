"""A LoRA adapter as a GGUF file of its own, which llama.cpp puts on any quantization of its base.

The keys and names are those of llama.cpp's convert_lora_to_gguf.py. That script ignores `use_rslora` and
`alpha_pattern`, which change a pair's scale: here they go into lora_b, since llama.cpp itself multiplies by
`adapter.lora.alpha` over the pair's rank.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pocketstill_export.adapters import LoraPair, read_adapter
from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.errors import ExportError
from pocketstill_export.gguf.params import ARCHITECTURES
from pocketstill_export.gguf.write import tensor_names

_INTERLEAVED = ("LlamaForCausalLM", "MistralForCausalLM")
_HEADS = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}


def write_gguf_adapter(checkpoint: Checkpoint, adapter: str | Path, path: str | Path, *, name: str) -> None:
    """Writes the adapter of PEFT's folder `adapter` to `path` in f32, as `general.type` adapter.

    Raises:
        ExportError: the adapter cannot be kept apart (see `read_adapter`), or the architecture has no GGUF of ours.
    """
    import gguf

    if checkpoint.architecture not in ARCHITECTURES:
        raise ExportError(
            f"{checkpoint.folder}: adapters of {checkpoint.architecture} cannot go into GGUF; merge them into the base"
        )
    read = read_adapter(checkpoint, adapter)
    names = tensor_names(checkpoint)
    arch = getattr(gguf.MODEL_ARCH, ARCHITECTURES[checkpoint.architecture][0])
    writer = gguf.GGUFWriter(path=path, arch=gguf.MODEL_ARCH_NAMES[arch])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_name(name)
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, read.alpha)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for weight, pair in read.pairs.items():
        writer.add_tensor(f"{names[weight]}.lora_a", np.ascontiguousarray(pair.a.numpy()))
        writer.add_tensor(f"{names[weight]}.lora_b", _lora_b(checkpoint, weight, pair, read.alpha))
    done = False
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        done = True
    finally:
        writer.close()
        if not done:
            Path(path).unlink(missing_ok=True)


def _lora_b(checkpoint: Checkpoint, weight: str, pair: LoraPair, alpha: float) -> npt.NDArray[np.float32]:
    """`b` with its rows where llama.cpp has them, times what the pair's scale is beyond `alpha / rank`."""
    beyond = pair.scale * pair.rank / alpha
    b: npt.NDArray[np.float32] = pair.b.numpy()
    if not math.isclose(beyond, 1.0, rel_tol=1e-12):
        b = (b.astype(np.float64) * beyond).astype(np.float32)
    part = weight.split(".")[-2]
    if checkpoint.architecture in _INTERLEAVED and part in _HEADS:
        # Rows of each head from halves (transformers' rotate_half) to pairs (llama.cpp's rope for Llama).
        heads = int(getattr(checkpoint.config, _HEADS[part]))
        b = b.reshape(heads, 2, -1, b.shape[1]).swapaxes(1, 2).reshape(b.shape)
    return np.ascontiguousarray(b)
