"""Calibrated 4-bit weights (GPTQ, Frantar et al. 2022, arxiv.org/abs/2210.17323), by optimum and GPT-QModel.

They come with the extra `gptq`. The algorithm runs in a process of its own; what it chose is read back exactly.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.errors import ExportError
from pocketstill_export.onnx.builder import run_child
from pocketstill_export.onnx.rounding import Rounded

# More of a text changes nothing in the layers' statistics and costs memory: all activations are kept.
_LONGEST = 512


def require_gptq(name: str) -> None:
    """Raises ExportError unless the extra is installed; `name` is the variant that wants it."""
    for package in ("gptqmodel", "optimum"):
        if importlib.util.find_spec(package) is None:
            raise ExportError(f"{name} needs the package {package}: pip install 'pocketstill[gptq]', or leave it out")


def calibrated(
    checkpoint: Checkpoint,
    calibration: Sequence[Sequence[int]],
    ways: Sequence[tuple[int, bool]],
    scratch: Path,
) -> dict[tuple[int, bool], dict[str, Rounded]]:
    """Every matrix of the layers, rounded by GPTQ, by the name of its node in the builder's graph.

    Args:
        checkpoint: what is rounded; embedding and head are left alone.
        calibration: token ids of texts; of each the first 512 count.
        ways: pairs of a block, which divides the width of every matrix, and whether it has no zero points.
        scratch: an empty folder.

    Returns:
        the matrices, by way.

    Raises:
        ExportError: GPT-QModel failed; its last line is in the message.
    """
    from safetensors.numpy import load_file

    files = {way: scratch / f"gptq-{number}.safetensors" for number, way in enumerate(ways)}
    if not files:
        return {}
    work = {
        "checkpoint": str(checkpoint.folder.resolve()),
        "calibration": [list(map(int, ids))[:_LONGEST] for ids in calibration if len(ids) > 1],
        "jobs": [{"out": str(file), "block": way[0], "symmetric": way[1]} for way, file in files.items()],
    }
    (scratch / "gptq.json").write_text(json.dumps(work), encoding="utf-8")
    run_child(
        "pocketstill_export.onnx._gptq_child", str(scratch / "gptq.json"), scratch, "GPT-QModel", checkpoint.folder
    )
    return {way: _by_node(checkpoint.config, load_file(file), *way) for way, file in files.items()}


def _by_node(config: Any, found: Mapping[str, Any], block: int, symmetric: bool) -> dict[str, Rounded]:
    rounded = {}
    for node, parts in _nodes(config).items():
        whole = [_module(found, name) for name in parts if f"{name}.q" in found]
        if whole:
            rounded[node] = _stacked(whole, block, symmetric)
    for layer in range(config.num_hidden_layers):
        # One matrix of Phi-3 is two nodes.
        fused = f"model.layers.{layer}.mlp.gate_up_proj"
        if f"{fused}.q" in found:
            half = len(found[f"{fused}.q"]) // 2
            for name, rows in (("gate_proj", slice(0, half)), ("up_proj", slice(half, None))):
                part = {key: value[rows] for key, value in _module(found, fused).items()}
                rounded[f"/model/layers.{layer}/mlp/{name}/MatMul"] = _stacked([part], block, symmetric)
    return rounded


def _nodes(config: Any) -> dict[str, list[str]]:
    """Nodes of the builder's graph, with the modules whose rows they hold, one after the other."""
    nodes = {}
    for layer in range(config.num_hidden_layers):
        here, module = f"/model/layers.{layer}", f"model.layers.{layer}"
        qkv = [f"{module}.self_attn.{part}_proj" for part in ("q", "k", "v")]
        nodes[f"{here}/attn/qkv_proj/MatMul"] = [*qkv, f"{module}.self_attn.qkv_proj"]
        for part, name in zip(("q", "k", "v"), qkv, strict=True):
            nodes[f"{here}/attn/{part}_proj/MatMul"] = [name]
        nodes[f"{here}/attn/o_proj/MatMul"] = [f"{module}.self_attn.o_proj"]
        for part in ("gate", "up", "down"):
            nodes[f"{here}/mlp/{part}_proj/MatMul"] = [f"{module}.mlp.{part}_proj"]
    return nodes


def _module(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {part: found[f"{name}.{part}"] for part in ("q", "scale", "zero")}


def _stacked(parts: list[dict[str, Any]], block: int, symmetric: bool) -> Rounded:
    q, scale, zero = (np.concatenate([part[key] for part in parts]) for key in ("q", "scale", "zero"))
    return Rounded(q.reshape(len(q), -1, block), scale, None if symmetric else zero, 4)
