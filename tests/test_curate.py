"""Curating: what is kept, what is not and why, and the figures about the teacher."""

from __future__ import annotations

import itertools
import json
import random
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from running import pocketstill
from teaching import chat_app, recipe_of, recorded, serving, write_rows

from pocketstill.errors import UserError
from pocketstill.files import sha256_file
from pocketstill.stats import wilson
from pocketstill_pipeline import problems
from pocketstill_pipeline.collect import collect
from pocketstill_pipeline.curate import CurateResult, curate
from pocketstill_pipeline.duplicates import NearDuplicates, shingles
from pocketstill_pipeline.elicit.sampling import tidy
from pocketstill_pipeline.example import Example
from pocketstill_pipeline.ledger import Ledger
from pocketstill_pipeline.recipe import Recipe
from pocketstill_pipeline.tables import EXAMPLES, read_parquet, write_parquet

LONG = "Ann counts the apples on the table and then she counts the pears on the other table in the long hall, and {}."


def replayed(tmp_path: Path, rows: list[dict[str, str]], **more: Any) -> tuple[Recipe, CurateResult]:
    """Collect and curate recorded rows (kind number); sample i of a question is its i-th row."""
    path = write_rows(tmp_path / "r.jsonl", rows)
    questions = write_rows(tmp_path / "q.jsonl", [{k: row[k] for k in ("question", "gold", "split")} for row in rows])
    skills = [{"name": "mine", "kind": "number", "source": str(questions)}]
    teacher = {"base_url": "replay", "replay": [str(path)], "samples": 1}
    recipe = recipe_of(teacher, skills, **more)
    collect(recipe, tmp_path / "collect")
    return recipe, curate(recipe, tmp_path / "collect", tmp_path / "curate")


def reasons(tmp_path: Path) -> dict[str, str]:
    return {row["question"]: row["reason"] for row in read_parquet(tmp_path / "curate" / "rejected.parquet")}


def row(question: str, reasoning: str, completion: str, gold: str = "4", split: str = "train") -> dict[str, str]:
    return recorded(question, reasoning, completion, gold, split=split)


GOOD = row("good", "Two and two is four.", " 4.")


def test_every_reject_has_its_reason(tmp_path: Path) -> None:
    rows = [
        GOOD,
        row("wrong", "Two and two is five.", " 5."),
        row("no answer", "Who knows.", "many"),
        row("empty rationale", " \n", "4"),
        row("empty answer", "So it is four.", "  "),
        row("Held  Out", "It is four.", "4"),
        row("held out", "It is four.", "4", split="test"),
    ]
    replayed(tmp_path, rows)
    assert reasons(tmp_path) == {
        "wrong": "wrong", "no answer": "no_answer", "empty rationale": "empty", "empty answer": "empty",
        "Held  Out": "in_heldout",
    }  # fmt: skip
    assert [e["messages"][0]["content"] for e in read_parquet(tmp_path / "curate" / "train.parquet")] == ["good"]
    assert [e["messages"][0]["content"] for e in read_parquet(tmp_path / "curate" / "heldout.parquet")] == ["held out"]


def test_duplicates_and_more_than_the_cap_are_left_out(tmp_path: Path) -> None:
    rows = [
        row("q", LONG.format("she has four"), "4"),
        row("q", " " + LONG.format("she  has four") + "\n", "4"),
        row("q", LONG.format("SHE HAS FOUR").replace("hall, and", "hall and"), "4"),
        row("q", "Four are left, as one sees.", "4"),
        row("q", "A third way to say it: four.", "4"),
    ]
    replayed(tmp_path, rows, curate={"max_per_question": 2})
    rejected = read_parquet(tmp_path / "curate" / "rejected.parquet")
    assert [r["reason"] for r in rejected] == ["exact_duplicate", "near_duplicate", "over_cap"]
    assert rejected[0]["detail"] == rejected[1]["detail"].replace("near", "exact")
    kept = read_parquet(tmp_path / "curate" / "train.parquet")
    assert [e["rationale"] for e in kept] == [rows[0]["reasoning"], rows[3]["reasoning"]]


