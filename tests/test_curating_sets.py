"""Curating by looking at several things at once: templates, leakage, decontamination, selection, and their order."""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketstill import grading
from pocketstill.errors import UserError
from pocketstill.stats import wilson
from pocketstill_pipeline.curating.contamination import Suite, gram_length
from pocketstill_pipeline.curating.decisions import REASONS, decide
from pocketstill_pipeline.curating.leakage import LEVELS, Item, as_text, leakage
from pocketstill_pipeline.curating.selection import Candidate, Vectors, evol_scores, select, weights
from pocketstill_pipeline.curating.settings import Curate
from pocketstill_pipeline.curating.statistics import Statistics
from pocketstill_pipeline.curating.templates import NEAR, mask, split_by_template, template_groups
from pocketstill_pipeline.duplicates import NearDuplicates, jaccard, shingles
from pocketstill_pipeline.example import Elicited, Question

RECORDED = Path(__file__).parents[2] / "shared" / "data" / "recorded_teacher"
needs_recorded = pytest.mark.skipif(not RECORDED.is_dir(), reason="the recorded traces are not beside this checkout")


def recorded(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (RECORDED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def sides(name: str) -> tuple[list[Item], list[Item]]:
    rows = list(enumerate(recorded(name)))
    return (
        [Item(f"train {i}", row["question"]) for i, row in rows if row["split"] == "train"],
        [Item(f"test {i}", row["question"]) for i, row in rows if row["split"] == "test"],
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Katie had 85 files on her computer.", "Tom had 7 files on his computer."),
        ("Ned bought 14 boxes.", "Paige bought twenty-four boxes."),
        ("Paige's team won.", "Oliver's team won."),
        ("Yesterday Mrs. Jane Smith paid $1,234.50.", "Yesterday Bob paid $7."),
        ('Join the letters of "Ann Ben".', "Join the letters of “Xi Yo Zed”."),
        ("On Monday Kai ran 3 miles.", "On Friday Zara ran two miles."),
        ("The flight left on Jan 3.", "The flight left on August 21."),
        ("Who? Answer Choices: (A) Ann (B) Ben", "Who? Answer Choices: (A) 1 (B) 2 (C) 3"),
    ],
)
def test_what_changes_within_a_template_is_masked(one: str, other: str) -> None:
    assert mask(one) == mask(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Katie had 85 files.", "Katie sold 85 files."),
        ("How many files are left?", "How much money is left?"),
        ("Each box holds 4 pens.", "Every box holds 4 pens."),
        ("Boxes were sold.", "Pens were sold."),
    ],
)
def test_what_makes_a_template_stays(one: str, other: str) -> None:
    assert mask(one) != mask(other)


def test_long_runs_of_blanks_take_no_time() -> None:
    started = time.monotonic()
    assert mask("Ann has" + " " * 20_000 + "three. Options" + "\n" * 20_000 + "are none.").endswith("options are none")
    assert time.monotonic() - started < 10


def test_a_word_that_starts_a_sentence_is_no_name_by_that() -> None:
    assert mask("How did Ann do it? There were 3. Students left.") == (
        "how did <name> do it there were <number> students left"
    )


def test_groups_are_the_components_of_near_masked_texts() -> None:
    """Against every pair's similarity, joined by a search over the graph."""
    rng = random.Random(4)
    words = [f"w{'abcdefgh'[i % 8]}{'klmnop'[i // 8]}" for i in range(40)]
    texts = [" ".join(rng.choice(words) for _ in range(24)) for _ in range(12)]
    for index in range(48):
        changed = texts[index].split()
        changed[rng.randrange(len(changed))] = rng.choice(words)
        texts.append(" ".join(changed))
    grams = [shingles(mask(text)) for text in texts]
    near = {(i, j) for i, j in itertools.combinations(range(len(texts)), 2) if jaccard(grams[i], grams[j]) >= 0.8}
    expected = list(range(len(texts)))
    for _ in texts:
        for i, j in near:
            expected[i] = expected[j] = min(expected[i], expected[j])
    assert template_groups(texts, 0.8) == expected
    assert 12 <= len(set(expected)) < 60


