"""The student as training left it: a Hugging Face folder, read without pickle, remote code or network, and
checked.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketstill.files import read_json
from pocketstill_export.errors import ExportError

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Gemma3ForCausalLM",
    "Phi3ForCausalLM",
    "GPT2LMHeadModel",
)
# For a base model that only continues text: the messages as they are, and nothing between them.
PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
# Recomputed by the model, and stored by old versions of transformers only.
_BUFFERS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
_SMALL = 50_000_000
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be exported. `config` is transformers' own, with every default filled in.

    `shapes` has transformers' names; those in the files lack `prefix` where the base model was saved alone.
    """

    folder: Path
    architecture: str
    config: Any
    raw_config: dict[str, Any]
    generation_config: dict[str, Any]
    tokenizer: dict[str, Any]
    tokenizer_config: dict[str, Any]
    template: str
    stop_ids: tuple[int, ...]
    shapes: dict[str, tuple[int, ...]]
    shards: tuple[Path, ...]
    prefix: str = ""

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding; a head stored beside a tied embedding is ignored, as
        transformers does.
        """
        return bool(self.config.tie_word_embeddings)

    @property
    def parameters(self) -> int:
        """How many weights there are, a tied head not counted."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def threads(self) -> int | None:
        """CPU threads to run it with: more than one only slow a small student down; None leaves it to the engine."""
        return 1 if self.parameters < _SMALL else None

    def load_tokenizer(self) -> Any:
        """Its tokenizer (of the package tokenizers), without the limits of the training run that it may hold."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def tensors(self) -> Iterator[tuple[str, Any]]:
        """Each weight as (name, torch tensor on the CPU) in the precision of the file, shard by shard."""
        for shard in self.shards:
            for stored in _names(shard):
                name = next((n for n in (stored, self.prefix + stored) if n in self.shapes), None)
                if name is not None:
                    yield name, _tensor(shard, stored)


def read_checkpoint(folder: str | Path, *, template: str | None = None, any_architecture: bool = False) -> Checkpoint:
    """Reads a checkpoint and refuses whatever could not be exported faithfully.

    Args:
        folder: as save_pretrained left it, or the hub's cache of it.
        template: a chat template in place of the checkpoint's own, or of one that is missing.
        any_architecture: take architectures too that only llama.cpp's own converter knows.

    Raises:
        ExportError: pickle weights, links that leave the folder, missing or broken shards, missing tensors or
            tensors of another shape, NaN or infinite weights, an unknown architecture, quantized weights, no
            tokenizer.json, no chat template or no end-of-text id.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ExportError(f"{folder} is not a checkpoint: it has no config.json; give the folder that `distill` wrote")
    _check_links(folder)
    raw_config = _read_object(folder / "config.json")
    architecture = _architecture(folder, raw_config, any_architecture)
    shards = _shards(folder)
    config, expected, prefix = _expected_shapes(folder)
    if architecture not in ARCHITECTURES:
        expected, prefix = {}, ""
    shapes = _check_tensors(folder, shards, expected, prefix, tied=bool(config.tie_word_embeddings))
    tokenizer = _read_tokenizer(folder, int(config.vocab_size))
    tokenizer_config = _read_optional(folder / "tokenizer_config.json")
    generation_config = _read_optional(folder / "generation_config.json")
    return Checkpoint(
        folder=folder,
        architecture=architecture,
        config=config,
        raw_config=raw_config,
        generation_config=generation_config,
        tokenizer=tokenizer,
        tokenizer_config=tokenizer_config,
        template=_template(folder, tokenizer_config) if template is None else template,
        stop_ids=_stop_ids(folder, generation_config, raw_config, tokenizer, tokenizer_config),
        shapes=shapes,
        shards=tuple(shards),
        prefix=prefix,
    )


