"""The figures of parity against torch's own KL, and the comparison of ids against hand-made encoders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the workshop extra")

import torch
from export_students import make_student

from pocketstill_export.checkpoint import read_checkpoint
from pocketstill_export.parity import compare_logits
from pocketstill_export.parity_text import compare_ids


def random_logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(400, 50)).astype(np.float32) * 3


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(torch.log_softmax(torch.tensor(logits, dtype=torch.float64), -1).numpy())


def test_figures_are_those_of_torch() -> None:
    reference, found = random_logits(0), random_logits(0) + 0.1 * random_logits(1)
    ids = [[1] * 300, [2] * 100]
    expected = [log_softmax(reference[:300]), log_softmax(reference[300:])]
    parts = {1: found[:300], 2: found[300:]}
    check = compare_logits("onnx-int4", lambda sequence: parts[sequence[0]], ids, expected)
    kl = torch.nn.functional.kl_div(
        torch.tensor(log_softmax(found)), torch.tensor(log_softmax(reference)), log_target=True, reduction="none"
    ).sum(-1)
    assert check.tokens == 400
    assert check.kl_mean == pytest.approx(float(kl.mean()), rel=1e-9)
    assert check.kl_max == pytest.approx(float(kl.max()), rel=1e-9)
    assert check.kl_p999 == pytest.approx(float(torch.quantile(kl, 0.999)), rel=1e-9)
    assert check.top1 == np.mean(reference.argmax(-1) == found.argmax(-1))
    assert check.passed
    assert check.bound is None


def test_an_unquantized_variant_is_held_to_its_bound() -> None:
    reference = random_logits(0)
    worse = reference.copy()
    worse[7, reference[7].argmax()] -= 1.0
    check = compare_logits("onnx-fp32", lambda _: worse, [[1] * 400], [log_softmax(reference)])
    assert not check.passed
    assert str(check.difference).startswith("text 0, token 7, KL ")


def test_numbers_that_are_none_fail_even_quantized() -> None:
    broken = random_logits(0)
    broken[5] = np.nan
    check = compare_logits("onnx-int4", lambda _: broken, [[1] * 400], [log_softmax(random_logits(0))])
    assert not check.passed
    assert check.difference == "text 0, token 5 is no number"


def test_a_vocabulary_of_another_size_fails() -> None:
    check = compare_logits(
        "gguf-q8_0", lambda _: random_logits(0)[:, :40], [[1] * 400], [log_softmax(random_logits(0))]
    )
    assert not check.passed
    assert "shape (400, 40)" in str(check.difference)


def test_first_difference_is_named(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    checkpoint = read_checkpoint(make_student(tmp_path / "student"))
    tokenizer = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))

    def encode(text: str) -> list[int]:
        ids = list(tokenizer.encode(text).ids)
        return ids if "coin" not in text else [*ids[:2], 9, *ids[3:]]

    check = compare_ids(tokenizer, checkpoint, "gguf-f16", encode, ["heads", "The coin is", "The coin"])
    assert not check.passed
    assert str(check.difference).startswith("'The coin is' at token 2: [9")


def test_a_normalizing_student_is_compared_over_normalized_text(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, normalizers

    checkpoint = read_checkpoint(make_student(tmp_path / "student"))
    plain = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
    normalizing = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
    normalizing.normalizer = normalizers.NFC()
    texts = ["caf\u0065\u0301"]

    def passes(tokenizer_json: dict) -> bool:
        changed = replace(checkpoint, tokenizer=tokenizer_json)
        return compare_ids(normalizing, changed, "gguf", lambda t: list(plain.encode(t).ids), texts).passed

    assert passes(checkpoint.tokenizer | {"normalizer": {"type": "NFC"}})
    assert not passes(checkpoint.tokenizer)