def questions(count: int, templates: int) -> list[str]:
    nouns = [f"{a}{b}" for a in ("apple", "pear", "stone", "lamp") for b in ("jar", "box", "bag", "cart", "shed")]
    return [
        f"Ann {noun} holds {i} of {noun}s that the {noun} keeper counts."
        for i in range(count)
        for noun in [nouns[i % templates]]
    ]


def test_a_split_by_template_has_no_template_on_both_sides() -> None:
    texts = questions(200, 20)
    split = split_by_template(texts, 50, seed=3)
    groups = template_groups(texts)
    held = {group for group, side in zip(groups, split, strict=True) if side == "heldout"}
    kept = {group for group, side in zip(groups, split, strict=True) if side == "train"}
    assert len(set(groups)) == 20 and split.count("heldout") == 50
    assert not held & kept
    for one, other in itertools.product(sorted(held), sorted(kept)):
        assert jaccard(shingles(mask(texts[one])), shingles(mask(texts[other]))) < NEAR


def test_a_split_by_template_follows_its_seed() -> None:
    texts = questions(200, 20)
    assert split_by_template(texts, 50, 3) == split_by_template(texts, 50, 3)
    assert split_by_template(texts, 50, 3) != split_by_template(texts, 50, 4)
    assert split_by_template(texts, 0, 3) == ["train"] * 200


def test_a_split_that_its_templates_do_not_allow_is_a_user_error() -> None:
    with pytest.raises(UserError, match="1 templates, the largest of 40"):
        split_by_template(questions(40, 1), 10, 3)


@needs_recorded
def test_published_splits_of_multiarith_share_their_templates() -> None:
    train, heldout = sides("multiarith")
    report = leakage(train, heldout)
    counts = {level: report["levels"][level]["count"] for level in LEVELS}
    assert report["heldout"] == 180
    trained = {item.text for item in train}
    assert counts["exact"] == counts["normalised"] == sum(item.text in trained for item in heldout) == 5
    assert counts["masked"] == counts["template"] == 180
    assert 50 < counts["ngram"] < 150 and counts["minhash"] < 10
    assert report["templates"]["largest_on_both_sides"][0]["train"] >= 4
    assert "180 held out" in as_text(report)


@needs_recorded
@pytest.mark.parametrize("name", ["gsm8k", "commonsensqa", "aqua"])
def test_problems_written_one_by_one_share_no_templates(name: str) -> None:
    texts = [row["question"] for row in recorded(name)]
    assert len(set(template_groups(texts))) >= 0.99 * len(texts)


@needs_recorded
def test_multiarith_can_be_split_by_template() -> None:
    texts = [row["question"] for row in recorded("multiarith")]
    split = split_by_template(texts, 180, seed=17)
    train = [Item(str(i), text) for i, text in enumerate(texts) if split[i] == "train"]
    heldout = [Item(str(i), text) for i, text in enumerate(texts) if split[i] == "heldout"]
    report = leakage(train, heldout)
    assert 170 <= len(heldout) <= 180
    assert [report["levels"][level]["count"] for level in ("exact", "masked", "template")] == [0, 0, 0]


def test_accuracy_is_given_apart_for_what_leaked() -> None:
    train = [Item("a", "Ann has 3 pens and buys 4 more of them."), Item("b", "How far is it to the sea from here?")]
    heldout = [Item("c", "Ben has 5 pens and buys 6 more of them."), Item("d", "Why is the sky blue in the morning?")]
    level = leakage(train, heldout, right={"c": True, "d": False})["levels"]["masked"]
    low, high = wilson(1, 2)
    assert {k: level[k] for k in ("count", "of", "share", "low", "high")} == {
        "count": 1, "of": 2, "share": 0.5, "low": low, "high": high,
    }  # fmt: skip
    assert level["examples"][0]["train"] == "a" and level["examples"][0]["heldout"] == "c"
    assert level["accuracy"]["matched"]["share"] == 1.0 and level["accuracy"]["unmatched"]["share"] == 0.0


