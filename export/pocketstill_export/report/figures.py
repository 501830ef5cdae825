"""The plots of an export's report: what a variant costs, against how far it is from the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from matplotlib import rc_context
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from .drawing import (
    COLOURS,
    INK,
    MARKERS,
    MUTED,
    NEAR,
    PAPER,
    STYLE,
    Box,
    Family,
    new_axes,
    place_text,
    text_box,
    to_svg,
)
from .words import power

# A KL below is the rounding of a full-precision file, and would leave the others no room: it is drawn at the bottom.
_ROUNDING = 1e-5
_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 380.0, 46.0, 14.0, 24.0, 42.0


@dataclass(frozen=True)
class Mark:
    """A variant at (x, KL), each with the ends of its error. `front`: none is clearly better in both."""

    label: str
    family: Family
    x: float
    x_low: float
    x_high: float
    kl: float
    kl_low: float
    kl_high: float
    front: bool
    chosen: bool


def trade(
    name: str, title: str, marks: Sequence[Mark], *, x_label: str, growing: bool, limit: float | None = None
) -> str:
    """KL (logarithmic, the lower the better) against a figure on the horizontal axis.

    Args:
        name: makes the ids in the SVG its own; letters, digits and hyphens.
        title: what a screen reader says of it.
        marks: the variants.
        x_label: the horizontal figure and its unit.
        growing: whether more of it is better, as with speed; otherwise it is a size, on a logarithmic axis.
        limit: the tolerance on the mean KL, a dashed line.
    """
    floor = _floor(marks, limit)
    marks = [_floored(it, floor) for it in marks]
    with rc_context(STYLE):
        figure, axes = new_axes(_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM)
        _scale(axes, marks, growing, limit, floor)
        axes.set_xlabel(x_label, labelpad=6)
        figure.text(0, 1 - 10 / _HEIGHT, "mean KL from the checkpoint, nats a token", color=MUTED, va="center")
        front = _stairs([it for it in marks if it.front], growing, axes)
        if len(front) > 1:
            axes.plot(*zip(*front, strict=True), color=MUTED, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1)
        lines = _boxes(axes, front)
        if limit is not None and limit > floor:
            axes.axhline(limit, color=INK, linewidth=1.0, linestyle=(0, (3, 2)), zorder=1)
            where = (1.0, limit) if not growing else (0.0, limit)
            axes.annotate(
                "tolerance", where, xycoords=("axes fraction", "data"), xytext=(0, 4), textcoords="offset points",
                ha="left" if growing else "right", color=INK, fontsize=10,
            )  # fmt: skip
            lines += _boxes(axes, [(axes.get_xlim()[0], limit), (axes.get_xlim()[1], limit)])
        for it in marks:
            _draw(axes, it)
        _label(axes, marks, lines)
        return to_svg(figure, name, title)


def _floor(marks: Sequence[Mark], limit: float | None) -> float:
    """The power of ten at which the figure ends below."""
    seen = [kl for kl in (*(it.kl for it in marks), limit or 0.0) if kl > _ROUNDING]
    return 10.0 ** math.floor(math.log10(min(seen, default=10 * _ROUNDING) / 1.5))


def _floored(it: Mark, floor: float) -> Mark:
    return replace(it, kl=max(it.kl, floor), kl_low=max(it.kl_low, floor), kl_high=max(it.kl_high, floor))


def _draw(axes: Any, it: Mark) -> None:
    colour = COLOURS[it.family]
    axes.plot([it.x, it.x], [it.kl_low, it.kl_high], color=colour, linewidth=1.4, solid_capstyle="butt")
    axes.plot([it.x_low, it.x_high], [it.kl, it.kl], color=colour, linewidth=1.4, solid_capstyle="butt")
    if it.chosen:
        axes.plot(
            [it.x], [it.kl], MARKERS[it.family], color=colour, markersize=17, markerfacecolor="none",
            markeredgewidth=1.2, clip_on=False,
        )  # fmt: skip
    axes.plot(
        [it.x], [it.kl], MARKERS[it.family], color=colour, markersize=10 if it.chosen else 8,
        markerfacecolor=colour if it.front else PAPER, markeredgewidth=1.6, clip_on=False,
    )  # fmt: skip


def _scale(axes: Any, marks: Sequence[Mark], growing: bool, limit: float | None, floor: float) -> None:
    if growing:
        axes.set_xlim(0, max(it.x_high for it in marks) * 1.12)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    else:
        axes.set_xscale("log")
        axes.set_xlim(min(it.x for it in marks) / 1.5, max(it.x for it in marks) * 1.5)
        low, high = axes.get_xlim()
        steps = (1, 2, 5) if high / low > 3 else (1, 1.5, 2, 3, 4, 5, 7)
        ticks = [base * 10.0**ten for ten in range(-3, 7) for base in steps]
        axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set_yscale("log")
    values = [value for it in marks for value in (it.kl_low, it.kl_high)] + ([limit] if limit and limit > floor else [])
    axes.set_ylim(min(values) / 1.5, max(values) * 1.8)
    low, high = axes.get_ylim()
    tens = [10.0**ten for ten in range(-7, 4) if low <= 10.0**ten <= high]
    if len(tens) < 2:
        tens = [base * 10.0**ten for ten in range(-7, 4) for base in (1, 2, 5) if low <= base * 10.0**ten <= high]
    axes.yaxis.set_major_locator(FixedLocator(tens))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: power(y) if y > floor else f"≤{power(floor)}"))


def _stairs(front: Sequence[Mark], growing: bool, axes: Any) -> list[tuple[float, float]]:
    """Corners of the border between what can be had and what cannot, from the cheapest point on."""
    corners: list[tuple[float, float]] = []
    best = float("inf")
    for it in sorted(front, key=lambda it: (-it.x if growing else it.x, it.kl)):
        if it.kl < best:
            corners += [(it.x, best), (it.x, it.kl)] if corners else [(it.x, axes.get_ylim()[1]), (it.x, it.kl)]
            best = it.kl
    end = axes.get_xlim()[0 if growing else 1]
    return [*corners, (end, best)] if corners else []


def _boxes(axes: Any, line: Sequence[tuple[float, float]]) -> list[Box]:
    """The places that a line of horizontal and vertical parts takes up, in display units."""
    if len(line) < 2:
        return []
    return [
        (min(x0, x1), min(y0, y1) - 1, max(x0, x1), max(y0, y1) + 1)
        for (x0, y0), (x1, y1) in pairwise(axes.transData.transform(line))
    ]


def _label(axes: Any, marks: Sequence[Mark], lines: Sequence[Box]) -> None:
    """Writes each name at the nearest free place: the chosen one's first, then those of the front.

    Where there is no room, a name that is neither is left to the table.
    """
    taken: list[Box] = []
    crossed = list(lines)
    for it in marks:
        x, y = axes.transData.transform((it.x, it.kl))
        reach = 10 if it.chosen else 6
        taken.append((x - reach, y - reach, x + reach, y + reach))
        crossed += _boxes(axes, [(it.x, it.kl_low), (it.x, it.kl_high)])
        crossed += _boxes(axes, [(it.x_low, it.kl), (it.x_high, it.kl)])
    for it in sorted(marks, key=lambda it: (not it.chosen, not it.front, it.x)):
        text = axes.annotate(
            it.label, (it.x, it.kl), xytext=(0, 0), textcoords="offset points", color=COLOURS[it.family],
            weight="bold" if it.chosen else "normal", va="center", fontsize=11 if it.chosen else 9.5,
        )  # fmt: skip
        up = place_text(axes, text, [*taken, *crossed])
        if up is None or (abs(up) > 40 and not it.chosen):
            up = place_text(axes, text, taken)
        if (up is None or abs(up) > 40) and not (it.chosen or it.front):
            text.remove()
            continue
        taken.append(text_box(text))
        if up is not None and abs(up) > NEAR:
            axes.annotate(
                "", (it.x, it.kl), xytext=text.get_position(), textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": COLOURS[it.family], "linewidth": 0.75, "shrinkB": 6},
            )  # fmt: skip
