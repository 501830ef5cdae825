"""Evol-Instruct over real loopback HTTP: the chain of rounds, and each rule of elimination."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from teaching import chat_app, recipe_of, serving, write_rows

from pocketstill.errors import UserError
from pocketstill_pipeline.collect import collect
from pocketstill_pipeline.curate import curate
from pocketstill_pipeline.elicit.prompts import evolving
from pocketstill_pipeline.ledger import Ledger
from pocketstill_pipeline.recipe import Recipe, load_recipe

RECIPE = Path(__file__).parent.parent / "recipes" / "elicit" / "evol-instruct.toml"
SEEDS = RECIPE.parent / "data" / "seeds.jsonl"
SKILL = {"name": "instructions", "kind": "text", "source": "none", "graded": False}
RULES = ("eliminated_copied_prompt", "eliminated_no_gain", "eliminated_sorry", "eliminated_empty")


def recipe(teacher: dict[str, Any] | None = None, **settings: Any) -> Recipe:
    entry = {"method": "evol_instruct", "skill": "instructions", "seeds": str(SEEDS)} | settings
    return recipe_of({"max_tokens": 1024} | (teacher or {}), [SKILL], elicit=[entry])


def samples(folder: Path, entry: str = "evol_instruct") -> list[dict[str, Any]]:
    text = (folder / "samples" / f"{entry}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def asked(row: dict[str, Any]) -> str:
    return str(row["messages"][0]["content"])


def tag(row: dict[str, Any], name: str) -> str:
    return next(t.partition(":")[2] for t in row["tags"] if t.startswith(f"{name}:"))


def one_seed(path: Path) -> str:
    return str(write_rows(path, [{"instruction": "Name a bird."}]))


def scripted(evolve: Any, answer: str = "A robin is a bird.", judgement: str = "Not Equal", seen: Any = None) -> Any:
    """A teacher whose evolution of an instruction is `evolve(request)`."""

    def respond(body: Any, _: int) -> Any:
        content = body["messages"][-1]["content"]
        request = evolving.asked_evolve(content)
        if seen is not None:
            seen.append(request or content)
        if request is not None:
            return evolve(request)
        return judgement if evolving.asked_compare(content) else answer

    return chat_app(respond)


def test_each_round_evolves_what_the_last_good_one_made(tmp_path: Path) -> None:
    """The requests in the ledger name the parent: after an elimination it is the same once more."""
    collect(recipe({"embedded": {"mistakes": 0.4}}), tmp_path)
    rows = samples(tmp_path)
    with Ledger(tmp_path / "ledger.sqlite", readonly=True) as ledger:
        requests = {row.key: json.loads(row.request) for row in ledger.rows()}
    failed_parents = 0
    for start in range(20):
        chain = [row for row in rows if row["id"].startswith(f"seed-{start}/")]
        assert [tag(row, "round") for row in chain] == ["0", "1", "2", "3", "4"]
        parent = asked(chain[0])
        for row in chain[1:]:
            request = evolving.asked_evolve(requests[row["source"][0]]["messages"][0]["content"])
            assert request is not None
            assert (request.instruction, request.operation) == (parent, tag(row, "operation"))
            failed_parents += "reason" in row
            parent = parent if "reason" in row else asked(row)
    assert failed_parents > 10


def test_eliminations_are_counted_by_round_and_rule(tmp_path: Path) -> None:
    """Four rounds of the recipe's three chains a seed: every rule strikes, and most evolutions pass."""
    loaded = load_recipe(RECIPE)
    collect(loaded, tmp_path / "collect")
    rows = [row for row in samples(tmp_path / "collect") if tag(row, "round") != "0"]
    counted = Counter((tag(row, "round"), row.get("reason")) for row in rows)
    assert {number for number, _ in counted} == {"1", "2", "3", "4"} and len(rows) == 20 * 3 * 4
    assert {row["reason"] for row in rows if "reason" in row} == set(RULES)
    assert sum(count for (_, reason), count in counted.items() if reason is None) > 0.7 * len(rows)
    assert {tag(row, "operation") for row in rows} == set(evolving.OPERATIONS)
    result = curate(loaded, tmp_path / "collect", tmp_path / "curate")
    assert result.train > 150


