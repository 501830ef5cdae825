"""The filters that look at one elicited thing alone: refusals, cut texts, loops, languages, rationales."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pocketstill import grading
from pocketstill_pipeline.curating.conclusions import leads_elsewhere
from pocketstill_pipeline.curating.filters import CONTENT_REASONS, judge
from pocketstill_pipeline.curating.language import language_of, other_language, script_of
from pocketstill_pipeline.curating.settings import Curate
from pocketstill_pipeline.curating.texts import loops, refuses, stops_midway
from pocketstill_pipeline.example import Elicited

RECORDED = Path(__file__).parents[2] / "shared" / "data" / "recorded_teacher"
TOKENIZER = Path(__file__).parents[2] / "shared" / "data" / "tokenizers" / "gpt-2" / "tokenizer.json"
KINDS: dict[str, grading.Kind] = {
    "addsub": "number", "aqua": "choice", "coin_flip": "yes_no", "commonsensqa": "choice",
    "date_understanding": "choice", "gsm8k": "number", "last_letters": "text", "multiarith": "number",
    "shuffled_objects": "choice",
}  # fmt: skip

REFUSALS = """
I'm sorry, but I can't help with that.
I'm sorry, but I cannot assist with that request.
Sorry, I can't help with this one.
I cannot provide instructions for that.
I can’t assist with that.
As an AI language model, I don't have personal opinions on politics.
As an AI, I cannot browse the internet.
As a large language model, I am not able to give medical advice.
I am an AI and I don't have access to your files.
I apologize, but I'm unable to answer this question.
Unfortunately, I am not able to comply with this request.
I'm afraid I can't do that.
I must respectfully decline to answer.
I won't help with creating malware.
I will not write that story.
I'm not able to help with requests like this.
I'm unable to assist you with that.
I do not feel comfortable writing this.
This request goes against my guidelines, so I will not continue.
Your request violates our content policy.
My apologies, but I cannot fulfill this request as it involves harmful content.
Hello! I'm sorry, but I can't help with that.
Thank you for your question. Unfortunately, I cannot answer it.
I'm really sorry, but I'm not allowed to discuss this topic.
Sorry, but that's not something I can help with.
I'm just a language model, so I can't do that.
I can't in good conscience help with that.
I need to decline this request.
I'm sorry, as an AI language model I cannot generate such content.
I cannot and will not provide that information.
We cannot comply with this request.
Apologies, I can't share personal information about private individuals.
I'm not comfortable answering that.
"I'm sorry, but I can't assist with that."
I could not answer this, as it is against my programming.
I have to refuse; it would be unethical.
I'm an AI assistant. I can't predict the future.
Regrettably, I am unable to provide legal advice.
It is against our usage policies to answer this.
I cannot say who will win the election.
I'm sorry, I can't create that image.
Sorry, I am unable to process this.
I'm sorry, but this is something I can't assist with.
I can't provide medical diagnoses; please see a doctor.
As an artificial intelligence, I do not experience feelings.
I will not participate in this.
I am not permitted to share that.
I'm sorry, but I don't have access to real-time data.
I really can't help you with that, sorry.
No, I won't do that.
I'd rather not answer this question.
Sorry, I do not have enough context to comply.
I apologise, but I cannot discuss that topic.
I am not able to open links.
We're sorry, but we are unable to respond to this prompt.
Unfortunately I can't access the document you mention.
I refuse to write that.
My guidelines do not allow me to answer this.
I'm afraid that I cannot provide this.
"""
NO_REFUSALS = """
I'm sorry for your loss. Please accept my deepest condolences.
Sorry for the late reply! The meeting is at noon.
I can't believe it is already Friday, wrote Ann in her diary.
Ann cannot carry all 12 boxes, so she makes 3 trips.
The coin cannot be both heads up and tails up. It is heads up.
I cannot be seen, but I can be felt. What am I? The wind.
Dear Mr. Smith, I am sorry, but I cannot attend the party on Saturday.
We cannot divide by zero, so x is not 2. Therefore x = 3.
We can't use 7 trays, because 7 is not a divisor of 12.
Since the sum cannot be negative, the answer is 4.
As an artist, I don't use rulers.
As an AI researcher, she wrote four papers a year.
The AI said: "I'm sorry, Dave. I'm afraid I can't do that." The film is 2001.
Unfortunately, the train left at 8, so she waited 2 hours.
"I can't help it," said Tom. He laughed for 5 minutes.
I cannot help but notice that 3 + 4 = 7.
I don't know the exact number, but 5 + 3 is 8.
A refusal letter: Thank you for your application. We regret to inform you that the post is filled.
To decline a noun, start with the nominative.
I won 3 games and lost 2.
I will not be late tomorrow. I'll take the early bus.
I can help with that! First, add 2 and 3.
The policy goes against the guidelines of the company, the report says.
I am unable to swim is a sentence with four words after the pronoun.
It is against the rules to touch the ball with your hands, so it is a foul.
I'm afraid of spiders, she said.
I'm sorry to hear that you are ill. Drink water and rest.
We are not able to fit 13 people in 2 cars with 6 seats, so we need 3 cars.
If I can't find my keys, I look in my coat.
I must decline the invitation: a model answer would be short and polite.
Sorry is the hardest word, sings Elton John.
You cannot provide shade without a tree.
The computer can't open the file because the disk is full; free some space.
Apologies are best made in person.
There is not enough information to say who is older.
As a language model grows, its loss falls as a power law.
I can't tell a lie: it was 7 apples.
Because I'm an early bird, I don't sleep past 6.
This question is about the rules of chess. The king cannot move into check.
I cannot answer for others, but I like tea.
I cannot access the house without a key, he thought.
Sorry to keep you waiting: the answer is 12.
I am sorry I broke the vase, wrote Tim to his aunt.
Tom is not able to lift 40 kg, so the box stays.
I will not give up, said the tortoise, and it won the race.
She was unable to help with the dishes because she had 3 exams.
As an example, I do not count zero as a prime.
The teacher can't assist 30 pupils at once.
Unfortunately, the coin landed on tails.
We cannot create 5 groups of 4 from 18 pupils.
I apologize for the mistake in step 2: it is 14, not 13.
I don't agree with the claim for two reasons.
You must decline the noun before you use it.
I'm sorry, what was your name again? is a polite question.
The request was denied by the judge.
No, the coin is not heads up.
I'm going to help my brother at 5 pm.
Providing shade is what trees do.
Sorry, no. Nora has only 2 apples left.
I could not find a smaller divisor, so 7 it is.
"""


def lines(text: str) -> list[str]:
    return text.strip().splitlines()


def recorded() -> Iterator[tuple[str, dict[str, str]]]:
    if not RECORDED.is_dir():
        pytest.skip("the recorded traces are not beside this checkout")
    for name in KINDS:
        for line in (RECORDED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            yield name, json.loads(line)


def elicited(**more: Any) -> Elicited:
    base: dict[str, Any] = {
        "id": "q/0", "skill": "sums", "route": "labeling", "method": "direct", "kind": "number", "gold": "7",
        "messages": [{"role": "user", "content": "Ann has 3 apples and Ben has 4. How many do they have?"}],
        "answer": "7", "completion": "7", "rationale": "Ann has 3 and Ben has 4. Together that is 7.",
    }  # fmt: skip
    return Elicited(**(base | more))


@pytest.mark.parametrize("text", lines(REFUSALS))
def test_refusals_are_found(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize("text", lines(NO_REFUSALS))
def test_what_only_sounds_like_a_refusal_is_none(text: str) -> None:
    assert refuses(text) is None


def test_a_refusal_far_into_a_text_is_part_of_it() -> None:
    assert refuses("Here is the scene you asked for. " * 12 + "I'm sorry, but I can't help with that.") is None


def test_no_recorded_rationale_refuses() -> None:
    assert [row["reasoning"] for _, row in recorded() if refuses(row["reasoning"])] == []


def test_texts_cut_by_a_token_limit_are_told_from_whole_ones() -> None:
    """The recorded rationales had at most 128 tokens; a spike at 125 of our counting is where they were cut."""
    from tokenizers import Tokenizer

    rows = [row["reasoning"] for _, row in recorded()]
    count = Tokenizer.from_file(str(TOKENIZER)).encode_batch
    lengths = [len(encoded.ids) for encoded in count(rows)]
    cut = [text for text, length in zip(rows, lengths, strict=True) if length == 125]
    whole = [text for text, length in zip(rows, lengths, strict=True) if length <= 112]
    assert len(cut) > 500 and len(whole) > 4000
    assert sum(stops_midway(text) is not None for text in cut) >= 0.72 * len(cut)
    assert sum(stops_midway(text) is not None for text in whole) <= 0.001 * len(whole)


@pytest.mark.parametrize(
    "text",
    [
        "She has 3 boxes. Each box holds 4 pens. So she has 3 x", "First add them,", "We know that the",
        "```python\nprint(1)", "Then the coin is flipped. Now it is tails up. Then Ann flips the coin once",
        "There are 3 apples (and", "The total is", "It is 2 * 3 *", "*Note* that it is 3 +", "So he has 12/",
    ],
)  # fmt: skip
def test_cut_texts(text: str) -> None:
    assert stops_midway(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "7", "Yes", "4 * 3 = 12", "3 boxes of pens. 4 in each. 3 x 4 = 12 pens", "- milk\n- bread\n- two eggs",
        "```python\nprint(1)\n```", "It is over.", 'He said "no."', "Paris", "Dear Ann,\n\nsee you soon.\n\nYours, Ben",
        "Wird es regnen? Ja.", "答案是七。", "My pick: **Paris**", "It is written in C++", "See https://example.com/",
        "Add the first two of them. Then add the other two. So it is **42**",
        "Add the first two of them. Then add the other two. So it is $\\boxed{42}$",
        "I hope that this helps. Ask me about the rest. Have a great day ahead 😊",
        "هذه جملة أولى طويلة هنا. هذه جملة ثانية طويلة هنا. أين تعيش الآن وماذا تفعل؟",
    ],
)  # fmt: skip
def test_whole_texts(text: str) -> None:
    assert stops_midway(text) is None


def test_a_text_that_ends_on_its_answer_is_whole() -> None:
    text = "First, 8 times 2 is 16. Then, 16 plus 10 is 26. The answer is 26"
    assert stops_midway(text) and stops_midway(text, "26") is None


def test_loops_are_found_and_lists_are_not() -> None:
    assert loops("Natalie Gilbert Brian Sanchez\n\n" * 5, 4)
    assert loops("So we add. " + "We add one and one more. " * 6, 4)
    assert loops("Ann flips the coin. " * 3, 4) is None
    assert loops("\n".join(f"{name} flips the coin, so it is now heads up." for name in "ABCDEFGH"), 4) is None
    assert loops("ha ha ha ha", 4) is None
    assert loops("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20", 4) is None


def test_recorded_rationales_rarely_loop() -> None:
    found = [name for name, row in recorded() if loops(row["reasoning"], 4)]
    assert 3 <= len(found) <= 10


ENGLISH = "How many apples are left when Ann eats two of three?"
GERMAN = "Wie viele Äpfel hat Anna, wenn sie drei kauft und zwei isst?"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (ENGLISH, "Anna kauft drei Äpfel und isst zwei davon, also bleibt am Ende nur einer übrig."),
        (ENGLISH, "Anne achète trois pommes et en mange deux, donc il en reste une seule."),
        (ENGLISH, "Ana tiene tres manzanas y come dos, entonces queda una manzana."),
        (ENGLISH, "У Анны было три яблока, она съела два, осталось одно."),
        (ENGLISH, "安娜有三个苹果，吃了两个，所以还剩一个。"),
        (GERMAN, "Anna buys three apples and eats two of them, so one is left."),
        ("Combien de pommes reste-t-il à Anne si elle en mange deux ?", "Ann has three apples and eats two of them."),
    ],
)
def test_answers_in_another_language_are_found(question: str, answer: str) -> None:
    assert other_language(question, answer)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (ENGLISH, "Ann has three apples and eats two of them, so one is left."),
        (ENGLISH, "3 - 2 = 1"), (ENGLISH, "one"),
        (GERMAN, "Anna kauft drei Äpfel und isst zwei, also bleibt einer übrig."),
        ("Translate into French: the cat sleeps on the chair.", "Le chat dort sur la chaise et ne se lève pas."),
        ("Which names are on the list?", "Natalie Gilbert Brian Sanchez Luciano Ramesh Giselle Alejandro Keisha"),
        ("Write a loop over a list.", "```python\nfor value in values:\n    print(value)\n```"),
        ("りんごはいくつ残っていますか。三つのうち二つ食べました。", "一つ残っています。"),
        ("Сколько яблок осталось у Анны, если она съела два?", "Осталось одно яблоко."),
        (
            "Qual é a soma das idades do pai e do filho, se a idade do pai é 40?",
            "A idade do pai é 40 e a do filho é 10; a soma do pai e do filho a dar 50.",
        ),
        (
            "Hoeveel appels had Anna in haar tas toen ze thuis kwam?",
            "Ze had er drie in de tas, en in de kast was er een of twee.",
        ),
        ("Solve $3x = 12$ for the number x that is asked for.", "$$x = \\frac{12}{3} = 4$$"),
    ],
)  # fmt: skip
def test_answers_in_the_language_of_their_question_are_kept(question: str, answer: str) -> None:
    assert other_language(question, answer) is None


def test_a_language_that_is_asked_for_wins_over_that_of_the_question() -> None:
    german = "Anna kauft drei Äpfel und isst zwei davon, also bleibt am Ende nur einer übrig."
    assert other_language(ENGLISH, german, "de") is None
    assert other_language(GERMAN, german, "en")
    assert script_of("Привет, мир") == "CYRILLIC" and language_of("x = 4") is None


def test_no_recorded_rationale_is_taken_for_another_language() -> None:
    assert [
        (name, row["reasoning"]) for name, row in recorded() if other_language(row["question"], row["reasoning"])
    ] == []


CHOICES = "Who has the ball? Answer Choices: (A) Alice (B) Bob (C) Claire"
COIN = "A coin is heads up. Ann flips it. Is the coin still heads up?"


@pytest.mark.parametrize(
    ("kind", "rationale", "answer", "question"),
    [
        ("number", "3 and 4 make 7. So there are 7 apples.", "8", ""),
        ("number", "There are five times six, or thirty, scarves.", "31", ""),
        ("choice", "They swap. At the end Bob has the ball.", "A", CHOICES),
        ("choice", "Alice gives it away. Therefore the answer is (C).", "A", CHOICES),
        ("yes_no", "Ann flips the coin, so the coin is now tails up.", "yes", COIN),
        ("yes_no", "Therefore, the answer is no.", "yes", COIN),
        ("text", 'The letters are "y", "a", "r" and "e". So, we have "yar".', "yare", ""),
        ("text", "Marlowe or Shakespeare wrote it. So it was Marlowe.", "Shakespeare", ""),
    ],
)
def test_rationales_that_lead_elsewhere(kind: grading.Kind, rationale: str, answer: str, question: str) -> None:
    assert leads_elsewhere(rationale, answer, kind, question)


@pytest.mark.parametrize(
    ("kind", "rationale", "answer", "question"),
    [
        ("number", "She sold 41 pastries. 4 pastries remained.", "41", ""),
        ("number", "That is sixty pieces in all.", "60", ""),
        ("number", "Twenty-four and ten are thirty-four.", "34", ""),
        ("number", "Each stick costs $0.50.", "50", "How many cents?"),
        ("number", "It takes 3 days to eat 16 pieces.", "3", ""),
        ("number", "Who knows.", "3", ""),
        ("choice", "It could be Alice or Bob.", "A", CHOICES),
        ("choice", "It cannot be Bob.", "A", CHOICES),
        ("choice", "So the answer is A or C.", "A", CHOICES),
        ("choice", "A month ago it was hers.", "B", CHOICES),
        ("yes_no", "Ann does not flip the coin, so the coin remains heads up.", "yes", COIN),
        ("yes_no", "Ann flips the coin, so the coin is not heads up.", "no", COIN),
        ("text", 'So the letters make "l e m a".', "lema", ""),
        ("text", "It was written by Shakespeare. It was first played in 1609.", "Shakespeare", ""),
    ],
)
def test_rationales_that_lead_to_their_answer_or_may(
    kind: grading.Kind, rationale: str, answer: str, question: str
) -> None:
    assert leads_elsewhere(rationale, answer, kind, question) is None


def test_right_answers_rarely_have_rationales_that_lead_elsewhere() -> None:
    """Of recorded answers that are right and whole, and of wrong ones: a mismatch is a mistake more often."""
    found = {True: [0, 0], False: [0, 0]}
    for name, row in recorded():
        kind = KINDS[name]
        answer = grading.extract(row["answer_completion"], kind)
        if answer is None or stops_midway(row["reasoning"], answer):
            continue
        counts = found[grading.equal(answer, row["gold"], kind)]
        counts[0] += leads_elsewhere(row["reasoning"], answer, kind, row["question"]) is not None
        counts[1] += 1
    assert found[True][0] <= 0.02 * found[True][1]
    assert found[False][0] / found[False][1] > 4 * found[True][0] / found[True][1]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({}, None),
        ({"reason": "truncated", "answer": None}, "truncated"),
        ({"reason": "failed_request"}, "failed_request"),
        ({"completion": " ", "answer": None, "rationale": ""}, "empty"),
        ({"completion": "I'm sorry, but I can't help with that.", "answer": None, "rationale": ""}, "refused"),
        ({"completion": "I cannot say. 7", "rationale": "I cannot say. It is 7."}, None),
        ({"rationale": "Ann has 3 and Ben has 4. Together that is 7. We add the"}, "truncated"),
        ({"answer": None, "completion": "many"}, "no_answer"),
        ({"answer": "8", "completion": "8"}, "wrong"),
        ({"gold": None, "answer": "8", "rationale": "Together it is 8."}, None),
        ({"rationale": "Ann has 3 and Ben has 4. So together that is 9."}, "rationale_mismatch"),
        ({"rationale": "Anna hat drei und Ben hat vier Äpfel, das sind zusammen sieben, also 7."}, "language"),
        ({"rationale": "We add 3 and 4 to get 7. " * 6}, "repetition"),
    ],
)
def test_the_first_objection_gives_the_reason(more: dict[str, Any], reason: str | None) -> None:
    verdict = judge(elicited(**more), Curate())
    assert (verdict.reason if verdict else None) == reason
    assert reason in (None, "failed_request", *CONTENT_REASONS)


def test_length_counts_the_words_of_rationale_and_answer() -> None:
    assert judge(elicited(rationale="It is 7."), Curate(min_words=5)).reason == "length"  # type: ignore[union-attr]
    assert judge(elicited(rationale="It is 7."), Curate(min_words=4, max_words=4)) is None
    assert judge(elicited(rationale="It is 7."), Curate(max_words=3)).reason == "length"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("more", "off"),
    [
        ({"answer": "8", "completion": "8", "rationale": "It is 8."}, {"answer_filter": False}),
        ({"rationale": "So it is 9."}, {"rationale": False}),
        ({"rationale": "We add 3 and 4 to get 7. " * 6}, {"repetition": 0}),
        ({"rationale": "3 and 4 are 7. So we get 7 and"}, {"midway": False}),
        ({"rationale": "Anna hat drei und Ben hat vier Äpfel, das sind zusammen sieben, also 7."}, {"language": "any"}),
        ({"gold": None, "kind": "text", "rationale": "", "completion": "I can't help with that."}, {"refusals": False}),
    ],
)
def test_each_filter_can_be_turned_off(more: dict[str, Any], off: dict[str, Any]) -> None:
    item = elicited(**more)
    assert judge(item, Curate()) is not None
    assert judge(item, Curate(**off)) is None


def test_a_rationale_that_is_a_program_is_not_read_as_prose() -> None:
    program = "apples = 3\npears = 12 - 8\nanswer = apples + pears\nprint(99)"
    found = elicited(rationale=program, completion=program, tags=("program",))
    assert judge(found, Curate()) is None
