"""The figures of parity against torch, scipy and transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the workshop extra")

import torch
from conftest import CONTEXT, PARITY_TEXTS
from export_students import make_student

from pocketstill.bundle import Bundle
from pocketstill_export.checkpoint import read_checkpoint
from pocketstill_export.parity.corpus import TEXTS
from pocketstill_export.parity.logits import (
    compare_logits,
    information,
    load_reference,
    quantile_error,
    standard_error,
)
from pocketstill_export.parity.measure import Parity, affordable_tokens, measure_parity


def random_logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(400, 50)).astype(np.float32) * 3


def torch_log_softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(torch.log_softmax(torch.tensor(logits, dtype=torch.float64), -1).numpy())


def test_figures_are_those_of_torch() -> None:
    reference, found = random_logits(0), random_logits(0) + 0.1 * random_logits(1)
    ids = [[1] * 300, [2] * 100]
    expected = [torch_log_softmax(reference[:300]), torch_log_softmax(reference[300:])]
    parts = {1: found[:300], 2: found[300:]}
    check = compare_logits("onnx-int4", lambda sequence: parts[sequence[0]], ids, expected)
    kl = torch.nn.functional.kl_div(
        torch.tensor(torch_log_softmax(found)),
        torch.tensor(torch_log_softmax(reference)),
        log_target=True,
        reduction="none",
    ).sum(-1)
    assert check.tokens == 400
    assert check.kl_mean == pytest.approx(float(kl.mean()), rel=1e-9)
    assert check.kl_max == pytest.approx(float(kl.max()), rel=1e-9)
    assert check.kl_p999 == pytest.approx(float(torch.quantile(kl, 0.999)), rel=1e-9)
    assert check.top1 == np.mean(reference.argmax(-1) == found.argmax(-1))
    assert check.passed
    assert check.bound is None
    assert min(check.kl_mean_error, check.kl_p999_error, check.top1_error) > 0


def one_token_texts(values: np.ndarray) -> list[np.ndarray]:
    return [values[i : i + 1] for i in range(len(values))]


def test_the_error_of_independent_tokens_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(3).exponential(size=500)
    assert standard_error(one_token_texts(values)) == pytest.approx(float(stats.sem(values)), rel=1e-9)


def test_the_error_of_agreement_is_llama_cpps() -> None:
    # tools/perplexity/perplexity.cpp: sqrt(p * (1 - p) / (n - 1)).
    agreements = (np.random.default_rng(4).random(400) < 0.9).astype(float)
    p = agreements.mean()
    assert standard_error(one_token_texts(agreements)) == pytest.approx((p * (1 - p) / 399) ** 0.5, rel=1e-9)


def test_tokens_that_repeat_each_other_tell_nothing_new() -> None:
    stats = pytest.importorskip("scipy.stats")
    means = np.random.default_rng(5).normal(size=40)
    texts = [np.full(25, mean) for mean in means]
    assert standard_error(texts) == pytest.approx(float(stats.sem(means)), rel=1e-9)


def test_the_error_of_texts_of_unequal_length_is_by_hand() -> None:
    # 20 texts, two kinds: 10 of one token of value 1, 10 of three tokens of value 0. The mean is 10 / 40; the sums
    # are off by 3/4 and -3/4 each, so the variance is 20/19 * 20 * (9/16) / 40^2.
    texts = [np.ones(1)] * 10 + [np.zeros(3)] * 10
    assert standard_error(texts) == pytest.approx((20 / 19 * 20 * 9 / 16) ** 0.5 / 40, rel=1e-12)


def test_the_error_of_a_quantile_is_scipys_bootstrap() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(6).exponential(size=3000)
    reference = stats.bootstrap(
        (values,),
        lambda x, axis: np.quantile(x, 0.99, axis=axis),
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).standard_error
    assert quantile_error(one_token_texts(values), 0.99) == pytest.approx(float(reference), rel=0.15)


def test_a_single_long_text_has_an_error_too() -> None:
    values = np.random.default_rng(7).normal(size=1600)
    assert standard_error([values]) == pytest.approx(1 / 40, rel=0.5)
    assert quantile_error([values], 0.5) == pytest.approx(1.2533 / 40, rel=0.6)


def test_information_is_torchs_divergence_from_the_average() -> None:
    rows = torch.log_softmax(torch.tensor(random_logits(0), dtype=torch.float64), -1)
    average = rows.exp().mean(0).log()
    wanted = torch.nn.functional.kl_div(average.expand_as(rows), rows, log_target=True, reduction="none").sum(-1)
    assert information([rows[:300].numpy(), rows[300:].numpy()]) == pytest.approx(float(wanted.mean()), rel=1e-9)


def test_few_tokens_and_a_constant_answer_have_no_information() -> None:
    assert information([torch_log_softmax(random_logits(0))[:63]]) is None
    assert information([np.repeat(torch_log_softmax(random_logits(0))[:1], 100, 0)]) is None


def test_an_unquantized_variant_is_held_to_its_bound() -> None:
    reference = random_logits(0)
    worse = reference.copy()
    worse[7, reference[7].argmax()] -= 1.0
    check = compare_logits("onnx-fp32", lambda _: worse, [[1] * 400], [torch_log_softmax(reference)])
    assert not check.passed
    assert str(check.difference).startswith("text 0, token 7, KL ")


def test_numbers_that_are_none_fail_even_quantized() -> None:
    broken = random_logits(0)
    broken[5] = np.nan
    check = compare_logits("onnx-int4", lambda _: broken, [[1] * 400], [torch_log_softmax(random_logits(0))])
    assert not check.passed
    assert check.difference == "text 0, token 5 is no number"
    assert "65,504" in str(check.cause)


def test_a_vocabulary_of_another_size_fails() -> None:
    check = compare_logits(
        "gguf-q8_0", lambda _: random_logits(0)[:, :40], [[1] * 400], [torch_log_softmax(random_logits(0))]
    )
    assert not check.passed
    assert "shape (400, 40)" in str(check.difference)


ARCHITECTURES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma3", "Phi3", "GPT2")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_reference_runs_every_architecture(architecture: str, tmp_path: Path) -> None:
    """Its greedy words, by the cache of transformers' generate, are those of its own logits one by one."""
    reference = load_reference(read_checkpoint(make_student(tmp_path / "student", architecture)))
    ids = [5, 260, 261, 4, 9, 7]
    new = reference.greedy(ids, 8)
    rows = reference.logits([*ids, *new])[len(ids) - 1 : -1]
    assert rows.argmax(-1).tolist() == new


