"""llama.cpp's own tokenizer gives the student's ids, and a wrong pre-tokenizer name is found out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the workshop extra")
pytest.importorskip("llama_cpp", reason="needs the gguf extra")

from conftest import LLAMA3
from export_students import (
    SHARED_TOKENIZERS,
    byte_level_tokenizer,
    gguf_variant,
    make_student,
    sentencepiece_tokenizer,
    trained_bpe,
    vocabulary_lines,
)

from pocketstill.engines import open_engine
from pocketstill_export.checkpoint import Checkpoint, read_checkpoint
from pocketstill_export.errors import ExportError
from pocketstill_export.gguf.pretokenizer import DIGIT, GPT2, KNOWN, PUNCTUATION, QWEN2, Known, pretokenizer_name
from pocketstill_export.gguf.write import write_gguf
from pocketstill_export.parity.corpus import TEXTS
from pocketstill_export.parity.text import TextCheck, compare_ids, gguf_stop_ids

KINDS = {
    "gpt-2": {"pattern": None, "ignore_merges": False},
    "llama-bpe": {"pattern": LLAMA3, "ignore_merges": True},
    "smaug-bpe": {"pattern": LLAMA3, "ignore_merges": False},
}


def student_with(folder: Path, tokenizer: Any) -> Checkpoint:
    source = folder / "tokenizer"
    source.mkdir(parents=True)
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    config = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    return read_checkpoint(make_student(folder / "student", tokenizer=source, **config))


def check_ids(checkpoint: Checkpoint, path: Path, more: list[str] | None = None) -> TextCheck:
    from tokenizers import Tokenizer

    engine = open_engine(path.parent, gguf_variant("gguf-f32", path.name), threads=1)
    try:
        tokenizer = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
        return compare_ids(tokenizer, checkpoint, "gguf", engine.native_encode, [*TEXTS, *(more or [])])
    finally:
        engine.close()


def written(checkpoint: Checkpoint, folder: Path) -> Path:
    path = folder / "model.gguf"
    write_gguf(checkpoint, path, precision="f32", context_length=64, name="t")
    return path


def splitting_as(known: Known, texts: list[str]) -> Any:
    """A tokenizer.json's usual steps for a pre-tokenizer of llama.cpp, and merges that show where it splits."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = []
    for pattern in known.patterns:
        if pattern == GPT2:
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
        elif pattern == PUNCTUATION:
            steps.append(pre_tokenizers.Punctuation("contiguous"))
        elif pattern == DIGIT or (pattern == r"\p{N}+" and GPT2 in known.patterns):
            steps.append(pre_tokenizers.Digits(individual_digits=pattern == DIGIT))
        else:
            steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    if GPT2 not in known.patterns:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return trained_bpe(steps, ignore_merges=known.ignore_merges, texts=[*TEXTS * 20, *texts * 10], size=3000)


@pytest.mark.parametrize("known", KNOWN, ids=[known.name for known in KNOWN])
def test_ids_equal_for_every_name(known: Known, tmp_path: Path) -> None:
    texts = [text for text, _ in vocabulary_lines("qwen2")] if SHARED_TOKENIZERS.is_dir() else []
    checkpoint = student_with(tmp_path, splitting_as(known, texts))
    assert pretokenizer_name(checkpoint.tokenizer, clean=known.clean) == known.name
    checkpoint.tokenizer_config["clean_up_tokenization_spaces"] = known.clean
    check = check_ids(checkpoint, written(checkpoint, tmp_path), texts)
    assert check.difference is None
    assert check.passed


