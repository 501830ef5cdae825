"""A tokenizer that was damaged in one of the ways that the field knows: the first difference and its cause."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the workshop extra")

from export_students import byte_level_tokenizer, gguf_variant, make_student

from pocketstill.engines import open_engine
from pocketstill_export.checkpoint import Checkpoint, read_checkpoint
from pocketstill_export.gguf.pretokenizer import LLAMA3, QWEN2
from pocketstill_export.gguf.write import write_gguf
from pocketstill_export.parity.causes import ids_cause
from pocketstill_export.parity.corpus_lines import corpus_lines
from pocketstill_export.parity.text import TextCheck, compare_ids

Json = dict[str, Any]


def trained(pattern: str) -> Any:
    """A byte-level BPE that has seen digits, contractions and words often enough to merge them."""
    from tokenizers import AddedToken, trainers

    tokenizer = byte_level_tokenizer(pattern, ignore_merges=False)
    trainer = trainers.BpeTrainer(
        vocab_size=2000, show_progress=False, initial_alphabet=list(tokenizer.get_vocab()), special_tokens=["<|end|>"]
    )
    numbers = [f"{i * 7919 % 1000:03} {i} 12345 it's they'll IT'S WE'LL the The café \u00e9" for i in range(1000)]
    tokenizer.train_from_iterator([*numbers, *corpus_lines()], trainer)
    tokenizer.add_special_tokens([AddedToken("<|user|>", special=True, normalized=False)])
    return tokenizer


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("student")
    (folder / "tokenizer").mkdir()
    trained(LLAMA3).save(str(folder / "tokenizer" / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    return read_checkpoint(make_student(folder / "checkpoint", tokenizer=folder / "tokenizer"))


def tokenizer_of(document: Json) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(document))


def damaged(student: Checkpoint, damage: Callable[[Json], None], *texts: str, special: bool = False) -> TextCheck:
    """The ids of a tokenizer that was damaged against the student's, over the whole corpus or `texts`."""
    document = copy.deepcopy(student.tokenizer)
    damage(document)
    other = tokenizer_of(document)

    def encode(text: str) -> list[int]:
        return list(other.encode(text, add_special_tokens=special).ids)

    return compare_ids(tokenizer_of(student.tokenizer), student, "gguf-f16", encode, texts or corpus_lines())


def pattern_to(new: str) -> Callable[[Json], None]:
    def damage(document: Json) -> None:
        document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = new

    return damage


def around(start: bool) -> Callable[[Json], None]:
    token: Json = {"SpecialToken": {"id": "<|end|>", "type_id": 0}}
    text: Json = {"Sequence": {"id": "A", "type_id": 0}}

    def damage(document: Json) -> None:
        end_id = next(t["id"] for t in document["added_tokens"] if t["content"] == "<|end|>")
        document["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [token, text] if start else [text, token],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [end_id], "tokens": ["<|end|>"]}},
        }

    return damage


def without_user(document: Json) -> None:
    document["added_tokens"] = [t for t in document["added_tokens"] if t["content"] != "<|user|>"]


def with_merges_lost(document: Json) -> None:
    document["model"]["merges"] = document["model"]["merges"][:300]


def shifted(document: Json) -> None:
    vocabulary = document["model"]["vocab"]
    first = max(t["id"] for t in document["added_tokens"] if t["id"] < 10) + 1
    names = sorted((name for name, i in vocabulary.items() if first <= i < 200), key=vocabulary.__getitem__)
    for name, other in zip(names, [*names[1:], names[0]], strict=True):
        vocabulary[other] = first + names.index(name)


def normalizer(kind: str) -> Callable[[Json], None]:
    def damage(document: Json) -> None:
        document["normalizer"] = {"type": kind} | ({"strip_left": True, "strip_right": True} if kind == "Strip" else {})

    return damage


def prefix_space(document: Json) -> None:
    document["pre_tokenizer"]["pretokenizers"][-1]["add_prefix_space"] = True


