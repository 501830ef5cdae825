"""A GGUF file's logits are the checkpoint's, for every architecture; quantized ones come close."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the workshop extra")
pytest.importorskip("llama_cpp", reason="needs the gguf extra")

from export_students import IDS, LLAMA3_ROPE, ROPE, YARN, gguf_variant, make_student, worst_kl

from pocketstill.engines import open_engine
from pocketstill_export.checkpoint import Checkpoint, read_checkpoint
from pocketstill_export.errors import ExportError
from pocketstill_export.gguf.quantize import fallback_note, quantize_gguf
from pocketstill_export.gguf.write import tensor_names, write_gguf
from pocketstill_export.parity.logits import EXACT_KL, F16_KL, reference_logits

LONGROPE = ROPE | {
    "rope_type": "longrope",
    "short_factor": [1.0 + i / 4 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
    "original_max_position_embeddings": 256,
}
# One token, and prompts much longer than Gemma's sliding windows here.
PROMPTS = [*IDS, [3], [(i * 7 + 5) % 250 + 4 for i in range(90)]]
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama tied": ("Llama", {}),
    "llama untied": ("Llama", {"tie_word_embeddings": False}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with wide heads": ("Llama", {"head_dim": 32, "num_key_value_heads": 4}),
    "llama with narrow heads": ("Llama", {"head_dim": 8}),
    "llama 3.1 rope": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "linear rope": ("Llama", {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 2.0}}),
    "mistral": ("Mistral", {"tie_word_embeddings": False}),
    "mistral with a window and wide heads": ("Mistral", {"sliding_window": 128, "head_dim": 32}),
    "yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen2 with biases": ("Qwen2", {}),
    "qwen2 untied": ("Qwen2", {"tie_word_embeddings": False, "rms_norm_eps": 1e-3}),
    "qwen2 with a window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3 untied, no groups": ("Qwen3", {"tie_word_embeddings": False, "num_key_value_heads": 4, "head_dim": 24}),
    "gemma3": ("Gemma3", {}),
    "gemma3 untied": ("Gemma3", {"tie_word_embeddings": False, "final_logit_softcapping": 5.0}),
    "gemma3 with another pattern": ("Gemma3", {"sliding_window_pattern": 3, "sliding_window": 8}),
    "gemma3 without sliding layers": ("Gemma3", {"layer_types": ["full_attention"] * 7}),
    "gemma3 with its own attention scale": ("Gemma3", {"query_pre_attn_scalar": 20}),
    "gemma3 with linear rope": (
        "Gemma3",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            }
        },
    ),
    "phi3": ("Phi3", {}),
    "phi3 untied, with a window": ("Phi3", {"tie_word_embeddings": False, "sliding_window": 128}),
    "phi3 partial rotary": ("Phi3", {"rope_parameters": ROPE | {"rope_type": "default", "partial_rotary_factor": 0.5}}),
    "phi3 longrope": (
        "Phi3",
        {"rope_parameters": LONGROPE, "max_position_embeddings": 2048, "original_max_position_embeddings": 256},
    ),
    "gpt2": ("GPT2", {}),
    "gpt2 untied": ("GPT2", {"tie_word_embeddings": False, "n_inner": 96}),
    "gpt2 of more positions": ("GPT2", {"n_positions": 200, "activation_function": "gelu_pytorch_tanh"}),
}


def worst(checkpoint: Checkpoint, folder: Path, file: str, *, longest: int | None = None) -> float:
    """The largest KL over the prompts, `longest` tokens of each."""
    reference = reference_logits(checkpoint)
    engine = open_engine(folder, gguf_variant("gguf-f32", file), threads=1)
    try:
        return max(worst_kl(engine.logits(ids), reference(ids)) for ids in (p[:longest] for p in PROMPTS))
    finally:
        engine.close()


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
    monkeypatch.setattr("pocketstill_export.gguf.write._permuted", lambda array, heads: array)
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
    assert "15 of 15 matrices" in str(fallback_note(checkpoint, "q4_k_m"))


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "activation": ("Llama", {"hidden_act": "gelu"}, "activation gelu"),
    "gpt2 activation": ("GPT2", {"activation_function": "relu"}, "activation relu"),
    "gpt2 scale": ("GPT2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
    "dynamic rope": ("Llama", {"rope_parameters": ROPE | {"rope_type": "dynamic", "factor": 2.0}}, "scaling dynamic"),
    "llama 3 rope elsewhere": ("Qwen2", {"rope_parameters": LLAMA3_ROPE}, "rope scaling llama3"),
    "yarn's factor": ("Qwen2", {"rope_parameters": YARN | {"attention_factor": 1.5}}, "yarn with attention_factor"),
    "biases": ("Qwen3", {"attention_bias": True}, "no attention biases in Qwen3ForCausalLM"),
    "gemma's capped scores": ("Gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
    "gemma both ways": ("Gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
    "mistral's window": ("Mistral", {"sliding_window": 64}, "exact up to 64 tokens; export with a context length"),
    "phi3's window": ("Phi3", {"sliding_window": 127}, "exact up to 127 tokens"),
    "qwen2's window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1},
        "exact up to 32 tokens",
    ),
    "longrope beyond its original": (
        "Phi3",
        {
            "rope_parameters": LONGROPE | {"original_max_position_embeddings": 128},
            "max_position_embeddings": 2048,
        },
        "at most 128",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(what: str, tmp_path: Path) -> None:
    architecture, config, reason = REFUSED[what]
    checkpoint = read_checkpoint(make_student(tmp_path / "student", architecture, **config))
    with pytest.raises(ExportError, match=reason) as caught:
        write_gguf(checkpoint, tmp_path / "m.gguf", precision="f32", context_length=128, name="t")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.gguf").exists()


def test_a_window_as_long_as_the_context_is_exact(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(make_student(tmp_path / "student", "Mistral", sliding_window=64))
    write_gguf(checkpoint, tmp_path / "m.gguf", precision="f32", context_length=64, name="t")
    assert worst(checkpoint, tmp_path, "m.gguf", longest=63) < EXACT_KL


def test_gemmas_prompts_are_longer_than_its_window(tmp_path: Path) -> None:
    """Without the window the same file would be another model, so the comparison above does see it."""
    folder = make_student(tmp_path / "student", "Gemma3")
    checkpoint = read_checkpoint(folder)
    checkpoint.config.sliding_window = 1000
    write_gguf(checkpoint, tmp_path / "m.gguf", precision="f32", context_length=128, name="t")
    assert worst(checkpoint, tmp_path, "m.gguf") > 2 * F16_KL


def test_bfloat16_files_keep_bfloat16_checkpoints_as_they_are(tmp_path: Path) -> None:
    import torch
    from gguf import GGMLQuantizationType, GGUFReader
    from transformers import AutoModelForCausalLM

    folder = make_student(tmp_path / "student", "Qwen2")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    checkpoint = read_checkpoint(folder)
    write_gguf(checkpoint, tmp_path / "m.gguf", precision="bf16", context_length=128, name="t")
    stored = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "m.gguf").tensors}
    names = tensor_names(checkpoint)
    for source, tensor in checkpoint.tensors():
        found = stored[names[source]]
        assert found.tensor_type == (GGMLQuantizationType.F32 if tensor.ndim == 1 else GGMLQuantizationType.BF16)
        if tensor.ndim == 2:
            assert found.data.tobytes() == tensor.view(torch.uint8).numpy().tobytes()
    assert worst(checkpoint, tmp_path, "m.gguf") < F16_KL


def test_tensor_names(tmp_path: Path) -> None:
    names = tensor_names(read_checkpoint(make_student(tmp_path / "student", "Phi3", tie_word_embeddings=False)))
    assert names["lm_head.weight"] == "output.weight"
    assert names["model.layers.1.self_attn.qkv_proj.weight"] == "blk.1.attn_qkv.weight"
    assert names["model.layers.0.mlp.gate_up_proj.weight"] == "blk.0.ffn_up.weight"


def test_weights_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_student(tmp_path / "student")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][0, 0] = 1e6
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ExportError, match=r"down_proj\.weight is too large for f16"):
        write_gguf(read_checkpoint(folder), tmp_path / "m.gguf", precision="f16", context_length=128, name="t")
    assert not (tmp_path / "m.gguf").exists()


def test_quantizing_what_is_no_gguf_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"not a gguf file at all")
    with pytest.raises(ExportError, match=r"could not quantize .*broken\.gguf to q8_0") as caught:
        quantize_gguf(tmp_path / "broken.gguf", tmp_path / "out.gguf", "q8_0")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.gguf").exists()
    assert capfd.readouterr().err == ""