def test_the_length_of_a_run_is_that_of_gpt_3() -> None:
    """Hand-computed: the 5th percentile of the items' lengths, not below 8, not above 13."""
    assert gram_length(["a b c"] * 10) == 8
    assert gram_length(["a " * 30] * 10) == 13
    assert gram_length(["a " * n for n in range(10, 110)]) == 13
    assert gram_length(["a " * 9] * 10 + ["a " * 50] * 90) == 9
    assert gram_length([]) == 13


SUITE = "The quick brown fox jumps over the lazy dog while nine red hens watch from a fence."


def test_overlap_by_a_run_of_words_names_the_item() -> None:
    suite = Suite([("fox", SUITE)])
    hit = suite.find("Yesterday THE QUICK brown fox, jumps over the lazy dog while nine red: hens ran.")
    assert hit is not None and hit.item == "fox" and hit.how.startswith("13 words in a row: 'the quick")
    assert suite.find("Yesterday the quick brown fox jumps over the lazy dog while nine hens ran.") is None
    assert suite.find("Say something.", f"As they say: {SUITE}") is not None


def test_short_items_count_as_a_whole() -> None:
    suite = Suite([("sum", "What is 7 + 5?"), ("ten", "one two three four five six seven eight nine ten")], ngram=13)
    assert suite.find("what is 7 + 5") == suite.find("What is 7 + 5?")
    assert suite.find("Tell me, what is 7 + 5 in words?") is None
    hit = suite.find("Count: one two three four five six seven eight nine ten eleven.")
    assert hit is not None and hit.item == "ten"


def test_overlap_is_found_where_words_have_no_blanks_between_them() -> None:
    asked = "小明有三个苹果，他又买了五个苹果，现在他一共有多少个苹果？"
    suite = Suite([("held", asked)], similarity=1.0)
    assert suite.ngram == 13 and suite.find(f"请一步一步地回答：{asked}谢谢。") is not None
    assert suite.find("小红有七支铅笔，她送给弟弟两支，还剩下几支铅笔？") is None
    near = NearDuplicates(0.7)
    assert near.add("one", asked) is None and near.add("two", asked.replace("现在", "")) == "one"


def test_texts_without_words_are_not_all_one() -> None:
    suite = Suite([("held", "🍎🍏")])
    assert suite.find("🚗🚙") is None and suite.find("🍎🍏 ") is not None
    near = NearDuplicates(0.95)
    assert [near.add(str(n), text) for n, text in enumerate(("🍎", "🚗", "🍎"))] == [None, None, "0"]


def test_common_phrases_do_not_count() -> None:
    suite = Suite([("fox", SUITE)])
    assert suite.forget_common([f"{n} {SUITE}" for n in range(10)]) == 0
    assert suite.find(f"5 {SUITE}") is not None
    suite = Suite([("fox", SUITE)], similarity=1.0)
    assert suite.forget_common([f"{n} {SUITE}" for n in range(11)]) == 5
    assert suite.find(f"5 {SUITE}") is None


def test_overlap_by_similarity() -> None:
    words = [f"w{i}" for i in range(60)]
    suite = Suite([("long", " ".join(words))], ngram=0, similarity=0.8)
    changed = " ".join([*words[:58], "other", "words"])
    hit = suite.find(changed)
    assert hit is not None and hit.item == "long"
    assert hit.similarity == pytest.approx(jaccard(shingles(changed), shingles(" ".join(words))))
    assert Suite([("long", " ".join(words))], ngram=0, similarity=1.0).find(changed) is None


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_pairs_at_the_threshold_are_found(threshold: float) -> None:
    """Two texts whose similarity is just the threshold: MinHash may miss one in a thousand."""
    missed = 0
    for trial in range(300):
        rng = random.Random(trial)
        words = [str(rng.random()) for _ in range(40)]
        shared = math.ceil(2 * 38 * threshold / (1 + threshold)) + 2
        other = words[:shared] + [str(rng.random()) for _ in range(40 - shared)]
        near = NearDuplicates(threshold)
        near.remember("first", " ".join(words))
        assert jaccard(shingles(" ".join(words)), shingles(" ".join(other))) >= threshold
        missed += near.nearest(" ".join(other)) is None
    assert missed <= 2


