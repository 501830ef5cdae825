"""Our collection beside others', on one server in one run: requests a second and peak memory.

    python benchmarks/bench_collect.py [--requests 10000] [--rounds 3] [--only ours,bare] [--out FILE.json]

A server in a process of its own answers every request after a fixed time. Against it take turns: our whole `collect`
(questions read, requests paced, every answer in the ledger before it is used, samples written); a bare loop of
`AsyncOpenAI` over its fastest transport, which keeps nothing; bespokelabs-curator and distilabel as they install, each
in an environment of its own (`make bench-collect` makes them). Three settings: short answers (50 ms, 64 at once), long
ones (2 s, 1,000 at once), and ours alone over four and more times as many, for its memory.

The rate is what the server sees over the middle nine tenths of the answers, so that nobody pays for starting up or
winding down; wall seconds are of the whole call, with both. Prints Markdown, and one JSON object last.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peers.measure import machine

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent / "peers"
SYSTEMS = {
    "ours": ("pocketstill collect", Path(sys.executable)),
    "bare": ("bare AsyncOpenAI loop", Path(sys.executable)),
    "curator": ("bespokelabs-curator", ROOT / ".peers/curator/bin/python"),
    "distilabel": ("distilabel", ROOT / ".peers/distilabel/bin/python"),
}
LIMIT_S = 900


@dataclass(frozen=True)
class Setting:
    """So many requests to a server that takes so long, so many at once; `ideal` is the rate that allows, a second."""

    name: str
    latency_ms: int
    at_once: int
    requests: int
    systems: tuple[str, ...]
    rounds: int

    @property
    def ideal(self) -> float:
        return self.at_once * 1000 / self.latency_ms


@dataclass
class Row:
    """One system in one setting, over all rounds."""

    setting: str
    system: str
    requests: int
    rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    most_in_flight: int = 0
    error: str = ""


@contextlib.contextmanager
def serving(latency_ms: int) -> Iterator[str]:
    """The fixed server in a process of its own; gives its base URL."""
    command = [sys.executable, str(HERE / "fixed_server.py"), "--latency-ms", str(latency_ms)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stdin is not None
        yield str(json.loads(server.stdout.readline())["base_url"])
        server.stdin.close()


def stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats", timeout=20) as response:
        return dict(json.load(response))


def write_questions(path: Path, count: int) -> Path:
    """So many different questions."""
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            question = f"There are {index} trees in the grove, and {index * 7 % 9973} later. How many were planted?"
            file.write(json.dumps({"question": question, "gold": "{}", "split": "train"}) + "\n")
    return path


def run_once(system: str, url: str, questions: Path, setting: Setting, row: Row) -> None:
    """One whole process of one system; its figures go into `row`."""
    _, python = SYSTEMS[system]
    if not python.exists():
        row.error = f"no {python.relative_to(ROOT)}; run `make bench-collect`"
        return
    command = [str(python), str(HERE / f"collect_{system}.py"), url, str(questions), str(setting.at_once)]
    stats(url)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        row.error = f"not done in {LIMIT_S} s"
        return
    seen = stats(url)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        row.error = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
        return
    said = json.loads(lines[-1])
    if said["answers"] != setting.requests:
        row.error = f"{said['answers']} of {setting.requests} answered"
    row.rates.append(seen["rate"])
    row.seconds.append(said["seconds"])
    row.peak_mib.append(said["peak_mib"])
    row.most_in_flight = max(row.most_in_flight, seen["most_in_flight"])


def measure(setting: Setting) -> list[Row]:
    """All systems of a setting, taking turns."""
    rows = {system: Row(setting.name, system, setting.requests) for system in setting.systems}
    with tempfile.TemporaryDirectory() as folder, serving(setting.latency_ms) as url:
        questions = write_questions(Path(folder) / "questions.jsonl", setting.requests)
        for _ in range(setting.rounds):
            for system, row in rows.items():
                if not row.error:
                    run_once(system, url, questions, setting, row)
                    print(f"{setting.name}: {system} {row.rates[-1:]} {row.error}", file=sys.stderr)
    return list(rows.values())


def table(setting: Setting, rows: list[Row]) -> str:
    """One setting as Markdown: medians over rounds, and the lowest and highest rate."""
    bare = next((row for row in rows if row.system == "bare" and row.rates), None)
    lines = [
        f"{setting.name}: {setting.requests:,} requests, {setting.latency_ms} ms each, {setting.at_once:,} at once "
        f"(ideal {setting.ideal:,.0f}/s); {setting.rounds} rounds",
        "",
        "| | requests/s | of the bare loop | of the ideal | wall s | peak MiB | most at once |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = SYSTEMS[row.system][0]
        if not row.rates:
            lines.append(f"| {name} | {row.error} | | | | | |")
            continue
        rate = statistics.median(row.rates)
        # Of the same round, as the machine may be busier in one than in another.
        pairs = [own / other for own, other in zip(row.rates, bare.rates, strict=False)] if bare else []
        lines.append(
            f"| {name} | {rate:,.0f} ({min(row.rates):,.0f} to {max(row.rates):,.0f}) "
            f"| {f'{statistics.median(pairs):.0%}' if pairs else ''} | {rate / setting.ideal:.0%} "
            f"| {statistics.median(row.seconds):.1f} | {max(row.peak_mib):.0f} | {row.most_in_flight:,} |"
            + (f" {row.error}" if row.error else "")
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--long-requests", type=int, default=5_000)
    parser.add_argument("--memory-requests", type=int, nargs="*", default=[2_000, 20_000, 40_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(SYSTEMS), help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    only = tuple(options.only.split(","))
    settings = [
        Setting("short answers", 50, 64, options.requests, only, options.rounds),
        Setting("long answers", 2000, 1000, options.long_requests, only, options.rounds),
        *(Setting(f"memory, {n:,}", 50, 64, n, ("ours",), 1) for n in options.memory_requests if "ours" in only),
    ]
    found: list[dict[str, Any]] = []
    for setting in settings:
        if setting.requests:
            rows = measure(setting)
            found += [asdict(row) for row in rows]
            print(table(setting, rows), end="\n\n", flush=True)
    result = {"machine": machine(), "rows": found}
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
