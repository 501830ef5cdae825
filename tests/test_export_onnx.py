"""ONNX files hold the checkpoint's logits and are what every runtime of the same folder expects."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the workshop extra")

import onnx
from export_students import IDS, make_student, worst_kl

from pocketstill.bundle import Variant
from pocketstill.engines import open_engine
from pocketstill_export.checkpoint import read_checkpoint
from pocketstill_export.companions import write_companions
from pocketstill_export.onnx import FILES, Precision, build_onnx
from pocketstill_export.parity import EXACT_KL, reference_logits


def build(student: Path, out: Path, *precisions: Precision, context_length: int = 128) -> dict[str, float]:
    """Builds, and returns the worst KL of each precision."""
    checkpoint = read_checkpoint(student)
    out.mkdir()
    config = build_onnx(checkpoint, out, precisions, context_length=context_length)
    write_companions(
        checkpoint, out, context_length=context_length, generation={}, onnx=precisions, genai_config=config
    )
    reference = reference_logits(checkpoint)
    worst = {}
    for precision in precisions:
        file = FILES[precision]
        engine = open_engine(out, Variant(f"onnx-{precision}", "onnx", file, (file, file + "_data"), 0), threads=1)
        worst[precision] = max(worst_kl(engine.logits(ids), reference(ids)) for ids in IDS)
        engine.close()
    return worst


def test_tied_llama_whose_width_is_its_vocabulary(tmp_path: Path) -> None:
    """The builder takes every projection with as many outputs as tokens for the head, unless told."""
    rows = read_checkpoint(make_student(tmp_path / "any")).config.vocab_size
    student = make_student(tmp_path / "student", intermediate_size=rows, max_position_embeddings=64)
    worst = build(student, tmp_path / "out", "fp32", "int4", context_length=64)
    assert worst["fp32"] < EXACT_KL
    assert worst["int4"] < 1.0
    sizes = {p: (tmp_path / "out" / (FILES[p] + "_data")).stat().st_size for p in ("fp32", "int4")}
    assert sizes["int4"] < 0.35 * sizes["fp32"]


def test_qwen2_with_biases_and_odd_blocks(tmp_path: Path) -> None:
    """96 weights are three blocks of 32, which the k-quant of onnxruntime cannot pack."""
    student = make_student(tmp_path / "student", "Qwen2", intermediate_size=96, tie_word_embeddings=False)
    worst = build(student, tmp_path / "out", "fp32", "int4")
    assert worst["fp32"] < EXACT_KL
    assert worst["int4"] < 1.0


def test_qwen3_and_mends(tmp_path: Path) -> None:
    student = make_student(tmp_path / "student", "Qwen3", head_dim=32, intermediate_size=80)
    worst = build(student, tmp_path / "out", "fp32", "int4", context_length=60)
    assert worst["fp32"] < EXACT_KL
    assert worst["int4"] < 1.0
    path = tmp_path / "out" / FILES["fp32"]
    names = {"model.onnx", "model.onnx_data", "model_q4.onnx", "model_q4.onnx_data"}
    assert {p.name for p in path.parent.iterdir()} == names
    model = onnx.load(path, load_external_data=False)
    locations = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    assert locations == {"model.onnx_data"}
    cache = [v for v in (*model.graph.input, *model.graph.output) if "key" in v.name or "value" in v.name]
    assert len(cache) == 8
    assert all(v.type.tensor_type.shape.dim[-1].dim_value == 32 for v in cache)
    tables = [t for t in model.graph.initializer if t.name in ("cos_cache", "sin_cache")]
    assert [t.dims[0] for t in tables] == [60, 60]
