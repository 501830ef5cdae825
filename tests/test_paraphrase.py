"""Paraphrase over real loopback HTTP: new wordings keep the facts and the gold answer."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from teaching import KINDS, chat_app, recipe_of, serving, write_rows

from pocketstill_pipeline.collect import collect, read_questions
from pocketstill_pipeline.curate import curate
from pocketstill_pipeline.elicit.expansion.paraphrase import changed_facts
from pocketstill_pipeline.elicit.prompts.evolving import Paraphrases, asked_paraphrases, paraphrase_request
from pocketstill_pipeline.recipe import Recipe, load_recipe

RECIPE = Path(__file__).parent.parent / "recipes" / "elicit" / "paraphrase.toml"
SKILLS = [{"name": n, "kind": k, "questions": 20, "heldout": 5} for n, k in KINDS.items()]
QUESTION = "Mia has 12 shells and finds 5 more. How many shells does Mia have?"


def recipe(teacher: dict[str, Any] | None = None, skills: Any = None, **settings: Any) -> Recipe:
    entry = {"method": "paraphrase"} | settings
    return recipe_of({"max_tokens": 512} | (teacher or {}), skills or SKILLS, elicit=[entry])


def samples(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "samples" / "paraphrase.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def asked(row: dict[str, Any]) -> str:
    return str(row["messages"][0]["content"])


def test_tidy_teacher_answers_every_new_wording_as_the_old_one(tmp_path: Path) -> None:
    """All five skills: another wording, and through two steps to the gold answer of the question it came from."""
    collect(recipe({"embedded": {"mistakes": 0.0, "noise": 0.0}}, wordings=2), tmp_path)
    questions = {q.id: q for q in read_questions(tmp_path)}
    rows = samples(tmp_path)
    kept = [row for row in rows if "reason" not in row]
    assert {row["skill"] for row in kept} == set(KINDS)
    assert len(kept) > 0.85 * len(rows)
    for row in kept:
        source = questions[row["group"]]
        assert source.split == "train" and row["gold"] == source.gold and row["kind"] == source.kind
        assert asked(row) not in {q.text for q in questions.values()}
        if row["kind"] == "json":
            assert json.loads(row["answer"]) == json.loads(row["gold"])
        else:
            assert row["answer"].lower() == row["gold"].lower() and row["rationale"]


def test_recipe_keeps_what_is_right_and_says_why_not_else(tmp_path: Path) -> None:
    loaded = load_recipe(RECIPE)
    collect(loaded, tmp_path / "collect")
    result = curate(loaded, tmp_path / "collect", tmp_path / "curate")
    assert result.train > 300 and result.suite == 6 * 20
    reasons = Counter(row.get("reason") for row in samples(tmp_path / "collect"))
    assert {"changed_facts", "similar_wording", "no_list"} <= set(reasons)
    assert reasons[None] > 0.5 * reasons.total()


def test_each_wording_is_checked_before_it_is_answered(tmp_path: Path) -> None:
    wordings = [
        "After finding 5 shells in addition to 12, what number of shells is in Mia's hands?",
        "Mia has 12 shells and finds 6 more. What is the total?",
        "Somebody who owns 12 shells finds 5. How many is that?",
        "Mia has 12 shells and finds 5 more. How many shells does Mia have now?",
        "Count the shells of Mia, who owned 12 until twice five joined them, or rather 5.",
    ]
    seen: list[str] = []

    def answer(body: Any, _: int) -> str:
        content = body["messages"][-1]["content"]
        seen.append(content)
        if asked_paraphrases(content):
            return "\n".join(f"{number}. {text}" for number, text in enumerate(wordings, 1))
        return "17." if content.startswith("Therefore") else "12 + 5 = 17."

    path = write_rows(tmp_path / "q.jsonl", [{"question": QUESTION, "gold": "17", "split": "train"}])
    skills = [{"name": "mine", "kind": "number", "source": str(path)}]
    with serving(chat_app(answer)) as url:
        collect(recipe({"base_url": url}, skills, wordings=5), tmp_path / "out")
    rows = samples(tmp_path / "out")
    assert [row.get("reason") for row in rows] == [
        None, "changed_facts", "changed_facts", "similar_wording", "changed_facts",
    ]  # fmt: skip
    assert (rows[0]["answer"], rows[0]["gold"], rows[0]["rationale"]) == ("17", "17", "12 + 5 = 17.")
    assert rows[0]["route"] == "expansion" and len(seen) == 3
    assert rows[0]["group"] == rows[1]["group"] == read_questions(tmp_path / "out")[0].id


def test_unlabelled_wordings_carry_the_gold_answer_alone(tmp_path: Path) -> None:
    collect(recipe(skills=SKILLS[:1], label=False, limit=7), tmp_path)
    rows = samples(tmp_path)
    assert all(row["answer"] == row["gold"] for row in rows if "reason" not in row)
    assert len({row["group"] for row in rows}) == 7 and max(len(row["source"]) for row in rows) == 1


@pytest.mark.parametrize(
    ("question", "text", "changed"),
    [
        (QUESTION, "With 12 shells, and 5 found later, how many are Mia's?", ""),
        (QUESTION, "With twelve shells, and five found later, how many are Mia's?", ""),
        (QUESTION, "With 12 shells, and 12 and 5 found later, how many are Mia's?", "numbers none became 12"),
        (QUESTION, "With 12 shells, how many are Mia's?", "numbers 5 became none"),
        (QUESTION, "With 12 shells, and 5 found later, how many are there?", "Mia is gone"),
        (QUESTION, "With 12 shells, and 5 found by Tom, how many are Mia's?", "Tom is new"),
        ("It costs 1,200.50 in May.", "In May the price is 1200.50.", ""),
        ('Join the letters of "Ann Bo".', 'Which text do the letters of "Ann Bo" make?', ""),
        ('Join the letters of "Ann Bo".', 'Which text do the letters of "Bo Ann" make?', "'Ann Bo' is gone"),
        ("Which is it? (A) red. (B) blue.", "Choose: (A) red, or blue.", "B is gone"),
        ("Sum what Ann and Bo have.", "What do Bo and Ann have together?", ""),
        ("Where does Zoé go? Élise, where?", "Which école is it that Zoé and Élise see là-bas?", ""),
        ("Where does Zoé go?", "Where does Élise's école lie, Zoé?", "Élise is new"),
        ("天空为什么是蓝色的？", "为什么天空看起来是蓝色的？", ""),
    ],
)
def test_facts(question: str, text: str, changed: str) -> None:
    assert changed_facts(question, text) == changed


def test_request_is_read_back_as_it_was_built() -> None:
    (request,) = paraphrase_request("Is it so?\nAnswer Choices: (A) yes.", 4)
    assert asked_paraphrases(request["content"]) == Paraphrases("Is it so?\nAnswer Choices: (A) yes.", 4)
    assert asked_paraphrases("Is it so?") is None
