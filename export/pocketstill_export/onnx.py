"""A checkpoint as ONNX, by onnxruntime-genai's model builder, with what the builder gets wrong mended.

Mended here: the last dimension of the key-value cache is a symbol that transformers.js reads as 0, and
external data must be named `<model>.onnx_data` for it, inside of the protobuf too. The files beside the model
are `companions.py`'s.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.errors import ExportError
from pocketstill_export.gguf import head_size

Precision = Literal["fp32", "int4"]
FILES: dict[Precision, str] = {"fp32": "onnx/model.onnx", "int4": "onnx/model_q4.onnx"}

# Of the builder's int4 settings, measured on Llamas of 4 and 5 million parameters with a small tied vocabulary:
# k-quant with 8 bits for the head (which the embedding shares), attention and the down projection, and 4 bits for
# gate and up, has half the KL of the builder's own mixed strategy for a quarter more bytes.
INT4_OPTIONS: dict[str, str] = {"algo_config": "k_quant", "block_size": "32", "accuracy_level": "4"}


def build_onnx(
    checkpoint: Checkpoint,
    folder: str | Path,
    precisions: Sequence[Precision],
    *,
    context_length: int,
    int4_options: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Writes `folder/onnx/model*.onnx` with external data, and returns the builder's genai_config of the
    last.

    Args:
        checkpoint: what to export.
        folder: the bundle being made.
        precisions: of the weights; activations and cache are fp32, for the CPU.
        context_length: positions that the rotary tables cover.
        int4_options: the builder's `extra_options` for int4; None takes INT4_OPTIONS.

    Raises:
        ExportError: the builder failed; its last line is in the message.
    """
    folder = Path(folder)
    options = _int4_options(checkpoint) if int4_options is None else dict(int4_options)
    mixed = int4_options is None and options["algo_config"] == "k_quant"
    eight_bit = _eight_bit_nodes(checkpoint) if mixed else []
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as scratch:
        builds = {precision: Path(scratch).resolve() / precision for precision in precisions}
        jobs = [
            {
                "checkpoint": str(checkpoint.folder.resolve()),
                "out": str(build),
                "precision": precision,
                "context_length": context_length,
                "options": options if precision == "int4" else {},
                "eight_bit": eight_bit if precision == "int4" else [],
            }
            for precision, build in builds.items()
        ]
        _run_builder(checkpoint, jobs, Path(scratch))
        config: dict[str, Any] = {}
        for precision, build in builds.items():
            _mend(build / "model.onnx", folder / FILES[precision], head_size(checkpoint.config))
            config = json.loads((build / "genai_config.json").read_text(encoding="utf-8"))
    return config


def _int4_options(checkpoint: Checkpoint) -> dict[str, str]:
    """INT4_OPTIONS as far as this student's widths allow them."""
    options = dict(INT4_OPTIONS)
    if not checkpoint.tied:
        # Without this the embedding of an untied student stays in fp32.
        options["op_types_to_quantize"] = "MatMul/Gather"
    widths = {shape[-1] for shape in checkpoint.shapes.values() if len(shape) == 2}
    if any(-(-width // 32) % 2 for width in widths):
        # onnxruntime 1.31 packs the zero points of k-quants two to a byte across rows, and fails on rows with an
        # odd number of blocks. Half the block makes that even; plain symmetric rounding has no zero points.
        even = all(width % 32 == 0 for width in widths)
        options |= {"block_size": "16"} if even else {"algo_config": "rtn_last"}
    return options


def _eight_bit_nodes(checkpoint: Checkpoint) -> list[str]:
    """Names of the nodes that keep 8 bits, as the builder calls them; it fuses q, k and v where they have no norm."""
    fused = checkpoint.config.model_type != "qwen3"
    parts = ["attn/qkv_proj"] if fused else ["attn/q_proj", "attn/k_proj", "attn/v_proj"]
    parts += ["attn/o_proj", "mlp/down_proj"]
    layers = range(checkpoint.config.num_hidden_layers)
    return ["/lm_head/MatMul", *(f"/model/layers.{layer}/{part}/MatMul" for layer in layers for part in parts)]


def _run_builder(checkpoint: Checkpoint, jobs: list[dict[str, Any]], scratch: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "ORT_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "pocketstill_export._onnx_child", json.dumps(jobs)],
        env=environment,
        cwd=scratch,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        words = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        reason = words[-1] if words else f"exit status {done.returncode}"
        raise ExportError(
            f"onnxruntime-genai's builder failed on {checkpoint.folder} ({reason}); "
            "mend that, or leave the onnx variants out"
        )


def _mend(source: Path, target: Path, head: int) -> None:
    """Moves the built model to `target`, its external data to `<target>_data`, and writes the cache's head
    size.
    """
    import onnx

    model = onnx.load(source, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.shape.dim[-1].Clear()
            value.type.tensor_type.shape.dim[-1].dim_value = head
    target.parent.mkdir(exist_ok=True)
    data = target.with_name(target.name + "_data")
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = data.name
    (source.parent / "model.onnx.data").replace(data)
    target.write_bytes(model.SerializeToString())


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor that a graph stores: initializers and constants, those of subgraphs too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for subgraph in attribute.graphs:
                yield from _tensors(subgraph)
