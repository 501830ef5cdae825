"""The quote before the first request, and the budget that holds while requests go out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from running import complaint_of, pocketstill, result_of
from teaching import recipe_of

from pocketstill.errors import UserError
from pocketstill_pipeline.collect import collect
from pocketstill_pipeline.ledger import Ledger
from pocketstill_pipeline.questions import build_questions
from pocketstill_pipeline.quote import Quote, duration, plans_of, quote_of, span
from pocketstill_pipeline.recipe import Recipe
from pocketstill_pipeline.teacher import TeacherConfig
from pocketstill_pipeline.teacher.server import running_teacher
from pocketstill_pipeline.teacher.spending import BudgetSpent

PRICES = {"price_in": 2.0, "price_out": 8.0}
SKILLS = [{"name": "arithmetic", "kind": "number", "questions": 120, "heldout": 20}]


def quoted(recipe: Recipe, collected: Path) -> Quote:
    return quote_of(recipe, plans_of(recipe, build_questions(recipe), collected), collected)


def spent(folder: Path) -> float:
    with Ledger(folder / "ledger.sqlite", readonly=True) as ledger:
        return sum(row.price or 0.0 for row in ledger.rows())


def test_what_it_cost_lies_in_the_quoted_range(tmp_path: Path) -> None:
    recipe = recipe_of(PRICES, SKILLS)
    quote = quoted(recipe, tmp_path)
    result = collect(recipe, tmp_path)
    assert quote.requests == (result.requests, result.requests)
    assert quote.prompt_tokens[0] <= result.prompt_tokens <= quote.prompt_tokens[1]
    assert quote.completion_tokens[0] <= result.completion_tokens <= quote.completion_tokens[1]
    assert quote.money is not None and quote.money[0] <= result.price <= quote.money[1]


def test_what_is_answered_already_is_told(tmp_path: Path) -> None:
    recipe = recipe_of(PRICES, SKILLS)
    result = collect(recipe, tmp_path)
    quote = quoted(recipe, tmp_path)
    assert (quote.answered, quote.spent) == (result.requests, pytest.approx(result.price))
    assert f"{result.requests:,} of them are answered already" in quote.line()


def test_a_batch_costs_its_share_of_the_price(tmp_path: Path) -> None:
    live, batch = (quoted(recipe_of(PRICES | {"mode": mode}, SKILLS), tmp_path).money for mode in ("live", "batch"))
    assert live is not None and batch is not None
    assert batch == pytest.approx((live[0] / 2, live[1] / 2))


def test_a_batch_may_take_a_day(tmp_path: Path) -> None:
    hosted = {"mode": "batch", "base_url": "https://api.example.com/v1"}
    assert quoted(recipe_of(hosted, SKILLS), tmp_path).line().endswith(" to 24.0 h")


def test_answers_of_batches_say_nothing_about_the_time_of_live_ones(tmp_path: Path) -> None:
    hosted = {"base_url": "https://api.example.com/v1"}
    before = quoted(recipe_of(hosted, SKILLS), tmp_path).seconds
    collect(recipe_of({"mode": "batch"}, SKILLS), tmp_path)
    after = quoted(recipe_of(hosted, SKILLS), tmp_path)
    assert after.answered >= 50 and after.seconds == before


def test_limits_of_the_pace_are_in_the_quoted_time(tmp_path: Path) -> None:
    quote = quoted(recipe_of({"requests_per_minute": 60}, SKILLS), tmp_path)
    assert quote.seconds[0] >= quote.requests[0]


def test_without_prices_there_is_no_sum(tmp_path: Path) -> None:
    assert quoted(recipe_of({"price_in": 1.0}, SKILLS), tmp_path).money is None


@pytest.mark.parametrize("prices", [{}, {"price_in": 1.0}, {"price_out": 1.0}])
def test_a_money_limit_without_prices_is_an_error_and_not_a_zero(prices: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"budget\.money needs teacher\.price_in and teacher\.price_out"):
        recipe_of(prices, SKILLS, budget={"money": 1.0})


@pytest.mark.parametrize("limit", ["money", "tokens"])
def test_half_the_budget_stops_within_what_is_under_way_and_raising_it_resumes(tmp_path: Path, limit: str) -> None:
    with running_teacher(TeacherConfig(latency_ms=2)) as url:
        teacher = PRICES | {"base_url": url, "concurrency": 8}
        whole = collect(recipe_of(teacher, SKILLS), tmp_path / "whole")
        used: dict[str, Any] = {"money": whole.price, "tokens": whole.prompt_tokens + whole.completion_tokens}
        half = recipe_of(teacher, SKILLS, budget={limit: type(used[limit])(used[limit] / 2)})
        with pytest.raises(BudgetSpent, match=r"raise \[budget\]"):
            collect(half, tmp_path / "half")
        answered = spent(tmp_path / "half")
        # Eight at once, each at most the limit of 256 completion tokens and a prompt of 2,000 bytes.
        assert whole.price / 2 - 8 * (256 * 8 + 2000 * 2) / 1e6 <= answered <= whole.price / 2 * 1.05
        rest = collect(recipe_of(teacher, SKILLS, budget={limit: used[limit] * 2}), tmp_path / "half")
    assert rest.price == pytest.approx(whole.price) and rest.from_cache > 0
    samples = Path("samples") / "zero_shot_cot.jsonl"
    assert (tmp_path / "half" / samples).read_bytes() == (tmp_path / "whole" / samples).read_bytes()


def test_the_commands(tmp_path: Path) -> None:
    text = (
        'name = "b"\n[teacher]\nprice_in = 2.0\nprice_out = 8.0\n[budget]\nmoney = 0.02\n'
        '[[skills]]\nname = "coin_flip"\nkind = "yes_no"\nquestions = 50\nheldout = 5\n'
    )
    recipe = tmp_path / "b.toml"
    recipe.write_text(text, encoding="utf-8")
    found = result_of(pocketstill("quote", recipe, "--runs", tmp_path))
    assert found["requests"] == [210, 210] and found["money"][0] > 0.02
    said = complaint_of(pocketstill("collect", recipe, "--runs", tmp_path))
    assert "budget" in said and "run again" in said
    recipe.write_text(text.replace("price_out = 8.0\n", ""), encoding="utf-8")
    assert "price_out" in complaint_of(pocketstill("quote", recipe, "--runs", tmp_path))
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("values", "said"), [((12, 12), "12"), ((0.5, 1.25), "0.5 to 1.25"), ((900, 3_900_000), "900 to 3.9M"), (None, "")]
)
def test_ranges_in_words(values: tuple[float, float] | None, said: str) -> None:
    assert span(values) == said


@pytest.mark.parametrize(("seconds", "said"), [(0.1, "1 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h")])
def test_durations_in_words(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_an_entry_that_names_no_skill_of_the_recipe_is_told_before_any_request(tmp_path: Path) -> None:
    recipe = recipe_of(None, SKILLS, elicit=[{"method": "from_topics", "skill": "arithmatic"}])
    with pytest.raises(UserError, match="there is no skill 'arithmatic'"):
        collect(recipe, tmp_path)