NO_CONTRACTIONS = LLAMA3.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)|", "")
FAULTS: dict[str, tuple[Callable[[Json], None], str]] = {
    "single digits": (pattern_to(QWEN2), "digits are grouped otherwise"),
    "contractions": (pattern_to(NO_CONTRACTIONS), "contractions are split otherwise"),
    "blanks": (pattern_to(LLAMA3.replace(r"\s+(?!\S)|", "")), "blanks are split otherwise"),
    "marks": (pattern_to(LLAMA3.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+")), "combining marks are split otherwise"),
    "an added token": (without_user, "'<|user|>' was read as plain text"),
    "merges": (with_merges_lost, "merges or ignore_merges differ"),
    "ids": (shifted, "the ids are shifted or permuted"),
    "lowercase": (normalizer("Lowercase"), "casing differs"),
    "normalization": (normalizer("NFC"), "NFC normalization was added"),
    "stripped": (normalizer("Strip"), "blanks are dropped"),
    "prefix": (prefix_space, "the leading space was added"),
}  # fmt: skip
TEXTS_OF = {
    "single digits": ["the coin", "12345 coins"],
    "contractions": ["the coin", "so it'very fine."],
    "blanks": ["the coin", "x    y"],
    "marks": ["the coin", "सुबह हम बाज़ार गए और ताज़ी रोटी"],
    "an added token": ["the coin", "a<|user|>b"],
    "stripped": ["the coin", "x\n", "the coin\t"],
    "normalization": ["the coin", "e\u0301"],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_tokenizer_is_found_by_the_corpus(fault: str, student: Checkpoint) -> None:
    check = damaged(student, FAULTS[fault][0])
    assert not check.passed
    assert check.difference
    assert check.cause


@pytest.mark.parametrize("fault", FAULTS)
def test_its_cause_is_named(fault: str, student: Checkpoint) -> None:
    damage, words = FAULTS[fault]
    check = damaged(student, damage, *TEXTS_OF.get(fault, ["the coin is heads", "The café"]))
    assert not check.passed
    assert words in str(check.cause)


@pytest.mark.parametrize(("start", "words"), [(True, "a begin token was added"), (False, "an end token was added")])
def test_a_token_around_the_text_is_named(start: bool, words: str, student: Checkpoint) -> None:
    check = damaged(student, around(start), special=True)
    assert words in str(check.cause)


def test_nothing_damaged_passes(student: Checkpoint) -> None:
    check = damaged(student, lambda document: None)
    assert check.passed
    assert check.compared > 2_000


def test_a_wrong_pre_tokenizer_name_in_gguf_is_named(student: Checkpoint, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("pocketstill_export.gguf.vocab.pretokenizer_name", lambda *_, **__: "qwen2")
    write_gguf(student, tmp_path / "x.gguf", precision="f16", context_length=64, name="x")
    engine = open_engine(tmp_path, gguf_variant("gguf-f16", "x.gguf"), threads=1)
    tokenizer = tokenizer_of(student.tokenizer)
    texts = ["The coin", "I have 12345 coins", *corpus_lines()]
    check = compare_ids(tokenizer, student, "gguf-f16", engine.native_encode, texts)
    engine.close()
    assert not check.passed
    wanted = tokenizer.encode("I have 12345 coins").ids
    at = next(i for i, token in enumerate(wanted) if tokenizer.id_to_token(token).startswith("1"))
    assert str(check.difference).startswith(f"'I have 12345 coins' at token {at}: [")
    assert f"instead of [{wanted[at]}, {wanted[at + 1]}," in str(check.difference)
    assert "digits are grouped otherwise" in str(check.cause)
    assert "tokenizer.ggml.pre" in str(check.cause)


def test_a_difference_in_a_long_text_shows_the_place(student: Checkpoint) -> None:
    text = "the coin is heads " * 20 + "12345 and " + "so on " * 20
    check = damaged(student, pattern_to(QWEN2), text)
    assert "12345" in str(check.difference)
    assert len(str(check.difference)) < 250


def sentence_piece(byte_fallback: bool, prefix: bool = True) -> Any:
    """A small tokenizer of the SentencePiece kind: a prefix space, blanks as letters, bytes for what is unknown."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "a", "b", "\u2581a"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    model = models.BPE(vocabulary, [("\u2581", "a")], unk_token="<unk>", byte_fallback=byte_fallback, fuse_unk=True)
    tokenizer = Tokenizer(model)
    steps = [normalizers.Prepend("\u2581")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    return tokenizer


def test_lost_byte_fallback_is_named() -> None:
    sound, broken = sentence_piece(True), sentence_piece(False)
    cause = ids_cause("a 漢", sound.encode("a 漢").ids, broken.encode("a 漢").ids, sound)
    assert cause.startswith("byte fallback")


def test_a_lost_leading_space_is_named() -> None:
    sound, broken = sentence_piece(True), sentence_piece(True, prefix=False)
    cause = ids_cause("a b", sound.encode("a b").ids, broken.encode("a b").ids, sound)
    assert cause == "the leading space was lost (add_space_prefix, prefix space)"


def test_missing_normalization_is_named(student: Checkpoint) -> None:
    plain = tokenizer_of(student.tokenizer)
    sound = tokenizer_of(student.tokenizer | {"normalizer": {"type": "NFC"}})
    text = "cafe\u0301"
    assert ids_cause(text, sound.encode(text).ids, plain.encode(text).ids, sound).startswith(
        "NFC normalization is missing"
    )


def test_a_normalizing_student_is_compared_over_normalized_text(student: Checkpoint) -> None:
    plain = tokenizer_of(student.tokenizer)
    document = student.tokenizer | {"normalizer": {"type": "NFC"}}

    def passes(tokenizer_json: Json) -> bool:
        changed = replace(student, tokenizer=tokenizer_json)
        encode = lambda text: list(plain.encode(text).ids)  # noqa: E731
        return compare_ids(tokenizer_of(document), changed, "gguf", encode, ["cafe\u0301"]).passed

    assert passes(document)
    assert not passes(student.tokenizer)


@pytest.mark.parametrize("text", ["x\n \n y", "a\u0085b"])
def test_a_known_fault_of_genai_is_counted_and_is_no_failure_there_alone(text: str, student: Checkpoint) -> None:
    tokenizer = tokenizer_of(student.tokenizer)

    def encode(given: str) -> list[int]:
        ids = list(tokenizer.encode(given, add_special_tokens=False).ids)
        return [*ids, 3] if given == text else ids

    assert compare_ids(tokenizer, student, "gguf-f16", encode, [text]).passed is False
    check = compare_ids(tokenizer, student, "onnx-int4", encode, [text, "a b"])
    assert (check.passed, check.known) == (True, 1)
    assert not compare_ids(tokenizer, student, "onnx-int4", lambda _: [3], ["a b"]).passed


def test_pieces_that_were_split_before_merging_are_named() -> None:
    from tokenizers import pre_tokenizers

    sound, split = sentence_piece(True), sentence_piece(True)
    split.pre_tokenizer = pre_tokenizers.Split("\u2581", "isolated")
    cause = ids_cause("a b", sound.encode("a b").ids, split.encode("a b").ids, sound)
    assert cause.startswith("pieces are merged otherwise")
