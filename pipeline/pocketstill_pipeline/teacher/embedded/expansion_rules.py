"""What the embedded teacher's instructions demand of an answer's form, and how it is done."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from .expansion_tasks import COUNTS, MOST_WORDS, Slots

_SPELT = "zero one two three four five six seven eight nine".split()


@dataclass
class Draft:
    """An answer in the making: its points, what stands before and behind them, and changes to the whole text."""

    points: list[str]
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    between: str = "\n"
    whole: list[Callable[[str], str]] = field(default_factory=list)

    def text(self) -> str:
        body = self.between.join(self.points)
        text = "\n".join([*self.before, body, *self.after])
        for change in self.whole:
            text = change(text)
        return text


@dataclass(frozen=True)
class Rule:
    """A demand in several wordings, and what it does to a draft. `use`: which way of evolving adds it."""

    wordings: tuple[str, ...]
    apply: Callable[[Draft, Slots], None]
    use: str = "constraints"


def _each(change: Callable[[int, str], str]) -> Callable[[Draft, Slots], None]:
    def apply(draft: Draft, _: Slots) -> None:
        draft.points = [change(number, point) for number, point in enumerate(draft.points, 1)]

    return apply


def _before(line: Callable[[Slots], str]) -> Callable[[Draft, Slots], None]:
    return lambda draft, slots: draft.before.insert(0, line(slots))


def _after(line: Callable[[Draft, Slots], str]) -> Callable[[Draft, Slots], None]:
    return lambda draft, slots: draft.after.append(line(draft, slots))


def _whole(change: Callable[[str, Slots], str]) -> Callable[[Draft, Slots], None]:
    return lambda draft, slots: draft.whole.append(lambda text: change(text, slots))


def _order(key: Callable[[str], object] | None) -> Callable[[Draft, Slots], None]:
    def apply(draft: Draft, _: Slots) -> None:
        draft.points = sorted(draft.points, key=key) if key else draft.points[::-1]  # type: ignore[arg-type]

    return apply


def _between(mark: str) -> Callable[[Draft, Slots], None]:
    def apply(draft: Draft, _: Slots) -> None:
        draft.between = mark

    return apply


def _shorten(text: str, slots: Slots) -> str:
    most = MOST_WORDS[slots["most"].lower()]
    parts = re.split(r"(\s+)", text)
    return "".join(parts[: 2 * most - 1])


def _spell(text: str, _: Slots) -> str:
    return re.sub(r"\b\d\b", lambda found: _SPELT[int(found[0])], text)


def _steps(draft: Draft, _: Slots) -> None:
    count = len(draft.points)
    draft.before += [
        "Step 1: read what is given and what is wanted.",
        f"Step 2: find the {'one part' if count == 1 else f'{count} parts'} of the answer.",
        f"Step 3: check the last part again, {draft.points[-1].rstrip('.')!r}.",
        "Result:",
    ]


def _reasons(draft: Draft, _: Slots) -> None:
    draft.after.append(
        f"Reasoning: I went from {draft.points[0].rstrip('.')!r} to {draft.points[-1].rstrip('.')!r}, "
        f"which makes {len(draft.points)} in all."
    )


# In the order in which they are applied.
RULES = (
    Rule(("Sort what you list from A to Z.", "The points have to follow the alphabet."), _order(str.lower)),
    Rule(("Give the points in reverse order, the last one first.",), _order(None)),
    Rule(("Leave at most {few} points.", "Stop after {few} points, whatever else there may be."),
         lambda draft, s: draft.points.__delitem__(slice(COUNTS[s["few"].lower()], None))),
    Rule(("Number the points.", "Each point carries a running number."), _each(lambda n, point: f"{n}. {point}")),
    Rule(("Put a dash in front of every point.", "Use a bulleted layout with dashes."), _each(lambda _, p: f"- {p}")),
    Rule(("Set each point between angle brackets.",), _each(lambda _, point: f"<{point}>")),
    Rule(("Add the number of letters behind every point.",),
         _each(lambda _, p: f"{p} ({sum(c.isalpha() for c in p)} letters)"), "deepen"),
    Rule(("Separate the points by semicolons and stay on one line.", "No line breaks; semicolons divide the points."),
         _between("; ")),
    Rule(("Leave an empty line between two points.", "Separate points by a blank line."), _between("\n\n")),
    Rule(("Think of {audience} in {place} and say for whom it is.",
          "Tailor it to {audience} who live in {place}, and mention them at the top."),
         _before(lambda s: f"For {s['audience']} in {s['place']}:"), "concretize"),
    Rule(("It concerns {person} from {place}, so name both.",),
         _before(lambda s: f"This is for {s['person']} from {s['place']}."), "concretize"),
    Rule(("First write down the steps that lead there, and only then the result.",
          "Work through it in three steps before you state the result."), _steps, "reasoning"),
    Rule(("Explain afterwards how you got from the first point to the last.",
          "Close with the chain of thought that links beginning and end."), _reasons, "reasoning"),
    Rule(("Greet {audience} at the beginning.", "Say hello to {audience} before anything else."),
         _before(lambda s: f"Hello, {s['audience']}!")),
    Rule(("Put the title {word} above it.", "A heading that reads {word} comes on top."),
         _before(lambda s: s["word"].capitalize())),
    Rule(("Date it with the coming {day}.", "The first line tells the weekday, {day}."),
         _before(lambda s: f"{s['day']},")),
    Rule(("Let {word} be the very first word.", "Your reply must start with {word}, followed by a colon."),
         _before(lambda s: f"{s['word'].capitalize()}:")),
    Rule(("Sign it with the name {person}.", "At the bottom stands the signature of {person}."),
         _after(lambda _, s: s["person"])),
    Rule(("Add a postscript that mentions {place}.", "{place} has to turn up in a P.S. of yours."),
         _after(lambda _, s: f"P.S. Greetings from {s['place']}.")),
    Rule(("Thank the reader in a last line.", "Finish on a note of thanks."),
         _after(lambda _, __: "Thank you for reading.")),
    Rule(("State at the end how many points there were.", "Tell me the number of points when you are done."),
         _after(lambda d, _: f"Points: {len(d.points)}"), "deepen"),
    Rule(("Afterwards repeat the longest point once more.",),
         _after(lambda d, _: f"Longest: {max(d.points, key=len)}"), "deepen"),
    Rule(("Offer to come back on {day}.", "Announce that you will be available again on {day}."),
         _after(lambda _, s: f"I am here again on {s['day']}.")),
    Rule(("Close with the word {word}.", "The last word of all has to be {word}."), _after(lambda _, s: s["word"])),
    Rule(("Use no more than {most} words.", "Anything beyond {most} words will be cut off."), _whole(_shorten)),
    Rule(("Do without commas.", "Avoid the comma altogether."), _whole(lambda t, _: t.replace(",", ""))),
    Rule(("Spell out single digits as words.",), _whole(_spell)),
    Rule(("Use & wherever you would write and.",), _whole(lambda t, _: re.sub(r"\band\b", "&", t))),
    Rule(("Replace every full stop by an exclamation mark.", "Sound excited: exclamation marks instead of full stops."),
         _whole(lambda t, _: re.sub(r"\.(?=\s|$)", "!", t))),
    Rule(("Write everything in capital letters.", "Only upper case is readable on this display."),
         _whole(lambda t, _: t.upper())),
    Rule(("Keep all letters small.", "Lower case throughout, even for names."), _whole(lambda t, _: t.lower())),
    Rule(("Put the whole reply between quotation marks.",), _whole(lambda t, _: f'"{t}"')),
    Rule(("Set the reply in square brackets.",), _whole(lambda t, _: f"[{t}]")),
    Rule(("Wrap the reply in a tag called {word}.",), _whole(lambda t, s: f"<{s['word']}>{t}</{s['word']}>")),
)  # fmt: skip
