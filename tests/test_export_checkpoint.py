"""A checkpoint that cannot be exported faithfully is refused in one line that says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the workshop extra")

from export_students import make_student

from pocketstill_export.checkpoint import ARCHITECTURES, PLAIN_TEMPLATE, read_checkpoint
from pocketstill_export.errors import ExportError


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("sound") / "student")


@pytest.fixture
def student(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "student"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(folder: Path, change: Callable[[dict], None]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_reads_a_sound_one(student: Path) -> None:
    checkpoint = read_checkpoint(student)
    assert checkpoint.stop_ids == (0,)
    assert checkpoint.tied
    assert {name for name, _ in checkpoint.tensors()} == set(checkpoint.shapes)


def test_stop_ids_are_gathered_from_every_file(student: Path) -> None:
    edit(student / "generation_config.json", eos_token_id=[2, 1])
    assert read_checkpoint(student).stop_ids == (2, 1, 0)


def test_refuses_pickle(student: Path) -> None:
    (student / "model.safetensors").rename(student / "pytorch_model.bin")
    with pytest.raises(ExportError, match="is a pickle, which can run code"):
        read_checkpoint(student)


def test_refuses_missing_shard(student: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(student)
    (student / "model.safetensors").unlink()
    model.save_pretrained(student, max_shard_size="100KB")
    shards = sorted(student.glob("model-*.safetensors"))
    assert len(shards) > 1
    read_checkpoint(student)
    shards[-1].unlink()
    with pytest.raises(ExportError, match=f"{shards[-1].name} is missing"):
        read_checkpoint(student)


def test_refuses_a_shard_outside_of_the_folder(student: Path) -> None:
    (student / "model.safetensors").rename(student.parent / "w.safetensors")
    index = {"weight_map": {"model.norm.weight": "../w.safetensors"}}
    (student / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ExportError, match="outside"):
        read_checkpoint(student)


def test_refuses_a_file_cut_short(student: Path) -> None:
    path = student / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ExportError, match="not a whole safetensors file"):
        read_checkpoint(student)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_weights_that_are_no_numbers(student: Path, value: float) -> None:
    def spoil(tensors: dict) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value

    rewrite(student, spoil)
    with pytest.raises(ExportError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinite"):
        read_checkpoint(student)


def test_refuses_a_missing_weight(student: Path) -> None:
    rewrite(student, lambda tensors: tensors.pop("model.layers.0.self_attn.k_proj.weight"))
    with pytest.raises(ExportError, match=r"layers\.0\.self_attn\.k_proj\.weight is missing"):
        read_checkpoint(student)


def test_refuses_a_weight_without_a_place(student: Path) -> None:
    rewrite(student, lambda tensors: tensors.update({"score.weight": tensors["model.norm.weight"].clone()}))
    with pytest.raises(ExportError, match=r"score\.weight has no place"):
        read_checkpoint(student)


def test_refuses_a_config_of_another_shape(student: Path) -> None:
    edit(student / "config.json", intermediate_size=128)
    with pytest.raises(ExportError, match=r"config\.json wants \(64, 128\)"):
        read_checkpoint(student)


def test_refuses_an_unknown_architecture(student: Path) -> None:
    edit(student / "config.json", architectures=["MambaForCausalLM"])
    with pytest.raises(
        ExportError, match="MambaForCausalLM cannot be exported; choose one of LlamaForCausalLM"
    ) as caught:
        read_checkpoint(student)
    assert "--converter PATH of its convert_hf_to_gguf.py" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refuses_quantized_weights(student: Path) -> None:
    edit(student / "config.json", quantization_config={"quant_method": "gptq"})
    with pytest.raises(ExportError, match="quantized weights"):
        read_checkpoint(student)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "not a checkpoint"),
        ("tokenizer.json", r"no tokenizer\.json"),
        ("model.safetensors", r"no model\.safetensors"),
        ("chat_template.jinja", "no chat template; give one with --template FILE, or --template plain"),
    ],
)
def test_refuses_a_missing_file(student: Path, file: str, message: str) -> None:
    (student / file).unlink()
    with pytest.raises(ExportError, match=message):
        read_checkpoint(student)


def test_refuses_a_tokenizer_beyond_the_embedding(student: Path) -> None:
    tokenizer = json.loads((student / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["toolarge"] = 5000
    (student / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ExportError, match="token id 5000 has no row"):
        read_checkpoint(student)


def test_every_refusal_is_one_line(student: Path) -> None:
    (student / "config.json").write_text("{")
    with pytest.raises(Exception, match=r"config\.json") as caught:
        read_checkpoint(student)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("architecture", ["Mistral", "Qwen2", "Qwen3", "Gemma3", "Phi3", "GPT2"])
def test_reads_every_architecture(architecture: str, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(make_student(tmp_path / "student", architecture))
    assert checkpoint.architecture in ARCHITECTURES
    assert [name for name, _ in checkpoint.tensors()] == list(checkpoint.shapes)


def test_a_base_model_saved_alone_has_its_names_in_full(tmp_path: Path) -> None:
    """As openai-community/gpt2 is stored: no `transformer.` before the names, and the masks among the weights."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = make_student(tmp_path / "student", "GPT2")
    whole = dict(read_checkpoint(folder).tensors())

    def strip(tensors: dict) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)

    rewrite(folder, strip)
    AutoModelForCausalLM.from_pretrained(folder)
    checkpoint = read_checkpoint(folder)
    found = dict(checkpoint.tensors())
    assert set(found) == set(whole) == set(checkpoint.shapes)
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_a_template_can_be_given(student: Path) -> None:
    assert read_checkpoint(student, template="{{ 1 }}").template == "{{ 1 }}"
    (student / "chat_template.jinja").unlink()
    assert read_checkpoint(student, template=PLAIN_TEMPLATE).template == PLAIN_TEMPLATE


