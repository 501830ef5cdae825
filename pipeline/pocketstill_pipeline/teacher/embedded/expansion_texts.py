"""Tasks of the embedded teacher that work on an input: a text, or numbers."""

from __future__ import annotations

import random
import re
from collections import Counter

from .expansion_tasks import COUNTS, LIMITS, Slots, Task
from .expansion_topics import NAMES, PEOPLE, PLACES, TOPICS

_VOWELS = frozenset("aeiou")


def _text(rng: random.Random, _: Slots, __: str) -> str:
    """Two or three sentences."""
    topic = TOPICS[rng.choice(NAMES)]
    said = [f"{part}." for part in rng.sample(topic.facts, rng.choice((1, 2, 2)))]
    person, place = rng.choice(PEOPLE), rng.choice(PLACES)
    return " ".join([*said, f"{person} learned this in {place} {rng.randint(2, 60)} years ago."])


def _line(rng: random.Random, _: Slots, __: str) -> str:
    """A few words."""
    things = [thing for name in rng.sample(NAMES, 2) for thing in TOPICS[name].things]
    return " ".join(rng.sample(things, rng.randint(4, 8)))


def _row(rng: random.Random, _: Slots, __: str) -> str:
    return ", ".join(str(rng.randint(2, 99)) for _ in range(rng.randint(4, 8)))


def _table(rng: random.Random, _: Slots, __: str) -> str:
    things = rng.sample(TOPICS[rng.choice(NAMES)].things, rng.randint(3, 5))
    return "\n".join(["item,price", *(f"{thing},{rng.randint(2, 60)}" for thing in things)])


def _hours(rng: random.Random, _: Slots, __: str) -> str:
    return f"{rng.randint(61, 900)} minutes"


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z][A-Za-z'-]*", text)


def sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part]


def numbers(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"(?<!\w)\d+", text)]


def _prices(text: str) -> list[tuple[str, int]]:
    return [(item, int(price)) for item, price in re.findall(r"^([\w -]+),(\d+)$", text, re.MULTILINE)]


def _most(items: list[str], key: int) -> list[str]:
    return [sorted(items, key=lambda word: (-key * len(word), word))[0]] if items else ["none"]


def _or_none(found: list[str]) -> list[str]:
    return [", ".join(found) if found else "none"]


def _repeated(text: str) -> list[str]:
    counted = Counter(word.lower() for word in words(text))
    return _or_none(sorted(word for word, count in counted.items() if count > 1))


def _swapped(text: str) -> list[str]:
    parts = text.split()
    return [" ".join([parts[-1], *parts[1:-1], parts[0]]) if len(parts) > 1 else text]


def _cheapest(text: str, sign: int) -> list[str]:
    rows = _prices(text)
    return [min(rows, key=lambda row: (sign * row[1], row[0]))[0]] if rows else ["none"]


