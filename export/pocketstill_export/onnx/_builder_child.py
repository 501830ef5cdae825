"""Runs onnxruntime-genai's model builder: it prints a lot and keeps its memory, so it gets a process of its
own.

Its standard input is a JSON list of jobs, each {"checkpoint", "out", "precision", "context_length"}. fp32 is built for
the CPU, fp16 as for WebGPU, whose graph has the same operators in half precision.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from typing import Any

_PROVIDERS = {"fp32": "cpu", "fp16": "webgpu"}
_OPTIONS = [
    # A cache that keeps a sliding window alone refuses prompts that are longer than the window.
    "windowed_kv_cache=false",
    # Norms of queries and keys inside of the attention operator are not for CPUs.
    "fuse_qk_norm_gqa=false",
]


def main() -> None:
    """Imports the builder, then waits for the jobs, and builds the ONNX model of each into its `out`."""
    from onnxruntime_genai.models import builder

    _mend_builders()
    for job in json.loads(sys.stdin.read() or "[]"):
        with tempfile.TemporaryDirectory() as cache:
            where = (job["checkpoint"], job["out"], job["precision"], _PROVIDERS[job["precision"]], cache)
            options = builder.parse_extra_options(None, *where, _OPTIONS)
            _mend_config(options["hf_details"]["hf_config"], job["context_length"])
            builder.create_model(None, *where, **options)


def _mend_config(config: Any, context_length: int) -> None:
    """What the builder reads otherwise than transformers 5 writes it; rotary tables no longer than will be used."""
    rope = config.rope_parameters
    if "full_attention" in rope:
        # Gemma 3 has a table for its sliding layers and one for the others.
        config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
        config.rope_parameters = dict(rope["full_attention"])
    elif rope["rope_type"] == "yarn":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        # The builder takes settings that are left out for zero, and does not round the range as transformers does.
        config.yarn = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    elif rope["rope_type"] == "longrope":
        original = int(rope.get("original_max_position_embeddings") or config.original_max_position_embeddings)
        factor = rope.get("factor") or config.max_position_embeddings / original
        scale = rope.get("attention_factor")
        if scale is None:
            scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        # The builder works these out of the positions in use, which may be fewer than the model has.
        rope |= {"type": "longrope", "short_mscale": scale, "long_mscale": scale}
        config.original_max_position_embeddings = original
        # As many as the original ones would make it another model, one without the scaling.
        context_length = max(context_length, original + 1)
    config.max_position_embeddings = context_length
    if getattr(config, "sliding_window", None) and getattr(config, "layer_types", None) is None:
        # Mistral and Phi-3 have the window in every layer and do not say so by layer; it would be left out.
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers


def _mend_builders() -> None:
    # The builder imports its own modules by their bare names, from a folder that it puts on the path.
    from builders import base, gemma, llama  # type: ignore[import-not-found, unused-ignore]

    # It takes every Linear with as many outputs as there are tokens for the head, and a student's width may
    # equal its vocabulary: the head is known by name.
    base.Model.has_lm_head = lambda model, module: module is model.weights.lm_head

    scaled_rope = llama.LlamaModel.make_rope_init

    def llama_rope(model: Any, config: Any) -> None:
        # It knows Llama 3's scaling, and leaves out any other without a word.
        (scaled_rope if config.rope_parameters["rope_type"] == "llama3" else base.Model.make_rope_init)(model, config)

    llama.LlamaModel.make_rope_init = llama_rope
    usual_rope, rescaled = base.Model.make_rope_init, base.Model.make_inv_freq_rescaled

    def rope(model: Any, config: Any) -> None:
        if config.rope_parameters["rope_type"] != "yarn":
            usual_rope(model, config)
            return
        scaled, model.rope_attrs["mscale"] = config.yarn
        model.rope_attrs["rescale_inv_freq"] = {"yarn": scaled}

    base.Model.make_rope_init = rope

    def frequencies(model: Any, plain: Any) -> Any:
        scaling = model.rope_attrs["rescale_inv_freq"]
        return scaling["yarn"] if "yarn" in scaling else rescaled(model, plain)

    base.Model.make_inv_freq_rescaled = frequencies
    lookup = gemma.GemmaModel.make_embedding

    def embedding(model: Any, weight: Any) -> None:
        # It rounds this to two decimals.
        model.embed_attrs["scale"] = math.sqrt(model.hidden_size)
        lookup(model, weight)

    gemma.GemmaModel.make_embedding = embedding
    one_table = base.Model.make_rotary_embedding_caches

    def table(model: Any, **names: Any) -> Any:
        # Gemma 3 scales the rotation of its full layers; the builder that of the sliding ones too.
        local = str(names.get("cos_cache_name", "")).endswith("_local")
        before = model.rope_attrs["rescale_factors"]
        if local:
            model.rope_attrs["rescale_factors"] = 1
        made = one_table(model, **names)
        model.rope_attrs["rescale_factors"] = before
        return made

    base.Model.make_rotary_embedding_caches = table


if __name__ == "__main__":
    main()
