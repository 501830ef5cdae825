"""Recipes: what is misspelt or does not fit is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketstill.errors import UserError
from pocketstill_pipeline.recipe import load_recipe

GOOD = """
name = "r"
[[skills]]
name = "coin_flip"
kind = "yes_no"
"""


def load(tmp_path: Path, text: str):  # type: ignore[no-untyped-def]
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


def test_defaults_fill_a_short_recipe(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD)
    assert recipe.teacher.base_url == "embedded"
    assert recipe.skills[0].source == "embedded"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "[teacher]\nsampels = 3", r"teacher\.sampels.*'samples'"),
        (GOOD + "[teacher.embedded]\nmistake = 0.1", r"teacher\.embedded\.mistake.*'mistakes'"),
        (GOOD + "questoins = 3", r"skills\.0\.questoins.*'questions'"),
        (GOOD + "[studnet]\nbase = 'x'", "studnet.*'student'"),
        (GOOD + "[student.new]\nhiden_size = 64", r"student\.new\.hiden_size.*'hidden_size'"),
        (GOOD + "[teacher]\nsamples = 0", r"teacher\.samples"),
        (
            GOOD + "[[elicit]]\nmethod = 'from_topcis'",
            r"elicit\.0: no method 'from_topcis'; nearest: 'from_topics'",
        ),
        (GOOD + "[[elicit]]\nskill = 'coin_flip'", r"elicit\.0: 'method' is missing; `pocketstill methods` lists them"),
        (GOOD + "[[elicit]]\nmethod = 'direct'\nsampels = 2", r"elicit\.0\.direct\.sampels.*'samples'"),
        (GOOD + "[teacher]\nbase_url = 'replay'", "names no file"),
        (GOOD + "[verify]\nvariants = ['onnx-int9']", "did you mean onnx-int[48]"),
        (GOOD + GOOD.replace('name = "r"\n', ""), "same name"),
        ("name = 'r'", "skills"),
        ("name = ", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert "recipe.toml" in str(caught.value)


def test_a_byte_order_mark_does_not_hurt(tmp_path: Path) -> None:
    assert load(tmp_path, "\ufeff" + GOOD).name == "r"


def test_missing_recipe_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe(tmp_path / "none.toml")


def test_paths_are_beside_the_recipe(tmp_path: Path) -> None:
    text = GOOD + 'source = "data/q.jsonl"\n[teacher]\nbase_url = "replay"\nreplay = ["data/r.jsonl"]'
    recipe = load(tmp_path, text)
    assert recipe.skills[0].source == str(tmp_path / "data" / "q.jsonl")
    assert recipe.teacher.replay == [str(tmp_path / "data" / "r.jsonl")]
