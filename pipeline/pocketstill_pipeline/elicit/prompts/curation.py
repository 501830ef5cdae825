"""What is asked for questions out of nothing but a topic, out of a text, and for both sides of a dialogue.

Each builder has its inverse, which reads what was asked out of a request's (role, text) turns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel

from pocketstill_pipeline.asking import Messages

Turns = Sequence[tuple[str, str]]

_TOPICS = "List {} different topics that people ask {} about. Write one topic a line, and nothing else."
_TOPICS_ASKED = re.compile(r"List (\d+) different topics that people ask (.*) about\. Write one topic a line")
_LISTED = re.compile(r"^\s*(?:[-*•](?!\*)|\**\d+[.)])\s*(.*)")
_QUESTION = (
    "Put yourself in the place of {persona}. Write one question about {topic} that you would ask {who}. "
    "It should be {difficulty} to answer. Write the question alone."
)
_QUESTION_ASKED = re.compile(
    r"Put yourself in the place of (.*)\. Write one question about (.*) that you would ask (.*)\. "
    r"It should be (.*) to answer\. Write the question alone\."
)
_FROM_TEXT = (
    "Text:\n{text}\n\nWrite {count} questions that somebody would ask about this text. {kind} Give each with its "
    "answer and with the words of the text that show it, copied letter for letter."
)
_FROM_TEXT_ASKED = re.compile(
    r"Text:\n(.*)\n\nWrite (\d+) questions that somebody would ask about this text\. (.*?) Give", re.S
)
_ANSWERABLE = "The text must answer every one of them."
_UNANSWERABLE = "They must fit the text's subject, but the text must not answer any of them: leave the quote empty."
NOT_IN_TEXT = "The text does not say."
_GROUNDED = (
    "Answer the question from the text alone. If the text does not answer it, say: {not_in_text}\n\n"
    "Text:\n{text}\n\nQuestion: {question}"
)
_GROUNDED_ASKED = re.compile(r"Answer the question from the text alone\..*?\n\nText:\n(.*)\n\nQuestion: (.*)", re.S)
END = "[END]"
_USER = (
    "You play a person who talks to an assistant. The assistant's words come to you as the user's. Go on with the "
    f"conversation in one short message: ask further, ask for an example, or doubt. When all is said, write {END}"
)
_OPEN = "Begin a conversation about: {}"


class Persona(NamedTuple):
    """What a question is made from: who asks whom, about what, how hard."""

    persona: str
    topic: str
    who: str
    difficulty: str


class TextQuestion(BaseModel):
    """A question on a text. `quote` is what of the text shows the answer; empty when nothing does."""

    question: str
    answer: str
    quote: str


class TextQuestions(BaseModel):
    """The reply to `text_request`."""

    questions: list[TextQuestion]


def topics_request(count: int, who: str) -> Messages:
    """Asks for topics, one a line."""
    return [{"role": "user", "content": _TOPICS.format(count, who)}]


def asked_topics(turns: Turns) -> int | None:
    """How many topics a request asks for."""
    found = _TOPICS_ASKED.match(turns[-1][1])
    return int(found.group(1)) if found else None


def read_topics(reply: str) -> list[str]:
    """The topics of a reply, without numbers, bullets and stars, each once.

    Lines around a list are no topics, nor are lines that lead on to some.
    """
    lines = reply.splitlines()
    listed = [found[1] for line in lines if (found := _LISTED.match(line))]
    said = listed or [line for line in lines if not line.rstrip(" *").endswith(":")]
    named = (line.replace("**", "").strip(" .") for line in said)
    return list(dict.fromkeys(line for line in named if line))


def question_request(wanted: Persona) -> Messages:
    """Asks for one question."""
    return [{"role": "user", "content": _QUESTION.format(**wanted._asdict())}]


def asked_for_question(turns: Turns) -> Persona | None:
    """What a `question_request` asks for."""
    found = _QUESTION_ASKED.fullmatch(turns[-1][1])
    return Persona(*found.groups()) if found else None


def text_request(text: str, count: int, *, answerable: bool) -> Messages:
    """Asks for questions on a text."""
    kind = _ANSWERABLE if answerable else _UNANSWERABLE
    return [{"role": "user", "content": _FROM_TEXT.format(text=text, count=count, kind=kind)}]


def asked_on_text(turns: Turns) -> tuple[str, int, bool] | None:
    """The text, how many questions, and whether the text shall answer them."""
    found = _FROM_TEXT_ASKED.match(turns[-1][1])
    return (found.group(1), int(found.group(2)), found.group(3) == _ANSWERABLE) if found else None


def grounded_request(text: str, question: str) -> Messages:
    """Asks a question that is to be answered from a text; the student is asked in the same words."""
    content = _GROUNDED.format(not_in_text=NOT_IN_TEXT, text=text, question=question)
    return [{"role": "user", "content": content}]


def asked_grounded(turns: Turns) -> tuple[str, str] | None:
    """The text and the question of a `grounded_request`."""
    found = _GROUNDED_ASKED.fullmatch(turns[-1][1])
    return (found.group(1), found.group(2)) if found else None


def user_request(topic: str, turns: Messages) -> Messages:
    """Asks for the next thing that the user of a conversation says: its roles are swapped."""
    swapped = {"user": "assistant", "assistant": "user"}
    said: Messages = [{"role": swapped[turn["role"]], "content": turn["content"]} for turn in turns]
    return [{"role": "system", "content": _USER}, {"role": "user", "content": _OPEN.format(topic)}, *said]


def asked_as_user(turns: Turns) -> tuple[str, list[str]] | None:
    """The topic and what has been said so far, of a `user_request`."""
    if len(turns) < 2 or turns[0] != ("system", _USER):
        return None
    return turns[1][1].removeprefix(_OPEN.format("")), [content for _, content in turns[2:]]
