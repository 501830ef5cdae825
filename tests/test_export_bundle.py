"""A whole export: the folder that comes out, the gates that it passed, and nothing at all when something fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the workshop extra")
pytest.importorskip("llama_cpp", reason="needs the gguf extra")

from conftest import ALL_VARIANTS, CONTEXT, PARITY_TEXTS

from pocketstill.bundle import Bundle
from pocketstill_export import ExportError, ExportResult, export
from pocketstill_export.checkpoint import read_checkpoint
from pocketstill_export.parity.measure import Parity, measure_parity

GENERATION = {"max_new_tokens": 16, "temperature": 0.0}
GGUF = ["gguf-f16", "gguf-q8_0"]


def run(checkpoint: Path, out: Path, variants: list[str] = GGUF, **changes: Any) -> ExportResult:
    settings = {
        "context_length": CONTEXT,
        "generation": GENERATION,
        "skills": {"coin": {"kind": "yes_no", "gate": 0.95}},
        "name": "tiny",
        "parity_texts": PARITY_TEXTS,
    }
    return export(checkpoint, out, variants=variants, **(settings | changes))


def parity(checkpoint: Path, folder: Path, engine: str) -> Parity:
    variants = [v for v in Bundle.load(folder, check=False).variants if v.name == engine]
    return measure_parity(read_checkpoint(checkpoint), folder, variants, PARITY_TEXTS, context_length=CONTEXT)


@pytest.fixture
def tampered(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "tampered"))


def test_folder_is_what_every_runtime_reads(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    def read(name: str) -> Any:
        return json.loads((tiny_bundle / name).read_text())

    assert (tiny_bundle / "tokenizer.json").read_bytes() == (tiny_checkpoint / "tokenizer.json").read_bytes()
    assert read("tokenizer_config.json")["chat_template"] == (tiny_bundle / "chat_template.jinja").read_text()
    assert read("generation_config.json")["eos_token_id"] == [0]
    genai = read("genai_config.json")
    assert genai["model"]["decoder"]["filename"] == "onnx/model_q4.onnx"
    assert genai["model"]["eos_token_id"] == [0]
    assert genai["model"]["bos_token_id"] == 0
    assert genai["search"]["max_length"] == CONTEXT
    assert read("config.json")["transformers.js_config"] == {
        "dtype": "q4",
        "use_external_data_format": {"model_q4.onnx": 1, "model.onnx": 1},
    }
    hidden = [path.name for path in tiny_bundle.rglob("*") if path.name.startswith(".")]
    assert hidden == []


def test_transformers_reads_the_same_ids_from_the_folder(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    own = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    loaded = AutoTokenizer.from_pretrained(tiny_bundle)
    for text in PARITY_TEXTS:
        assert loaded.encode(text, add_special_tokens=False) == own.encode(text).ids


def test_result_and_replacement(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / ".out.1.partial").mkdir()
    first = run(tiny_checkpoint, out)
    assert first.parity.passed
    assert [check.variant for check in first.parity.logits] == GGUF
    assert first.parity.logits[0].kl_max < first.parity.logits[1].kl_mean
    assert "cannot take" not in str(first.notes)
    json.dumps(first.to_dict())
    assert [v.name for v in Bundle.load(out).variants] == GGUF
    second = run(tiny_checkpoint, out, ["gguf-q4_k_m"], generation=GENERATION | {"temperature": 0.7})
    assert any("rows that their type cannot take" in note for note in second.notes)
    assert [path.name for path in out.glob("*.gguf")] == ["model-q4_k_m.gguf"]
    assert json.loads((out / "generation_config.json").read_text())["temperature"] == 0.7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ["gguf-q2"]}, "no variant 'gguf-q2'"),
        ({"variants": []}, "at least one"),
        ({"context_length": 100_000}, "2 to 256 positions"),
        ({"context_length": 1}, "2 to 256 positions"),
    ],
)
def test_wrong_requests(changes: dict[str, Any], message: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        run(tiny_checkpoint, tmp_path / "out", **({"variants": GGUF} | changes))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_files_is_left_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="holds other files"):
        run(tiny_checkpoint, tmp_path)
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("engine", ["onnx-fp32", "gguf-f16"])
def test_sound_bundles_pass(engine: str, tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    found = parity(tiny_checkpoint, tiny_bundle, engine)
    assert found.failures == ()
    assert found.passed


def test_a_tampered_tokenizer_is_found_out(tiny_checkpoint: Path, tampered: Path) -> None:
    path = tampered / "tokenizer.json"
    path.write_text(path.read_text().replace("{1,3}", ""))
    found = parity(tiny_checkpoint, tampered, "onnx-fp32")
    assert not found.passed
    assert found.failures[0].startswith("tokenizer.json: token ids differ: ")


def test_a_tampered_template_is_found_out(tiny_checkpoint: Path, tampered: Path) -> None:
    path = tampered / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|end|>", "<|end|> "))
    failures = " ".join(parity(tiny_checkpoint, tampered, "gguf-f16").failures)
    assert "rendered prompts differ" in failures


@pytest.mark.parametrize("file", ["generation_config.json", "genai_config.json"])
def test_lost_stop_ids_are_found_out(file: str, tiny_checkpoint: Path, tampered: Path) -> None:
    config = json.loads((tampered / file).read_text())
    config.get("model", config)["eos_token_id"] = [2]
    (tampered / file).write_text(json.dumps(config))
    failures = parity(tiny_checkpoint, tampered, "gguf-f16").failures
    assert len(failures) == 1
    assert failures[0].startswith(f"{file}: stop ids differ: [2] instead of [0]; likely cause: ")


def test_changed_weights_are_found_out(tiny_checkpoint: Path, tampered: Path) -> None:
    path = tampered / "onnx" / "model.onnx_data"
    data = bytearray(path.read_bytes())
    data[4096:8192] = data[8192:12288]
    path.write_bytes(data)
    failures = parity(tiny_checkpoint, tampered, "onnx-fp32").failures
    assert failures[0].startswith("onnx-fp32: logits differ: text ")


def test_an_unfaithful_export_never_comes_out(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketstill_export.gguf.write._permuted", lambda array, heads: array)
    with pytest.raises(ExportError, match="not faithful and was removed: gguf-f16: logits differ") as caught:
        run(tiny_checkpoint, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="file size limits as on Linux")
@pytest.mark.parametrize(
    ("variants", "limit"),
    [(["gguf-f16"], 50_000), (["gguf-q8_0"], 420_000), (["onnx-int4"], 90_000)],
)
def test_no_room_leaves_nothing(variants: list[str], limit: int, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A real limit on file sizes stands in for the full disk: the writes fail in the middle of a file."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(ExportError) as caught:
            run(tiny_checkpoint, tmp_path / "out", variants)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_leaves_nothing_that_looks_complete(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import sys; from pocketstill_export import export\n"
        f"export({str(tiny_checkpoint)!r}, {str(out)!r}, variants={GGUF!r}, context_length={CONTEXT},"
        f" generation={GENERATION!r}, skills={{}}, name='t')"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    with process.stderr as lines:
        for line in lines:
            if "writing gguf-q8_0" in line:
                process.send_signal(signal.SIGKILL)
                break
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert not out.exists()
    run(tiny_checkpoint, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_all_variants_of_the_fixture_are_there(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    assert [variant.name for variant in bundle.variants] == ALL_VARIANTS
    assert all(variant.bytes > 0 for variant in bundle.variants)
