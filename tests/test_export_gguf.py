"""A GGUF file's logits are the checkpoint's, for every architecture; quantized ones come close."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the workshop extra")
pytest.importorskip("llama_cpp", reason="needs the gguf extra")

from export_students import IDS, gguf_variant, make_student, worst_kl

from pocketstill.engines import open_engine
from pocketstill_export.checkpoint import Checkpoint, read_checkpoint
from pocketstill_export.errors import ExportError
from pocketstill_export.gguf import write_gguf
from pocketstill_export.parity import EXACT_KL, F16_KL, reference_logits
from pocketstill_export.quantize import fallback_note, quantize_gguf

ROPE = {"rope_theta": 10000.0}
LLAMA3_ROPE = ROPE | {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = ROPE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama tied": ("Llama", {}),
    "llama untied": ("Llama", {"tie_word_embeddings": False}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with wide heads": ("Llama", {"head_dim": 32, "num_key_value_heads": 4}),
    "llama 3.1 rope": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "linear rope": ("Llama", {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 2.0}}),
    "yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen2 with biases": ("Qwen2", {}),
    "qwen2 untied": ("Qwen2", {"tie_word_embeddings": False, "rms_norm_eps": 1e-3}),
    "qwen3": ("Qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
}


def logits_of(folder: Path, file: str) -> list[np.ndarray]:
    engine = open_engine(folder, gguf_variant("gguf-f32", file), threads=1)
    try:
        return [engine.logits(ids) for ids in IDS]
    finally:
        engine.close()


def worst(checkpoint: Checkpoint, folder: Path, file: str) -> float:
    reference = reference_logits(checkpoint)
    return max(worst_kl(f, reference(ids)) for f, ids in zip(logits_of(folder, file), IDS, strict=True))


@pytest.mark.parametrize("kind", STUDENTS)
def test_full_precision_is_exact(kind: str, tmp_path: Path) -> None:
    architecture, config = STUDENTS[kind]
    checkpoint = read_checkpoint(make_student(tmp_path / "student", architecture, **config))
    write_gguf(checkpoint, tmp_path / "m.gguf", precision="f32", context_length=128, name="t")
    assert worst(checkpoint, tmp_path, "m.gguf") < EXACT_KL


def test_half_precision_and_quantized(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(make_student(tmp_path / "student", hidden_size=256, intermediate_size=256))
    write_gguf(checkpoint, tmp_path / "f16.gguf", precision="f16", context_length=128, name="t")
    write_gguf(checkpoint, tmp_path / "f32.gguf", precision="f32", context_length=128, name="t")
    quantize_gguf(tmp_path / "f32.gguf", tmp_path / "q8.gguf", "q8_0")
    quantize_gguf(tmp_path / "f32.gguf", tmp_path / "q4.gguf", "q4_k_m")
    sizes = [(tmp_path / f"{name}.gguf").stat().st_size for name in ("f32", "f16", "q8", "q4")]
    assert sizes == sorted(sizes, reverse=True)
    losses = [worst(checkpoint, tmp_path, f"{name}.gguf") for name in ("f32", "f16", "q8", "q4")]
    assert losses == sorted(losses)
    assert losses[1] < F16_KL
    assert fallback_note(checkpoint, "q4_k_m") is None


def test_rows_of_llama_must_be_permuted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is tight enough to see the one mistake that every converter makes once."""
    checkpoint = read_checkpoint(make_student(tmp_path / "student"))
    monkeypatch.setattr("pocketstill_export.gguf._permuted", lambda array, heads: array)
    write_gguf(checkpoint, tmp_path / "m.gguf", precision="f32", context_length=128, name="t")
    assert worst(checkpoint, tmp_path, "m.gguf") > 2 * F16_KL


def test_bfloat16_checkpoints_are_exact(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = make_student(tmp_path / "student")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    checkpoint = read_checkpoint(folder)
    write_gguf(checkpoint, tmp_path / "m.gguf", precision="f32", context_length=128, name="t")
    assert worst(checkpoint, tmp_path, "m.gguf") < EXACT_KL


def test_fallbacks_are_told_before(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(make_student(tmp_path / "student", intermediate_size=80))
    assert "2 of 15 matrices" in str(fallback_note(checkpoint, "q8_0"))
    assert "15 of 15 matrices have rows that are no multiple of 256" in str(fallback_note(checkpoint, "q4_k_m"))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"hidden_act": "gelu"}, "activation gelu"),
        ({"rope_parameters": ROPE | {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling dynamic"),
    ],
)
def test_what_gguf_cannot_say_is_refused(config: dict[str, Any], reason: str, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(make_student(tmp_path / "student", **config))
    with pytest.raises(ExportError, match=reason):
        write_gguf(checkpoint, tmp_path / "m.gguf", precision="f32", context_length=128, name="t")


def test_weights_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_student(tmp_path / "student")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][0, 0] = 1e6
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ExportError, match=r"down_proj\.weight is too large for f16"):
        write_gguf(read_checkpoint(folder), tmp_path / "m.gguf", precision="f16", context_length=128, name="t")


def test_quantizing_what_is_no_gguf_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"not a gguf file at all")
    with pytest.raises(ExportError, match=r"could not quantize .*broken\.gguf to q8_0") as caught:
        quantize_gguf(tmp_path / "broken.gguf", tmp_path / "out.gguf", "q8_0")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.gguf").exists()
    assert capfd.readouterr().err == ""
