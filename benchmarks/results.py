"""Write the results tables of the README anew from finished runs: `python benchmarks/results.py runs/pocket ...`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from pocketstill.files import read_json

README = Path(__file__).resolve().parent.parent / "README.md"


def percent(skill: dict[str, Any]) -> str:
    """Accuracy with its 95 % Wilson interval."""
    return f"{100 * skill['accuracy']:.1f} ({100 * skill['low']:.1f} to {100 * skill['high']:.1f})"


def table(root: Path) -> str:
    """One run's table: accuracy by skill of teacher, checkpoint and default variant, and what the device did."""
    report = read_json(root / "verify" / "report.json")
    chosen = next((row for row in report["variants"] if row["variant"] == report["default"]), report["variants"][0])
    shipped = "shipped" if report["default"] else "nothing shipped"
    teacher = report["teacher"]["heldout"]["by_skill"]
    lines = [
        f"| skill, held out | n | teacher | checkpoint | {shipped}: {chosen['variant']} |",
        "|---|---|---|---|---|",
    ]
    for name, skill in chosen["skills"].items():
        theirs = f"{100 * teacher[name]['accuracy']:.1f}" if name in teacher else ""
        mine = 100 * report["checkpoint"]["skills"][name]["accuracy"]
        lines.append(f"| {name} | {skill['n']} | {theirs} | {mine:.1f} | {percent(skill)} |")
    lines += [
        "",
        "| variant | MiB | load s | TTFT ms | prefill tok/s | decode tok/s | peak RSS MiB | passed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["variants"]:
        figures = (row["load_s"], row["ttft_ms"], row["prefill_tok_s"], row["decode_tok_s"], row["peak_rss_mib"])
        load, ttft, prefill, decode, memory = figures
        lines.append(
            f"| {row['variant']} | {row['file_mib']:.2f} | {load:.2f} | {ttft:.1f} | {prefill:,.0f} | {decode:,.0f} "
            f"| {memory:.0f} | {'yes' if row['passed'] else 'no'} |"
        )
    return "\n".join(lines)


def main(roots: list[str]) -> None:
    text = README.read_text(encoding="utf-8")
    for root in map(Path, roots):
        marked = re.compile(rf"(<!-- results {root.name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not marked.search(text):
            sys.exit(f"README.md has no place marked <!-- results {root.name} -->")
        filled = table(root)
        text = marked.sub(lambda m, filled=filled: m[1] + filled + "\n" + m[2], text)  # type: ignore[misc]
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
