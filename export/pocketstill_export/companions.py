"""The small files beside the weights, so that transformers, onnxruntime-genai and transformers.js read the
same folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pocketstill.files import write_json
from pocketstill_export.checkpoint import Checkpoint, token_string, vocabulary
from pocketstill_export.variants import VariantSpec

_BY_SIZE = ("int4", "int8", "fp16", "fp32")
# What transformers.js calls the files of a model.
_DTYPES = {"model": "fp32", "model_fp16": "fp16", "model_int8": "int8", "model_q4": "q4"}


def write_companions(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    context_length: int,
    generation: Mapping[str, Any],
    onnx: Sequence[VariantSpec],
    genai_config: Mapping[str, Any] | None,
) -> None:
    """Writes the tokenizer, template and configuration files into `folder`.

    The tokenizer.json is the student's own byte for byte: the builder and AutoTokenizer replace a
    pre-tokenizer of one's own by the model type's.

    Args:
        checkpoint: what is exported.
        folder: the bundle being made.
        context_length: positions that the exported files allow.
        generation: defaults, {"max_new_tokens": int, "temperature": float}; None or nothing leaves them open.
        onnx: the ONNX variants in the bundle.
        genai_config: what `build_onnx` returned, where there is any.
    """
    shutil.copyfile(checkpoint.folder / "tokenizer.json", folder / "tokenizer.json")
    (folder / "chat_template.jinja").write_bytes(checkpoint.template.encode("utf-8"))
    write_json(folder / "tokenizer_config.json", _tokenizer_config(checkpoint, context_length))
    write_json(folder / "generation_config.json", _generation_config(checkpoint, generation))
    config = dict(checkpoint.raw_config)
    if onnx:
        config["transformers.js_config"] = _transformers_js_config(onnx)
    write_json(folder / "config.json", config)
    if onnx and genai_config is not None:
        filename = default_onnx(onnx).file
        write_json(
            folder / "genai_config.json",
            _genai_config(checkpoint, genai_config, filename, context_length, generation),
        )


def default_onnx(specs: Sequence[VariantSpec]) -> VariantSpec:
    """The variant that a runtime takes which is told nothing: the first of 4 bits, or that with the fewest."""
    return min(specs, key=lambda spec: _BY_SIZE.index(spec.kind))


def _transformers_js_config(specs: Sequence[VariantSpec]) -> dict[str, Any]:
    """Which file transformers.js takes by itself, and that each has one more beside it.

    It knows files by their dtype; others, such as model_q4_hqq.onnx, by `model_file_name` with dtype fp32.
    """
    named = [spec for spec in specs if Path(spec.file).stem in _DTYPES]
    config: dict[str, Any] = {"use_external_data_format": {Path(spec.file).name: 1 for spec in specs}}
    return ({"dtype": _DTYPES[Path(default_onnx(named).file).stem]} if named else {}) | config


def _tokenizer_config(checkpoint: Checkpoint, context_length: int) -> dict[str, Any]:
    config = dict(checkpoint.tokenizer_config)
    if config.get("tokenizer_class") in (None, "TokenizersBackend"):
        # The name that older transformers, transformers.js and onnxruntime-genai all know.
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for private in ("is_local", "local_files_only", "name_or_path"):
        config.pop(private, None)
    # transformers 5 saves the template as a file only; transformers.js reads it only from here.
    return config | {"chat_template": checkpoint.template, "model_max_length": context_length}


def _generation_config(checkpoint: Checkpoint, generation: Mapping[str, Any]) -> dict[str, Any]:
    config = dict(checkpoint.generation_config)
    config.pop("_from_model_config", None)
    config["eos_token_id"] = list(checkpoint.stop_ids)
    config.setdefault("pad_token_id", checkpoint.stop_ids[0])
    if generation.get("max_new_tokens") is not None:
        config["max_new_tokens"] = int(generation["max_new_tokens"])
    temperature = _temperature(generation)
    config["do_sample"] = temperature > 0
    if temperature > 0:
        config["temperature"] = temperature
    else:
        for unused in ("temperature", "top_p", "top_k", "min_p"):
            config.pop(unused, None)
    return config


def _genai_config(
    checkpoint: Checkpoint,
    built: Mapping[str, Any],
    filename: str,
    context_length: int,
    generation: Mapping[str, Any],
) -> dict[str, Any]:
    temperature = _temperature(generation)
    vocab = vocabulary(checkpoint.tokenizer)
    bos = token_string(checkpoint.tokenizer_config.get("bos_token"))
    model = dict(built["model"]) | {
        # The key must be there; where the student has no such token the builder invents the id 1.
        "bos_token_id": vocab.get(bos or "", checkpoint.stop_ids[0]),
        "context_length": context_length,
        "eos_token_id": list(checkpoint.stop_ids),
        "decoder": dict(built["model"]["decoder"]) | {"filename": filename},
    }
    search = dict(built["search"]) | {
        "max_length": context_length,
        "do_sample": temperature > 0,
        "temperature": temperature if temperature > 0 else 1.0,
    }
    return {"model": model, "search": search}


def _temperature(generation: Mapping[str, Any]) -> float:
    """Greedy where nothing is said."""
    return float(generation.get("temperature") or 0.0)
