"""The plots of an inspection, drawn as `pocketstill_export.report.drawing` says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pocketstill_export.report.drawing import BAD, INK, MUTED, ONNX, STYLE, new_axes, to_svg

_ROW, _BINS = 22.0, 24


def bars(name: str, title: str, rows: Sequence[tuple[str, int]], *, good: str) -> str:
    """Counts by name, the largest first; the row called `good` in another colour than the rest."""
    height = 14.0 + _ROW * len(rows)
    with rc_context(STYLE):
        figure, axes = new_axes(height, 130.0, 50.0, 4.0, 10.0)
        places = list(range(len(rows)))[::-1]
        colours = [ONNX if label == good else BAD for label, _ in rows]
        axes.barh(places, [count for _, count in rows], height=0.62, color=colours)
        axes.set_yticks(places, [label.replace("_", " ") for label, _ in rows])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        for place, (_, count) in zip(places, rows, strict=True):
            axes.annotate(
                f"{count:,}", (count, place), xytext=(5, 0), textcoords="offset points", va="center", color=MUTED
            )
        return to_svg(figure, name, title)


def histogram(name: str, title: str, values: Sequence[float], unit: str) -> str:
    """How often each size occurs, with a line at the median. The top two hundredths share the last bin."""
    top = max(float(np.quantile(values, 0.98)), min(values) + 1e-9)
    cut = np.minimum(values, top)
    whole = all(float(value).is_integer() for value in values)
    bins = min(_BINS, int(top - min(values)) + 1) if whole else _BINS
    with rc_context(STYLE):
        figure, axes = new_axes(170.0, 44.0, 12.0, 20.0, 40.0)
        axes.hist(cut, bins=max(bins, 1), color=ONNX)
        median = float(np.median(values))
        axes.axvline(median, color=INK, linewidth=1.2)
        axes.annotate(
            f"median {median:,.3g}", (median, 1.0), xycoords=("data", "axes fraction"), xytext=(4, 4),
            textcoords="offset points", color=INK, fontsize=10,
        )  # fmt: skip
        axes.set_xlabel(unit, labelpad=4)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        return to_svg(figure, name, title)
