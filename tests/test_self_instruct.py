"""Self-Instruct over real loopback HTTP: the pool's bound, the filters, the two ways to instances, when it ends."""

from __future__ import annotations

import ast
import itertools
import json
import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse
from teaching import chat_app, recipe_of, serving, write_rows

from pocketstill.errors import UserError
from pocketstill_pipeline.collect import collect
from pocketstill_pipeline.elicit.expansion.self_instruct import check_instances
from pocketstill_pipeline.elicit.prompts import expansion as prompts
from pocketstill_pipeline.elicit.prompts.expansion import Instance, Shown
from pocketstill_pipeline.recipe import Recipe, load_recipe

RECIPE = Path(__file__).parent.parent / "recipes" / "elicit" / "self-instruct.toml"
SEEDS = RECIPE.parent / "data" / "seeds.jsonl"
SKILL = {"name": "instructions", "kind": "text", "source": "none", "graded": False}
ONE_A_LINE = [
    "Name a river that flows through two countries.", "Explain tides to a child.", "Sort these words: pear, fig, kiwi.",
    "Is this mail spam or not? Answer spam or genuine.",
]  # fmt: skip


def recipe(teacher: dict[str, Any] | None = None, **settings: Any) -> Recipe:
    entry = {"method": "self_instruct", "skill": "instructions", "seeds": str(SEEDS), "count": 60} | settings
    return recipe_of({"max_tokens": 1024} | (teacher or {}), [SKILL], elicit=[entry])