def test_a_large_student_is_compared_over_fewer_tokens(tiny_checkpoint: Path) -> None:
    checkpoint = read_checkpoint(tiny_checkpoint)
    assert affordable_tokens(checkpoint, 4096) == 4096
    assert affordable_tokens(replace(checkpoint, shapes={"w": (50_000, 20_000)}), 4096) == 1000
    assert affordable_tokens(replace(checkpoint, shapes={"w": (50_000, 2_000_000)}), 4096) == 256


@pytest.fixture(scope="module")
def parity(tiny_checkpoint: Path, tiny_bundle: Path) -> Parity:
    return measured(tiny_checkpoint, tiny_bundle, tiny_bundle)


def measured(checkpoint: Path, folder: Path, index: Path, only: str | None = None) -> Parity:
    variants = [v for v in Bundle.load(index).variants if only in (None, v.name)]
    return measure_parity(read_checkpoint(checkpoint), folder, variants, PARITY_TEXTS, context_length=CONTEXT)


def test_a_faithful_bundle_passes(parity: Parity) -> None:
    assert parity.passed
    assert parity.failures == ()


def test_ids_of_every_variant_are_compared_over_the_whole_corpus(parity: Parity) -> None:
    compared = {check.variant: check.compared for check in parity.texts if check.what == "token ids"}
    assert set(compared) == {"tokenizer.json"} | {check.variant for check in parity.logits}
    assert min(compared.values()) > 2_000


