"""What the project's plots are drawn with: matplotlib to SVG that is put into a page as it is.

Every figure is 360 units wide, a phone's width, and a page tiles them. Text stays text and takes the page's font;
colours are the page's own variables, so that one figure serves light and dark. The same figures give the same bytes.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

Family = Literal["teacher", "checkpoint", "onnx", "gguf"]
Box = tuple[float, float, float, float]

WIDTH = 360.0
# A name so far above or below its marker needs no line to it.
NEAR = 18
# Stand-ins that matplotlib draws with; `to_svg` puts the page's variables in their place. The fallbacks are for an SVG
# taken out of the page. Hues after Okabe and Ito (2008), told apart by colour-blind readers too.
INK, MUTED, LINE, PAPER = "#010101", "#020202", "#030303", "#040404"
TEACHER, ONNX, GGUF, BAD = "#050505", "#060606", "#070707", "#080808"
VARIABLES = {
    INK: "var(--ink, #16191d)",
    MUTED: "var(--muted, #5b636e)",
    LINE: "var(--line, #d9dde2)",
    PAPER: "var(--paper, #ffffff)",
    TEACHER: "var(--teacher, #9a4678)",
    ONNX: "var(--onnx, #0068a8)",
    GGUF: "var(--gguf, #b85000)",
    BAD: "var(--bad, #b3261e)",
}
COLOURS: dict[Family, str] = {"teacher": TEACHER, "checkpoint": INK, "onnx": ONNX, "gguf": GGUF}
# Shapes say the family again, for print and for eyes that do not tell the hues apart.
MARKERS: dict[Family, str] = {"teacher": "^", "checkpoint": "D", "onnx": "o", "gguf": "s"}
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 11.0,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.75,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "legend.frameon": False,
    "legend.labelcolor": MUTED,
}


def new_axes(height: float, left: float, right: float, top: float, bottom: float) -> tuple[Any, Any]:
    """A figure of WIDTH by `height` units with one axes inside of these margins."""
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    FigureCanvasSVG(figure)
    box = (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - top - bottom) / height)
    return figure, figure.add_axes(box)


def place_text(axes: Any, text: Any, obstacles: Sequence[Box]) -> float | None:
    """Move an annotation to the nearest place inside the axes that meets no obstacle; how far up, None if nowhere."""
    frame = axes.get_window_extent()
    for reach in (0, 13, NEAR, 28, 40, 54, 70, 88, 108):
        for up in (reach, -reach) if reach else (0,):
            for side, align in ((1, "left"), (-1, "right"), (0, "center")):
                text.set_ha(align)
                text.set_position((side * 11, up))
                box = text_box(text)
                inside = box[0] > frame.x0 and box[2] < frame.x1 + 12 and frame.y0 < box[1] < box[3] < frame.y1 + 8
                if inside and not any(meet(box, other) for other in obstacles):
                    return float(up)
    return None


def text_box(text: Any) -> Box:
    extent = text.get_window_extent()
    return extent.x0 - 1, extent.y0 - 1, extent.x1 + 1, extent.y1 + 1


def meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def to_svg(figure: Any, name: str, title: str) -> str:
    """The figure as an `<svg>` element for the page: its own ids, the page's colours, no metadata and no style."""
    target = io.StringIO()
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "text.parse_math": False}):
        figure.savefig(target, format="svg", metadata={"Date": None}, transparent=True)
    svg = target.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    size = re.search(r'viewBox="[^"]*"', svg)
    view = size.group() if size else ""
    label = html.escape(title, quote=True)
    head = f'<svg {view} xmlns:xlink="http://www.w3.org/1999/xlink" role="img" aria-label="{label}">'
    return head + re.sub(r"^<svg[^>]*>", "", svg)
