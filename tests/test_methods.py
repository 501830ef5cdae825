"""Every method of elicitation: named once, described, and with a recipe that uses it."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import complaint_of, environment, pocketstill, result_of

from pocketstill_pipeline.elicit.methods import METHODS
from pocketstill_pipeline.recipe import load_recipe

RECIPES = sorted((Path(__file__).parents[1] / "recipes" / "elicit").glob("*.toml"))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_goes_by_its_own_name_and_says_what_it_does(method: str) -> None:
    settings = METHODS[method].settings
    assert settings.model_fields["method"].default == method
    assert (settings.__doc__ or "").strip()


def test_every_method_has_a_recipe() -> None:
    used = {entry.method for path in RECIPES for entry in load_recipe(path).elicit}
    assert used == set(METHODS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_named_as_its_file_and_describes_itself(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem and recipe.description


def test_the_documentation_names_every_method() -> None:
    said = (Path(__file__).parents[1] / "docs" / "elicit.md").read_text(encoding="utf-8")
    assert [method for method in METHODS if f"`{method}`" not in said] == []


def test_the_command_lists_them(tmp_path: Path) -> None:
    assert set(result_of(pocketstill("methods"))["methods"]) == set(METHODS)
    settings = result_of(pocketstill("methods", "from_topics"))["settings"]
    assert settings["count"]["default"] == 200
    assert "nearest: 'from_topics'" in complaint_of(pocketstill("methods", "from_topcis"))


def test_a_setting_is_described_as_it_stands() -> None:
    done = pocketstill("methods", "score", env=environment(COLUMNS="200"))
    assert "the earlier [[elicit]] entry" in done.stderr