def load_model(checkpoint: Checkpoint) -> Any:
    """The checkpoint as a transformers model, fp32 on the CPU, read without running any code of its own."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(
            checkpoint.folder,
            dtype=torch.float32,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
        ).eval()
    finally:
        if bars:
            logging.enable_progress_bar()


def token_string(value: Any) -> str | None:
    """A special token of tokenizer_config.json, which may be a string or an object with `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Every token of a tokenizer.json with its id, added tokens included."""
    vocab = tokenizer["model"]["vocab"]
    # A Unigram model lists (piece, score) in the order of the ids.
    vocab = dict(vocab) if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
    vocab.update({token["content"]: token["id"] for token in tokenizer.get("added_tokens") or ()})
    return vocab


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ExportError(f"{path} is not a JSON object; save the checkpoint again")
    return value


def _read_optional(path: Path) -> dict[str, Any]:
    return _read_object(path) if path.is_file() else {}


def _check_links(folder: Path) -> None:
    """No file may be read from outside of the folder by way of a link.

    The hub's cache is made of links from `models--*/snapshots/<revision>/` to `models--*/blobs/`; those stay.
    """
    home = folder.resolve()
    if home.parent.name == "snapshots" and home.parents[1].name.startswith("models--"):
        home = home.parents[1]
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not path.resolve().is_relative_to(home):
            raise ExportError(f"{path} is a link that leads out of {home}; copy the file itself there")


def _architecture(folder: Path, config: Mapping[str, Any], any_architecture: bool) -> str:
    known = ", ".join(ARCHITECTURES)
    named = config.get("architectures") or ["none"]
    if named[0] not in ARCHITECTURES and not any_architecture:
        raise ExportError(
            f"{folder / 'config.json'}: architecture {named[0]} cannot be exported; choose one of {known}, or for "
            "gguf variants alone name llama.cpp's own converter: --converter PATH of its convert_hf_to_gguf.py"
        )
    if config.get("quantization_config"):
        raise ExportError(f"{folder} holds quantized weights; give the checkpoint from before quantization")
    return str(named[0])


def _shards(folder: Path) -> list[Path]:
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise ExportError(
                f"{folder / pickles[0]} is a pickle, which can run code when it is read; "
                "save the model again with save_pretrained, which writes safetensors"
            )
        raise ExportError(f"{folder} has no model.safetensors; give a checkpoint saved with save_pretrained")
    weight_map = _read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ExportError(f"{index} has no weight_map; save the checkpoint again")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if Path(name).name != name:
            raise ExportError(f"{index}: shard {name!r} lies outside of the checkpoint; save the checkpoint again")
        if not (folder / name).is_file():
            raise ExportError(f"{folder / name} is missing: {index.name} names {len(names)} shards; copy all of them")
    return [folder / name for name in names]


def _expected_shapes(folder: Path) -> tuple[Any, dict[str, tuple[int, ...]], str]:
    """The names and shapes that transformers would want, from a model without memory (the meta device), and
    what their names start with in front of the base model's own.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ExportError(
            f"{folder / 'config.json'}: {_first_line(error)}; mend it or save the checkpoint again"
        ) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return config, shapes, f"{model.base_model_prefix}."


def _check_tensors(
    folder: Path, shards: list[Path], expected: dict[str, tuple[int, ...]], prefix: str, tied: bool
) -> dict[str, tuple[int, ...]]:
    """Names and shapes as found, in the order of the files. Nothing `expected` means that any will do."""
    from safetensors import SafetensorError

    found: dict[str, tuple[int, ...]] = {}
    for shard in shards:
        try:
            for stored in _names(shard):
                name = prefix + stored if stored not in expected and prefix + stored in expected else stored
                if (name.endswith(_BUFFERS) and name not in expected) or (tied and name == "lm_head.weight"):
                    continue
                tensor = _tensor(shard, stored)
                _check_tensor(shard, name, tensor, expected)
                found[name] = tuple(tensor.shape)
        except SafetensorError as error:
            raise ExportError(
                f"{shard} is not a whole safetensors file ({_first_line(error)}); copy it again"
            ) from error
    if not expected:
        return found
    wanted = set(expected) - ({"lm_head.weight"} if tied else set())
    if missing := sorted(wanted - set(found)):
        raise ExportError(f"{folder}: the weight {missing[0]} is missing ({len(missing)} in all); copy every shard")
    if extra := sorted(set(found) - wanted):
        raise ExportError(
            f"{folder}: the weight {extra[0]} has no place in this architecture; give a plain causal model"
        )
    return found


def _names(shard: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(shard, framework="pt") as file:
        return list(file.keys())


def _tensor(shard: Path, name: str) -> Any:
    """One weight. The file is mapped anew for each, so that what was read of it does not stay in memory."""
    from safetensors import safe_open

    with safe_open(shard, framework="pt") as file:
        return file.get_tensor(name)


def _check_tensor(shard: Path, name: str, tensor: Any, expected: Mapping[str, tuple[int, ...]]) -> None:
    import torch

    if name in expected and tuple(tensor.shape) != expected[name]:
        raise ExportError(
            f"{shard}: {name} has shape {tuple(tensor.shape)}, "
            f"config.json wants {expected[name]}; give the one that it was trained with"
        )
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    # The extremes of a tensor with a NaN are NaN. One pass without a copy, ten times as fast as isfinite().all().
    if not all(math.isfinite(extreme) for extreme in torch.aminmax(tensor)):
        raise ExportError(f"{shard}: {name} holds NaN or infinite weights; train again from a sound state")


def _read_tokenizer(folder: Path, rows: int) -> dict[str, Any]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ExportError(f"{folder} has no tokenizer.json; save the fast tokenizer beside the model")
    tokenizer = _read_object(path)
    if not isinstance(tokenizer.get("model"), dict) or not isinstance(tokenizer["model"].get("vocab"), (dict, list)):
        raise ExportError(f"{path} holds no vocabulary; save the fast tokenizer again")
    largest = max(vocabulary(tokenizer).values(), default=-1)
    if largest >= rows:
        raise ExportError(
            f"{path}: the token id {largest} has no row in the model's {rows} embeddings; "
            "give the tokenizer that the model was trained with"
        )
    return tokenizer


def _template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str:
    path = folder / "chat_template.jinja"
    try:
        if path.is_file():
            return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ExportError(f"{path} is not UTF-8 text; write it again") from error
    inline = tokenizer_config.get("chat_template")
    if isinstance(inline, list):
        inline = {entry.get("name"): entry.get("template") for entry in inline}.get("default")
    if not isinstance(inline, str):
        raise ExportError(
            f"{folder} has no chat template; give one with --template FILE, "
            "or --template plain for a base model that only continues text"
        )
    return inline


def _stop_ids(
    folder: Path,
    generation_config: Mapping[str, Any],
    config: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any],
) -> tuple[int, ...]:
    """All ids that end an answer, those of generation_config.json first."""
    found: list[int] = []
    for value in (generation_config.get("eos_token_id"), config.get("eos_token_id")):
        found += value if isinstance(value, list) else [] if value is None else [value]
    eos = token_string(tokenizer_config.get("eos_token"))
    if eos is not None and eos in (vocab := vocabulary(tokenizer)):
        found.append(vocab[eos])
    if not found:
        raise ExportError(
            f"{folder} names no eos_token_id; without one no answer ends, set it in generation_config.json"
        )
    known = set(vocabulary(tokenizer).values())
    for token_id in found:
        if token_id not in known:
            raise ExportError(
                f"{folder}: eos_token_id {token_id!r} is not in tokenizer.json; mend generation_config.json"
            )
    return tuple(dict.fromkeys(found))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
