"""One conversion, as a whole process: `python convert.py SYSTEM CHECKPOINT OUT [VARIANT]`.

SYSTEM is `ours`, `optimum` or `exporters`, each run by the Python of its own environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

CONTEXT = 2048


def ours(checkpoint: str, out: Path, variant: str) -> None:
    """Our conversion alone, without the checks of `export`."""
    from pocketstill_export.checkpoint import read_checkpoint
    from pocketstill_export.variants import parse_variant

    spec = parse_variant(variant)
    if spec.engine == "onnx":
        from pocketstill_export.companions import write_companions
        from pocketstill_export.onnx.build import build_onnx
        from pocketstill_export.onnx.builder import started_builder

        # As `export` does: the builder's process starts first.
        with started_builder() as builder:
            read = read_checkpoint(checkpoint)
            config = build_onnx(read, out, [spec], context_length=CONTEXT, builder=builder)
        write_companions(read, out, context_length=CONTEXT, generation={}, onnx=[spec], genai_config=config)
        return
    from pocketstill_export.gguf.write import write_gguf

    read = read_checkpoint(checkpoint)
    if not spec.quantized:
        write_gguf(read, out / spec.file, precision=spec.kind, context_length=CONTEXT, name="bench")  # type: ignore[arg-type]
        return
    from pocketstill_export.gguf.quantize import quantize_gguf

    full = out / "full.gguf"
    write_gguf(read, full, precision="f32", context_length=CONTEXT, name="bench")
    quantize_gguf(full, out / spec.file, spec.kind)  # type: ignore[arg-type]
    full.unlink()


def optimum(checkpoint: str, out: Path, _variant: str) -> None:
    """optimum-onnx: fp32, one graph with its cache."""
    from optimum.onnxruntime import ORTModelForCausalLM

    ORTModelForCausalLM.from_pretrained(checkpoint, export=True, local_files_only=True).save_pretrained(out)


def exporters(checkpoint: str, out: Path, _variant: str) -> None:
    """transformers.exporters: fp32, a graph for the prompt and one for each token after it."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.exporters import OnnxConfig, OnnxExporter

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True).eval()
    ids = torch.arange(3, 19)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    # Fused into onnxruntime's own operators, as is fastest.
    config = OnnxConfig(dynamic=True, ort_fusions="cpu")
    OnnxExporter().export_for_generation(model, inputs, config).save_pretrained(out)


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
    system, checkpoint, out, *variant = sys.argv[1:]
    Path(out).mkdir(parents=True, exist_ok=True)
    {"ours": ours, "optimum": optimum, "exporters": exporters}[system](checkpoint, Path(out), *(variant or ["fp32"]))
