"""Looking at a run: every sample is accounted for, in the terminal and on a page that stands alone."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from running import complaint_of, pocketstill, result_of
from teaching import recipe_of, write_rows

from pocketstill.errors import UserError
from pocketstill_pipeline.collect import collect
from pocketstill_pipeline.curate import curate
from pocketstill_pipeline.inspection import inspect_run, reading
from pocketstill_pipeline.inspection.page import write_page
from pocketstill_pipeline.recipe import Recipe
from pocketstill_pipeline.tables import read_parquet

SKILLS = [{"name": "coin_flip", "kind": "yes_no", "questions": 60, "heldout": 10}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    root = tmp_path_factory.mktemp("runs") / "coins"
    recipe = recipe_of({"samples": 3, "price_in": 1.0, "price_out": 4.0, "embedded": {"mistakes": 0.3}}, SKILLS)
    collect(recipe, root / "collect")
    curate(recipe, root / "collect", root / "curate")
    return recipe, root


def test_every_sample_has_one_fate(run: tuple[Recipe, Path]) -> None:
    _, root = run
    found = inspect_run(root)
    fates = found.fates()
    tables = {name: read_parquet(root / "curate" / f"{name}.parquet") for name in ("train", "heldout", "rejected")}
    assert sum(fates.values()) == 60 * 3 + 10
    assert fates["kept"] == len(tables["train"]) + len(tables["heldout"])
    rejected = [row["reason"] for row in tables["rejected"]]
    assert {reason: rejected.count(reason) for reason in rejected} == {k: v for k, v in fates.items() if k != "kept"}
    assert fates["wrong"] > 20


def test_the_ledger_is_summed_up(run: tuple[Recipe, Path]) -> None:
    _, root = run
    asked = inspect_run(root).asked
    counts = json.loads((root / "collect" / "manifest.json").read_text())["counts"]
    assert asked.requests == asked.answered == counts["requests"] and asked.failed == 0
    assert asked.price == pytest.approx((asked.prompt_tokens + 4 * asked.completion_tokens) / 1e6)
    assert 0 < asked.latency_s["p50"] <= asked.latency_s["p95"] <= asked.latency_s["max"]


def test_samples_of_one_question_stand_side_by_side_with_their_fates(run: tuple[Recipe, Path]) -> None:
    groups = inspect_run(run[1]).groups
    assert groups and all(1 < len(group.samples) <= 6 for group in groups)
    assert len({shown.fate for shown in groups[0].samples}) > 1


def test_conversations_that_end_alike_are_apart_and_long_texts_are_cut(tmp_path: Path) -> None:
    def talk(opening: str) -> dict[str, Any]:
        said = [("user", opening), ("assistant", "Yes."), ("user", "And why?"), ("assistant", f"{opening} Of course.")]
        return {"messages": [{"role": role, "content": text} for role, text in said]}

    long = {"question": "How many?", "rationale": "It is long. " * 500, "completion": "many", "gold": "7"}
    data = {
        "free": write_rows(tmp_path / "talks.jsonl", [talk("One."), talk("Two.")]),
        "sums": write_rows(tmp_path / "sums.jsonl", [long]),
    }
    skills = [
        {"name": "free", "kind": "text", "graded": False, "source": "none"},
        {"name": "sums", "kind": "number", "source": "none"},
    ]
    entries = [{"name": name, "method": "traces", "skill": name, "data": str(path)} for name, path in data.items()]
    collect(recipe_of(None, skills, elicit=entries), tmp_path / "run" / "collect")
    found = inspect_run(tmp_path / "run")
    assert [len(group.samples) for group in found.groups if group.entry == "free"] == [1, 1]
    text = write_page(found, tmp_path / "page.html").read_text(encoding="utf-8")
    assert 100 < text.count("It is long.") < 160


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [tag] if tag in ("script", "link", "img", "iframe") else []
        self.found += [
            value or "" for name, value in attrs if name in ("src", "href") and not (value or "").startswith("#")
        ]


def test_the_page_fetches_nothing_and_escapes_what_the_teacher_said(tmp_path: Path) -> None:
    rows = [{"prompt": "Say <script>alert(1)</script>", "completion": "<img src=x onerror=alert(2)>"}] * 2
    data = write_rows(tmp_path / "rows.jsonl", rows)
    free = [{"name": "free", "kind": "text", "graded": False, "source": "none"}]
    recipe = recipe_of(None, free, elicit=[{"method": "traces", "skill": "free", "data": str(data)}])
    collect(recipe, tmp_path / "run" / "collect")
    text = write_page(inspect_run(tmp_path / "run"), tmp_path / "page.html").read_text(encoding="utf-8")
    parser = _Links()
    parser.feed(text)
    assert parser.found == [] and "&lt;img src=x" in text
    assert re.search(r"Content-Security-Policy\" content=\"default-src 'none'", text)


def test_a_collection_that_was_cut_can_be_looked_at(run: tuple[Recipe, Path], tmp_path: Path) -> None:
    root = tmp_path / "cut"
    shutil.copytree(run[1] / "collect", root / "collect")
    (root / "collect" / "manifest.json").unlink()
    samples = root / "collect" / "samples" / "zero_shot_cot.jsonl"
    half = samples.read_bytes()[:20_000]
    samples.unlink()
    samples.with_suffix(".partial").write_bytes(half)
    found = inspect_run(root)
    assert not found.finished and not found.curated and not found.entries[0].done
    assert found.entries[0].samples == half.count(b"\n")


def test_a_line_may_be_cut_within_a_character(run: tuple[Recipe, Path], tmp_path: Path) -> None:
    root = tmp_path / "cut"
    shutil.copytree(run[1] / "collect", root / "collect")
    (root / "collect" / "manifest.json").unlink()
    samples = root / "collect" / "samples" / "zero_shot_cot.jsonl"
    samples.rename(samples.with_suffix(".partial"))
    with samples.with_suffix(".partial").open("ab") as file:
        file.write('{"id": "é'.encode()[:-1])
    assert inspect_run(root).entries[0].samples == 190


def test_an_entry_may_end_while_it_is_looked_at(
    run: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "meanwhile"
    shutil.copytree(run[1] / "collect", root / "collect")
    samples = root / "collect" / "samples" / "zero_shot_cot.jsonl"
    partial = samples.with_suffix(".partial")
    samples.rename(partial)
    look = reading._entry

    def ended(path: Path, *rest: Any, **more: Any) -> Any:
        partial.rename(samples)
        return look(path, *rest, **more)

    monkeypatch.setattr(reading, "_entry", ended)
    assert inspect_run(root).entries[0].samples == 190


def test_the_curation_of_an_earlier_collection_says_nothing_of_this_one(
    run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    root = tmp_path / "again"
    shutil.copytree(run[1], root)
    recipe = run[0].model_copy(update={"seed": 5})
    collect(recipe, root / "collect")
    found = inspect_run(root)
    assert found.finished and not found.curated and found.leakage is None
    assert set(found.fates()) == {"not curated yet"}
    curate(recipe, root / "collect", root / "curate")
    assert inspect_run(root).curated
    (root / "collect" / "manifest.json").unlink()
    assert not inspect_run(root).curated


def test_brackets_in_what_others_wrote_are_no_markup(run: tuple[Recipe, Path], tmp_path: Path) -> None:
    root = tmp_path / "brackets"
    shutil.copytree(run[1] / "collect", root / "collect")
    row = {"where": "[red]data[/x].csv, line 2", "why": "split is '[/INST]'; it must be 'train' or 'test'"}
    (root / "collect" / "unreadable.jsonl").write_text(json.dumps(row) + "\n")
    with closing(sqlite3.connect(root / "collect" / "ledger.sqlite")) as ledger, ledger:
        ledger.execute("UPDATE requests SET state = 'failed', error = 'HTTP 400: no [/INST] here'")
    done = pocketstill("inspect", root)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "unreadable [red]data[/x].csv, line 2: split is '[/INST]'" in said
    assert "failed: HTTP 400: no [/INST] here" in said


def test_the_command_shows_prints_and_writes(run: tuple[Recipe, Path], tmp_path: Path) -> None:
    done = pocketstill("inspect", run[1], "--out", tmp_path / "page.html", "--show", "1")
    found = result_of(done)
    assert found["entries"]["zero_shot_cot"]["samples"] == 190 and Path(found["page"]).is_file()
    assert "what was dropped, and why" in done.stderr and "wrong" in done.stderr
    dropped = pocketstill("inspect", run[1], "--out", tmp_path / "page.html", "--reason", "wrong")
    assert "instead of" in dropped.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("curate/stats.json", "{}"), ("curate/rejected.parquet", "no"), ("curate/rejected.parquet", None),
        ("collect/samples/zero_shot_cot.jsonl", "{]\n"), ("collect/samples/zero_shot_cot.jsonl", '{"id": "x"}\n'),
    ],
)  # fmt: skip
def test_a_run_that_is_broken_is_one_line(
    run: tuple[Recipe, Path], tmp_path: Path, name: str, text: str | None
) -> None:
    root = tmp_path / "broken"
    shutil.copytree(run[1], root)
    (root / name).unlink()
    if text is not None:
        (root / name).write_text(text)
    with pytest.raises(UserError, match="a file of it is missing or broken") as caught:
        inspect_run(root)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_one_line(run: tuple[Recipe, Path], tmp_path: Path) -> None:
    assert "nothing was collected there" in complaint_of(pocketstill("inspect", tmp_path))
    assert "nearest: 'wrong'" in complaint_of(pocketstill("inspect", run[1], "--reason", "wrnog"))
