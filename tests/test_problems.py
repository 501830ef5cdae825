"""Problems by rule: what is right is right, what is held out stays out."""

from __future__ import annotations

import random

import pytest

from pocketstill.grading import equal
from pocketstill_pipeline import problems


@pytest.mark.parametrize("skill", problems.SKILLS)
def test_solver_reads_the_text_and_agrees_with_the_sampler(skill: str) -> None:
    rng = random.Random(1)
    for _ in range(300):
        problem = problems.sample(skill, rng)
        solution = problems.solve(problem.question, rng)
        assert solution is not None, problem.question
        assert equal(solution.answer, problem.gold, problem.kind), problem.question


@pytest.mark.parametrize("skill", problems.SKILLS)
def test_mistaken_solution_is_wrong(skill: str) -> None:
    rng = random.Random(2)
    wrong = 0
    for _ in range(300):
        problem = problems.sample(skill, rng)
        solution = problems.solve(problem.question, rng, mistaken=True)
        assert solution is not None
        wrong += not equal(solution.answer, problem.gold, problem.kind)
    assert wrong >= 297


# Answers worked by hand, so that sampler and solver cannot be wrong together.
BY_HAND = [
    ("A coin is heads up. Ana flips the coin. Bo does not flip the coin. Is the coin still heads up?", "no"),
    ("A coin is tails up. Ana flips the coin. Bo flips the coin. Is the coin still tails up?", "yes"),
    ('Take the last letters of the words in "Ada Bob Cy" and concatenate them.', "aby"),
    (
        "Alice, Bob and Eve each hold a ball: Alice has a red ball, Bob has a blue ball and Eve has a green ball. "
        "They play a game. First, Alice and Bob swap balls. Then, Bob and Eve swap balls. Finally, Alice and Eve swap "
        "balls. At the end of the game, Alice has the\n"
        "Which choice is true? Answer Choices: (A) red ball. (B) blue ball. (C) green ball.",
        "A",
    ),
    ("Bo has 12 cards. Bo finds 9 more and then gives away 4. How many cards are left?", "17"),
    (
        "Remind me to pay the rent Friday.",
        '{"tool": "add_reminder", "arguments": {"task": "pay the rent", "day": "Friday"}}',
    ),
]


@pytest.mark.parametrize(("question", "answer"), BY_HAND)
def test_solver_against_hand_worked_answers(question: str, answer: str) -> None:
    solution = problems.solve(question, random.Random(0))
    assert solution is not None and solution.answer == answer


def test_unknown_question_has_no_solution() -> None:
    assert problems.solve("What is the capital of France?", random.Random(0)) is None


def test_variations_keep_the_wording_and_have_the_right_gold() -> None:
    rng = random.Random(3)
    for skill in ("coin_flip", "last_letters", "shuffled_objects"):
        questions = [problems.sample(skill, rng).question for _ in range(40)]
        new = {problem.question for _ in range(60) if (problem := problems.vary(questions, rng))}
        assert len(new - set(questions)) > 50
        for question in new:
            varied = problems.solve(question, rng)
            assert varied is not None, question


def test_a_tenth_is_held_out_and_unseen_names_never_mix() -> None:
    rng = random.Random(4)
    drawn = [problems.sample("last_letters", rng) for _ in range(2000)]
    assert 0.07 < sum(problems.held_out(p.question) for p in drawn) / len(drawn) < 0.13
    seen = {name for p in drawn for name in p.question.split('"')[1].split()}
    unseen = {
        name
        for _ in range(300)
        for name in problems.sample("last_letters", rng, unseen=True).question.split('"')[1].split()
    }
    assert not seen & unseen
