"""The plots of the report, drawn as `pocketstill_export.report.drawing` says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib import rc_context
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pocketstill_export.report.drawing import (
    BAD,
    COLOURS,
    GGUF,
    INK,
    MARKERS,
    MUTED,
    NEAR,
    ONNX,
    PAPER,
    STYLE,
    Box,
    Family,
    new_axes,
    place_text,
    text_box,
    to_svg,
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, drawn as a row. `said` is the figure in words, at the end of the row."""

    label: str
    family: Family
    value: float
    low: float
    high: float
    said: str
    bold: bool = False
    failed: bool = False


@dataclass(frozen=True)
class Point:
    """A variant in the plane of size and another figure, with that figure's interval. `front`: nothing beats it."""

    label: str
    family: Family
    x: float
    y: float
    low: float
    high: float
    bold: bool
    front: bool


def rows(
    name: str,
    title: str,
    estimates: Sequence[Estimate],
    limits: tuple[float, float],
    *,
    mark: float | None = None,
    mark_said: str = "",
    signed: bool = False,
) -> str:
    """A dot and its interval for each estimate, one below the other; figures in shares, ticks in per cent.

    Args:
        name: makes the ids in the SVG its own; letters, digits and hyphens.
        title: what a screen reader says of it.
        estimates: from the top down.
        limits: of the horizontal axis, so that figures side by side share it.
        mark: where a gate or a tolerance lies.
        mark_said: what is written above it.
        signed: ticks are points with their sign (differences), not per cent.
    """
    row, top, bottom, left, right = 20.0, 20.0 if mark_said else 6.0, 22.0, 104.0, 54.0
    height = top + row * len(estimates) + bottom
    with rc_context(STYLE):
        figure, axes = new_axes(height, left, right, top, bottom)
        axes.set_xlim(*limits)
        axes.set_ylim(len(estimates) - 0.5, -0.5)
        axes.yaxis.set_major_locator(NullLocator())
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _percent(x, signed)))
        if mark is not None:
            axes.axvline(mark, color=INK, linewidth=1.0, linestyle=(0, (3, 2)), zorder=1)
            axes.annotate(
                mark_said, (mark, 1), xycoords=("data", "axes fraction"), xytext=(0, 5),
                textcoords="offset points", ha="center", color=INK, fontsize=10,
            )  # fmt: skip
        for place, it in enumerate(estimates):
            colour = COLOURS[it.family]
            axes.plot([it.low, it.high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
            axes.plot(
                [it.value], [place], MARKERS[it.family], color=colour, markersize=6.5,
                markerfacecolor=colour if it.bold else PAPER, markeredgewidth=1.6, clip_on=False,
            )  # fmt: skip
            baseline = 1 - (top + row * (place + 0.5)) / height
            weight = "bold" if it.bold else "normal"
            figure.text(0, baseline, it.label, va="center_baseline", weight=weight)
            tone = BAD if it.failed else INK
            figure.text(1, baseline, it.said, va="center_baseline", ha="right", weight=weight, color=tone)
        return to_svg(figure, name, title)


def plane(name: str, title: str, points: Sequence[Point], *, x_label: str, y_label: str, percent: bool) -> str:
    """Variants by file size (logarithmic) and another figure that is better the higher; the front is a stepped line.

    `percent` says that the other figure is a share; otherwise its axis starts at zero.
    """
    height, left, right, top, bottom = 268.0, 46.0, 14.0, 24.0, 42.0
    with rc_context(STYLE):
        figure, axes = new_axes(height, left, right, top, bottom)
        _scale(axes, points, percent)
        axes.set_xlabel(x_label, labelpad=6)
        figure.text(0, 1 - 10 / height, y_label, color=MUTED, va="center")
        front = _stairs(points, axes.get_xlim()[1])
        axes.plot(*zip(*front, strict=True), color=MUTED, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1)
        for it in points:
            colour = COLOURS[it.family]
            axes.plot([it.x, it.x], [it.low, it.high], color=colour, linewidth=1.4, solid_capstyle="butt")
            axes.plot(
                [it.x], [it.y], MARKERS[it.family], color=colour, markersize=10 if it.bold else 8,
                markerfacecolor=colour if it.front else PAPER, markeredgewidth=1.6,
            )  # fmt: skip
        _label(axes, points, front)
        return to_svg(figure, name, title)


def curves(
    name: str,
    title: str,
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    *,
    y_label: str,
    logarithmic: bool,
) -> str:
    """Lines over training tokens: (label, [(tokens, value)]). The first is thin, a second one has dots."""
    height, left, right, top, bottom = 216.0, 50.0, 14.0, 24.0, 40.0
    with rc_context(STYLE):
        figure, axes = new_axes(height, left, right, top, bottom)
        styles: tuple[tuple[str, dict[str, Any]], ...] = (
            (ONNX, {"linewidth": 1.4}),
            (GGUF, {"linewidth": 1.2, "marker": "s", "markersize": 4.5}),
        )
        for (label, line), (colour, style) in zip(series, styles, strict=False):
            axes.plot([x for x, _ in line], [y for _, y in line], color=colour, label=label, **style)
        values = [y for _, line in series for _, y in line]
        if logarithmic and values and min(values) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
        axes.set_xlabel("training tokens", labelpad=6)
        figure.text(0, 1 - 10 / height, y_label, color=MUTED, va="center")
        if len(series) > 1:
            axes.legend(loc="upper right", borderaxespad=0.0, handlelength=1.6)
        return to_svg(figure, name, title)


def short(number: float) -> str:
    """A count in at most four characters and a unit: 950, 12k, 4.0M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            scaled = number / size
            return f"{scaled:.0f}{unit}" if scaled >= 100 else f"{scaled:.1f}".removesuffix(".0") + unit
    return f"{number:.0f}"


def _percent(share: float, signed: bool) -> str:
    if signed:
        return f"{100 * share:+.3g}".replace("-", "\N{MINUS SIGN}") if abs(share) > 1e-9 else "0"
    return f"{100 * share:.3g}\N{NARROW NO-BREAK SPACE}%"


def _scale(axes: Any, points: Sequence[Point], percent: bool) -> None:
    axes.set_xscale("log")
    xs = [it.x for it in points]
    # The smallest file is the one that matters most: room for its name on the free side.
    axes.set_xlim(min(xs) / 2.0, max(xs) * 1.45)
    ticks = [base * 10.0**power for power in range(-3, 7) for base in (1, 2, 5)]
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(NullLocator())
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    bottom, top = min(it.low for it in points), max(it.high for it in points)
    if percent:
        room = max(top - bottom, 0.01) * 0.15
        axes.set_ylim(bottom - room, min(top + room, 1.0 + room))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _percent(y, False) if y <= 1 else ""))
    else:
        axes.set_ylim(0, top * 1.15)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: short(y)))
    axes.yaxis.set_major_locator(MaxNLocator(6))


def _stairs(points: Sequence[Point], right: float) -> list[tuple[float, float]]:
    """Corners of the border between what a size can reach and what it cannot."""
    corners: list[tuple[float, float]] = []
    best = float("-inf")
    for it in sorted(points, key=lambda it: (it.x, -it.y)):
        if it.y > best:
            corners += [(it.x, best), (it.x, it.y)] if corners else [(it.x, it.y)]
            best = it.y
    return [*corners, (right, best)]


def _label(axes: Any, points: Sequence[Point], front: Sequence[tuple[float, float]]) -> None:
    """Write each name at the nearest place that is free of markers and names, and if possible of all lines.

    A name that lies apart from its marker is joined to it.
    """
    taken: list[Box] = []
    lines: list[Box] = []
    for it in points:
        (x, low), (_, y), (_, high) = axes.transData.transform([(it.x, it.low), (it.x, it.y), (it.x, it.high)])
        taken.append((x - 7, y - 7, x + 7, y + 7))
        lines.append((x - 2, low, x + 2, high))
    for (x0, y0), (x1, y1) in pairwise(axes.transData.transform(front)):
        lines.append((min(x0, x1), min(y0, y1) - 1, max(x0, x1), max(y0, y1) + 1))
    for it in sorted(points, key=lambda it: (not it.bold, it.x)):
        text = axes.annotate(
            it.label, (it.x, it.y), xytext=(0, 0), textcoords="offset points", color=COLOURS[it.family],
            weight="bold" if it.bold else "normal", va="center",
        )  # fmt: skip
        up = place_text(axes, text, [*taken, *lines])
        if up is None:
            up = place_text(axes, text, taken)
        taken.append(text_box(text))
        if up is not None and abs(up) > NEAR:
            axes.annotate(
                "", (it.x, it.y), xytext=text.get_position(), textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": COLOURS[it.family], "linewidth": 0.75, "shrinkB": 6},
            )  # fmt: skip