def samples(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "samples" / "self_instruct.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def asked(row: dict[str, Any]) -> str:
    return str(row["messages"][0]["content"])


def seed_texts() -> list[str]:
    return [json.loads(line)["instruction"] for line in SEEDS.read_text(encoding="utf-8").splitlines()]


def found(rows: list[dict[str, Any]]) -> list[str]:
    """The instructions that were kept, each once, with or without usable instances."""
    return list(dict.fromkeys(asked(row).partition("\n\n")[0] for row in rows if row.get("group")))


def rouge(one: str, other: str) -> float:
    scorers = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge_score is not installed")
    return float(scorers.RougeScorer(["rougeL"], use_stemmer=False).score(one, other)["rougeL"].fmeasure)


def scripted(lists: Any, seen: list[str] | None = None) -> Any:
    """A teacher that answers the n-th request for proposals with `lists(n)`, and the others alike."""
    numbers = itertools.count()

    def answer(body: Any, _: int) -> Any:
        content = body["messages"][-1]["content"]
        if seen is not None:
            seen.append(content)
        if prompts.asked_proposals(content):
            return lists(next(numbers))
        task = prompts.asked_classify(content)
        if task is not None:
            return "Yes." if "spam" in task else "No."
        wanted = prompts.asked_instances(content)
        assert wanted is not None
        if wanted.classifies:
            return "Label: spam\nInput: You won!\n\nLabel: genuine\nInput: See you at six."
        return "Example 1\nOutput: It is done."

    return chat_app(answer)


def test_thousand_instructions_from_twenty_seeds_within_two_minutes(tmp_path: Path) -> None:
    loaded = load_recipe(RECIPE)
    assert len(seed_texts()) == 20
    started = time.monotonic()
    collect(loaded, tmp_path)
    assert time.monotonic() - started < 120
    rows = samples(tmp_path)
    kept = found(rows)
    assert len(kept) == 1000 == len({text.lower() for text in kept})
    pool = seed_texts() + kept
    rng = random.Random(5)
    assert all(rouge(*rng.sample(pool, 2)) < 0.7 for _ in range(4000))


def test_no_two_instructions_reach_the_bound_by_the_reference(tmp_path: Path) -> None:
    collect(recipe(count=80), tmp_path)
    pool = seed_texts() + found(samples(tmp_path))
    assert len(pool) == 100
    assert max(rouge(one, other) for one, other in itertools.combinations(pool, 2)) < 0.7


def test_similar_ones_are_kept_beside_the_rest_with_their_score_and_the_text_they_resemble(tmp_path: Path) -> None:
    collect(recipe({"embedded": {"mistakes": 0.4}}), tmp_path)
    dropped = [row for row in samples(tmp_path) if row.get("reason") == "similar_to_pool"]
    assert len(dropped) > 5
    for row in dropped:
        said = re.fullmatch(r"([0-9.]+) with (.*)", row["detail"])
        assert said is not None
        assert rouge(asked(row), ast.literal_eval(said[2])) == pytest.approx(float(said[1]), abs=5e-4)
        assert float(said[1]) >= 0.7


def test_each_filter_names_its_reason(tmp_path: Path) -> None:
    first = seed_texts()[0]
    proposals = {
        "List more.": "too_short",
        "word " * 151: "too_long",
        "- Sum up the text above in one line.": "starts_with_punctuation",
        "Élaborate on the text in three lines.": "not_english",
        "Describe this picture in three short sentences.": "beyond_text",
        "Write a program that sorts a list.": "asks_for_program",
        first.upper(): "in_pool",
        f"{first} Please.": "similar_to_pool",
        **dict.fromkeys(ONE_A_LINE, None),
        "Give three reasons to learn a second language.": "over_count",
    }
    listed = "\n".join(f"{number}. {text}" for number, text in enumerate(proposals, 9))
    with serving(scripted(lambda _: listed)) as url:
        collect(recipe({"base_url": url}, count=len(ONE_A_LINE), requests=1), tmp_path)
    rows = samples(tmp_path)
    dropped = {asked(row): row["reason"] for row in rows if not row.get("group")}
    assert dropped == {" ".join(text.split()): reason for text, reason in proposals.items() if reason}
    assert found(rows) == ONE_A_LINE


def test_classification_is_asked_label_first_and_all_else_input_first(tmp_path: Path) -> None:
    listed = "\n".join(f"{number}. {text}" for number, text in enumerate(ONE_A_LINE, 9))
    seen: list[str] = []
    with serving(scripted(lambda _: listed, seen)) as url:
        collect(recipe({"base_url": url}, count=4, requests=1), tmp_path)
    wanted = [instances for text in seen if (instances := prompts.asked_instances(text))]
    assert {one.instruction: one.classifies for one in wanted} == {text: "spam" in text for text in ONE_A_LINE}
    rows = {asked(row): row["answer"] for row in samples(tmp_path)}
    assert rows[f"{ONE_A_LINE[3]}\n\nYou won!"] == "spam"
    assert rows[f"{ONE_A_LINE[3]}\n\nSee you at six."] == "genuine"
    assert rows[ONE_A_LINE[0]] == "It is done."


def test_requests_show_seeds_at_first_and_then_two_found_before(tmp_path: Path) -> None:
    seen: list[str] = []
    subjects = [
        "wolves",
        "bridges",
        "sonatas",
        "glaciers",
        "taxes",
        "kites",
        "volcanoes",
        "beetles",
        "canals",
        "tunnels",
    ]

    def lists(number: int) -> str:
        return f"9. Say something about {subjects[number]} that hardly anybody has heard so far {number}."

    with serving(scripted(lists, seen)) as url:
        collect(recipe({"base_url": url, "concurrency": 1}, count=4, requests=2, similar=0.99), tmp_path)
    shown = [found.instructions for text in seen if (found := prompts.asked_proposals(text))]
    seeds = set(seed_texts())
    assert [len(texts) for texts in shown] == [8] * 4
    assert [sum(text not in seeds for text in texts) for texts in shown] == [0, 0, 2, 2]


def test_instances_are_filtered_as_in_the_paper() -> None:
    cases = {
        Instance("a", ""): "empty",
        Instance("same", "Same"): "input_is_output",
        Instance("b", "The list:"): "unfinished",
        Instance("c", "one"): "conflicting",
        Instance("C", "two"): "conflicting",
        Instance("", "free"): None,
        Instance("", "other"): None,
        Instance("d", "fine"): None,
    }
    reasons = check_instances([*cases, Instance("d", "fine ")])
    assert [reason and reason[0] for reason in reasons] == [*cases.values(), "same_instance"]


def test_tidy_teacher_gives_only_usable_instances(tmp_path: Path) -> None:
    """What it makes up it also does: every label that it wrote an input for is what it answers to that input."""
    collect(recipe({"embedded": {"mistakes": 0.0, "noise": 0.0}}, count=120), tmp_path)
    rows = [row for row in samples(tmp_path) if row.get("group")]
    assert {row.get("reason") for row in rows} <= {None, "same_instance", "conflicting"}
    kinds = Counter(tag for row in rows for tag in row["tags"] if tag in ("classification", "generation"))
    assert 0.05 < kinds["classification"] / kinds.total() < 0.5
    assert all(row["answer"] for row in rows)


def test_pace_changes_nothing_and_a_second_run_asks_nothing(tmp_path: Path) -> None:
    collect(recipe({"concurrency": 1}), tmp_path / "slow")
    result = collect(recipe({"concurrency": 32}), tmp_path / "fast")
    assert samples(tmp_path / "slow") == samples(tmp_path / "fast")
    before = samples(tmp_path / "fast")
    (tmp_path / "fast" / "manifest.json").unlink()
    again = collect(recipe({"concurrency": 32}), tmp_path / "fast")
    assert (again.requests, again.from_cache) == (0, result.requests)
    assert samples(tmp_path / "fast") == before


def test_teacher_without_ideas_ends_the_rounds_and_that_is_said(tmp_path: Path) -> None:
    listed = "\n".join(f"{number}. {text}" for number, text in enumerate(ONE_A_LINE, 9))
    seen: list[str] = []
    with serving(scripted(lambda _: listed, seen)) as url:
        collect(recipe({"base_url": url}, count=50, requests=2), tmp_path)
    rows = samples(tmp_path)
    assert len(found(rows)) == 4
    assert sum(prompts.asked_proposals(text) is not None for text in seen) == 2 * (1 + 3)
    (stopped,) = [row for row in rows if row.get("reason") == "stopped_short"]
    assert stopped["detail"].startswith("4 of 50 instructions after 4 rounds")


def test_what_a_token_limit_cut_is_not_taken(tmp_path: Path) -> None:
    text = f"9. {ONE_A_LINE[0]}\n10. Compose a long letter to"

    def answer(body: Any, _: int) -> Any:
        if prompts.asked_proposals(body["messages"][-1]["content"]) is None:
            return "No"
        message = {"role": "assistant", "content": text}
        return JSONResponse({"choices": [{"index": 0, "message": message, "finish_reason": "length"}]})

    with serving(chat_app(answer)) as url:
        collect(recipe({"base_url": url}, count=1, requests=1), tmp_path)
    reasons = {asked(row): row.get("reason") for row in samples(tmp_path)}
    assert reasons == {"Compose a long letter to": "truncated", ONE_A_LINE[0]: "no_instance"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": "x", "is_classification": "maybe"}, "row 2: is_classification"),
        ({"instruction": "x", "instances": [{"input": "y"}]}, r"row 2: instances.0.output"),
        ({"text": "x"}, "line 2: the field 'instruction' is missing"),
    ],
)
def test_broken_seeds_are_named(tmp_path: Path, row: Any, said: str) -> None:
    path = write_rows(tmp_path / "seeds.jsonl", [{"instruction": "Name a bird."}, row])
    with pytest.raises(UserError, match=said) as caught:
        collect(recipe(seeds=str(path)), tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_requests_are_read_back_as_they_were_built() -> None:
    shown = [Shown("Pick a label.", True, (Instance("x", "a"),)), Shown("Say it.", False, (Instance("", "b"),))]
    (request,) = prompts.propose_request(["Name a bird.", "Add  these\nnumbers."], 5)
    back = prompts.asked_proposals(request["content"])
    assert back == prompts.Proposals(("Name a bird.", "Add these numbers."), 3, 7)
    (request,) = prompts.classify_request("Say hello.", shown)
    assert prompts.asked_classify(request["content"]) == "Say hello."
    for kind in (True, False):
        (request,) = prompts.instances_request("Say hello.", kind, 4, shown)
        assert prompts.asked_instances(request["content"]) == prompts.Instances("Say hello.", kind, 4)
        instances = [Instance("an input\nof two lines", "one"), Instance("other", "two")]
        assert prompts.read_instances(prompts.write_instances(instances, kind), kind) == instances


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("9. One two.\n10. Three\n   four.", ["One two.", "Three four."]),
        ("Sure:\n\n1) **One**\n2) Two", ["One", "Two"]),
        ("**1.** One\n**2.** Two", ["One", "Two"]),
        ("no list at all", []),
        ("3 .  One\n4. \n5. Two", ["One", "Two"]),
        ("9. One.\n10. Two.\n\nLet me know if you need more!", ["One.", "Two."]),
        ("9. One.\n\n10. Two.\n\n---\n\nI hope that these help.", ["One.", "Two."]),
        ("1. One?\n\n   (A) x (B) y\n2. Two?\n\n   (A) x (B) y\n\nDone.", ["One? (A) x (B) y", "Two? (A) x (B) y"]),
        ("## Verse\n\n9. One.\n\n**Science:**\n10. Two.", ["One.", "Two."]),
        ("9. **Verse:** Rhyme it.\n10. Use **bold** words.", ["Verse: Rhyme it.", "Use bold words."]),
        ("9. Is 2**3 more than 3**2?", ["Is 2**3 more than 3**2?"]),
        ("Sure:\n- One.\n- Two\n  three.", ["One.", "Two three."]),
        ("9. List these:\n- a\n- b\n10. Two.", ["List these: - a - b", "Two."]),
    ],
)
def test_lists_are_read_in_the_forms_that_teachers_write(text: str, items: list[str]) -> None:
    assert prompts.read_list(text) == items


