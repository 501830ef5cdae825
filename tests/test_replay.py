"""Recorded completions through the same protocol and the same pipeline as a live teacher's."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import openai
import pytest
from teaching import recipe_of, recorded, write_rows

from pocketstill.errors import UserError
from pocketstill_pipeline.collect import collect
from pocketstill_pipeline.curate import curate
from pocketstill_pipeline.prompts import answer_request, first_request
from pocketstill_pipeline.teacher import TeacherConfig
from pocketstill_pipeline.teacher.replay import load_recordings
from pocketstill_pipeline.teacher.server import running_teacher

RECORDED = Path(__file__).resolve().parents[2] / "shared" / "data" / "recorded_teacher"
# Rows and accuracy in %, as published; the logs compared numbers as strings, so addsub may read higher by up to two.
PUBLISHED = {
    "coin_flip": ("yes_no", 91.4), "last_letters": ("text", 57.6), "shuffled_objects": ("choice", 52.4),
    "addsub": ("number", 69.6), "aqua": ("choice", 33.5), "commonsensqa": ("choice", 64.6),
    "date_understanding": ("choice", 67.5), "gsm8k": ("number", 40.7), "multiarith": ("number", 78.7),
}  # fmt: skip
IN_RECIPE = ("coin_flip", "last_letters", "shuffled_objects")


def ask(url: str, messages: Any, **settings: Any) -> Any:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as api:
        return api.chat.completions.create(model="embedded", messages=messages, **settings)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question": "q"', "line 2: not JSON"),
        ("[1]", "line 2: not a JSON object"),
        ('{"question": "q", "reasoning": "r", "answer_prompt": "p", "gold": "1"}', "line 2: .*'answer_completion'"),
        (json.dumps(recorded("q", "r", "1", "1") | {"gold": 1}), "line 2: .*'gold' is not a string"),
        (b'{"question": "\xff"}', "line 2: not UTF-8"),
    ],
)
def test_broken_line_is_named(tmp_path: Path, line: str | bytes, said: str) -> None:
    path = tmp_path / "r.jsonl"
    good = json.dumps(recorded("q0", "r", "1", "1")).encode()
    path.write_bytes(good + b"\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(UserError, match=rf"r\.jsonl, {said}.*mend or remove") as caught:
        load_recordings([path])
    assert "\n" not in str(caught.value)


def test_broken_line_stops_a_collection_before_anything_is_asked(tmp_path: Path) -> None:
    questions = write_rows(tmp_path / "q.jsonl", [{"question": f"q{i}", "gold": "1"} for i in range(4)])
    (tmp_path / "r.jsonl").write_text('{"question": "q0"}\n', encoding="utf-8")
    skills = [{"name": "mine", "kind": "number", "source": str(questions)}]
    recipe = recipe_of({"base_url": "replay", "replay": [str(tmp_path / "r.jsonl")]}, skills)
    with pytest.raises(UserError, match=r"r\.jsonl, line 1: the field 'reasoning' is missing"):
        collect(recipe, tmp_path / "out")


def test_empty_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"empty\.jsonl: the file has no rows"):
        load_recordings([tmp_path / "empty.jsonl"])
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
        load_recordings([tmp_path / "none.jsonl"])


def test_rows_of_a_question_are_its_samples_in_order(tmp_path: Path) -> None:
    rows = [recorded("How many?", f"Reason {i}.", f" {i}.", "1") for i in range(3)]
    path = write_rows(tmp_path / "r.jsonl", rows)
    with running_teacher(TeacherConfig(replay=(str(path),))) as url:
        choices = ask(url, first_request("How many?", "number"), n=3).choices
        assert [choice.message.content for choice in choices] == ["Reason 0.", "Reason 1.", "Reason 2."]
        messages = answer_request("How many?", "number", "Reason 2.")
        assert ask(url, messages).choices[0].message.content == " 2."


def test_completion_is_served_as_recorded_whatever_the_limits(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "r.jsonl", [recorded("q", " \n\nOne. Two. Three.", ":\n\n3", "3")])
    with running_teacher(TeacherConfig(replay=(str(path),))) as url:
        assert (
            ask(url, first_request("q", "number"), max_tokens=2).choices[0].message.content == " \n\nOne. Two. Three."
        )
        said = ask(url, answer_request("q", "number", "One. Two. Three.")).choices[0].message.content
        assert said == ":\n\n3"


def test_unrecorded_question_is_an_error_with_its_code(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "r.jsonl", [recorded("q", "r", "1", "1")])
    with running_teacher(TeacherConfig(replay=(str(path),))) as url:
        with pytest.raises(openai.NotFoundError) as unknown:
            ask(url, first_request("another", "number"))
        with pytest.raises(openai.NotFoundError) as beyond:
            ask(url, first_request("q", "number"), n=2)
    assert unknown.value.code == beyond.value.code == "not_recorded"


def test_unrecorded_question_falls_through_when_told_to(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "r.jsonl", [recorded("q", "r", "1", "1")])
    config = TeacherConfig(replay=(str(path),), fall_through=True, mistakes=0, noise=0)
    with running_teacher(config) as url:
        assert ask(url, first_request("q", "number")).choices[0].message.content == "r"
        coin = "A coin is heads up. Ana flips the coin. Is the coin still heads up?"
        said = ask(url, first_request(coin, "yes_no")).choices[0].message.content
        assert said.endswith("it is tails up: no.")


def test_unrecorded_samples_are_failures_with_their_reason(tmp_path: Path) -> None:
    rows = [
        recorded(f"What is {i} and {i}?", f"It is {2 * i}.", f"{2 * i}", str(2 * i), split="train") for i in range(40)
    ]
    path = write_rows(tmp_path / "r.jsonl", rows)
    skills = [{"name": "mine", "kind": "number", "source": str(path)}]
    recipe = recipe_of({"base_url": "replay", "replay": [str(path)], "samples": 2}, skills)
    result = collect(recipe, tmp_path / "collect")
    assert (result.requests, result.failed) == (120, 40)
    curate(recipe, tmp_path / "collect", tmp_path / "curate")
    stats = json.loads((tmp_path / "curate" / "stats.json").read_text())
    assert stats["rejected"]["train"]["failed_request"] == {"mine": 40}
    assert stats["teacher"]["train"]["overall"]["accuracy"] == 1


def test_expansions_of_a_replay_are_answered_by_rule_and_say_so(tmp_path: Path) -> None:
    import datasets

    from pocketstill_pipeline import problems

    rows = []
    rng = random.Random(1)
    for index in range(30):
        problem = problems.sample("coin_flip", rng)
        rows.append(recorded(problem.question, "It was turned.", f" {problem.gold}.", problem.gold,
                             split="test" if index < 5 else "train"))  # fmt: skip
    path = write_rows(tmp_path / "r.jsonl", rows)
    skills = [{"name": "coin_flip", "kind": "yes_no", "source": str(path), "expand": 15}]
    recipe = recipe_of({"base_url": "replay", "replay": [str(path)], "samples": 1}, skills)
    assert collect(recipe, tmp_path / "collect").failed == 0
    curate(recipe, tmp_path / "collect", tmp_path / "curate")
    table = datasets.Dataset.from_parquet(str(tmp_path / "curate" / "train.parquet"), keep_in_memory=True)
    routes = set(zip(table["route"], [text == "It was turned." for text in table["rationale"]], strict=True))
    assert routes == {("labeling", True), ("expansion", False)}


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recorded completions are not here")
@pytest.mark.parametrize("names", [IN_RECIPE, pytest.param(tuple(PUBLISHED), marks=pytest.mark.slow)])
def test_replay_measures_the_published_accuracy(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Extraction and grading of a real teacher's raw completions, all the way through, against the papers' figures."""
    files = [str(RECORDED / f"{name}.jsonl") for name in names]
    skills = [
        {"name": name, "kind": PUBLISHED[name][0], "source": file, "questions": 10**6, "heldout": 0}
        for name, file in zip(names, files, strict=True)
    ]
    recipe = recipe_of({"base_url": "replay", "replay": files, "samples": 1}, skills)
    assert collect(recipe, tmp_path / "collect").failed == 0
    curate(recipe, tmp_path / "collect", tmp_path / "curate")
    teacher = json.loads((tmp_path / "curate" / "stats.json").read_text())["teacher"]
    for name in names:
        both = [teacher[split]["by_skill"].get(name, {"n": 0, "correct": 0}) for split in ("train", "heldout")]
        accuracy = 100 * sum(part["correct"] for part in both) / sum(part["n"] for part in both)
        published = PUBLISHED[name][1]
        assert published - 0.15 <= accuracy <= published + (2 if name == "addsub" else 0.15), name