def pool(count: int) -> list[Candidate]:
    rng = random.Random(7)
    words = "red green blue fox hen dog jumps sleeps over under near far three four five boats lamps".split()
    made = []
    for index in range(count):
        text = " ".join(rng.choice(words) for _ in range(12)) if index % 3 else " ".join(words[:12])
        made.append(Candidate(str(index), text, text, float(rng.randint(1, 5)), float(rng.randint(1, 5))))
    return made


def test_selection_is_that_of_deita() -> None:
    """Against the paper's algorithm, written out over dense matrices: best score first, nearest neighbour under 0.9."""
    candidates = pool(90)
    space = Vectors(f"{c.asked}\n{c.said}" for c in candidates)
    matrix = np.stack([space.of(f"{c.asked}\n{c.said}") for c in candidates]).astype(np.float64)
    score = [(c.quality or 0) * (c.complexity or 0) for c in candidates]
    chosen: list[int] = []
    for index in sorted(range(90), key=lambda i: -score[i]):
        if len(chosen) < 25 and all(matrix[index] @ matrix[other] <= 0.9 for other in chosen):
            chosen.append(index)
    found = select(candidates, 25, 0.9)
    assert found.taken == [str(index) for index in chosen] and len(found.taken) == 25
    assert set(found.taken) | set(found.left) == {c.name for c in candidates}
    assert any("too similar" in why for why in found.left.values())
    assert found.scores.basis == "teacher"


def test_fewer_are_selected_when_the_rest_is_too_similar() -> None:
    found = select([Candidate(str(n), "the same words", "and reply", 5.0, 5.0) for n in range(10)], 5, 0.9)
    assert found.taken == ["0"] and len(found.left) == 9
    assert (
        len(select([Candidate(str(n), "the same words", "and reply", 5.0, 5.0) for n in range(10)], 5, 1.0).taken) == 5
    )


def test_lengths_stand_in_for_scores_that_are_missing() -> None:
    scored = evol_scores([Candidate("a", "one two three", "one", 5.0, None), Candidate("b", "one", "one", 5.0, 2.0)])
    assert scored.basis == "lengths"
    assert scored.values["a"] == pytest.approx(math.log(4) * math.log(2))


def _pairs(said: list[str]) -> list[tuple[str, str]]:
    return [(said[at], said[at + 1]) for at in range(len(said) - 1)]


def test_cosines_of_hashed_vectors_are_those_of_whole_ones() -> None:
    """Against TF-IDF over the whole vocabulary, computed here with dictionaries."""
    texts = [c.asked for c in pool(40)]

    def terms(text: str) -> list[str]:
        said = text.split()
        return said + [" ".join(pair) for pair in _pairs(said)]

    frequency = Counter(term for text in texts for term in set(terms(text)))
    rarity = {term: math.log(41 / (1 + count)) + 1 for term, count in frequency.items()}

    def whole(text: str) -> dict[str, float]:
        counted = {term: (1 + math.log(n)) * rarity[term] for term, n in Counter(terms(text)).items()}
        norm = math.sqrt(sum(value**2 for value in counted.values()))
        return {term: value / norm for term, value in counted.items()}

    space = Vectors(texts)
    for one, other in itertools.combinations(texts[:15], 2):
        a, b = whole(one), whole(other)
        expected = sum(value * b.get(term, 0.0) for term, value in a.items())
        assert float(space.of(one) @ space.of(other)) == pytest.approx(expected, abs=0.15)


def test_weights_are_one_on_average() -> None:
    found = weights({"a": 1.0, "b": 3.0})
    assert found == {"a": 0.5, "b": 1.5}
    assert weights({"a": 0.0}) == {"a": 1.0}


def elicited(name: str, text: str, **more: Any) -> Elicited:
    base: dict[str, Any] = {
        "id": name, "skill": "talk", "route": "labeling", "method": "direct", "kind": "text", "answer": "All is well.",
        "messages": [{"role": "user", "content": text}], "completion": "All is well.",
    }  # fmt: skip
    return Elicited(**(base | more))


def decided(
    items: Sequence[Elicited], rules: Curate | None = None, apart: dict[str, list[str]] | None = None
) -> list[tuple[str | None, str]]:
    asked = [
        Question("held", "talk", SUITE, "", "text", "heldout"),
        Question("own", "talk", f"So {SUITE}", "", "text", "train"),
    ]
    found = decide(lambda: iter(items), asked, apart or {}, rules or Curate())
    return [(decision.reason, decision.detail) for decision in found.decisions]