@pytest.mark.parametrize(("right", "wrong"), [("llama-bpe", "gpt-2"), ("gpt-2", "qwen2"), ("smaug-bpe", "qwen2")])
def test_a_wrong_name_is_found_out(right: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = student_with(tmp_path, byte_level_tokenizer(**KINDS[right]))
    monkeypatch.setattr("pocketstill_export.gguf.vocab.pretokenizer_name", lambda *_, **__: wrong)
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


@pytest.mark.parametrize("name", ["gpt-2", "qwen2", "phi-3"])
def test_real_vocabularies(name: str, tmp_path: Path) -> None:
    """The ids of llama.cpp's own test files: in the Hugging Face form, and in the GGUF that we write."""
    from tokenizers import Tokenizer

    source = SHARED_TOKENIZERS / name
    if not source.is_dir():
        pytest.skip(f"the real vocabulary {name} is not on this machine")
    eos, architecture = {"gpt-2": (50256, "GPT2"), "qwen2": (151643, "Qwen2"), "phi-3": (32000, "Phi3")}[name]
    config = {"hidden_size": 32, "num_hidden_layers": 1, "eos_token_id": eos, "pad_token_id": eos}
    checkpoint = read_checkpoint(make_student(tmp_path / "student", architecture, tokenizer=source, **config))
    path = written(checkpoint, tmp_path)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    engine = open_engine(tmp_path, gguf_variant("gguf-f32", path.name), threads=1)
    try:
        lines = vocabulary_lines(name)
        assert len(lines) > 40
        for text, ids in lines:
            assert list(tokenizer.encode(text, add_special_tokens=False).ids) == ids, text
            assert engine.native_encode(text) == ids, text
    finally:
        engine.close()
    assert check_ids(checkpoint, path).difference is None


SPACES = [f"a{' ' * n}b{chr(10) * n}c{' ' * n}" for n in range(70)]


def spm_student(folder: Path, like: str, *, model: bool, **config: Any) -> Checkpoint:
    if not SHARED_TOKENIZERS.is_dir():
        pytest.skip("the real vocabulary phi-3 is not on this machine")
    source = sentencepiece_tokenizer(folder / "tokenizer", like=like, model=model)
    eos = 32000 if like == "phi-3" else 2
    config = {"hidden_size": 32, "num_hidden_layers": 1, "eos_token_id": eos, "pad_token_id": eos} | config
    return read_checkpoint(make_student(folder / "student", tokenizer=source, **config))


@pytest.mark.parametrize("model", [False, True], ids=["scores from merges", "scores of tokenizer.model"])
@pytest.mark.parametrize("like", ["phi-3", "mistral", "gemma"])
def test_sentencepiece_ids(like: str, model: bool, tmp_path: Path) -> None:
    checkpoint = spm_student(tmp_path, like, model=model)
    texts = [*SPACES, *(text for text, _ in vocabulary_lines("phi-3"))]
    check = check_ids(checkpoint, written(checkpoint, tmp_path), texts)
    assert check.difference is None
    assert check.compared > 150


def test_scores_of_another_model_are_not_taken(tmp_path: Path) -> None:
    """tokenizer.json is what transformers reads; a tokenizer.model that would merge otherwise is left aside."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    checkpoint = spm_student(tmp_path, "mistral", model=True)
    path = checkpoint.folder / "tokenizer.model"
    message = proto.ModelProto()
    message.ParseFromString(path.read_bytes())
    for piece in message.pieces:
        piece.score = -piece.score
    path.write_bytes(message.SerializeToString())
    assert check_ids(checkpoint, written(checkpoint, tmp_path), SPACES).difference is None
    path.write_bytes(path.read_bytes()[:1000])
    assert check_ids(checkpoint, written(checkpoint, tmp_path), SPACES).difference is None


def test_white_space_after_special_tokens(tmp_path: Path) -> None:
    """llama.cpp drops it by the name of the model: ours must have one that does as the tokenizer does."""
    checkpoint = spm_student(tmp_path, "phi-3", model=False)
    texts = ["<|user|>\n Hi<|end|>\n\n<|assistant|>  \t", "<s>  a</s> \n b<|endoftext|>  c"]
    for name in ("pocket", "My Phi-3 student"):
        path = tmp_path / "model.gguf"
        write_gguf(checkpoint, path, precision="f16", context_length=64, name=name)
        assert check_ids(checkpoint, path, texts).difference is None
    for token in checkpoint.tokenizer["added_tokens"]:
        token["rstrip"] = False
    (checkpoint.folder / "tokenizer.json").write_text(json.dumps(checkpoint.tokenizer))
    checkpoint = read_checkpoint(checkpoint.folder)
    write_gguf(checkpoint, path, precision="f16", context_length=64, name="phi3 again")
    assert check_ids(checkpoint, path, texts).difference is None
    checkpoint.tokenizer["added_tokens"][5]["rstrip"] = True
    with pytest.raises(ExportError, match="strips white space after all special tokens or after none"):
        written(checkpoint, tmp_path)


def test_stop_ids_beyond_the_three_keys(tmp_path: Path) -> None:
    folder = make_student(tmp_path / "student", eos_token_id=[0, 3, 1, 2, 9, 10])
    assert gguf_stop_ids(written(read_checkpoint(folder), tmp_path)) == {0, 1, 2, 3, 9, 10}
    folder = make_student(tmp_path / "student", eos_token_id=[0, 3, 1, 2, 9, 10, 11])
    with pytest.raises(ExportError, match="7 stop ids"):
        written(read_checkpoint(folder), tmp_path)


def test_two_ids_of_one_text_are_refused(tmp_path: Path) -> None:
    folder = make_student(tmp_path / "student")
    checkpoint = read_checkpoint(folder)
    checkpoint.tokenizer["model"]["vocab"] |= {"<|gone|>": 4}
    checkpoint.tokenizer["added_tokens"].append({"id": 5, "content": "<|gone|>"})
    with pytest.raises(ExportError, match=r"two ids are '<\|gone\|>'"):
        written(checkpoint, tmp_path)


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


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_expressions_that_llama_cpp_only_comes_near_to_are_refused(ignore_merges: bool) -> None:
    letters = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    words = (rf"[^\r\n\p{{L}}\p{{N}}]?{letters[0]}*{letters[1]}+", rf"[^\r\n\p{{L}}\p{{N}}]?{letters[0]}+{letters[1]}*")
    tekken = "|".join([*words, r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"])
    tokenizer = json.loads(byte_level_tokenizer(tekken, ignore_merges=ignore_merges).to_str())
    with pytest.raises(ExportError, match="cuts letters from their combining marks"):
        pretokenizer_name(tokenizer)


SPM_CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "a missing byte": ({"drop": "<0x41>"}, "lacks the byte token <0x41>"),
    "a normalizer": ({"normalizer": {"type": "NFKC"}}, "normalizes text by NFKC"),
    "a prefix at the start alone": (
        {
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Metaspace",
                "replacement": "\u2581",
                "prepend_scheme": "first",
                "split": False,
            },
        },
        "prepends a space by the rule 'first'",
    ),
    "a splitter": ({"pre_tokenizer": {"type": "Whitespace"}}, "has a Whitespace step"),
    "a lost merge": ({"merges": lambda merges: merges[1:]}, "but no merge of the two"),
    "merges that no scores order": (
        {"merges": lambda merges: merges[::2] + merges[1::2]},
        "not in the order of any scores",
    ),
}


@pytest.mark.parametrize("change", SPM_CHANGES)
def test_a_sentencepiece_tokenizer_that_llama_cpp_lacks_is_refused(change: str, tmp_path: Path) -> None:
    checkpoint = spm_student(tmp_path, "mistral", model=False)
    changes, reason = SPM_CHANGES[change]
    for key, value in changes.items():
        if key == "drop":
            del checkpoint.tokenizer["model"]["vocab"][value]
        elif key == "merges":
            checkpoint.tokenizer["model"]["merges"] = value(checkpoint.tokenizer["model"]["merges"])
        else:
            checkpoint.tokenizer[key] = value
    with pytest.raises(ExportError, match=reason) as caught:
        written(checkpoint, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["Unigram", "WordPiece", "WordLevel"])
def test_other_kinds_of_tokenizers_are_refused(kind: str, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(make_student(tmp_path / "student"))
    checkpoint.tokenizer["model"]["type"] = kind
    with pytest.raises(ExportError, match=f"not a byte-level BPE but {kind}"):
        written(checkpoint, tmp_path)
