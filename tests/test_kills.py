"""Twenty kills at random moments: what was answered is never asked again, and the end is that of one run."""

from __future__ import annotations

import json
import random
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from teaching import recipe_of
from test_collect import start

from pocketstill_pipeline.collect import collect
from pocketstill_pipeline.ledger import Ledger, Row
from pocketstill_pipeline.teacher import TeacherConfig
from pocketstill_pipeline.teacher.server import running_teacher

CONCURRENCY = 8
SKILLS = [{"name": "coin_flip", "kind": "yes_no", "questions": 700, "heldout": 50}]


def stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats", timeout=20) as response:
        found = json.load(response)
    assert isinstance(found, dict)
    return found


def done(folder: Path) -> list[Row]:
    if not (folder / "ledger.sqlite").is_file():
        return []
    with Ledger(folder / "ledger.sqlite", readonly=True) as ledger:
        return [row for row in ledger.rows() if row.state == "done"]


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_pay_nothing_twice(tmp_path: Path) -> None:
    rng = random.Random(4)
    teacher = {"samples": 2, "concurrency": CONCURRENCY, "price_in": 2.0, "price_out": 8.0}
    with running_teacher(TeacherConfig(latency_ms=6)) as url:
        recipe = recipe_of(teacher | {"base_url": url}, SKILLS)
        kills = 0
        while kills < 20:
            before = len(done(tmp_path / "cut"))
            with start(recipe, tmp_path / "cut") as process:
                # Most of a process's first second is imports: the kill falls into the asking.
                time.sleep(1.0 + 0.7 * rng.random())
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
            assert len(done(tmp_path / "cut")) >= before
            assert not (tmp_path / "cut" / "manifest.json").is_file(), "it ended before twenty kills: ask for more"
        asked = stats(url)
        cut = collect(recipe, tmp_path / "cut")
        after = stats(url)
        whole = collect(recipe, tmp_path / "whole")
    samples = Path("samples") / "zero_shot_cot.jsonl"
    assert (tmp_path / "cut" / samples).read_bytes() == (tmp_path / "whole" / samples).read_bytes()
    assert {row.key for row in done(tmp_path / "cut")} == {row.key for row in done(tmp_path / "whole")}
    # The last run asked for what was missing and nothing else; only what was on its way at a kill was sent twice.
    assert after["requests"] - asked["requests"] == cut.requests
    assert after["requests"] - whole.requests <= 20 * CONCURRENCY
    assert cut.price == pytest.approx(whole.price)
    assert cut.price == pytest.approx(sum(row.price or 0 for row in done(tmp_path / "whole")))