def test_continuations_of_every_variant_are_compared(parity: Parity) -> None:
    pairs = {(check.variant, check.against) for check in parity.generations}
    assert {(check.variant, "checkpoint") for check in parity.logits} | {("gguf-f16", "onnx-fp32")} == pairs
    exact = [check for check in parity.generations if check.variant in ("onnx-fp32", "gguf-f16")]
    assert all(check.same == 1 and check.prefix_mean == check.tokens for check in exact)
    coarse = next(check for check in parity.generations if check.variant == "gguf-q4_k_m")
    assert coarse.same < 1
    assert coarse.passed


def test_every_variant_is_stopped_and_templated(parity: Parity) -> None:
    names = {check.variant for check in parity.logits}
    assert {c.variant for c in parity.texts if c.what == "generation up to a stop id" and c.compared} == names
    inside = {check.variant for check in parity.texts if check.what == "template"}
    assert inside == {name for name in names if name.startswith("gguf")}


def test_the_report_is_plain_json(parity: Parity) -> None:
    report = json.loads(json.dumps(parity.to_dict(), allow_nan=False))
    assert list(report) == ["passed", "texts", "logits", "generations", "failures"]
    assert {"kl_mean_error", "kl_p999_error", "top1_error"} <= set(report["logits"][0])


def test_only_a_tie_excuses_another_continuation(tiny_checkpoint: Path) -> None:
    from pocketstill_export.parity.generation import Continuations, compare_continuations

    checkpoint = read_checkpoint(tiny_checkpoint)
    reference = load_reference(checkpoint)
    prompt = (261, 269, 270)
    expected = tuple(reference.greedy(prompt, 4))
    row = reference.logits([*prompt, *expected[:2]])[-1]
    second, worst = (int(i) for i in np.argsort(row)[[-2, 0]])
    continuations = Continuations((prompt,), (expected,), 4)

    def check(token: int, spread: float, variant: str) -> Any:
        def logits(ids: Sequence[int]) -> np.ndarray:
            rows = reference.logits(ids).copy()
            rows[-1, second] = rows[-1].max() - spread * rows[-1].std()
            return rows

        found = [(*expected[:2], token, 1)]
        return compare_continuations(variant, "checkpoint", continuations, found, [expected], logits)

    near, far = check(second, 0.01, "gguf-f16"), check(worst, 0.01, "gguf-f16")
    assert (near.passed, near.ties, near.same, near.prefix_mean) == (True, 1, 0.0, 2.0)
    assert (far.passed, far.ties) == (False, 0)
    assert str(far.difference).startswith(f"prompt 0, token 2: [{worst}, 1] instead of [{expected[2]}, {expected[3]}]")
    assert check(worst, 0.01, "gguf-q4_0").passed


def test_texts_without_tokens_leave_the_small_corpus(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    variants = [v for v in Bundle.load(tiny_bundle).variants if v.name == "gguf-f16"]
    parity = measure_parity(
        read_checkpoint(tiny_checkpoint), tiny_bundle, variants, ["", ""], context_length=CONTEXT, max_tokens=100
    )
    assert parity.passed
    assert 100 <= parity.logits[0].tokens <= 100 + max(map(len, TEXTS))


@pytest.mark.parametrize(("share", "passed"), [(1 / 4096, True), (1 / 8, False)])
def test_half_precision_is_held_by_its_mean(share: float, passed: bool) -> None:
    """One token between two likely ones is no wrong tensor; many of them are."""
    rows = np.tile(np.log([0.5, 0.5]), (4096, 1))
    found = rows.copy()
    found[:: round(1 / share)] = np.log([0.565, 0.435])
    check = compare_logits("gguf-f16", lambda _: found.astype(np.float32), [list(range(4096))], [rows])
    assert check.kl_max == pytest.approx(0.0086, abs=2e-4)
    assert check.passed is passed