@pytest.mark.parametrize(
    ("evolved", "judgement", "answer", "reason"),
    [
        ("Name two birds of the north.", "Not Equal", "Owl and crow.", None),
        ("Name a bird, please.", "Equal", "Owl.", "eliminated_no_gain"),
        ("Name a bird of the moon.", "Not Equal.", "Sorry, there is none.", "eliminated_sorry"),
        ("Name a bird of the moon.", "**Not equal**", "I am sorry. " + "word " * 75 + "end", "eliminated_sorry"),
        ("Name a bird of the moon.", "Unequal", "I am sorry. " + "word " * 76 + "end", None),
        ("Name a bird or else.", "Not Equal", "It is what it is, so...", "eliminated_empty"),
        ("Name a bird or else.", "Not Equal", "---", "eliminated_empty"),
        ("Name a bird or else.", "Not Equal", "7", None),
        ("Name a bird of the Given Prompt.", "Not Equal", "Owl.", "eliminated_copied_prompt"),
        ("#Rewritten Prompt#: Name two birds.", "Not Equal", "Owl and crow.", None),
        ("Name a bird. #Rewritten Prompt#", "Not Equal", "Owl.", "eliminated_copied_prompt"),
        ("Name two birds.", "Hard to say", "Owl and crow.", "no_judgement"),
        ("I'm sorry, but I can't assist with that.", "Not Equal", "Then with what?", "refused"),
    ],
)
def test_rules_of_elimination(tmp_path: Path, evolved: str, judgement: str, answer: str, reason: str | None) -> None:
    with serving(scripted(lambda _: evolved, answer, judgement)) as url:
        settings = {"rounds": 1, "keep_starts": False, "seeds": one_seed(tmp_path / "seeds.jsonl")}
        collect(recipe({"base_url": url}, **settings), tmp_path / "out")
    (row,) = samples(tmp_path / "out")
    assert row.get("reason") == reason


def test_words_of_the_prompt_that_the_parent_has_are_no_copy(tmp_path: Path) -> None:
    seeds = write_rows(tmp_path / "seeds.jsonl", [{"instruction": "Say what a given prompt is."}])
    with serving(scripted(lambda _: "Say what a given prompt is, in two lines.")) as url:
        collect(recipe({"base_url": url}, rounds=1, seeds=str(seeds)), tmp_path / "out")
    assert all("reason" not in row for row in samples(tmp_path / "out"))


def test_copies_cost_no_further_request(tmp_path: Path) -> None:
    seen: list[Any] = []
    with serving(scripted(lambda _: "The rewritten prompt.", seen=seen)) as url:
        settings = {"rounds": 3, "keep_starts": False, "seeds": one_seed(tmp_path / "seeds.jsonl")}
        collect(recipe({"base_url": url}, **settings), tmp_path / "out")
    assert len(seen) == 3 and all(request.instruction == "Name a bird." for request in seen)


def test_only_the_chosen_operations_are_drawn(tmp_path: Path) -> None:
    collect(recipe(operations=["breadth", "reasoning"], limit=8), tmp_path)
    drawn = {tag(row, "operation") for row in samples(tmp_path)}
    assert drawn == {"start", "breadth", "reasoning"}


def test_instructions_of_an_earlier_entry_are_evolved(tmp_path: Path) -> None:
    entries = [
        {"method": "self_instruct", "skill": "instructions", "seeds": str(SEEDS), "count": 30, "requests": 4},
        {"method": "evol_instruct", "skill": "instructions", "of": "self_instruct", "limit": 12, "rounds": 2},
    ]
    collect(recipe_of({"max_tokens": 1024}, [SKILL], elicit=entries), tmp_path)
    made = {asked(row) for row in samples(tmp_path, "self_instruct") if "reason" not in row}
    starts = [asked(row) for row in samples(tmp_path) if tag(row, "round") == "0"]
    assert len(starts) == 12 and set(starts) <= made
    assert len({text.partition("\n\n")[0] for text in starts}) == 12


def test_further_chains_of_a_seed_differ_and_answer_it_once(tmp_path: Path) -> None:
    collect(recipe(samples=2, rounds=2, limit=10), tmp_path)
    rows = samples(tmp_path)
    assert Counter(tag(row, "round") for row in rows) == {"0": 10, "1": 20, "2": 20}
    first, second = ([asked(row) for row in rows if row["id"].endswith(f"/{n}/2")] for n in (0, 1))
    assert sum(a != b for a, b in zip(first, second, strict=True)) >= 8


def test_it_needs_something_to_start_from() -> None:
    with pytest.raises(ValidationError, match="needs instructions to start from"):
        recipe(seeds="")
    with pytest.raises(ValidationError, match="needs a limit"):
        recipe(seeds="", of="self_instruct")


def test_unknown_skill_is_an_error_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no skill 'other'"):
        collect(recipe(skills=["other"]), tmp_path)


@pytest.mark.parametrize("operation", evolving.OPERATIONS)
def test_requests_are_read_back_as_they_were_built(operation: evolving.Operation) -> None:
    text = "Sum the column.\n\nitem,price\nrope,3"
    (request,) = evolving.evolve_request(text, operation)
    assert evolving.asked_evolve(request["content"]) == evolving.Evolve(text, operation)
    (request,) = evolving.compare_request(text, "Other.\n\nwith input")
    assert evolving.asked_compare(request["content"]) == (text, "Other.\n\nwith input")
    assert evolving.asked_evolve("Name a bird.") is None and evolving.asked_compare("Name a bird.") is None