def test_what_a_model_wrote_is_kept_apart_from_the_suite() -> None:
    items = [
        elicited("same", SUITE.upper()),
        elicited("written", f"Now {SUITE}"),
        elicited("own", f"So {SUITE}"),
        elicited("quoted", "Say it.", answer=f"I say: {SUITE}"),
        elicited(
            "shown",
            "Go on.",
            demonstrations=[{"role": "user", "content": SUITE}, {"role": "assistant", "content": "x"}],
        ),
        elicited(
            "earlier",
            "",
            messages=[
                {"role": "user", "content": "Ask me something."},
                {"role": "assistant", "content": SUITE},
                {"role": "user", "content": "I do not know."},
            ],
        ),
        elicited("other", "Something else that nobody has asked before."),
        elicited("heldout", SUITE, split="heldout"),
    ]
    assert [reason for reason, _ in decided(items)] == [
        "in_heldout", "contaminated", None, "contaminated", "in_heldout", "contaminated", None, None,
    ]  # fmt: skip
    assert decided(items)[1][1].startswith("held: ")
    assert decided(items, Curate(decontaminate_scope="all"))[2][0] == "contaminated"
    assert decided(items, Curate(decontaminate_ngram=0, decontaminate_similarity=1.0))[1][0] is None


def test_files_are_kept_apart_too_and_from_the_recipes_own_questions() -> None:
    found = decided([elicited("own", f"So {SUITE}")], apart={"exam.jsonl": ["Another.", f"Well, so {SUITE}"]})
    assert found[0][0] == "contaminated" and found[0][1].startswith("exam.jsonl, question 2: ")


def test_what_ends_a_held_out_conversation_may_end_another() -> None:
    opening = "Tell me about the old harbour, its boats, its bakers and the people who lived beside it."
    long = "Which of these would you show a friend who has one rainy day in town?"

    def talk(*said: str) -> list[dict[str, str]]:
        roles = itertools.cycle(("user", "assistant"))
        return [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]

    def question(name: str, split: Any, *said: str) -> Question:
        return Question(name, "talk", said[-1], "", "text", split, before=tuple(talk(*said[:-1])))

    asked = [
        question("h1", "heldout", opening, "It is old.", "And why?"),
        question("h2", "heldout", "Hello.", "Hello!", long),
        question("t1", "train", opening, "It is old.", "Since when?"),
    ]
    said = [("So?", "x", "And why?"), (opening, "It is old.", "Since when?"), (opening, "It is old.", "And  why?")]
    said.append(("Good day.", "x", long))
    items = [elicited(str(n), "", messages=talk(*turns)) for n, turns in enumerate(said)]
    found = decide(lambda: iter(items), asked, {}, Curate()).decisions
    assert [decision.reason for decision in found] == [None, None, "in_heldout", "in_heldout"]


def test_the_cap_counts_by_group_and_by_what_an_example_carries() -> None:
    names = ["Ann", "Ben", "Cara", "Dan"]
    items = [elicited(name, f"{name} asks something of her own here.", group="one") for name in names]
    items += [
        elicited(
            f"{name} ranked",
            f"{name} asks something of her own here.",
            candidates=[{"completion": "x", "score": 1.0}],
            group="one",
        )
        for name in names[:2]
    ]
    found = decided(items, Curate(max_per_question=2))
    assert [reason for reason, _ in found] == [None, None, "over_cap", "over_cap", None, None]


def test_the_same_question_with_other_demonstrations_is_another_example() -> None:
    def shown(word: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"{word} one?"}, {"role": "assistant", "content": f"{word} two."}]

    items = [elicited(str(n), "And this?", demonstrations=shown(word)) for n, word in enumerate(["a", "b", "a"])]
    assert [reason for reason, _ in decided(items)] == [None, None, "exact_duplicate"]


def test_entries_may_use_the_same_ids() -> None:
    items = [elicited("1", "One question of the first entry."), elicited("1", "Another one, of a second entry.")]
    items.append(elicited("1", "Another one, of a second entry."))
    assert decided(items) == [(None, ""), (None, ""), ("exact_duplicate", "of 1 (2)")]


