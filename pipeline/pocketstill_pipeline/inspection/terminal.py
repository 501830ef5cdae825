"""An inspection in the terminal: tables of what came in and what was dropped, and samples side by side."""

from __future__ import annotations

from rich.columns import Columns
from rich.console import Console
from rich.console import Group as Lines
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pocketstill_pipeline.curating.leakage import as_text

from .reading import FINE, KEPT, Entry, Group, Inspection, Shown

_LONGEST, _NARROWEST = 600, 44


def show(found: Inspection, console: Console, *, groups: int, reason: str | None) -> None:
    """Prints all; with `reason` the samples that it dropped instead of those side by side."""
    state = "curated" if found.curated else "collected" if found.finished else "under way"
    console.print(Text.assemble((found.name, "bold"), f": {state}, {found.questions:,} questions"))
    console.print(_asked(found), markup=False)
    console.print(_funnel(found))
    console.print(_reasons(found))
    console.print(_lengths(found))
    for skill, report in (found.leakage or {}).items():
        console.print(as_text(report, f"leakage of {skill}"), markup=False)
    for row in found.unreadable[:5]:
        console.print(Text.assemble(("unreadable", "red"), f" {row['where']}: {row['why']}"))
    if len(found.unreadable) > 5:
        console.print(f"... and {len(found.unreadable) - 5} more unreadable rows in collect/unreadable.jsonl")
    if reason is not None:
        for shown in found.drops[reason]:
            console.print(_panel(shown, console.width))
        return
    for group in found.groups[:groups]:
        console.print(_side_by_side(group, console.width))


def _asked(found: Inspection) -> str:
    asked = found.asked
    said = f"{asked.requests:,} requests: {asked.answered:,} answered, {asked.failed:,} failed"
    said += f", {asked.pending:,} open" if asked.pending else ""
    said += f", {asked.asked_again:,} asked more than once" if asked.asked_again else ""
    said += f"; {asked.prompt_tokens:,} prompt and {asked.completion_tokens:,} completion tokens"
    said += f", cost {asked.price:.4f}" if asked.price else ""
    if asked.latency_s:
        said += f"; answered in {asked.latency_s['p50']:.3g} s (median), {asked.latency_s['p95']:.3g} s (95 %)"
    for failure, count in asked.failures.items():
        said += f"\n  {count:,} failed: {failure}"
    return said


def _funnel(found: Inspection) -> Table:
    table = Table("entry", "method", "route", title="what came in", title_justify="left")
    for name in ("samples", "usable", "kept"):
        table.add_column(name, justify="right")
    for entry in found.entries:
        kept = f"{entry.kept:,}" if found.curated else "-"
        name = entry.name if entry.done else f"{entry.name} (under way)"
        table.add_row(name, entry.method, entry.route, f"{entry.samples:,}", f"{entry.usable:,}", kept)
    return table


def _reasons(found: Inspection) -> Table:
    table = Table("reason", title="what was dropped, and why", title_justify="left")
    dropped = [entry for entry in found.entries if set(entry.fates) - set(FINE)]
    for entry in dropped:
        table.add_column(entry.name, justify="right")
    for reason, _ in found.fates().most_common():
        if reason not in FINE:
            table.add_row(reason, *(_share(entry, reason) for entry in dropped))
    return table


def _share(entry: Entry, reason: str) -> str:
    count = entry.fates[reason]
    return f"{count:,} ({count / entry.samples:.1%})" if count else ""


def _lengths(found: Inspection) -> Table:
    table = Table("entry", "words of", title="lengths", title_justify="left")
    for name in ("shortest", "median", "longest"):
        table.add_column(name, justify="right")
    for entry in found.entries:
        for what, counts in entry.words.items():
            ordered = sorted(counts)
            table.add_row(entry.name, what, *(str(n) for n in (ordered[0], ordered[len(ordered) // 2], ordered[-1])))
    return table


def _side_by_side(group: Group, width: int) -> Panel:
    across = max(1, min(len(group.samples), width // _NARROWEST))
    samples = Columns([_panel(shown, (width - 6) // across) for shown in group.samples], padding=0)
    gold = f"\nright answer: {group.gold}" if group.gold else ""
    question = Text(f"{group.question[:_LONGEST]}{gold}", style="bold")
    return Panel(Lines(question, samples), title=f"{group.entry}, {group.skill}", title_align="left")


def _panel(shown: Shown, width: int) -> Panel:
    text = shown.rationale or shown.completion
    said = f"{text[:_LONGEST]}\n--> {shown.answer[:_LONGEST]}" if shown.rationale else text[:_LONGEST]
    scores = [f"{name} {score:g}" for name, score in shown.scores.items()]
    why = ", ".join(part for part in (shown.detail[:200], *scores) if part)
    colour = "green" if shown.fate == KEPT else "yellow" if shown.fate in FINE else "red"
    parts = [Text(said)] + ([Text(why, style="dim")] if why else [])
    return Panel(Lines(*parts), title=f"[{colour}]{shown.fate}[/]", width=width)
