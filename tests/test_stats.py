from __future__ import annotations

import pytest

from pocketstill.stats import paired_difference, wilson


def test_wilson_against_published_numbers() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for k, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_at_the_ends() -> None:
    assert wilson(0, 0) == (0, 1)
    assert wilson(20, 20)[1] == 1
    with pytest.raises(ValueError, match="3 successes in 2"):
        wilson(3, 2)


def pairs(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[bool], list[bool]]:
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return a, b


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, 2635-2650, table III, method 10.
        ((36, 12, 2, 0), 0.0569, 0.3404),
        # Armitage and Berry 1994, page 127: two media for growing tubercle bacilli.
        ((20, 12, 2, 16), 0.0562, 0.3292),
    ],
)
def test_paired_difference_against_published_intervals(
    cells: tuple[int, int, int, int], low: float, high: float
) -> None:
    mean, found_low, found_high = paired_difference(*pairs(*cells))
    assert mean == pytest.approx((cells[1] - cells[2]) / sum(cells))
    assert (found_low, found_high) == pytest.approx((low, high), abs=5e-5)


def test_paired_difference_changes_sign_with_its_arguments() -> None:
    a, b = pairs(30, 8, 3, 9)
    mean, low, high = paired_difference(a, b)
    assert paired_difference(b, a) == pytest.approx((-mean, -high, -low))


def test_equal_answers_differ_by_nothing() -> None:
    a, b = pairs(190, 0, 0, 10)
    mean, low, high = paired_difference(a, b)
    assert mean == 0
    assert low <= 0 <= high


def test_paired_difference_wants_the_same_questions() -> None:
    with pytest.raises(ValueError, match="same questions"):
        paired_difference([True], [])
