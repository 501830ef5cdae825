"""`pocketstill export CHECKPOINT`: what comes out, what is refused in one line, and the same bytes each time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the workshop extra")
pytest.importorskip("llama_cpp", reason="needs the gguf extra")

from conftest import CONTEXT, suite_rows
from export_students import SHARED_TOKENIZERS, make_student
from running import complaint_of, limited_to, pocketstill, result_of

import pocketstill as runtime
from pocketstill.bundle import Bundle
from pocketstill.errors import BundleError
from pocketstill_export import ExportError
from pocketstill_export.command import Request, export_command

TEXT = "The coin is heads up. Ana flips the coin. So the coin is tails up. Answer: no\n"


def texts(path: Path, rows: int = 40) -> Path:
    messages = [{"role": "user", "content": "Is the coin still heads up?"}]
    lines = [
        {"messages": messages, "completion": f"Ana{i} flips. Answer: no"} if i % 2 else {"text": TEXT * 3}
        for i in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_checkpoint_by_command(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    calibrate = texts(tmp_path / "texts.jsonl")
    variants = "onnx-int4,gguf-f16,gguf-q4_k_m"
    more = ("--license", "mit", "--teacher", "Anna", "--name", "tiny", "--max-new-tokens", "24")
    done = pocketstill(
        "export", tiny_checkpoint, "--out", out, "--variants", variants, "--calibrate", calibrate, *more
    )  # fmt: skip
    result = result_of(done)
    assert result["default"] == "onnx-int4"
    assert list(result["variants"]) == variants.split(",")
    bundle = Bundle.load(out)
    assert bundle.context_length == CONTEXT
    assert bundle.generation["max_new_tokens"] == 24
    card = (out / "MODEL_CARD.md").read_text()
    assert "license: mit" in card and "Anna" in card and "importance matrix over" in card
    assert (out / "Modelfile").read_text().startswith("FROM ./model-q4_k_m.gguf\n")
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["parity"]["passed"] and len(report["parity"]["logits"]) == 3
    page = Path(result["report"]).read_text(encoding="utf-8")
    assert "gguf-q4_k_m" in page and "http://" not in page.replace("http://www.w3.org", "")
    with runtime.load(out, "gguf-q4_k_m") as model:
        assert model.answer("Is the coin still heads up?", max_new_tokens=4).completion_tokens <= 4


def test_the_same_inputs_give_the_same_bytes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    calibrate = texts(tmp_path / "texts.jsonl")
    variants = "onnx-fp32,onnx-int4,onnx-int8,gguf-f16,gguf-q8_0,gguf-q4_k_m,gguf-iq4_xs"
    for name in ("one", "two"):
        export_command(
            Request(str(tiny_checkpoint), tmp_path / name / "out", variants, name="tiny", calibrate=calibrate)
        )
    assert hashes(tmp_path / "one" / "out") == hashes(tmp_path / "two" / "out")


def test_a_choice_keeps_what_was_chosen(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = export_command(
        Request(
            str(tiny_checkpoint),
            tmp_path / "out",
            "onnx-fp32,onnx-int8,gguf-f16,gguf-q8_0,gguf-q4_0",
            heldout=texts(tmp_path / "texts.jsonl"),
            max_kl=0.05,
        )
    )
    bundle = Bundle.load(tmp_path / "out")
    assert [variant.name for variant in bundle.variants] == [bundle.default] == [result["default"]]
    report = json.loads((tmp_path / "out.report.json").read_text())
    rows = {row["name"]: row for row in report["choice"]["candidates"]}
    within = {name for name, row in rows.items() if row["within"]}
    assert result["default"] in within
    assert rows[result["default"]]["bytes"] == min(rows[name]["bytes"] for name in within)
    assert {check["variant"] for check in report["parity"]["logits"]} == {bundle.default}
    with runtime.load(tmp_path / "out") as model:
        assert model.answer("Hello", max_new_tokens=2).completion_tokens <= 2


def test_a_tolerance_in_points_of_a_suite(tiny_checkpoint: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite.jsonl"
    suite.write_text("".join(json.dumps(row) + "\n" for row in suite_rows(4)))
    request = Request(
        str(tiny_checkpoint), tmp_path / "out", "gguf-f16,gguf-q8_0", max_new_tokens=8,
        heldout=texts(tmp_path / "t.jsonl"), max_points=100.0, suite=suite, keep="all",
    )  # fmt: skip
    export_command(request)
    assert {"gguf-f16", "gguf-q8_0"} <= {v.name for v in Bundle.load(tmp_path / "out").variants}


def test_nothing_within_the_budget(tiny_checkpoint: Path, tmp_path: Path) -> None:
    request = Request(
        str(tiny_checkpoint), tmp_path / "out", "gguf-q4_0", heldout=texts(tmp_path / "t.jsonl"), max_kl=1e-9
    )
    with pytest.raises(ExportError, match="gguf-"):
        export_command(request)
    assert not (tmp_path / "out").exists()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def a_pickle(folder: Path) -> None:
    no_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


def a_missing_shard(folder: Path) -> None:
    no_weights(folder)
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def not_a_number(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors")


def unknown(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["MambaForCausalLM"]}))


def a_link_out(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (no_weights, "safetensors"),
        (a_pickle, "pytorch_model.bin is a pickle"),
        (a_missing_shard, "model-00001-of-00002.safetensors is missing"),
        (not_a_number, "model.norm.weight holds NaN"),
        (unknown, "MambaForCausalLM"),
        (a_link_out, "link"),
    ],
)
def test_refused_in_one_line(
    damage: Callable[[Path], None], reason: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(tiny_checkpoint, tmp_path / "in" / "broken"))
    damage(broken)
    with pytest.raises(ExportError, match=reason) as caught:
        export_command(Request(str(broken), tmp_path / "place" / "out", "gguf-f16"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "place").exists() or list((tmp_path / "place").iterdir()) == []


def test_the_command_refuses_in_one_line_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny_checkpoint, tmp_path / "broken"))
    not_a_number(broken)
    assert "holds NaN" in complaint_of(pocketstill("export", broken, "--out", tmp_path / "out"))


@pytest.mark.skipif(os.name != "posix", reason="file size limits as on POSIX")
def test_a_full_disk_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "place" / "out"
    said = complaint_of(limited_to(90_000, "export", tiny_checkpoint, "--out", out, "--variants", "gguf-f16"))
    assert "no space left" in said
    assert list((tmp_path / "place").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"variants": "gguf-q4km"}, "did you mean gguf-q4_k_m"),
        ({"variants": "gguf-iq2_xs"}, "--calibrate"),
        ({"fastest": True}, "needs a tolerance"),
        ({"max_points": 1.0}, "belong together"),
        ({"max_kl": 0.1, "keep": "some"}, "chosen, front, all"),
        ({"tensor_types": ("attn_v",)}, "REGEX=TYPE"),
        ({"tensor_types": ("attn_v=q9",), "variants": "gguf-q4_0"}, "q9"),
        ({"template": "nowhere.jinja"}, "nowhere.jinja"),
        ({"calibrate": Path("nowhere.txt")}, "nowhere.txt"),
        ({"adapters": ("x",)}, "NAME=DIR"),
        ({"converter": Path("convert_hf_to_gguf.py"), "variants": "onnx-int4"}, "GGUF alone"),
    ],
)
def test_wrong_requests(changes: dict[str, Any], reason: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = {"variants": "gguf-f16"} | changes
    with pytest.raises(ExportError, match=reason) as caught:
        export_command(Request(str(tiny_checkpoint), tmp_path / "out", **settings))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_out_is_asked_for() -> None:
    assert "--out DIR" in complaint_of(pocketstill("export", "some-folder"))


def test_a_model_without_a_template(tmp_path: Path) -> None:
    source = SHARED_TOKENIZERS / "gpt-2"
    if not source.is_dir():
        pytest.skip("the real vocabulary gpt-2 is not on this machine")
    folder = make_student(tmp_path / "gpt2", "GPT2", tokenizer=source, hidden_size=32, eos_token_id=50256)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ExportError, match="--template"):
        export_command(Request(str(folder), tmp_path / "out", "gguf-f16"))
    export_command(Request(str(folder), tmp_path / "out", "gguf-f16", template="plain"))
    assert Bundle.load(tmp_path / "out").default == "gguf-f16"


def test_tensor_types(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader

    request = Request(str(tiny_checkpoint), tmp_path / "out", "gguf-q4_0", tensor_types=("attn_v=q8_0", "ffn_up=q5_1"))
    export_command(request)
    types = {t.name: t.tensor_type.name for t in GGUFReader(tmp_path / "out" / "model-q4_0.gguf").tensors}
    assert types["blk.0.attn_v.weight"] == "Q8_0"
    assert types["blk.1.ffn_up.weight"] == "Q5_1"
    assert types["blk.0.attn_k.weight"] == "Q4_0"


def lora(checkpoint: Path, folder: Path, seed: int) -> Path:
    """A PEFT adapter with weights that change the answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own
