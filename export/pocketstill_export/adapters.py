"""LoRA adapters as PEFT saves them, read and refused: what GGUF and ONNX can keep apart from the base, and merging.

LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685) adds `scale * B A` to a weight, where A is (rank, inputs) and
B is (outputs, rank). `adapters_gguf.py` and `adapters_onnx.py` write what is read here.
"""

from __future__ import annotations

import math
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketstill.files import read_json
from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.errors import ExportError

WEIGHTS = "adapter_model.safetensors"
# Settings of adapter_config.json that choose what is trained or how, but leave the sum at inference as it is.
_INERT = frozenset(
    "auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config exclude_modules fan_in_fan_out "
    "inference_mode init_lora_weights layers_pattern layers_to_transform loftq_config lora_dropout lora_ga_config "
    "megatron_core peft_type peft_version qalora_group_size revision runtime_config target_modules task_type".split()
)
_USED = frozenset(("alpha_pattern", "bias", "lora_alpha", "r", "rank_pattern", "use_rslora"))
# The other starting points of PEFT change the base weights too, so that the adapter means nothing on the base.
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_KEPT = re.compile(r"base_model\.model\.(?P<module>.+)\.base_layer\.weight")
_MERGE = "merge it into the base instead"


@dataclass(frozen=True)
class LoraPair:
    """What is added to one weight: `scale * b @ a`. `a` is (rank, inputs), `b` is (outputs, rank), float32 tensors on
    the CPU.
    """

    a: Any
    b: Any
    scale: float

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits its checkpoint. `pairs` goes by the name of the base weight, in the order of the file."""

    folder: Path
    alpha: float
    pairs: dict[str, LoraPair]


def read_adapter(checkpoint: Checkpoint, folder: str | Path) -> Adapter:
    """Reads adapter_config.json and adapter_model.safetensors, and refuses what could not be kept apart faithfully.

    Raises:
        ExportError: no adapter there, a pickle, another kind than LoRA (DoRA, saved modules, biases, ...), a starting
            point that changed the base, or weights of another base.
    """
    folder = Path(folder)
    config = _read_config(folder)
    _check_config(folder, config)
    halves = _read_halves(checkpoint, folder)
    alpha = float(config["lora_alpha"])
    pairs: dict[str, LoraPair] = {}
    for module, sides in halves.items():
        weight = f"{module}.weight"
        if set(sides) != {"A", "B"}:
            absent = "B" if "A" in sides else "A"
            raise ExportError(f"{folder / WEIGHTS}: {module} has no lora_{absent}; save the adapter again")
        _check_shapes(checkpoint, folder, weight, tuple(sides["A"].shape), tuple(sides["B"].shape))
        rank = int(sides["A"].shape[0])
        module_alpha = float(_by_pattern(config.get("alpha_pattern"), module, alpha))
        scale = module_alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        pairs[weight] = LoraPair(sides["A"], sides["B"], scale)
    return Adapter(folder, alpha, pairs)


def merge_adapter(checkpoint_folder: str | Path, adapter: str | Path, out: str | Path) -> None:
    """Writes the checkpoint with the adapter added to its weights, by PEFT's own `merge_and_unload`, into the new
    folder `out`. Whatever PEFT can merge will do, DoRA and saved modules too.

    The tokenizer, template and generation settings are the checkpoint's own, byte for byte.

    Raises:
        ExportError: `out` exists, the adapter is a pickle or fits another base, or peft is not installed.
    """
    checkpoint_folder, adapter, out = Path(checkpoint_folder), Path(adapter), Path(out)
    if out.exists():
        raise ExportError(f"{out} exists; give a new folder")
    _read_config(adapter)
    try:
        from peft import PeftModel
    except ModuleNotFoundError as error:
        raise ExportError("merging an adapter needs peft; pip install peft") from error
    import torch
    from transformers import AutoModelForCausalLM

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".merge-") as scratch, torch.no_grad():
        try:
            base = AutoModelForCausalLM.from_pretrained(
                checkpoint_folder, dtype="auto", trust_remote_code=False, local_files_only=True, use_safetensors=True
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # PEFT asks for a name that transformers renamed
                merged = PeftModel.from_pretrained(base, adapter).merge_and_unload(safe_merge=True)
        except (ValueError, RuntimeError, OSError, KeyError, TypeError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".: ")
            raise ExportError(
                f"{adapter} cannot be merged into {checkpoint_folder} ({reason}); give the base that it was trained on"
            ) from error
        made = Path(scratch) / "merged"
        merged.save_pretrained(made)
        written = {path.name for path in made.iterdir()}
        for path in sorted(checkpoint_folder.iterdir()):
            weights = path.name.startswith("model") and ".safetensors" in path.name
            if path.is_file() and not weights and (path.name not in written or path.name == "generation_config.json"):
                shutil.copyfile(path, made / path.name)
        made.rename(out)


def check_names(names: Iterable[str]) -> None:
    """Adapter names become file names and keys.

    Raises:
        ExportError: one is empty or holds other than letters, digits, `.`, `_` and `-`.
    """
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ExportError(f"the adapter name {name!r} cannot be a file name; use letters, digits, '.', '_' and '-'")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise ExportError(f"{folder} is not a PEFT adapter: it has no adapter_config.json; give the saved adapter")
    config = read_json(path)
    if not isinstance(config, dict):
        raise ExportError(f"{path} is not a JSON object; save the adapter again")
    if not (folder / WEIGHTS).is_file():
        if (folder / "adapter_model.bin").exists():
            raise ExportError(
                f"{folder / 'adapter_model.bin'} is a pickle, which can run code when it is read; "
                "save the adapter again with save_pretrained, which writes safetensors"
            )
        raise ExportError(f"{folder} has no {WEIGHTS}; save the adapter again")
    for file in (path, folder / WEIGHTS):
        # The hub's cache is made of links within `models--*`.
        home = next((p for p in folder.resolve().parents if p.name.startswith("models--")), folder.resolve())
        if not file.resolve().is_relative_to(home):
            raise ExportError(f"{file} is a link that leads out of {folder}; copy the file itself there")
    return config


def _check_config(folder: Path, config: Mapping[str, Any]) -> None:
    path = folder / "adapter_config.json"
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ExportError(f"{path}: adapters of type {kind} cannot be kept apart, LORA alone can; {_MERGE}")
    if config.get("bias", "none") != "none":
        raise ExportError(f"{path}: bias {config['bias']!r} cannot be kept apart; {_MERGE}, or train with bias 'none'")
    for key in sorted(set(config) - _INERT - _USED):
        if config[key]:
            raise ExportError(f"{path}: {key} cannot be kept apart; {_MERGE}")
    start = config.get("init_lora_weights")
    if start not in _STARTS:
        raise ExportError(
            f"{path}: init_lora_weights {start!r} changed the base weights; save the adapter with "
            "path_initial_model_for_weight_conversion, or merge it where it was trained"
        )
    if not isinstance(config.get("lora_alpha"), (int, float)) or not config["lora_alpha"]:
        # llama.cpp takes an alpha of 0 for a scale of 1.
        raise ExportError(f"{path}: lora_alpha is missing or 0; save the adapter again")


def _read_halves(checkpoint: Checkpoint, folder: Path) -> dict[str, dict[str, Any]]:
    """The tensors by module and side, float32, in the order of the file.

    Beside a head's halves PEFT stores the head itself (`base_layer`), which may have been resized or trained.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS
    halves: dict[str, dict[str, Any]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - a safe_open handle is not iterable
                if kept := _KEPT.fullmatch(key):
                    _check_kept(checkpoint, path, f"{kept['module']}.weight", file.get_tensor(key))
                    continue
                match = _KEY.fullmatch(key)
                if match is None:
                    raise ExportError(f"{path}: {key} is not lora_A or lora_B of a linear layer; {_MERGE}")
                tensor = file.get_tensor(key).to(torch.float32)
                if not bool(torch.isfinite(tensor).all()):
                    raise ExportError(f"{path}: {key} holds NaN or infinite weights; train again from a sound state")
                halves.setdefault(match["module"], {})[match["side"]] = tensor
    except SafetensorError as error:
        reason = next(iter(str(error).splitlines()), "unreadable")
        raise ExportError(f"{path} is not a whole safetensors file ({reason}); copy it again") from error
    if not halves:
        raise ExportError(f"{path} holds no weights; save the adapter again")
    return halves


def _check_kept(checkpoint: Checkpoint, path: Path, weight: str, tensor: Any) -> None:
    import torch

    _check_known(checkpoint, path, weight)
    for name, base in checkpoint.tensors():
        if name == weight and base.shape == tensor.shape and torch.equal(base.float(), tensor.float()):
            return
    raise ExportError(f"{path}: it holds another {weight} than {checkpoint.folder}; {_MERGE}")


def _check_known(checkpoint: Checkpoint, path: Path, weight: str) -> None:
    if weight not in checkpoint.shapes:
        tied = " (its head is the embedding)" if weight == "lm_head.weight" and checkpoint.tied else ""
        raise ExportError(
            f"{path}: {weight} is not a weight of {checkpoint.folder}{tied}; "
            "give the base that the adapter was trained on"
        )


def _check_shapes(
    checkpoint: Checkpoint, folder: Path, weight: str, a_shape: tuple[int, ...], b_shape: tuple[int, ...]
) -> None:
    """Whether these halves make a weight of the base's shape."""
    _check_known(checkpoint, folder / WEIGHTS, weight)
    expected = checkpoint.shapes[weight]
    if _transposed(checkpoint, weight):
        expected = expected[::-1]
    found = (*b_shape[:1], *a_shape[1:])
    if len(a_shape) != 2 or len(b_shape) != 2 or a_shape[0] != b_shape[1] or found != expected:
        raise ExportError(
            f"{folder / WEIGHTS}: lora_B x lora_A of {weight} is {b_shape} x {a_shape}, the base wants {expected}; "
            "give the base that the adapter was trained on"
        )


def _transposed(checkpoint: Checkpoint, weight: str) -> bool:
    """GPT-2 keeps its projections as (inputs, outputs); PEFT's halves are of the usual order all the same."""
    return checkpoint.architecture == "GPT2LMHeadModel" and len(checkpoint.shapes[weight]) == 2 and ".h." in weight


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that ends the module's name, as PEFT's `get_pattern_key` matches it."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