@pytest.mark.parametrize(
    ("classifies", "text", "instances"),
    [
        (True, "Input: Hooray\nLabel: good\n\nInput: Alas\nLabel: bad", [("Hooray", "good"), ("Alas", "bad")]),
        (True, "Example 1\nLabel: good\nInput: Hooray\n\nExample 2\nLabel: bad\nInput: Alas",
         [("Hooray", "good"), ("Alas", "bad")]),
        (True, "1. **Label:** good\n   **Input:** Hooray\n2. **Label:** bad\n   **Input:** Alas",
         [("Hooray", "good"), ("Alas", "bad")]),
        (True, "### Example 1\n- Input: Hooray\n- Label: **good**", [("Hooray", "good")]),
        (True, "Label: **good**\nInput: Hooray", [("Hooray", "good")]),
        (False, "Example 1\nInput: 1 2\nOutput: 3\n\n---\n\nExample 2\nInput: 2 2\nOutput: 4",
         [("1 2", "3"), ("2 2", "4")]),
        (False, "1. Input: 1 2\n   Output: 3\n2. Input: 2 2\n   Output: 4", [("1 2", "3")]),
        (False, "Example 1\nInput: N/A\nOutput: A robin.", [("", "A robin.")]),
        (False, "Example 1\nInput: (None)\nOutput: A robin.", [("", "A robin.")]),
        (False, "Output: a: 1\n---\nb: 2", [("", "a: 1\n---\nb: 2")]),
        (False, "No, I cannot.", []),
    ],
)  # fmt: skip
def test_instances_are_read_in_the_forms_that_teachers_write(
    classifies: bool, text: str, instances: list[tuple[str, str]]
) -> None:
    assert prompts.read_instances(text, classifies) == [Instance(*pair) for pair in instances]