def test_selection_and_weights_by_the_teachers_scores() -> None:
    topics = ["boats on rivers", "winter bread", "old maps", "glass lamps", "night trains"]
    items = [
        elicited(
            topic,
            f"Tell me about {topic} and why they matter.",
            answer=f"{topic} are fine.",
            scores={"quality": q, "complexity": 2.0},
        )
        for q, topic in enumerate(topics, start=1)
    ]
    asked = [Question("q", "talk", "x", "", "text", "train")]
    found = decide(lambda: iter(items), asked, {}, Curate(select=3, weights="quality")).decisions
    assert [decision.reason for decision in found] == ["not_selected", "not_selected", None, None, None]
    assert [decision.score for decision in found] == [2.0, 4.0, 6.0, 8.0, 10.0]
    assert [decision.weight for decision in found[2:]] == [0.75, 1.0, 1.25]
    weighed = decide(lambda: iter(items), asked, {}, Curate(weights="evol"))
    assert weighed.score_basis == "teacher" and [round(d.weight, 3) for d in weighed.decisions][-1] == 1.667
    assert decide(lambda: iter([elicited("a", "b")]), asked, {}, Curate(weights="evol")).score_basis == "lengths"
    with pytest.raises(UserError, match="no example has a quality score"):
        decide(lambda: iter([elicited("a", "b")]), asked, {}, Curate(weights="quality"))


def test_statistics_count_both_right_and_wrong_and_leave_the_student_out() -> None:
    graded = {"kind": "number", "gold": "4"}
    items = [
        elicited("a", "one", answer="4", **graded),
        elicited("b", "two", answer="5", **graded),
        elicited("c", "three", answer="5", route="self_knowledge", method="majority", **graded),
        elicited("d", "four"),
        elicited("e", "five", reason="similar_to_pool", route="expansion", method="self_instruct"),
    ]
    found = decide(lambda: iter(items), [], {}, Curate(answer_filter=False))
    counted = Statistics()
    for item, decision in zip(items, found.decisions, strict=True):
        counted.add(item, decision)
    stats = counted.result()
    assert stats["teacher"]["train"]["overall"]["accuracy"] == 0.5
    assert stats["accuracy_by_method"]["majority"]["correct"] == 0
    assert stats["kept_by_answer"] == {"right": 1, "ungraded": 1, "wrong": 2}
    assert stats["rejected_by_method"]["train"] == {"similar_to_pool": {"self_instruct": 1}}
    assert stats["yield"]["by_route"]["train"]["expansion"] == {"elicited": 1, "kept": 0, "share": 0.0}
    assert stats["lengths"]["question_words"]["histogram"]["counts"] == [4]
    assert json.loads(json.dumps(stats)) == stats


def test_what_is_not_graded_is_no_mistake() -> None:
    items = [elicited("a", "one"), elicited("b", "two", answer="Else.")]
    found = decide(lambda: iter(items), [], {}, Curate())
    counted = Statistics()
    for item, decision in zip(items, found.decisions, strict=True):
        counted.add(item, decision)
    assert counted.result()["mistakes"] == {"overall": 0.0}


def test_reasons_have_one_order() -> None:
    assert len(set(REASONS)) == len(REASONS)
    assert (
        REASONS.index("wrong")
        < REASONS.index("in_heldout")
        < REASONS.index("exact_duplicate")
        < REASONS.index("not_selected")
    )


@needs_recorded
def test_filters_keep_most_of_what_is_right() -> None:
    """MultiArith's right answers: nine in ten have a whole rationale that comes to them."""
    from pocketstill_pipeline.curating.filters import judge

    kept = total = 0
    for row in recorded("multiarith"):
        answer = grading.extract(row["answer_completion"], "number")
        if grading.equal(answer, row["gold"], "number"):
            item = elicited(
                "x", row["question"], kind="number", gold=row["gold"], answer=answer, rationale=row["reasoning"]
            )
            kept, total = kept + (judge(item, Curate()) is None), total + 1
    assert total > 450 and kept > 0.95 * total
