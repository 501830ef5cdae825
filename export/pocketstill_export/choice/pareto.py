"""The Pareto front of measured figures, which are known only up to an error.

Two spans are told apart when they do not meet; a difference inside of the errors neither puts a point on the front
nor throws one off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """A figure of which less is better, with the ends of what it may be. An exact one has `low == value == high`."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Span:
        """A figure without an error, such as a size."""
        return cls(value, value, value)

    @classmethod
    def around(cls, value: float, error: float) -> Span:
        """A mean and its standard error."""
        return cls(value, value - error, value + error)

    def clearly_below(self, other: Span) -> bool:
        """Whether this one is less, whatever the errors hide."""
        return self.high < other.low


Point = tuple[Span, Span]


def dominates(one: Point, other: Point) -> bool:
    """Whether `one` is clearly better than `other` in a figure and clearly worse in none."""
    better = any(a.clearly_below(b) for a, b in zip(one, other, strict=True))
    worse = any(b.clearly_below(a) for a, b in zip(one, other, strict=True))
    return better and not worse


def front(points: Mapping[str, Point]) -> frozenset[str]:
    """The names of the points that no better one dominates; never empty where there is a point.

    With errors on both figures, dominance can run in a circle and leave nothing. So the front is what no member
    of a chain dominates: the chain is walked from the best first figure on and takes a point when it is clearly
    better in the second than all before; then it is walked back, and keeps a point when it is clearly better in
    the first than all after. Any two of its members are a proven trade of one figure for the other. What cannot
    be told from a member stays beside it.
    """
    ordered = sorted(points.items(), key=lambda item: (item[1][0].value, item[1][1].value, item[0]))
    forth: list[Point] = []
    for _, point in ordered:
        if not forth or point[1].clearly_below(forth[-1][1]):
            forth.append(point)
    chain: list[Point] = []
    for point in reversed(forth):
        if not chain or point[0].clearly_below(chain[-1][0]):
            chain.append(point)
    return frozenset(name for name, point in points.items() if not any(dominates(one, point) for one in chain))