def test_adapters_are_kept_apart(tiny_checkpoint: Path, tmp_path: Path) -> None:
    one, two = (lora(tiny_checkpoint, tmp_path / f"lora{seed}", seed) for seed in (1, 2))
    request = Request(
        str(tiny_checkpoint), tmp_path / "out", "onnx-fp32,onnx-int4,gguf-f16", adapters=(f"one={one}", f"two={two}")
    )
    export_command(request)
    report = json.loads((tmp_path / "out.report.json").read_text())
    checked = {check["variant"] for check in report["parity"]["logits"]}
    assert {"gguf-f16+one", "onnx-fp32+two", "onnx-int4+two"} <= checked
    answers = set()
    for variant in ("onnx-fp32", "gguf-f16"):
        for adapter in (None, "one", "two"):
            with runtime.load(tmp_path / "out", variant, adapter=adapter) as model:
                answers.add((adapter, model.answer("Is the coin heads up?", max_new_tokens=12).text))
    # Three answers, and both engines give the same three.
    assert len(answers) == len({text for _, text in answers}) == 3
    with pytest.raises(BundleError, match="choose from: one, two"):
        runtime.load(tmp_path / "out", adapter="three")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own
@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("../evil", "", "../evil"),
        ("one", "adapter_config.json", "adapter_config.json"),
    ],
)
def test_adapters_are_refused_before_any_work(
    name: str, damage: str, reason: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = lora(tiny_checkpoint, tmp_path / "lora", 1)
    if damage:
        (adapter / damage).unlink()
    request = Request(str(tiny_checkpoint), tmp_path / "place" / "out", "gguf-f16", adapters=(f"{name}={adapter}",))
    with pytest.raises(ExportError, match=reason):
        export_command(request)
    assert "writing" not in capsys.readouterr().err
    assert list((tmp_path / "place").rglob("*")) == []


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own
def test_a_choice_keeps_the_adapters_of_what_it_keeps(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = lora(tiny_checkpoint, tmp_path / "lora", 1)
    request = Request(
        str(tiny_checkpoint),
        tmp_path / "out",
        "onnx-fp32,gguf-q8_0,gguf-q4_0",
        heldout=texts(tmp_path / "heldout.jsonl"),
        max_kl=0.1,
        adapters=(f"one={adapter}",),
    )
    export_command(request)
    bundle = Bundle.load(tmp_path / "out")
    assert bundle.default.startswith("gguf")
    assert [path.name for path in (tmp_path / "out" / "adapters").iterdir()] == ["one.gguf"]
    with runtime.load(tmp_path / "out", adapter="one") as model:
        assert model.answer("Is the coin heads up?", max_new_tokens=2).text


def test_an_architecture_that_only_llama_cpp_knows(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / ".peers" / "llama.cpp" / "convert_hf_to_gguf.py"
    source = SHARED_TOKENIZERS / "gpt-2"
    if not script.is_file() or not source.is_dir():
        pytest.skip("run `make peers`, and have the real vocabulary gpt-2 on this machine")
    ends = {"eos_token_id": 50256, "pad_token_id": 50256}
    # llama.cpp wants a head of its own of this one.
    folder = make_student(
        tmp_path / "olmo", "Olmo2", tokenizer=source, hidden_size=32, tie_word_embeddings=False, **ends
    )
    with pytest.raises(ExportError, match="--converter"):
        export_command(Request(str(folder), tmp_path / "out", "gguf-f16"))
    export_command(Request(str(folder), tmp_path / "out", "gguf-f16,gguf-q8_0", converter=script))
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["parity"]["passed"] and report["architecture"] == "Olmo2ForCausalLM"