def test_token_limit_rejects_as_truncated(tmp_path: Path) -> None:
    skills = [{"name": "coin_flip", "kind": "yes_no", "questions": 10, "heldout": 0},
              {"name": "tool_call", "kind": "json", "questions": 10, "heldout": 0}]  # fmt: skip
    recipe = recipe_of({"max_tokens": 22, "embedded": {"mistakes": 0.0, "noise": 0.0}}, skills)
    collect(recipe, tmp_path / "collect")
    curate(recipe, tmp_path / "collect", tmp_path / "curate")
    found = [r for r in read_parquet(tmp_path / "curate" / "rejected.parquet") if r["skill"] == "coin_flip"]
    assert len(found) == 20 and {r["reason"] for r in found} == {"truncated"}


def test_wrong_ones_are_kept_when_asked_for(tmp_path: Path) -> None:
    replayed(tmp_path, [GOOD, row("wrong", "It is five.", "5")], curate={"answer_filter": False})
    kept = read_parquet(tmp_path / "curate" / "train.parquet")
    assert [(e["answer"], e["gold"], e["tags"]) for e in kept] == [("4", "4", []), ("5", "4", ["wrong"])]
    stats = json.loads((tmp_path / "curate" / "stats.json").read_text())
    assert stats["kept_by_answer"] == {"right": 1, "wrong": 1}
    assert stats["teacher"]["train"]["overall"]["accuracy"] == 0.5


def test_figures_about_the_teacher(tmp_path: Path) -> None:
    rows = [row(f"q{i}", f"Reason {chr(97 + i % 26) * (1 + i // 26)}.", "4" if i % 4 else "5") for i in range(40)]
    rows += [row(f"h{i}", "Two and two is four.", "4" if i else "many", split="test") for i in range(10)]
    _, result = replayed(tmp_path, rows)
    stats = json.loads((tmp_path / "curate" / "stats.json").read_text())
    low, high = wilson(30, 40)
    expected = {"n": 40, "correct": 30, "accuracy": 0.75, "low": low, "high": high}
    assert stats["teacher"]["train"]["overall"] == stats["teacher"]["train"]["by_skill"]["mine"] == expected
    assert stats["teacher"]["heldout"]["by_skill"]["mine"]["accuracy"] == 0.9
    assert stats["mistakes"] == {"mine": 0.25, "overall": 0.25}
    assert stats["rejected"] == {"train": {"wrong": {"mine": 10}}, "heldout": {"no_answer": {"mine": 1}}}
    assert (result.train, result.heldout, result.rejected, result.suite) == (30, 9, 11, 10)
    assert result.teacher_accuracy == 0.75


def test_examples_have_the_one_schema_and_lead_back_to_the_ledger(tmp_path: Path) -> None:
    replayed(tmp_path, [GOOD])
    (example,) = read_parquet(tmp_path / "curate" / "train.parquet")
    assert list(example) == [field.name for field in fields(Example)]
    assert example["rationale"] == "Two and two is four." and example["answer"] == "4"
    assert example["messages"] == [{"role": "user", "content": "good"}]
    with Ledger(tmp_path / "collect" / "ledger.sqlite", readonly=True) as ledger:
        found = [ledger.get(key) for key in example["source"]]
    assert [row.state for row in found if row is not None] == ["done", "done"]


def test_suite_holds_every_held_out_question_without_the_teachers_words(tmp_path: Path) -> None:
    rows = [GOOD, row("h1", "r", "4", split="test"), row("h2", "r", "nonsense", split="test")]
    replayed(tmp_path, rows)
    lines = (tmp_path / "curate" / "suite.jsonl").read_text().splitlines()
    items = [json.loads(line) for line in lines]
    assert [item["messages"][0]["content"] for item in items] == ["h1", "h2"]
    assert set(items[0]) == {"id", "skill", "messages", "gold", "answer_kind", "tags"}


def test_curating_again_changes_nothing(tmp_path: Path) -> None:
    recipe, first = replayed(tmp_path, [GOOD, row("wrong", "r", "5")])
    before = {path.name: sha256_file(path) for path in (tmp_path / "curate").iterdir()}
    assert curate(recipe, tmp_path / "collect", tmp_path / "curate") == first
    (tmp_path / "curate" / "manifest.json").unlink()
    curate(recipe, tmp_path / "collect", tmp_path / "curate")
    after = {path.name: sha256_file(path) for path in (tmp_path / "curate").iterdir()}
    assert {k: v for k, v in after.items() if k != "manifest.json"} == {
        k: v for k, v in before.items() if k != "manifest.json"
    }


