from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from pocketstill.grading import (
    KINDS,
    Kind,
    equal,
    extract,
    rationale_leads_to,
    split_completion,
    token_f1,
)

RECORDED = Path(__file__).resolve().parents[2] / "shared" / "data" / "recorded_teacher"
# Kojima et al. 2022, zero-shot chain of thought with text-davinci-002, percent.
PUBLISHED: dict[str, tuple[Kind, float]] = {
    "addsub": ("number", 69.6),
    "aqua": ("choice", 33.5),
    "coin_flip": ("yes_no", 91.4),
    "commonsensqa": ("choice", 64.6),
    "date_understanding": ("choice", 67.5),
    "gsm8k": ("number", 40.7),
    "last_letters": ("text", 57.6),
    "multiarith": ("number", 78.7),
    "shuffled_objects": ("choice", 52.4),
}


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recorded teacher is not here")
@pytest.mark.parametrize("whole", [False, True], ids=["raw answer", "whole completion"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_accuracy_of_the_recorded_teacher(name: str, whole: bool) -> None:
    kind, published = PUBLISHED[name]
    rows = [json.loads(line) for line in (RECORDED / f"{name}.jsonl").read_text().splitlines()]
    right = 0
    for row in rows:
        completion = row["answer_completion"]
        if whole:
            completion = f"{row['reasoning']}\n{row['answer_prompt']}{completion}"
        right += equal(extract(completion, kind), row["gold"], kind)
    accuracy = 100 * right / len(rows)
    # The logs compare numbers as text, which numeric comparison beats on addsub by up to two points.
    above = 2.0 if name == "addsub" else 0.15
    assert published - 0.15 <= accuracy <= published + above


@pytest.mark.parametrize(
    ("completion", "kind", "answer"),
    [
        (" 9.", "number", "9"),
        (" $1,200.50 in all", "number", "1200.50"),
        ("It is −5.", "number", "-5"),
        ("5-3 is 2", "number", "5"),
        ("no numeral", "number", None),
        ("3 and 4 make 7.\nAnswer: 7", "number", "7"),
        ("half of it\nAnswer: 1 1/2", "number", "1 1/2"),
        ("3 and 4 make 7. --> 7<|end|>", "number", "7"),
        ("6 x 7\n#### 42", "number", "42"),
        ("So 3. Therefore, the answer (arabic numerals) is 12.", "number", "12"),
        ("The answer is 3, no: the answer is 4.", "number", "4"),
        ("4 apples\nAnswer:", "number", None),
        (" (C) Lolita.", "choice", "C"),
        ("Therefore, among A through C, the answer is B.", "choice", "B"),
        ("c", "choice", "C"),
        ("a bus", "choice", None),
        (":\n\nYes", "yes_no", "yes"),
        ("Nothing is known.", "yes_no", None),
        ("No, it is not", "yes_no", "no"),
        (' "layfy".', "text", "layfy"),
        ("l, a\n**Answer:** la", "text", "la"),
        (' . "" ', "text", None),
        ('call\nAnswer: {"name": "dial", "args": [1]}', "json", '{"name": "dial", "args": [1]}'),
        ('Answer: {"say": "the answer is 4"}', "json", '{"say": "the answer is 4"}'),
        ('Sure:\n```json\n{"a": 1}\n```', "json", '{"a": 1}'),
        ('here {"a": 1} it is', "json", '{"a": 1}'),
        ('{"a": ', "json", None),
        ('{"a": NaN}', "json", None),
    ],
)
def test_extract(completion: str, kind: Kind, answer: str | None) -> None:
    assert extract(completion, kind) == answer


@pytest.mark.parametrize(
    ("prediction", "gold", "kind", "same"),
    [
        ("1,000", "1000.0", "number", True),
        ("1/2", "0.5", "number", True),
        ("1 1/2", "1.5", "number", True),
        ("-1/2", "-0.5", "number", True),
        ("0.6666666666666667", "0.6666666666666666", "number", True),
        ("3.33", "3.3333333", "number", False),
        ("1/0", "1", "number", False),
        ("-5", "5", "number", False),
        ("9" * 5000, "9" * 5000, "number", True),
        ("b", "B", "choice", True),
        ("yes", "Yes", "yes_no", True),
        ("yes", "no", "yes_no", False),
        ("New  York", "new york", "text", True),
        ("layfy", "layy", "text", False),
        ('{"a": 7, "b": [1, "x"]}', '{"b": [1.0, "x"], "a": 7.0}', "json", True),
        ('{"a": true}', '{"a": 1}', "json", False),
        ('{"a": 1}', '{"a": 1, "b": 2}', "json", False),
        ("[1, 2]", "[2, 1]", "json", False),
        ("not json", "not json", "json", False),
        (None, "x", "text", False),
    ],
)
def test_equal(prediction: str | None, gold: str, kind: Kind, same: bool) -> None:
    assert equal(prediction, gold, kind) is same


def test_split_cuts_at_the_last_marker() -> None:
    assert split_completion("a --> b --> c<|end|>") == ("a --> b", "c")
    assert split_completion("a\nAnswer: b") == ("a", "b")
    assert split_completion("so the answer is: b.") == ("so", "b.")
    assert split_completion("b") == ("", "b")


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_makes_grading_raise(kind: Kind) -> None:
    rng = random.Random(0)
    pieces = [
        *"0123456789.,-+/$%()[]{}\"':\\ \n\t\0",
        *(
            "-->",
            "\nAnswer: ",
            "the answer is",
            "#### ",
            "```json",
            "<|end|>",
            "yes",
            "No",
            "(B)",
            "1e999",
            "−",
            "٣",
            "²",
        ),
        *("\ud800", "🙂", "null", "true", '{"a":', "[[", "1/0", "9" * 50, "NaN", "Infinity", "\u2028", "**"),
    ]
    texts = ["".join(rng.choices(pieces, k=rng.randrange(12))) for _ in range(3000)]
    texts += [
        "[" * 20000,
        '{"a":' * 20000,
        "9" * 20000,
        " " * 20000,
        "-->" * 5000,
        "the answer is " * 2000,
        "1/" * 9000,
    ]
    for text in texts:
        answer = extract(text, kind)
        assert answer is None or isinstance(answer, str)
        assert equal(text, text, kind) in (True, False)
        if answer is not None and kind != "number":
            assert equal(answer, answer, kind) or kind == "text"
        assert rationale_leads_to(text + "\nAnswer: " + text, kind, text) in (True, False, None)
        assert 0 <= token_f1(answer, text) <= 1


def test_token_f1_is_that_of_squad() -> None:
    # By hand: "cat sat" against "cat sat down": precision 1, recall 2/3.
    assert token_f1("The cat sat.", "a cat sat down") == pytest.approx(0.8)
    assert token_f1("x", "y") == 0
    assert token_f1(None, "y") == 0
    assert token_f1("the", "a") == 1


@pytest.mark.parametrize(
    ("completion", "kind", "question", "leads"),
    [
        ("She has 3 + 4 = 7 left. So 7.\nAnswer: 7", "number", "", True),
        ("She has 3 + 4 = 7 left.\nAnswer: 8", "number", "", False),
        ("Concatenating gives l a y y.\nAnswer: layy", "text", "", True),
        ("Concatenating gives l a y f.\nAnswer: layy", "text", "", False),
        ("So the coin is still heads up.\nAnswer: yes", "yes_no", "", True),
        ("So the coin is not heads up.\nAnswer: yes", "yes_no", "", False),
        (
            "So the coin is tails up. --> no",
            "yes_no",
            "A coin is heads up. Is the coin still heads up?",
            True,
        ),
        ("So the coin is green.\nAnswer: no", "yes_no", "", None),
        (
            "At the end, Bob has Lolita.\nAnswer: C",
            "choice",
            "Options: (A) Moby Dick. (B) Emma. (C) Lolita.",
            True,
        ),
        (
            "At the end, Bob has Emma.\nAnswer: C",
            "choice",
            "Options: (A) Moby Dick. (B) Emma. (C) Lolita.",
            False,
        ),
        ('Call Ana for 5 minutes.\nAnswer: {"who": "Ana", "minutes": 5}', "json", "", True),
        ('Call Ana.\nAnswer: {"who": "Bo"}', "json", "", False),
        ("7", "number", "", None),
        (
            "The coin was tails up. Ana does not flip the coin, so it remains tails up.\nAnswer: no",
            "yes_no",
            "A coin is tails up. Is the coin still heads up?",
            True,
        ),
        (
            "Ben did not turn it over, and so the coin is still heads up.\nAnswer: yes",
            "yes_no",
            "A coin is heads up. Is the coin still heads up?",
            True,
        ),
        (
            "Ana flips the coin, so it is not heads up.\nAnswer: no",
            "yes_no",
            "A coin is heads up. Is the coin still heads up?",
            True,
        ),
    ],
)
def test_rationale_leads_to(completion: str, kind: Kind, question: str, leads: bool | None) -> None:
    assert rationale_leads_to(completion, kind, question) is leads
