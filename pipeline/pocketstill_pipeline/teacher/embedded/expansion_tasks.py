"""Tasks that the embedded teacher thinks of and does: on topics that it knows, and classification."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from pocketstill_pipeline.problems.base import slots_pattern

from .expansion_topics import AUDIENCES, BAD, GOOD, NAMES, PEOPLE, PLACES, SUBJECTS, TOPICS, WORDS, Topic

Slots = dict[str, str]
COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# What may stand in a slot of a wording.
FILLINGS: dict[str, tuple[str, ...]] = {
    "topic": NAMES,
    "other": NAMES,
    "few": ("two", "three", "four"),
    "many": ("three", "four", "five", "six", "seven"),
    "letter": tuple("aeilnorst"),
    "limit": ("twenty", "thirty", "forty", "fifty", "sixty", "seventy"),
    "word": WORDS,
    "person": tuple(PEOPLE),
    "place": tuple(PLACES),
    "day": DAYS,
    "audience": AUDIENCES,
    "most": ("fifteen", "twenty", "twenty-five", "thirty", "forty"),
}
MOST_WORDS = dict(zip(FILLINGS["most"], (15, 20, 25, 30, 40), strict=True))
LIMITS = dict(zip(FILLINGS["limit"], (20, 30, 40, 50, 60, 70), strict=True))


@dataclass(frozen=True)
class Task:
    """A task in several wordings, how inputs of it are made, and how it is done.

    `do` gives the points of the answer, each a line or a sentence. `labels` are those of a classification task;
    `make` writes an input, and of such a task one for the label asked for.
    """

    wordings: tuple[str, ...]
    do: Callable[[Slots, str], list[str]]
    make: Callable[[random.Random, Slots, str], str] | None = None
    labels: tuple[str, ...] = ()


def fill(wording: str, rng: random.Random) -> tuple[str, Slots]:
    """A wording with its slots filled at random, and what they were filled with."""
    slots: Slots = {}
    for slot in re.findall(r"\{(\w+)\}", wording):
        choices = [value for value in FILLINGS[slot] if value not in slots.values()]
        slots.setdefault(slot, rng.choice(choices))
    return wording.format(**slots), slots


def pattern_of(wording: str) -> re.Pattern[str]:
    """What finds a filled wording in a text; its groups are the slots."""
    return re.compile(slots_pattern(wording, _fillings), re.IGNORECASE)


def _fillings(slot: str) -> str:
    longest_first = sorted(FILLINGS[slot], key=len, reverse=True)
    return "|".join(map(re.escape, longest_first))


def sign_of(wording: str) -> str:
    """A part, in lower case, of every text that has the wording in it."""
    return max(re.split(r"\{\w+\}", wording), key=len).lower()


def _topic(slots: Slots, slot: str = "topic") -> Topic:
    return TOPICS[slots[slot].lower()]


def _count(slots: Slots, slot: str = "few") -> int:
    return COUNTS[slots[slot].lower()]


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _sentences(parts: tuple[str, ...] | list[str]) -> list[str]:
    return [f"{part}." for part in parts]


def _title(slots: Slots, _: str) -> list[str]:
    topic = _topic(slots)
    return [f"{topic.things[0].capitalize()}, {topic.things[1]} and more: the world of {topic.name}"]


def _quiz(slots: Slots, _: str) -> list[str]:
    fact = _topic(slots).facts[1]
    last = fact.split()[-1]
    return [f"Question: complete the sentence: {fact[: -len(last)]}...", f"Answer: {last}"]


def _compare(slots: Slots, _: str) -> list[str]:
    one, other = _topic(slots), _topic(slots, "other")
    return [
        f"With {one.name} one thinks of {_a(one.things[0])}, with {other.name} of {_a(other.things[0])}.",
        f"{one.facts[0]}.",
        f"{other.facts[0]}.",
    ]


def _invite(slots: Slots, _: str) -> list[str]:
    topic = _topic(slots)
    first, second, third = topic.things[:3]
    return [
        "Dear friends,",
        f"we invite you to an afternoon on {topic.name}.",
        f"There is much to hear about the {first}, the {second} and the {third}.",
        "Please tell us whether you can come.",
    ]


def _dialogue(slots: Slots, _: str) -> list[str]:
    topic, lines = _topic(slots), []
    said = [part for pair in zip(topic.facts, topic.advice, strict=True) for part in pair]
    for index in range(2 * _count(slots)):
        lines.append(f"{'AB'[index % 2]}: {said[index]}.")
    return lines


def _plan(slots: Slots, _: str) -> list[str]:
    topic, count = _topic(slots), _count(slots)
    return [f"Part {n}: talk about the {thing}." for n, thing in enumerate(topic.things[:count], 1)]


def _gap(slots: Slots, _: str) -> list[str]:
    *words, last = _topic(slots).facts[2].split()
    return [f"{' '.join(words)} ____.", f"Missing word: {last}"]


def _pick(slots: Slots, _: str) -> list[str]:
    topic = _topic(slots)
    return [topic.things[0], f"When I think of {topic.name}, I think of the {topic.things[0]}."]


def _about(slots: Slots, _: str) -> list[str]:
    topic = _topic(slots)
    return [*_sentences(topic.facts), f"In short: {topic.advice[0][0].lower()}{topic.advice[0][1:]}."]


TOPIC_TASKS = (
    Task(("List {many} things that you would find around {topic}.",
          "Which {many} objects come to mind when people speak of {topic}?",
          "I need vocabulary: {many} nouns from the world of {topic}, please."),
         lambda s, _: list(_topic(s).things[: _count(s, "many")])),
    Task(("Write {few} short sentences of fact about {topic}.", "Tell me {few} true statements concerning {topic}.",
          "What are {few} facts worth knowing on the subject of {topic}?"),
         lambda s, _: _sentences(_topic(s).facts[: _count(s)])),
    Task(("Give {few} pieces of advice to somebody who is new to {topic}.",
          "How should a careful person behave when it comes to {topic}? Mention {few} rules.",
          "Put together {few} practical tips regarding {topic}."),
         lambda s, _: _sentences(_topic(s).advice[: _count(s)])),
    Task(("Invent a headline for an article on {topic}.", "Suggest what a book about {topic} could be called."),
         _title),
    Task(("Make up a quiz question about {topic} and reveal the solution too.",
          "Test what a pupil knows of {topic}: pose one question, followed by its answer."), _quiz),
    Task(("Compare {topic} with {other} in a few sentences.", "What sets {topic} apart from {other}?",
          "Someone confuses {topic} and {other}; explain how they differ."), _compare),
    Task(("Compose a brief invitation to an afternoon on {topic}.",
          "We are hosting a meeting devoted to {topic}; word the message that calls the guests."), _invite),
    Task(("Sort the vocabulary of {topic} by length, shortest word first.",),
         lambda s, _: sorted(_topic(s).things, key=lambda word: (len(word), word))),
    Task(("Prepare a checklist for an exhibition on {topic}.", "What has to be fetched for a display about {topic}?"),
         lambda s, _: [f"[ ] {thing}" for thing in _topic(s).things[:5]]),
    Task(("Find a motto for a society devoted to {topic}.", "Coin a slogan that friends of {topic} could share."),
         lambda s, _: [f"{_topic(s).advice[1]}!"]),
    Task(("Let two neighbours talk about {topic}, each of them {few} times.",
          "Script a chat on {topic} in which both speakers have {few} turns."), _dialogue),
    Task(("Open a speech on {topic} with a greeting and one striking fact.",
          "How could a lecture about {topic} start? Only the first words are wanted."),
         lambda s, _: ["Dear guests,", f"today we speak of {_topic(s).name}.", f"{_topic(s).facts[3]}."]),
    Task(("Outline a workshop on {topic} in {few} parts.",
          "Divide an evening dedicated to {topic} into {few} sections."), _plan),
    Task(("Write a sentence on {topic} with a gap in it, and below the word that is missing.",), _gap),
    Task(("Describe {topic} in one paragraph.", "Explain {topic} to a person who never heard of such a thing.",
          "An encyclopedia lacks an entry for {topic}; supply it."), _about),
    Task(("Which mistake is common with {topic}, and what helps against it?",
          "Warn people who handle {topic} carelessly."),
         lambda s, _: ["Many act without care.", f"Better: {_topic(s).advice[2]}."]),
    Task(("Pick the most important word from the field of {topic} and use it in a sentence.",),
         _pick),
    Task(("Turn what you know of {topic} into {few} questions that a child could ask.",),
         lambda s, _: [f"What is the {thing} for?" for thing in _topic(s).things[: _count(s)]]),
)  # fmt: skip


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text)


def _feeling(rng: random.Random, _: Slots, label: str) -> str:
    return f"{rng.choice(SUBJECTS)} was {rng.choice(GOOD if label == 'positive' else BAD)}."


def _nearest(slots: Slots, text: str) -> list[str]:
    said = {word.lower() for word in _words(text)}

    def shared(name: str) -> int:
        topic = TOPICS[name.lower()]
        return sum(
            word.lower() in said for part in (*topic.facts, *topic.things, *topic.advice) for word in _words(part)
        )

    return [max((slots["topic"].lower(), slots["other"].lower()), key=shared)]


def _has(text: str, words: str, yes: str, no: str) -> list[str]:
    return [yes if re.search(rf"\b(?:{words})\b", text, re.IGNORECASE) else no]


CLASSIFICATION_TASKS = (
    Task(("Decide whether the remark is positive or negative.",
          "Does the guest sound happy? Label the comment as positive or negative.",
          "Judge the mood of this review: positive, or negative?"),
         lambda _, t: ["positive" if any(w.lower() in GOOD for w in _words(t)) else "negative"],
         _feeling, ("positive", "negative")),
    Task(("Is the sentence about {topic} or about {other}?",
          "Assign the note to one of two shelves, {topic} or {other}.",
          "An editor files texts either under {topic} or under {other}; where does this one go?"),
         _nearest, lambda rng, s, label: f"{rng.choice(TOPICS[label.lower()].facts)}.", ("{topic}", "{other}")),
    Task(("Tell if this line is a question or a statement.", "Question or statement: what kind of sentence is it?"),
         lambda _, t: ["question" if t.strip().endswith("?") else "statement"],
         lambda rng, _, label: f"{rng.choice(SUBJECTS)} was {rng.choice(GOOD)}{'?' if label == 'question' else '.'}",
         ("question", "statement")),
    Task(("Say even or odd for the number that follows.",
          "A machine sorts integers by parity: is this one even or odd?"),
         lambda _, t: ["odd" if int(re.findall(r"\d+", t)[-1]) % 2 else "even"] if re.search(r"\d", t) else ["even"],
         lambda rng, _, label: str(2 * rng.randint(3, 400) + (label == "odd")), ("even", "odd")),
    Task(("Does the text contain a number? Reply yes or no.",
          "Yes or no: are there any digits in the passage below?"),
         lambda _, t: ["yes" if re.search(r"\d", t) else "no"],
         lambda rng, _, label: f"{rng.choice(PEOPLE)} came to {rng.choice(PLACES)} with "
         f"{rng.randint(2, 90) if label == 'yes' else 'many'} bags.", ("yes", "no")),
    Task(("Mark the e-mail as urgent or not urgent.",
          "Our secretary has little time. Which tag does the message get, urgent or not urgent?"),
         lambda _, t: _has(t, "at once|immediately|right now|before noon", "urgent", "not urgent"),
         lambda rng, _, label: f"{rng.choice(PEOPLE)} asks for the keys of the office in {rng.choice(PLACES)}"
         + rng.choice((" at once.", " immediately.", " before noon.") if label == "urgent" else (".", " some day.")),
         ("urgent", "not urgent")),
    Task(("Is the greeting formal or informal?", "Classify how somebody says hello as formal or informal."),
         lambda _, t: _has(t, "dear|madam|sir|good (?:morning|evening)", "formal", "informal"),
         lambda rng, _, label: f"{rng.choice(('Dear', 'Good evening') if label == 'formal' else ('Hey', 'Hi there'))}, "
         f"{rng.choice(PEOPLE)}!", ("formal", "informal")),
    Task(("Did it happen in the past, or will it happen in the future?",
          "Determine the time that the speaker means, past or future."),
         lambda _, t: _has(t, "will|tomorrow|soon", "future", "past"),
         lambda rng, _, label: f"{rng.choice(PEOPLE)} "
         f"{'will soon travel' if label == 'future' else 'travelled'} to {rng.choice(PLACES)}.",
         ("past", "future")),
    Task(("Filter the inbox: spam or genuine?", "Would you call the following mail spam or genuine?"),
         lambda _, t: _has(t, "prize|win|free money|click", "spam", "genuine"),
         lambda rng, _, label: f"Hello {rng.choice(PEOPLE)}, "
         + ("click here to win a prize." if label == "spam" else f"see you in {rng.choice(PLACES)} again."),
         ("spam", "genuine")),
    Task(("Weekday or weekend: to which does the date belong?",
          "The opening hours depend on it: is that a weekday or a weekend?"),
         lambda _, t: _has(t, "saturday|sunday", "weekend", "weekday"),
         lambda rng, _, label: f"{rng.choice(PEOPLE)} comes on "
         f"{rng.choice(DAYS[5:] if label == 'weekend' else DAYS[:5])}.",
         ("weekday", "weekend")),
    Task(("Does the word start with a vowel or a consonant?",
          "Look at the first letter and answer with vowel or consonant."),
         lambda _, t: ["vowel" if t.strip()[:1].lower() in "aeiou" else "consonant"],
         lambda rng, _, label: rng.choice([w for w in WORDS if (w[0] in "aeiou") == (label == "vowel")]),
         ("vowel", "consonant")),
    Task(("Say short if the text has fewer than six words, and otherwise long.",),
         lambda _, t: ["short" if len(_words(t)) < 6 else "long"],
         lambda rng, _, label: f"{rng.choice(SUBJECTS)} was {rng.choice(GOOD)} and {rng.choice(GOOD)}."
         if label == "long" else f"{rng.choice(PEOPLE)} is {rng.choice(GOOD)}.", ("short", "long")),
    Task(("Is the name that of a person or of a city?", "Sort the entry of an address book: person or city?"),
         lambda _, t: ["city" if t.strip().rstrip(".") in PLACES else "person"],
         lambda rng, _, label: rng.choice(PLACES if label == "city" else PEOPLE), ("person", "city")),
)  # fmt: skip
