"""An inspection as a page: one file that needs nothing but itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pocketstill.errors import UserError
from pocketstill_export.report import drawing
from pocketstill_export.report.words import count, duration, label
from pocketstill_pipeline.curating.leakage import as_text

from . import figures
from .reading import FINE, KEPT, Entry, Inspection

# The page looks like the reports, whose style sheet it takes.
_LOOKS = Path(drawing.__file__).parent


def write_page(found: Inspection, out: Path) -> Path:
    """Writes the page to `out`, and returns it. The page runs no script and fetches nothing.

    Raises:
        UserError: `out` cannot be written.
    """
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, _LOOKS]), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"label": label, "duration": duration}
    text = environment.get_template("page.html.jinja").render(_context(found))
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); free some space or mend the path") from None
    return out


def _context(found: Inspection) -> dict[str, Any]:
    fates = found.fates()
    return {
        "found": found,
        "headline": _headline(found),
        "samples": sum(fates.values()),
        "kept": fates[KEPT],
        "reasons": [(reason, n) for reason, n in fates.most_common() if reason not in FINE],
        "fate_plots": [(entry, figures.bars(_id(f"fates-{entry.name}"), f"fates of {entry.name}",
                                            entry.fates.most_common(), good=KEPT)) for entry in found.entries
                       if entry.samples],
        "length_plots": [plot for entry in found.entries for plot in _lengths(entry)],
        "leakage_said": as_text,
        "good": FINE,
    }  # fmt: skip


def _headline(found: Inspection) -> str:
    fates = found.fates()
    samples = sum(fates.values())
    if not samples:
        return "Nothing has come in yet."
    said = count(samples, "sample") + (f" from {count(found.questions, 'question')}" if found.questions else "")
    if not found.curated:
        return f"{said}, {sum(entry.usable for entry in found.entries):,} of them usable so far."
    worst = next((reason for reason, _ in fates.most_common() if reason not in FINE), None)
    more = f"; most of the others are dropped as {label(worst)}" if worst else ""
    return f"{said}, {fates[KEPT] / samples:.1%} kept{more}."


def _lengths(entry: Entry) -> list[tuple[str, str, str]]:
    """(entry, of what, plot)."""
    made = [
        (entry.name, f"words of the {what}",
         figures.histogram(_id(f"{entry.name}-{what}"), f"words of the {what}", values, "words"))
        for what, values in entry.words.items() if values
    ]  # fmt: skip
    made += [
        (entry.name, label(what), figures.histogram(_id(f"{entry.name}-score-{what}"), label(what), values, "score"))
        for what, values in entry.scores.items() if values
    ]  # fmt: skip
    return made


def _id(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", name)