def test_unfinished_or_other_collection_is_refused(tmp_path: Path) -> None:
    recipe, _ = replayed(tmp_path, [GOOD])
    with pytest.raises(UserError, match="no finished collection"):
        curate(recipe, tmp_path, tmp_path / "x")
    with pytest.raises(UserError, match="another recipe"):
        curate(recipe.model_copy(update={"seed": 99}), tmp_path / "collect", tmp_path / "x")


def test_nothing_left_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing is left to train on .*2 wrong"):
        replayed(tmp_path, [row("a", "r", "5"), row("b", "r", "6")])


def test_questions_of_a_file_are_kept_apart(tmp_path: Path) -> None:
    asked = "Nine old captains of the long river boat met under the stone bridge to trade maps of the northern lakes."
    exam = write_rows(tmp_path / "exam.jsonl", [{"question": asked, "gold": "4"}])
    replayed(tmp_path, [GOOD, row(f"Today: {asked}", "It is four.", "4")], curate={"decontaminate": [str(exam)]})
    (rejected,) = read_parquet(tmp_path / "curate" / "rejected.parquet")
    assert rejected["reason"] == "contaminated" and rejected["detail"].startswith("exam.jsonl, question 1: ")
    stats = json.loads((tmp_path / "curate" / "stats.json").read_text())
    assert stats["decontamination"]["exam.jsonl"] == {"items": 1, "ngram": 13}


def test_what_is_not_selected_is_kept_beside_with_its_score(tmp_path: Path) -> None:
    rows = [
        row(f"Count the {name} in the yard.", f"There are four {name}.", "4") for name in ("hens", "old grey carts")
    ]
    replayed(tmp_path, [GOOD, *rows], curate={"select": 1, "weights": "evol"})
    (example,) = read_parquet(tmp_path / "curate" / "train.parquet")
    assert example["messages"][0]["content"] == "Count the old grey carts in the yard."
    assert example["weight"] == 1.0
    rejected = read_parquet(tmp_path / "curate" / "rejected.parquet")
    assert [r["reason"] for r in rejected] == ["not_selected", "not_selected"]
    assert 0 < rejected[0]["score"] < rejected[1]["score"] < example["scores"]["evol"]
    stats = json.loads((tmp_path / "curate" / "stats.json").read_text())
    assert stats["selected_by"] == "lengths"


def test_leakage_is_reported_by_skill(tmp_path: Path) -> None:
    rows = [
        row("Ann has 3 pens and buys 1 more.", "3 + 1 is 4.", "4"),
        row("Ben has 2 pens and buys 2 more.", "2 + 2 is 4.", "4", split="test"),
        row("How far is the sea from here?", "It is 4.", "4", split="test"),
    ]
    replayed(tmp_path, rows)
    report = json.loads((tmp_path / "curate" / "leakage.json").read_text())
    assert set(report) == {"mine"}
    assert [report["mine"]["levels"][level]["count"] for level in ("exact", "masked")] == [0, 1]


def test_a_split_by_template_leaves_no_template_on_both_sides(tmp_path: Path) -> None:
    nouns = ("pens", "hens", "carts", "lamps", "maps", "bells", "coats", "drums")
    rows = [
        row(f"Ann keeps {n} of her {noun} in the {noun} box. How many {noun} does Ann keep there?", "It is 4.", "4")
        for noun in nouns
        for n in range(5)
    ]
    for split, leaked in (("row", True), ("template", False)):
        folder = tmp_path / split
        folder.mkdir()
        replay = write_rows(folder / "r.jsonl", rows)
        source = write_rows(folder / "q.jsonl", [{key: one[key] for key in ("question", "gold")} for one in rows])
        skill = {"name": "mine", "kind": "number", "source": str(source), "heldout": 10, "split": split}
        recipe = recipe_of({"base_url": "replay", "replay": [str(replay)], "samples": 1}, [skill])
        collect(recipe, folder / "collect")
        curate(recipe, folder / "collect", folder / "curate")
        report = json.loads((folder / "curate" / "leakage.json").read_text())["mine"]
        assert report["heldout"] == 10
        assert (report["levels"]["template"]["count"] > 0) == leaked