TEXT_TASKS = (
    Task(("Count the words of the text.", "How many words does the passage have?",
          "Report the length of this paragraph, measured in words."), lambda _, t: [str(len(t.split()))], _text),
    Task(("How many sentences are there below?", "Determine the number of full sentences in the extract."),
         lambda _, t: [str(len(sentences(t)))], _text),
    Task(("Find the longest word.", "Of all words in the quotation, which has the most letters?"),
         lambda _, t: _most(words(t), 1), _text),
    Task(("Name the shortest word in the list.",), lambda _, t: _most(words(t), -1), _line),
    Task(("Reverse the order of the words.", "Read the row from its last word to its first and write down the result."),
         lambda _, t: [" ".join(reversed(t.split()))], _line),
    Task(("Spell every word backwards but leave the words in their places.",),
         lambda _, t: [" ".join(word[::-1] for word in t.split())], _line),
    Task(("Arrange the words alphabetically.", "Bring the following terms into the order of a dictionary."),
         lambda _, t: [" ".join(sorted(t.split(), key=str.lower))], _line),
    Task(("Extract all numbers from the text.", "Which figures occur in the report? Return the digits only."),
         lambda _, t: _or_none([str(n) for n in numbers(t)]), _text),
    Task(("Form an abbreviation from the first letters of the words.", "What acronym do the initials give?"),
         lambda _, t: ["".join(word[0].upper() for word in words(t))], _line),
    Task(("Pick out the words that begin with the letter {letter}.",
          "Every term starting with {letter} goes on a separate sheet; which ones are they?"),
         lambda s, t: _or_none([w for w in words(t) if w.lower().startswith(s["letter"].lower())]), _line),
    Task(("Strike each letter {letter} from the text.", "Show how the passage looks once all {letter} are gone."),
         lambda s, t: [re.sub(re.escape(s["letter"]), "", t, flags=re.IGNORECASE)], _text),
    Task(("How often does the letter {letter} occur?",
          "Keep a tally of {letter} while you read, and tell me the total."),
         lambda s, t: [str(t.lower().count(s["letter"].lower()))], _text),
    Task(("Summarise the message by its first sentence.", "Shorten the paragraph to what it says at the beginning."),
         lambda _, t: sentences(t)[:1] or ["none"], _text),
    Task(("Which person is mentioned?", "Somebody's name stands in these lines; whose is it?"),
         lambda _, t: _or_none([w for w in words(t) if w in PEOPLE]), _text),
    Task(("Where does the story take place? Give the city.",),
         lambda _, t: _or_none([w for w in words(t) if w in PLACES]), _text),
    Task(("List the words that appear more than once.", "Detect repetitions: what does the author use twice or more?"),
         lambda _, t: _repeated(t), _text),
    Task(("Exchange the first word and the last one.",), lambda _, t: _swapped(t), _line),
    Task(("Join the words with hyphens.", "Glue these terms into a single one, a dash between the parts."),
         lambda _, t: ["-".join(t.split())], _line),
    Task(("How many vowels are in the row of words?",),
         lambda _, t: [str(sum(c in _VOWELS for c in t.lower()))], _line),
    Task(("Keep only words with more than {few} letters.", "Drop whatever has {few} letters or fewer."),
         lambda s, t: _or_none([w for w in words(t) if len(w) > COUNTS[s["few"].lower()]]), _text),
    Task(("Put every sentence of the text on a line of its own.",), lambda _, t: sentences(t) or ["none"], _text),
    Task(("Write the initial of each term as a capital.", "Make headline style out of the plain words below."),
         lambda _, t: [" ".join(word.capitalize() for word in t.split())], _line),
)  # fmt: skip

NUMBER_TASKS = (
    Task(("Add up the numbers.", "What is the sum of the values below?", "A cashier needs the total of these amounts."),
         lambda _, t: [str(sum(numbers(t)))], _row),
    Task(("Which is the largest number in the row?", "Spot the maximum among the measurements."),
         lambda _, t: [str(max(numbers(t), default=0))], _row),
    Task(("Name the smallest of the values.", "What is the minimum of the series?"),
         lambda _, t: [str(min(numbers(t), default=0))], _row),
    Task(("How far apart are the highest and the lowest figure?", "Compute the range of the readings."),
         lambda _, t: [str(max(numbers(t), default=0) - min(numbers(t), default=0))], _row),
    Task(("Sort the numbers from small to large.", "Bring the figures into ascending order."),
         lambda _, t: [", ".join(map(str, sorted(numbers(t))))], _row),
    Task(("Select the even numbers.", "Which entries can be divided by two without remainder?"),
         lambda _, t: _or_none([str(n) for n in numbers(t) if n % 2 == 0]), _row),
    Task(("Double each value.", "Multiply all members of the sequence by two."),
         lambda _, t: [", ".join(str(2 * n) for n in numbers(t))], _row),
    Task(("How many of the readings are above {limit}?", "Count measurements that exceed {limit}."),
         lambda s, t: [str(sum(n > LIMITS[s["limit"].lower()] for n in numbers(t)))], _row),
    Task(("Convert the duration to hours and minutes.",
          "Express the time span with full hours plus what is left over."),
         lambda _, t: [f"{n // 60} hours and {n % 60} minutes" for n in numbers(t)[:1]] or ["none"], _hours),
    Task(("Calculate what everything on the price list costs together.", "Sum the price column of the table."),
         lambda _, t: [str(sum(price for _, price in _prices(t)))], _table),
    Task(("Which article is the cheapest?", "Where does a buyer with little money save most? Name the item."),
         lambda _, t: _cheapest(t, 1), _table),
    Task(("Which article costs most?", "Identify the dearest product in the table."),
         lambda _, t: _cheapest(t, -1), _table),
    Task(("How many items does the price list have?",), lambda _, t: [str(len(_prices(t)))], _table),
)  # fmt: skip
