"""Questions on the disk: as those in memory, in order, and a collection's memory does not grow with their number."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from teaching import recipe_of, write_rows

from pocketstill.errors import UserError
from pocketstill_pipeline.collect import collect
from pocketstill_pipeline.example import Question
from pocketstill_pipeline.question_file import open_questions, select, write_questions
from pocketstill_pipeline.questions import build_questions, iter_questions
from pocketstill_pipeline.recipe import Recipe

TEXTS = ["How many?", "Wie viele?\u2028Genau?", "多少？", "Combien ?\nDonc ?"]


def questions_of(count: int) -> list[Question]:
    before = ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"})
    return [
        Question(
            f"mine-{i}", "mine" if i % 3 else "yours", f"{i}: {TEXTS[i % 4]}", str(i), "number",
            "heldout" if i % 5 == 0 else "train", tags=("a", "b") if i % 2 else (), occurrence=i % 2,
            before=before if i % 4 == 0 else (), tools='[{"type": "function"}]' if i % 7 == 0 else "",
        )
        for i in range(count)
    ]  # fmt: skip


def recipe_over(path: Path, **skill: object) -> Recipe:
    return recipe_of(None, [{"name": "mine", "kind": "number", "source": str(path), "questions": 10**6} | skill])


def test_questions_of_a_file_are_those_that_were_written(tmp_path: Path) -> None:
    written = questions_of(60)
    write_questions(tmp_path / "q.jsonl", iter(written))
    with open_questions(tmp_path / "q.jsonl") as found:
        assert list(found) == written and len(found) == 60
        assert [found[i] for i in (59, 0, 17, -1)] == [written[i] for i in (59, 0, 17, -1)]
        assert found[10:20] == written[10:20] and found[:None] == written
        with pytest.raises(IndexError):
            found[60]
        # Two readers at once do not disturb each other.
        assert [(a, b) for a, b in zip(found, found, strict=True)] == [(q, q) for q in written]


def test_a_selection_stays_on_the_disk_and_is_the_same_as_in_memory(tmp_path: Path) -> None:
    written = questions_of(60)
    write_questions(tmp_path / "q.jsonl", written)
    with open_questions(tmp_path / "q.jsonl") as found:
        on_disk, in_memory = (
            select(select(questions, lambda q: q.skill == "mine"), lambda q: q.split == "train")
            for questions in (found, written)
        )
        assert isinstance(on_disk, type(found)) and isinstance(in_memory, list)
        assert list(on_disk) == in_memory and on_disk[3] == in_memory[3] and len(on_disk) == len(in_memory) == 32


def test_an_unwritable_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        write_questions(tmp_path / "missing" / "q.jsonl", questions_of(1))


def test_equal_rows_are_counted_over_both_sides_in_the_order_of_the_file(tmp_path: Path) -> None:
    sides = [("a", "train"), ("b", "test"), ("a", "test"), ("a", "train"), ("c", "train"), ("b", "train")]
    path = write_rows(tmp_path / "q.jsonl", [{"question": q, "gold": "1", "split": s} for q, s in sides])
    found = build_questions(recipe_over(path))
    assert [(q.text, q.split, q.occurrence) for q in found] == [
        ("a", "train", 0), ("a", "train", 2), ("c", "train", 0), ("b", "train", 1), ("b", "heldout", 0),
        ("a", "heldout", 1),
    ]  # fmt: skip
    assert [q.id.count("-") for q in found] == [1, 2, 1, 2, 1, 2] and found[1].id.endswith("-3")
    assert len({q.id for q in found}) == 6
    fewer = build_questions(recipe_over(path, questions=2))
    assert [q.text for q in fewer] == ["a", "a", "b", "a"]


def test_rows_without_a_side_are_drawn_by_the_seed(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "q.jsonl", [{"question": f"q{i}", "gold": "1"} for i in range(50)])
    found = build_questions(recipe_over(path, heldout=12))
    drawn = set(random.Random("17/mine").sample(range(50), 12))
    assert [q.text for q in found] == [
        f"q{i}" for i in [*sorted(set(range(50)) - drawn), *sorted(drawn)]
    ]  # fmt: skip
    assert Counter(q.split for q in found) == {"train": 38, "heldout": 12}


def test_memory_does_not_grow_with_the_questions(tmp_path: Path) -> None:
    """Peak of Python's own memory while questions are drawn, written and read, a row of data."""

    def peak(count: int) -> int:
        path = write_rows(
            tmp_path / f"{count}.jsonl",
            [
                {"question": f"There are {i} trees in the grove, how many were planted?", "gold": "1"}
                for i in range(count)
            ],
        )
        drawn = tmp_path / f"{count}.questions"
        tracemalloc.start()
        write_questions(drawn, iter_questions(recipe_over(path, heldout=100)))
        with open_questions(drawn) as found:
            assert sum(1 for _ in select(found, lambda q: q.split == "train")) == count - 100
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    small, large = peak(2_000), peak(22_000)
    # A question alone takes about 700 bytes.
    assert (large - small) / 20_000 < 120


def test_a_collection_whose_questions_cannot_be_drawn_leaves_the_earlier_one_as_it_is(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "q.jsonl", [{"question": f"q{i}", "gold": "1"} for i in range(6)])
    coin = {"name": "coin_flip", "kind": "yes_no", "questions": 5, "heldout": 1}
    mine = {"name": "mine", "kind": "number", "source": str(path), "graded": True}
    collect(recipe_of({"samples": 1}, [coin]), tmp_path / "out")
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    path.write_text(json.dumps({"nothing": "here"}) + "\n", encoding="utf-8")
    with pytest.raises(UserError):
        collect(recipe_of({"samples": 1}, [coin, mine]), tmp_path / "out")
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before