def test_a_table_gives_back_what_it_was_given(tmp_path: Path) -> None:
    call = [{"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]
    example = Example(
        id="x", skill="s", route="feature", rationale="", answer="4", answer_kind="number", gold="4", split="train",
        messages=[
            {"role": "user", "content": "Add."},
            {"role": "assistant", "content": None, "tool_calls": call},
            {"role": "tool", "content": "4", "tool_call_id": "c"},
        ],
        source=["k"], tags=["t"], demonstrations=[{"role": "user", "content": "Add?"}],
        candidates=[{"completion": "4", "score": 1.5}], top_logprobs=b"\x00\xff", method="feature", tools="[]",
        weight=0.5, scores={"quality": 4.0},
    ).to_dict()  # fmt: skip
    write_parquet(tmp_path / "t.parquet", [example] * 2500, EXAMPLES)
    assert read_parquet(tmp_path / "t.parquet") == [example] * 2500
    write_parquet(tmp_path / "none.parquet", [], EXAMPLES)
    assert read_parquet(tmp_path / "none.parquet") == []


def test_tables_are_read_by_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    replayed(tmp_path, [GOOD])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    table = datasets.Dataset.from_parquet(str(tmp_path / "curate" / "train.parquet"), cache_dir=str(tmp_path / "cache"))
    assert table.features == EXAMPLES and table[0]["answer"] == "4"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("\n\nA.  B.\t C  \n\n\n D \n", "A. B. C\nD"), ("x", "x"), (" \n ", ""), ("a\r\nb", "a\nb")],
)
def test_tidy_folds_white_space_only(text: str, expected: str) -> None:
    assert tidy(text) == expected
    assert tidy(expected) == expected


def test_a_free_reply_keeps_its_indentation_and_paragraphs(tmp_path: Path) -> None:
    code = "Like this:\n\n```python\ndef f(x):\n    return x\n```\n\n- one\n  - two"
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Write f.", "completion": f"\n{code} \n"}])
    questions = write_rows(tmp_path / "q.jsonl", [{"question": "Write f, please."}])
    skills = [{"name": "free", "kind": "text", "graded": False, "source": str(questions)}]
    entries = [{"method": "traces", "skill": "free", "data": str(data)}, {"method": "direct"}]
    with serving(chat_app(lambda *_: code)) as url:
        recipe = recipe_of({"base_url": url, "samples": 1}, skills, elicit=entries)
        collect(recipe, tmp_path / "collect")
    curate(recipe, tmp_path / "collect", tmp_path / "curate")
    assert [one["answer"] for one in read_parquet(tmp_path / "curate" / "train.parquet")] == [code, code]


