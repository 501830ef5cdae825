"""A user's own data all the way: the recipe that shows it, collected over HTTP and curated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the workshop extra")

from pocketstill.errors import UserError
from pocketstill_pipeline.collect import collect, read_questions
from pocketstill_pipeline.curate import curate
from pocketstill_pipeline.recipe import Recipe, load_recipe
from pocketstill_pipeline.tables import read_parquet

SHOWN = Path(__file__).resolve().parents[1] / "recipes" / "elicit"
BROKEN = '61;"a quote that never closes;7;train\n62;What is 1 and 1?;;train\n63;What is 2 and 2?;4;maybe\n'


def own(folder: Path, more: str = "") -> Recipe:
    """The recipe with copies of its files, and `more` at the end of its table."""
    (folder / "data").mkdir()
    shutil.copy(SHOWN / "own-data.toml", folder)
    for name in ("word-problems.csv", "coin-talk.jsonl"):
        shutil.copy(SHOWN / "data" / name, folder / "data")
    with (folder / "data" / "word-problems.csv").open("a", encoding="utf-8") as table:
        table.write(more)
    return load_recipe(folder / "own-data.toml")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_own_data_is_asked_and_curated(tmp_path: Path) -> None:
    recipe = own(tmp_path)
    result = collect(recipe, tmp_path / "collect")
    curate(recipe, tmp_path / "collect", tmp_path / "curate")
    assert (result.questions, result.failed, result.unreadable) == (100, 0, 0)
    heldout = [question for question in read_questions(tmp_path / "collect") if question.split == "heldout"]
    # The table says which are held out; of the conversations the seed draws them.
    assert [question.skill for question in heldout].count("word_problems") == 12
    assert [question.skill for question in heldout].count("coin_talk") == 10
    train = read_parquet(tmp_path / "curate" / "train.parquet")
    assert {row["skill"] for row in train} == {"word_problems", "coin_talk"}
    asked = {row["messages"][-1]["content"] for row in train}
    assert not asked & {question.text for question in heldout}


def test_earlier_turns_are_asked_with_the_last(tmp_path: Path) -> None:
    recipe = own(tmp_path)
    collect(recipe, tmp_path / "collect")
    given = {
        tuple(turn["content"] for turn in row["messages"][:-1])
        for row in rows_of(tmp_path / "data" / "coin-talk.jsonl")
    }
    elicited = {
        tuple(turn["content"] for turn in row["messages"])
        for row in rows_of(tmp_path / "collect" / "samples" / "direct.jsonl")
    }
    assert elicited == given and any(len(turns) == 4 for turns in elicited)


def test_unreadable_rows_are_listed_and_the_rest_goes_on(tmp_path: Path) -> None:
    recipe = own(tmp_path, BROKEN)
    result = collect(recipe, tmp_path / "collect")
    assert (result.questions, result.unreadable) == (100, 3)
    table = tmp_path / "data" / "word-problems.csv"
    assert rows_of(tmp_path / "collect" / "unreadable.jsonl") == [
        {"where": f"{table}, line 62", "why": "not CSV (a quote that never closes)"},
        {"where": f"{table}, line 63", "why": "the field 'Antwort' is empty"},
        {"where": f"{table}, line 64", "why": "split is 'maybe'; it must be 'train' or 'test'"},
    ]


def test_more_unreadable_rows_than_the_recipe_bears_ask_nothing(tmp_path: Path) -> None:
    recipe = own(tmp_path, BROKEN)
    strict = [skill.model_copy(update={"most_bad": 2}) for skill in recipe.skills]
    with pytest.raises(UserError, match=r"more than 2 rows cannot be used.*line 62.*line 63.*line 64") as caught:
        collect(recipe.model_copy(update={"skills": strict}), tmp_path / "collect")
    assert "\n" not in str(caught.value) and not (tmp_path / "collect" / "ledger.sqlite").exists()
