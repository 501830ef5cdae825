"""Learning in context over real loopback HTTP: k-shot prompts, demonstrations made or chosen, tasks held out."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from teaching import chat_app, recipe_of, serving, write_rows

from pocketstill import grading
from pocketstill.errors import UserError
from pocketstill.stats import wilson
from pocketstill_pipeline.collect import collect
from pocketstill_pipeline.elicit.context_tasks import Row, find_tasks
from pocketstill_pipeline.elicit.in_context import InContext, plan, well_formed
from pocketstill_pipeline.elicit.prompts import in_context as prompts
from pocketstill_pipeline.entries import context_of
from pocketstill_pipeline.example import Elicited
from pocketstill_pipeline.problems.families import FAMILIES, HELD_OUT, find_task, read_input
from pocketstill_pipeline.recipe import Recipe, load_recipe
from pocketstill_pipeline.teacher import TeacherConfig
from pocketstill_pipeline.teacher.server import running_teacher

SKILL = {"name": "in_context", "kind": "text", "source": "none"}
PERFECT = {"embedded": {"mistakes": 0.0, "noise": 0.0}}
AWKWARD = [("two\nlines", 'a "quote"'), ("a\u2028b", "1. 2"), ("{}", "\\n"), ("", "x"), ("Output:", "{0}")]


def recipe(teacher: dict[str, Any] | None = None, **entry: Any) -> Recipe:
    few = {"tasks": 20, "queries": 2, "heldout": 16, "heldout_seen": 4}
    return recipe_of(teacher or PERFECT, [SKILL], elicit=[{"method": "in_context"} | few | entry])


def elicited(made: Recipe, out: Path) -> list[Elicited]:
    collect(made, out)
    lines = (out / "samples" / "in_context.jsonl").read_text(encoding="utf-8").splitlines()
    return [Elicited.from_dict(json.loads(line)) for line in lines]


def pairs_of(item: Elicited) -> tuple[list[tuple[str, str]], str]:
    """The demonstrations and the query without their surface form."""
    turns = [str(turn["content"]) for turn in item.demonstrations]
    shown = [(read_input(asked)[1], said) for asked, said in zip(turns[::2], turns[1::2], strict=True)]
    return shown, read_input(item.question)[1]


def requests(url: str) -> int:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats", timeout=20) as response:
        return int(json.load(response)["requests"])


@pytest.mark.parametrize(
    ("shots", "allowed"), [(0, {0}), (3, {3}), ([0, 5], {0, 5}), ("1-4", {1, 2, 3, 4}), ("2-2", {2})]
)
def test_training_queries_have_as_many_demonstrations_as_was_asked(
    tmp_path: Path, shots: Any, allowed: set[int]
) -> None:
    found = [item for item in elicited(recipe(shots=shots), tmp_path) if item.split == "train"]
    assert len(found) == 40
    assert {len(item.demonstrations) for item in found} == {2 * count for count in allowed}
    for item in found:
        assert [turn["role"] for turn in item.demonstrations] == ["user", "assistant"] * (len(item.demonstrations) // 2)
        assert item.question not in {turn["content"] for turn in item.demonstrations}


def test_demonstrations_and_query_are_of_one_task_and_the_teacher_answers_by_it(tmp_path: Path) -> None:
    found = elicited(recipe(shots=12, tasks=40), tmp_path)
    right = 0
    for item in found:
        shown, query = pairs_of(item)
        task = find_task(shown, query)
        assert item.answer is not None and item.gold is not None
        right += task is not None and grading.equal(item.answer, item.gold, "text")
    assert right >= 0.95 * len(found)


def test_unseen_families_and_unseen_tasks_are_in_the_heldout_split_alone(tmp_path: Path) -> None:
    found = elicited(recipe(tasks=120), tmp_path)
    trained = {item.tags[0] for item in found if item.split == "train"}
    unseen = {item.tags[0] for item in found if "unseen_family" in item.tags}
    assert trained == set(FAMILIES) - set(HELD_OUT)
    assert unseen == set(HELD_OUT)
    assert {item.split for item in found if item.tags[0] in HELD_OUT} == {"heldout"}
    assert sum("unseen_family" in item.tags for item in found) == 16
    assert sum("unseen_task" in item.tags for item in found) == 4


def test_multitask_tests_other_rows_of_the_tasks_trained_on(tmp_path: Path) -> None:
    made = recipe(regime="multitask", heldout_seen=10)
    found = elicited(made, tmp_path)
    tasks = {task.name: task for task in find_tasks(made.elicit[0], made.seed).tasks}  # type: ignore[arg-type]
    targets = [task for task in tasks.values() if "target_task" in task.tags]
    assert sum(len(task.queries) for task in targets) == 10
    for target in targets:
        trained = tasks[target.name.removesuffix("-target")]
        tested = {row.input for row in target.queries}
        assert not tested & {row.input for row in (*trained.pool, *trained.queries)}
    assert sum("target_task" in item.tags for item in found) == 10
    assert sum("unseen_family" in item.tags for item in found) == 16


def test_every_heldout_query_is_asked_with_each_number_of_shots_and_more_only_add(tmp_path: Path) -> None:
    found = [item for item in elicited(recipe(heldout_shots=[0, 2, 4]), tmp_path) if item.split == "heldout"]
    by_query: dict[str, list[Elicited]] = {}
    for item in found:
        by_query.setdefault(item.group, []).append(item)
    assert len(by_query) == 20
    for items in by_query.values():
        assert [len(item.demonstrations) for item in items] == [0, 4, 8]
        assert items[1].demonstrations == items[2].demonstrations[:4]


def test_a_second_collection_comes_from_the_ledger_and_is_the_same(tmp_path: Path) -> None:
    with running_teacher(TeacherConfig()) as url:
        made = recipe({"base_url": url}, demonstrations="generated")
        first = elicited(made, tmp_path)
        asked = requests(url)
        (tmp_path / "manifest.json").unlink()
        assert elicited(made, tmp_path) == first
        assert requests(url) == asked


def test_the_teacher_makes_demonstrations_of_the_task(tmp_path: Path) -> None:
    made = recipe(demonstrations="generated", shots=4)
    tasks = {task.name: task for task in find_tasks(made.elicit[0], made.seed).tasks}  # type: ignore[arg-type]
    found = [item for item in elicited(made, tmp_path) if item.split == "train" and item.reason is None]
    assert len(found) >= 36
    for item in found:
        task = tasks[item.id.split("/")[1]]
        shown, _ = pairs_of(item)
        assert item.route == "expansion"
        assert not {asked for asked, _ in shown} & {row.input for row in task.pool[-3:]}
        assert len(item.source) >= 2


def test_no_tested_row_of_a_task_is_shown_as_a_generated_demonstration(tmp_path: Path) -> None:
    entry: dict[str, Any] = {"demonstrations": "generated", "regime": "multitask", "heldout_seen": 20, "heldout": 0}
    like = recipe(**entry)
    tasks = find_tasks(like.elicit[0], like.seed).tasks  # type: ignore[arg-type]
    tested = {task.name: {row.input for row in task.queries} for task in tasks if "target_task" in task.tags}

    def answer(body: dict[str, Any], _: int) -> str:
        if "response_format" not in body:
            return "x"
        inputs = [*(text for texts in tested.values() for text in texts), "a", "b", "c", "d"]
        return json.dumps({"examples": [{"input": text, "output": "x"} for text in inputs]})

    with serving(chat_app(answer)) as url:
        made = recipe({"base_url": url}, **entry)
        found = [item for item in elicited(made, tmp_path) if item.split == "train" and item.reason is None]
    assert len(found) == 40 and len(tested) == 20
    for item in found:
        shown, _ = pairs_of(item)
        assert not {asked for asked, _ in shown} & tested[f"{item.id.split('/')[1]}-target"]


def test_generated_demonstrations_of_a_bad_form_are_not_used(tmp_path: Path) -> None:
    count = 0

    def answer(body: dict[str, Any], _: int) -> str:
        nonlocal count
        content = body["messages"][-1]["content"]
        if "new examples" not in content:
            return "x"
        count += 1
        old = json.loads(content.splitlines()[1])
        rows = [{"input": "", "output": "x"}, {"input": "y", "output": ""}, old, {"input": "z" * 999, "output": "x"}]
        return json.dumps({"examples": [*rows, {"input": f"ok{count}", "output": "x"}, {"input": "ok", "output": "x"}]})

    with serving(chat_app(answer)) as url:
        made = recipe({"base_url": url}, demonstrations="generated", shots=5, tasks=1, heldout=0, heldout_seen=0)
        found = elicited(made, tmp_path)
    # Three rounds bring "ok" once and one more each.
    assert count == 3
    assert {(item.reason, item.detail) for item in found} == {("few_demonstrations", "4 of 5 could be used")}


def test_the_teacher_chooses_demonstrations_by_their_numbers(tmp_path: Path) -> None:
    offered: list[list[tuple[str, str]]] = []

    def answer(body: dict[str, Any], _: int) -> str:
        turns = [(turn["role"], turn["content"]) for turn in body["messages"]]
        choice = prompts.asked_choice(turns)
        if choice is None:
            return "x"
        offered.append(choice[0])
        return json.dumps({"numbers": [3, 3, 99, 1] if len(offered) == 1 else [99, 1]})

    with serving(chat_app(answer)) as url:
        teacher = {"base_url": url, "concurrency": 1}
        made = recipe(teacher, demonstrations="chosen", shots=2, tasks=1, heldout=0, heldout_seen=0, forms=["bare"])
        first, second = elicited(made, tmp_path)
    assert pairs_of(first)[0] == [offered[0][2], offered[0][0]]
    assert (second.reason, second.demonstrations) == ("bad_choice", [])
    assert len(offered[0]) == 12


def test_the_embedded_teacher_chooses_what_tells_a_label(tmp_path: Path) -> None:
    made = recipe(demonstrations="chosen", shots=2, families=["mark_label", "initial_label"], tasks=30)
    found = [item for item in elicited(made, tmp_path) if item.split == "train"]
    helped = sum(item.gold in [said for _, said in pairs_of(item)[0]] for item in found)
    assert helped >= 0.95 * len(found)


def test_the_embedded_teacher_is_wrong_as_often_as_it_is_told_to(tmp_path: Path) -> None:
    teacher = {"embedded": {"mistakes": 0.3, "noise": 0.5}}
    made = recipe(teacher, shots=8, families=["suffix", "prefix"], tasks=150, heldout=0, heldout_seen=0)
    found = elicited(made, tmp_path)
    wrong = sum(not grading.equal(item.answer, str(item.gold), "text") for item in found)
    low, high = wilson(wrong, len(found), 3.0)
    assert low <= 0.3 <= high


def rows_of_tasks(tasks: int, rows: int) -> Iterator[dict[str, str]]:
    for task in range(tasks):
        for row in range(rows):
            yield {"task": f"t{task}", "input": f"word{row}", "output": f"word{row} end{task}"}


def test_tasks_of_a_file_are_held_out_whole_and_bad_rows_are_listed(tmp_path: Path) -> None:
    bad = [{"task": "t0", "input": "x"}, {"input": "y", "output": "z"}]
    path = write_rows(tmp_path / "tasks.jsonl", [*rows_of_tasks(5, 10), *bad])
    made = recipe(file=str(path), unseen_tasks=["t3"], queries=10)
    found = elicited(made, tmp_path / "out")
    assert {item.tags[0] for item in found if item.split == "heldout"} == {"t3"}
    assert {item.tags[0] for item in found if item.split == "train" and item.tags} == {"t0", "t1", "t2", "t4"}
    listed = [item.detail for item in found if item.reason == "unreadable_row"]
    assert len(listed) == 2 and all("tasks.jsonl" in detail for detail in listed)
    for item in found:
        assert item.reason == "unreadable_row" or len({turn["content"] for turn in item.demonstrations[::2]}) == 4


def test_splits_of_a_file_are_kept_apart(tmp_path: Path) -> None:
    rows = [row | {"split": "test" if row["input"] == "word9" else "train"} for row in rows_of_tasks(4, 10)]
    path = write_rows(tmp_path / "tasks.jsonl", rows)
    found = elicited(recipe(file=str(path), regime="multitask", queries=10, unseen_tasks=["t0"]), tmp_path / "out")
    assert {item.question for item in found if item.split == "heldout"} == {"word9"}
    for item in found:
        assert "word9" not in {turn["content"] for turn in item.demonstrations}
    assert {item.tags[-1] for item in found if item.split == "heldout"} == {"unseen_task", "target_task"}


@pytest.mark.parametrize(
    ("rows", "entry", "said"),
    [
        ([{"task": "a", "input": "1", "output": "2"}], {}, "the task 'a' has one row"),
        (list(rows_of_tasks(1, 5)), {}, "it has 1 tasks"),
        (list(rows_of_tasks(3, 5)), {"unseen_tasks": ["t9"]}, "has no task 't9'"),
        (list(rows_of_tasks(2, 5)), {"unseen_tasks": ["t0", "t1"]}, "no task beside the unseen ones"),
    ],
)
def test_files_without_enough_tasks_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], entry: dict[str, Any], said: str
) -> None:
    path = write_rows(tmp_path / "tasks.jsonl", rows)
    with pytest.raises(UserError, match=said):
        collect(recipe(file=str(path), **entry), tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("families", '["sufix"]', "nearest: 'suffix'"),
        ("forms", '["arow"]', "arrow"),
        ("shots", '"8-1"', "range"),
        ("shots", "[2, -1]", "from 0"),
        ("shots", "[]", "from 0"),
        ("shots", '"1-1000000000"', "to 1000"),
        ("heldout_shots", "[4, -1]", "greater than or equal to 0"),
    ],
)
def test_a_setting_that_means_nothing_is_an_error_that_names_it(
    tmp_path: Path, key: str, value: str, said: str
) -> None:
    path = tmp_path / "r.toml"
    skill = '[[skills]]\nname = "in_context"\nkind = "text"\nsource = "none"\n'
    path.write_text(f'name = "r"\n{skill}[[elicit]]\nmethod = "in_context"\n{key} = {value}\n')
    with pytest.raises(UserError, match=key) as raised:
        load_recipe(path)
    assert said in str(raised.value)


@pytest.mark.parametrize("pairs", [AWKWARD, AWKWARD[:1], []])
def test_requests_are_read_back_as_they_were_built(pairs: list[tuple[str, str]]) -> None:
    def turns(messages: Any) -> list[tuple[str, str]]:
        return [(message["role"], message["content"]) for message in messages]

    query = 'ask "this"\nplease'
    label = prompts.label_request(prompts.demonstration_turns(pairs), [{"role": "user", "content": query}])
    assert prompts.asked_label(turns(label)) == (pairs, query)
    assert prompts.asked_pairs(turns(prompts.generate_request(pairs, 7))) == (pairs, 7)
    assert prompts.asked_choice(turns(prompts.choose_request(pairs, query, 3))) == (pairs, query, 3)
    for other in ("Q: what?", "", query):
        asked = [("user", other)]
        assert not any((prompts.asked_label(asked), prompts.asked_pairs(asked), prompts.asked_choice(asked)))


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("ktb", "ktb"),
        ("Output: ktb", "ktb"),
        ('"ktb".', "ktb"),
        ("  ktb\n\nThis follows.", "ktb"),
        ("Output:\nktb", "ktb"),
        ("", None),
        ("Output:", None),
    ],
)
def test_the_output_is_read_out_of_a_reply(reply: str, said: str | None) -> None:
    assert prompts.read_output(reply, "Input: {}\nOutput:") == said


def test_a_generated_instance_must_look_like_those_that_described_its_task() -> None:
    described = [Row("abc", "cba"), Row("de", "ed")]
    assert well_formed(Row("fg", "gf"), described)
    assert not any(
        well_formed(row, described)
        for row in (Row("abc", "cba"), Row("", "x"), Row("x", ""), Row("a\nb", "x"), Row("x", "y" * 40))
    )


@pytest.mark.parametrize("demonstrations", ["random", "generated", "chosen"])
def test_the_quote_holds(tmp_path: Path, demonstrations: str) -> None:
    made = recipe(demonstrations=demonstrations, heldout_shots=[0, 4])
    entry = made.elicit[0]
    assert isinstance(entry, InContext)
    planned = plan(entry, context_of(made, [], tmp_path, None, None))
    result = collect(made, tmp_path)
    assert sum(p.requests[0] for p in planned) <= result.requests <= sum(p.requests[1] for p in planned)
    low = sum(p.requests[0] * p.prompt_tokens[0] for p in planned)
    high = sum(p.requests[1] * p.prompt_tokens[1] for p in planned)
    assert low <= result.prompt_tokens <= high