def test_near_duplicates_agree_with_brute_force() -> None:
    """Against every pair's Jaccard similarity, computed over the words themselves."""

    def triples(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    rng = random.Random(2)
    words = [f"w{i}" for i in range(60)]
    texts: list[str] = []
    for index in range(160):
        text = [rng.choice(words) for _ in range(90)] if index % 4 == 0 else texts[index - index % 4].split()
        for _ in range(index % 4):
            text[rng.randrange(90)] = rng.choice(words)
        texts.append(" ".join(text))
    for threshold in (0.9, 0.95):
        near, kept, expected = NearDuplicates(threshold), [], []
        for index, text in enumerate(texts):
            if near.add(f"{index:03}", text) is None:
                kept.append(index)
            mine = triples(text)
            others = [triples(texts[other]) for other in expected]
            if all(len(mine & t) < threshold * len(mine | t) for t in others):
                expected.append(index)
        assert kept == expected


@pytest.mark.parametrize("skill", problems.SKILLS)
def test_problems_that_differ_are_no_near_duplicates(skill: str) -> None:
    """Rule-made problems differ in names and numbers alone, which must be enough at the default threshold."""
    rng, seen, clashes = random.Random(5), set(), 0
    near = NearDuplicates(0.95)
    for index in range(1500):
        problem = problems.sample(skill, rng)
        solution = problems.solve(problem.question, rng)
        assert solution is not None
        if problem.question not in seen:
            seen.add(problem.question)
            clashes += near.add(str(index), f"{problem.question}\n{solution.rationale}\n{solution.answer}") is not None
    assert clashes <= len(seen) * 0.002


def test_one_other_number_or_name_is_another_example() -> None:
    text = " ".join(f"word{i}" for i in range(60))
    for old, new in itertools.combinations(("Ann", "Ben", "17", "18"), 2):
        near = NearDuplicates(0.95)
        assert near.add("a", f"{old} {text} {old}") is None
        assert near.add("b", f"{new} {text} {new}") is None


def test_punctuation_case_and_blanks_do_not_make_another_example() -> None:
    assert shingles("Ann has 4 apples, and\nBen 5.") == shingles("ann has 4 apples and ben  5")


def test_threshold_one_turns_the_search_off() -> None:
    near = NearDuplicates(1.0)
    assert near.add("a", "the same text here") is None
    assert near.add("b", "the same text here") is None


def test_files_of_one_name_and_folders_of_files_are_kept_apart_as_well(tmp_path: Path) -> None:
    asked = [
        "Nine old captains of the long river boat met under the stone bridge to trade maps of the northern lakes.",
        "Seven young bakers from the harbour town carried warm bread over the icy hill before the church bells rang.",
    ]
    exams = []
    for number, text in enumerate(asked):
        (tmp_path / f"exam{number}").mkdir()
        exams.append(write_rows(tmp_path / f"exam{number}" / "test.jsonl", [{"question": text, "gold": "4"}]))
    apart = [str(exams[0]), str(exams[1].parent), str(exams[1])]
    rows = [GOOD, *(row(f"Today: {text}", "It is four.", "4") for text in asked)]
    replayed(tmp_path, rows, curate={"decontaminate": apart})
    rejected = read_parquet(tmp_path / "curate" / "rejected.parquet")
    assert [one["reason"] for one in rejected] == ["contaminated"] * 2


def test_a_hub_data_set_to_keep_apart_is_another_curation(tmp_path: Path) -> None:
    """By the command, which has no way to a hub here: it must look for the data set, not say that all is up to date."""
    text = """
        name = "apart"
        [[skills]]
        name = "coin_flip"
        kind = "yes_no"
        questions = 6
        heldout = 2
    """
    recipe = tmp_path / "apart.toml"
    recipe.write_text(textwrap.dedent(text), encoding="utf-8")
    command = ("run", recipe, "--runs", tmp_path / "runs", "--until", "curate")
    assert pocketstill(*command).returncode == 0
    recipe.write_text(textwrap.dedent(text) + '[curate]\ndecontaminate = ["hf:some/set"]\n', encoding="utf-8")
    done = pocketstill(*command)
    assert done.returncode == 2 and "hf:some/set" in done.stderr


def test_the_leakage_report_sees_whole_conversations(tmp_path: Path) -> None:
    pets = ["The cat in the old mill is called Tom.", "The cat in the old mill is called Rex."]

    def said(pet: str, split: str) -> dict[str, Any]:
        turns = [{"role": "user", "content": pet}, {"role": "assistant", "content": "Good."}]
        turns += [{"role": "user", "content": "How many letters has its name?"}]
        return {"messages": [*turns, {"role": "assistant", "content": "The answer is 3."}], "split": split}

    rows = [said(pets[1], "train"), said(pets[0], "test")]
    skill = {"name": "mine", "kind": "number", "source": str(write_rows(tmp_path / "q.jsonl", rows))}
    with serving(chat_app(lambda body, count: "T, o, m: three. The answer is 3.")) as url:
        recipe = recipe_of({"base_url": url, "samples": 1}, [skill], curate={"decontaminate_ngram": 0})
        collect(recipe, tmp_path / "collect")
    curate(recipe, tmp_path / "collect", tmp_path / "curate")
    report = json.loads((tmp_path / "curate" / "leakage.json").read_text())["mine"]
    assert [report["levels"][level]["count"] for level in ("exact", "masked")] == [0, 1]


def test_an_accent_apart_from_its_letter_is_the_same_question(tmp_path: Path) -> None:
    rows = [GOOD, row("Le cafe\u0301?", "It is four.", "4"), row("Le caf\xe9?", "It is four.", "4", split="test")]
    replayed(tmp_path, rows)
    assert list(reasons(tmp_path).values()) == ["in_heldout"]


def test_nothing_graded_has_no_accuracy(tmp_path: Path) -> None:
    rows = [{"question": f"Write about the number {i}, with all that you know of it."} for i in range(3)]
    skill = {"name": "mine", "kind": "text", "graded": False, "heldout": 0}
    skill |= {"source": str(write_rows(tmp_path / "q.jsonl", rows))}
    with serving(chat_app(lambda body, count: f"It comes after {count} others, which is a good place to be.")) as url:
        recipe = recipe_of({"base_url": url, "samples": 1}, [skill], elicit=[{"method": "direct"}])
        collect(recipe, tmp_path / "collect")
    assert curate(recipe, tmp_path / "collect", tmp_path / "curate").teacher_accuracy is None
