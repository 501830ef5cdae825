"""ROUGE-L against Google's own package, which Self-Instruct's code uses: every value equal to the last bit."""

from __future__ import annotations

import random

import pytest

from pocketstill_pipeline.elicit.expansion.rouge import RougePool, rouge_l, words_of

scorers = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge_score is not installed")
_WORDS = "the a of to List list three colours in red, Blue and Don't 7 12.5 über naïve word-by-word 好 x_y".split()


def reference(one: str, other: str) -> float:
    scorer = scorers.RougeScorer(["rougeL"], use_stemmer=False)
    return float(scorer.score(one, other)["rougeL"].fmeasure)


def texts(seed: int, count: int, longest: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(_WORDS, k=rng.randint(0, longest))) for _ in range(count)]


def test_equals_the_reference_on_random_pairs() -> None:
    made = texts(1, 600, 30) + texts(2, 40, 200)
    for one, other in zip(made, reversed(made), strict=True):
        assert rouge_l(one, other) == reference(one, other), (one, other)


def test_equal_texts_are_one_and_texts_without_words_zero() -> None:
    assert rouge_l("Name three birds.", "name THREE birds") == 1.0
    assert rouge_l("好的", "好的") == rouge_l("", "a") == reference("好的", "好的") == 0.0


def test_words_are_those_of_the_reference() -> None:
    from rouge_score.tokenize import tokenize

    for text in [*texts(3, 200, 20), "İstanbul K", "a\u00a0b\tc\n", "--", "don't 3,000.50 €"]:
        assert words_of(text) == tokenize(text, None)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_nearest_finds_the_same_as_comparing_with_all(threshold: float) -> None:
    pool, seen = RougePool(), []
    found = 0
    for text in texts(4, 150, 14):
        scores = [reference(text, other) for other in seen]
        nearest = pool.nearest(text, threshold)
        if nearest is None:
            assert all(score < threshold for score in scores)
        else:
            found += 1
            assert nearest.score == max(scores) >= threshold - 1e-9
            assert rouge_l(nearest.text, text) == nearest.score
        pool.add(text)
        seen.append(text)
    assert found > 3
    assert pool.compared == 150 * 149 // 2 and pool.measured < pool.compared


def test_a_score_that_only_rounding_keeps_below_the_bound_reaches_it() -> None:
    one = " ".join(f"w{n}" for n in range(23))
    other = " ".join(f"w{n}" if n < 21 else f"x{n}" for n in range(37))
    assert reference(one, other) < 0.7
    found = RougePool([one]).nearest(other, 0.7)
    assert found is not None and found.score == reference(one, other)
