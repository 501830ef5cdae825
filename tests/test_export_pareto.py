"""Fronts, tolerances and the pick among measured variants, all by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the workshop extra")

from pocketstill_export.choice.candidates import Candidate, Tolerance, pick
from pocketstill_export.choice.pareto import Span, dominates, front
from pocketstill_export.errors import ExportError


def exact(x: float, y: float) -> tuple[Span, Span]:
    return Span.exact(x), Span.exact(y)


def near(x: float, y: float, error: float) -> tuple[Span, Span]:
    return Span.exact(x), Span.around(y, error)


def test_without_errors_the_front_is_paretos() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        found = generator.integers(0, 6, size=(8, 2))
        beaten = [
            any((other <= own).all() and (other < own).any() for other in found) for own in found
        ]  # the definition itself
        points = {str(n): exact(*map(float, row)) for n, row in enumerate(found)}
        assert front(points) == {str(n) for n, lost in enumerate(beaten) if not lost}


def test_what_cannot_be_told_apart_stays_together() -> None:
    assert front({"a": exact(1, 1), "b": exact(1, 1), "c": exact(2, 1)}) == {"a", "b"}


def test_a_gain_inside_of_the_errors_does_not_pay_for_bytes() -> None:
    assert front({"small": near(1, 0.010, 0.001), "large": near(2, 0.009, 0.001)}) == {"small"}
    assert front({"small": near(1, 0.010, 0.001), "large": near(2, 0.007, 0.001)}) == {"small", "large"}


def test_a_circle_of_dominance_leaves_a_front() -> None:
    wide = Span(5, 0, 10)
    points = {
        "a": (Span.exact(1), Span.exact(9)),
        "b": (Span.exact(5), wide),
        "c": (Span.exact(9), Span.exact(1)),
        "d": (wide, Span.exact(5)),
    }
    assert all(dominates(points[x], points[y]) for x, y in ("ab", "bc", "cd", "da"))
    assert front(points)


def row(name: str, size: int, kl: float, speed: tuple[float, float, float] = (100, 90, 110), **rest: Any) -> Candidate:
    low, high = speed[1], speed[2]
    found = Candidate(
        name, "gguf", size, 1000, kl, kl / 10, 0, 0, 0.9, 0.01, speed[0], low, high, None, {}, {}, True, 0.5
    )
    return replace(found, **rest)


def test_the_smallest_within_is_picked() -> None:
    rows = [row("large", 300, 0.01), row("small", 200, 0.02), row("tiny", 100, 0.2, within=False, excess=3.0)]
    assert pick(rows, "smallest", Tolerance(kl_mean=0.05), None)[0] == "small"


def test_of_equally_fast_ones_the_smallest_is_picked() -> None:
    rows = [
        row("fast", 300, 0.01, (120, 110, 130)),
        row("alike", 200, 0.01, (105, 90, 112)),
        row("slow", 100, 0.01, (80, 70, 109)),
    ]
    assert pick(rows, "fastest", Tolerance(kl_mean=0.05), None)[0] == "alike"


def test_no_larger_file_than_allowed_is_picked() -> None:
    rows = [row("large", 300, 0.01, (200, 190, 210)), row("small", 200, 0.02)]
    assert pick(rows, "fastest", Tolerance(kl_mean=0.05), 250)[0] == "small"
    chosen, said = pick(rows, "fastest", Tolerance(kl_mean=0.05), 150)
    assert chosen is None
    assert said == "no variant has at most 150 bytes: the smallest is small with 200"


@pytest.mark.parametrize(
    ("tolerance", "within"),
    [
        (Tolerance(kl_mean=0.0111), True),
        (Tolerance(kl_mean=0.0109), False),
        (Tolerance(top1=0.949), True),
        (Tolerance(top1=0.951), False),
        (Tolerance(kl_mean=0.0111, top1=0.951), False),
    ],
)
def test_a_figure_holds_with_its_error_against_it(tolerance: Tolerance, within: bool) -> None:
    check: Any = row("v", 1, 0.01, kl_mean_error=0.001, top1=0.96, top1_error=0.01)
    assert (tolerance.excess(check, None) <= 1) == within


def test_where_nothing_fits_the_nearest_and_its_tolerance_are_named() -> None:
    tolerance = Tolerance(kl_mean=0.001)
    rows = [
        row(name, size, kl, within=False, excess=tolerance.excess(row(name, size, kl), None))  # type: ignore[arg-type]
        for name, size, kl in (("far", 100, 0.5), ("nearest", 200, 0.0123))
    ]
    chosen, said = pick(rows, "smallest", tolerance, None)
    assert chosen is None
    assert "the nearest is nearest" in said
    found = re.search(r"which kl_mean ([\d.]+) would let through", said)
    assert found and 0.0123 * 1.1 <= float(found[1]) <= 0.0123 * 1.1 * 1.1
    assert "\n" not in said


@pytest.mark.parametrize(
    "limits", [{}, {"kl_mean": -1.0}, {"kl_mean": float("nan")}, {"top1": 1.5}, {"accuracy_points": float("inf")}]
)
def test_a_tolerance_that_says_nothing_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ExportError, match="tolerance"):
        Tolerance(**limits)
