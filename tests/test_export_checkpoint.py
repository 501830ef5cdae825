"""A checkpoint that cannot be exported faithfully is refused in one line that says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the workshop extra")

from export_students import make_student

from pocketstill_export.checkpoint import read_checkpoint
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
    with pytest.raises(ExportError, match="MambaForCausalLM cannot be exported; choose one of LlamaForCausalLM"):
        read_checkpoint(student)


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
        ("chat_template.jinja", "no chat template"),
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