def test_the_plain_template_only_continues() -> None:
    from pocketstill.template import render

    assert render(PLAIN_TEMPLATE, [{"role": "user", "content": "Once upon"}], add_generation_prompt=True) == "Once upon"


def test_any_architecture_when_the_converter_is_named(tmp_path: Path) -> None:
    folder = make_student(tmp_path / "student", "Olmo2")
    with pytest.raises(ExportError, match="Olmo2ForCausalLM cannot be exported"):
        read_checkpoint(folder)
    checkpoint = read_checkpoint(folder, any_architecture=True)
    assert checkpoint.architecture == "Olmo2ForCausalLM"
    assert {name for name, _ in checkpoint.tensors()} == set(checkpoint.shapes)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "notes.json"])
def test_refuses_a_link_out_of_the_folder(name: str, student: Path) -> None:
    outside = student.parent / "elsewhere"
    if (student / name).exists():
        (student / name).rename(outside)
    else:
        outside.write_text("{}")
    (student / name).symlink_to(outside)
    with pytest.raises(ExportError, match=f"{name} is a link that leads out of") as caught:
        read_checkpoint(student)
    assert "\n" not in str(caught.value)


def hub_cache(student: Path, home: Path) -> Path:
    """The checkpoint as the hub's cache holds it: blobs, and a snapshot of links to them."""
    snapshot = home / "models--me--student" / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (blobs := snapshot.parents[1] / "blobs").mkdir()
    for number, path in enumerate(sorted(student.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_links_of_the_hubs_cache_are_allowed(student: Path, tmp_path: Path) -> None:
    snapshot = hub_cache(student, tmp_path / "hub")
    assert read_checkpoint(snapshot).stop_ids == (0,)
    (tmp_path / "link").symlink_to(snapshot)
    assert read_checkpoint(tmp_path / "link").stop_ids == (0,)


def test_links_to_another_model_of_the_hubs_cache_are_refused(student: Path, tmp_path: Path) -> None:
    snapshot = hub_cache(student, tmp_path / "hub")
    other = tmp_path / "hub" / "models--me--other"
    other.mkdir()
    (snapshot / "model.safetensors").resolve().rename(other / "weights")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(other / "weights")
    with pytest.raises(ExportError, match=r"model\.safetensors is a link that leads out of"):
        read_checkpoint(snapshot)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_no_number_is_found_in_every_precision(dtype: str, value: float, student: Path) -> None:
    import torch

    def spoil(tensors: dict) -> None:
        for name in tensors:
            tensors[name] = tensors[name].to(getattr(torch, dtype))
        tensors["model.embed_tokens.weight"][-1, -1] = value

    rewrite(student, spoil)
    with pytest.raises(ExportError, match=r"embed_tokens\.weight holds NaN or infinite"):
        read_checkpoint(student)
