"""llama.cpp's own tokenizer gives the student's ids, and a wrong pre-tokenizer name is found out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the workshop extra")
pytest.importorskip("llama_cpp", reason="needs the gguf extra")

from conftest import LLAMA3
from export_students import SHARED_TOKENIZERS, byte_level_tokenizer, gguf_variant, make_student

from pocketstill.engines import open_engine
from pocketstill_export.checkpoint import Checkpoint, read_checkpoint
from pocketstill_export.corpus import TEXTS
from pocketstill_export.errors import ExportError
from pocketstill_export.gguf import write_gguf
from pocketstill_export.parity_text import TextCheck, compare_ids, gguf_stop_ids
from pocketstill_export.pretokenizer import GPT2, QWEN2, pretokenizer_name

KINDS = {
    "gpt-2": {"pattern": None, "ignore_merges": False},
    "llama-bpe": {"pattern": LLAMA3, "ignore_merges": True},
    "smaug-bpe": {"pattern": LLAMA3, "ignore_merges": False},
    "qwen2": {"pattern": QWEN2, "ignore_merges": False},
    "smollm": {"pattern": None, "ignore_merges": False, "digits": True},
}


def student_with(folder: Path, tokenizer: Any) -> Checkpoint:
    source = folder / "tokenizer"
    source.mkdir(parents=True)
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    config = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    return read_checkpoint(make_student(folder / "student", tokenizer=source, **config))


def check_ids(checkpoint: Checkpoint, path: Path) -> TextCheck:
    from tokenizers import Tokenizer

    engine = open_engine(path.parent, gguf_variant("gguf-f32", path.name), threads=1)
    try:
        tokenizer = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
        return compare_ids(tokenizer, checkpoint, "gguf", engine.native_encode, TEXTS)
    finally:
        engine.close()


def written(checkpoint: Checkpoint, folder: Path) -> Path:
    path = folder / "model.gguf"
    write_gguf(checkpoint, path, precision="f32", context_length=64, name="t")
    return path


@pytest.mark.parametrize("name", KINDS)
def test_ids_equal_for_every_name(name: str, tmp_path: Path) -> None:
    checkpoint = student_with(tmp_path, byte_level_tokenizer(**KINDS[name]))
    assert pretokenizer_name(checkpoint.tokenizer) == name
    check = check_ids(checkpoint, written(checkpoint, tmp_path))
    assert check.difference is None
    assert check.passed


@pytest.mark.parametrize(("right", "wrong"), [("llama-bpe", "gpt-2"), ("gpt-2", "qwen2"), ("smaug-bpe", "qwen2")])
def test_a_wrong_name_is_found_out(right: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = student_with(tmp_path, byte_level_tokenizer(**KINDS[right]))
    monkeypatch.setattr("pocketstill_export.gguf_vocab.pretokenizer_name", lambda _: wrong)
    check = check_ids(checkpoint, written(checkpoint, tmp_path))
    assert not check.passed
    assert "at token" in str(check.difference)


def test_word_and_letter_tokenizer(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(make_student(tmp_path / "student"))
    path = written(checkpoint, tmp_path)
    assert check_ids(checkpoint, path).difference is None
    assert gguf_stop_ids(path) == {0}


def test_no_merges_at_all(tmp_path: Path) -> None:
    folder = make_student(tmp_path / "student")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    checkpoint = read_checkpoint(folder)
    assert check_ids(checkpoint, written(checkpoint, tmp_path)).difference is None


def test_further_stop_ids_reach_llama_cpp(tmp_path: Path) -> None:
    folder = make_student(tmp_path / "student", eos_token_id=[0, 3, 1])
    assert gguf_stop_ids(written(read_checkpoint(folder), tmp_path)) == {0, 1, 3}


def test_added_tokens_that_are_no_control_tokens(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer(**KINDS["llama-bpe"])
    tokenizer.add_tokens(["<tool>", "«x y»"])
    checkpoint = student_with(tmp_path, tokenizer)
    assert check_ids(checkpoint, written(checkpoint, tmp_path)).difference is None


def test_begin_token_that_the_post_processor_adds(tmp_path: Path) -> None:
    from gguf import GGUFReader
    from tokenizers import processors

    tokenizer = byte_level_tokenizer(**KINDS["llama-bpe"])
    tokenizer.post_processor = processors.TemplateProcessing("<|user|> $A", special_tokens=[("<|user|>", 1)])
    checkpoint = student_with(tmp_path, tokenizer)
    with pytest.raises(ExportError, match="which GGUF cannot say"):
        written(checkpoint, tmp_path)
    checkpoint.tokenizer_config["bos_token"] = "<|user|>"
    reader = GGUFReader(written(checkpoint, tmp_path))
    assert reader.fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert reader.fields["tokenizer.ggml.bos_token_id"].contents() == 1


@pytest.mark.parametrize(("name", "architecture"), [("gpt-2", "Llama"), ("qwen2", "Qwen2")])
def test_real_vocabularies(name: str, architecture: str, tmp_path: Path) -> None:
    source = SHARED_TOKENIZERS / name
    if not source.is_dir():
        pytest.skip(f"the real vocabulary {name} is not on this machine")
    eos = 50256 if name == "gpt-2" else 151643
    config = {"hidden_size": 32, "num_hidden_layers": 1, "eos_token_id": eos, "pad_token_id": eos}
    checkpoint = read_checkpoint(make_student(tmp_path / "student", architecture, tokenizer=source, **config))
    path = written(checkpoint, tmp_path)
    engine = open_engine(tmp_path, gguf_variant("gguf-f32", path.name), threads=1)
    try:
        prefix = source / f"ggml-vocab-{name}.gguf"
        texts = prefix.with_name(prefix.name + ".inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
        expected = prefix.with_name(prefix.name + ".out").read_text().splitlines()
        assert len(texts) > 40
        for text, ids in zip(texts, expected, strict=False):
            assert engine.native_encode(text) == [int(i) for i in ids.split()], text
    finally:
        engine.close()
    assert check_ids(checkpoint, path).difference is None


def changed(**changes: Any) -> dict[str, Any]:
    tokenizer = json.loads(byte_level_tokenizer(LLAMA3, ignore_merges=True).to_str())
    tokenizer["model"] |= changes.pop("model", {})
    return tokenizer | changes


SPLIT = {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (
            changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT, BYTES]}),
            r"splits by '\\\\w\+'",
        ),
        (
            changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Punctuation"}, BYTES]}),
            "Punctuation",
        ),
        (changed(pre_tokenizer=BYTES | {"add_prefix_space": True}), "prefix space"),
        (changed(pre_tokenizer=None), "does not end in ByteLevel"),
        (changed(normalizer={"type": "Lowercase"}), "normalizes text by Lowercase"),
        (changed(model={"byte_fallback": True}), "not a byte-level BPE"),
        (changed(model={"type": "Unigram"}), "not a byte-level BPE"),
        (changed(model={"dropout": 0.1}), "dropout"),
        (changed(added_tokens=[{"id": 0, "content": "<x>", "lstrip": True}]), "strips the text"),
    ],
)
def test_a_tokenizer_that_llama_cpp_lacks_is_refused(tokenizer: dict[str, Any], reason: str) -> None:
    with pytest.raises(ExportError, match=reason) as caught:
        pretokenizer_name(tokenizer)
    assert "\n" not in str(caught.value)


def test_ignored_merges_without_a_counterpart_are_refused() -> None:
    tokenizer = json.loads(byte_level_tokenizer(QWEN2, ignore_merges=True).to_str())
    with pytest.raises(ExportError, match="ignore_merges=True"):
        pretokenizer_name(tokenizer)


def test_gpt2_expression_written_out_is_gpt2() -> None:
    assert pretokenizer_name(json.loads(byte_level_tokenizer(GPT2, ignore_merges=False).to_str())) == "gpt-2"
