"""The embedded teacher's questions out of its almanac, on a text, and as both sides of a conversation."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence

from pocketstill_pipeline.elicit.prompts.curation import (
    END,
    NOT_IN_TEXT,
    Persona,
    asked_as_user,
    asked_for_question,
    asked_grounded,
    asked_on_text,
    asked_topics,
)
from pocketstill_pipeline.teacher import TeacherConfig
from pocketstill_pipeline.teacher.protocol import ChatRequest

from .almanac import FACTS, Fact

_ASKED = {
    "easy": ("Please tell me {about}.", "I wonder {about}. Can you help?", "Do you know {about}?"),
    "moderately hard": (
        "Please tell me {about}, and the reason for it.",
        "A friend and I disagree on {about}. What is right, and why?",
    ),
    "hard": (
        "Explain to me {about} and {other}, and what the two have in common.",
        "Which matters more: to know {about}, or to know {other}? Give your reasons.",
    ),
}
_FURTHER = (
    "And why is that?", "Thank you. Could you tell me {about}, too?", "I am not so sure. Where does that come from?",
    "Good. And {about}?",
)  # fmt: skip
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]")
_CLAUSE = re.compile(
    r"^\s*(.{3,60}?)\s+(is|are|was|were|has|have|costs?|opens?|closes?|takes?|holds?|lasts?|needs?|must|may|can)\s+(.+?)[.!?]$"
)
_DOES = {"has": "have", "costs": "cost", "opens": "open", "closes": "close", "takes": "take", "holds": "hold",
         "lasts": "last", "needs": "need"}  # fmt: skip
_OUTSIDE = (
    "Who founded it?", "What did it cost in the year before?", "How many people work there?",
    "Which colour is the front door?", "What is the telephone number?",
)  # fmt: skip


def respond(config: TeacherConfig, request: ChatRequest, rng: random.Random) -> str | None:
    """The answer to a request for topics, questions, or the next turn of a conversation; None for any other."""
    turns = request.messages
    if (count := asked_topics(turns)) is not None:
        return _topics(config, count, rng)
    if (wanted := asked_for_question(turns)) is not None:
        return _question(config, wanted, rng)
    if (on_text := asked_on_text(turns)) is not None:
        return _on_text(config, *on_text, rng)
    if (grounded := asked_grounded(turns)) is not None:
        return _from_text(*grounded)
    if (conversation := asked_as_user(turns)) is not None:
        return _as_user(*conversation, rng)
    return _known(config, [content for role, content in turns if role == "user"], rng)


def _topics(config: TeacherConfig, count: int, rng: random.Random) -> str:
    names = rng.sample(list(FACTS), min(count, len(FACTS)))
    tidy = rng.random() >= config.noise
    return "\n".join(name if tidy else f"{number}. {name.capitalize()}" for number, name in enumerate(names, start=1))


def _question(config: TeacherConfig, wanted: Persona, rng: random.Random) -> str:
    if rng.random() < config.noise / 4:
        return "As a language model I cannot put myself in the place of somebody."
    one, other = rng.sample(_facts_on(wanted.topic, rng), 2)
    form = rng.choice(_ASKED.get(wanted.difficulty, _ASKED["easy"]))
    opening = "" if rng.random() < 0.5 else f"I am {wanted.persona.removeprefix('somebody ')}. "
    return opening + form.format(about=one.about, other=other.about)


def _facts_on(topic: str, rng: random.Random) -> Sequence[Fact]:
    """The facts of a topic; of any where the almanac does not have it."""
    words = set(topic.lower().split())
    known = [name for name in FACTS if words & set(name.split())]
    return FACTS[known[0] if known else rng.choice(list(FACTS))]


def _known(config: TeacherConfig, said: Sequence[str], rng: random.Random) -> str | None:
    """An answer from the almanac to what was asked last, or, to a bare "why", to what was asked before."""
    for content in reversed(said):
        facts = [fact for facts in FACTS.values() for fact in facts if fact.about in content]
        if facts:
            break
    else:
        return None
    if rng.random() < config.noise / 4:
        return "I'm sorry, but I cannot help with that."
    why = bool(re.search(r"\bwhy\b|reason|come from|common", said[-1]))
    parts = [
        f"{fact.about[0].upper()}{fact.about[1:]}: {fact.answer}" + (f", because {fact.why}." if why else ".")
        for fact in facts
    ]
    if rng.random() < config.mistakes:
        parts[0] = parts[0].split(":")[0] + ": nobody knows."
    return "\n".join(parts)


def _as_user(topic: str, said: Sequence[str], rng: random.Random) -> str:
    if len(said) >= 4 and rng.random() < 0.4:
        return f"That is all. Thank you! {END}"
    fact = rng.choice(_facts_on(topic, rng))
    forms = _FURTHER if said else _ASKED["easy"]
    return rng.choice(forms).format(about=fact.about)


def _on_text(config: TeacherConfig, text: str, count: int, answerable: bool, rng: random.Random) -> str:
    if rng.random() < config.noise / 4:
        return "Here are the questions:"
    if not answerable:
        asked = rng.sample(_OUTSIDE, min(count, len(_OUTSIDE)))
        return json.dumps({"questions": [{"question": q, "answer": NOT_IN_TEXT, "quote": ""} for q in asked]})
    sentences = [found.group().strip() for found in _SENTENCE.finditer(text)]
    rng.shuffle(sentences)
    made = []
    for sentence in sentences[:count]:
        question, answer = _about(sentence)
        quote = sentence if rng.random() >= config.mistakes else sentence.rstrip(".") + ", as everybody knows."
        made.append({"question": question, "answer": answer, "quote": quote})
    return json.dumps({"questions": made})


def _about(sentence: str) -> tuple[str, str]:
    """A question that a sentence answers, and the answer."""
    found = _CLAUSE.match(sentence)
    if found is None:
        words = sentence.split()
        half = max(1, len(words) // 2)
        return f'How does the text go on after "{" ".join(words[:half])}"?', " ".join(words[half:])
    subject, verb, rest = found.groups()
    subject = subject[0].lower() + subject[1:] if subject.split()[0] in ("The", "A", "An") else subject
    if verb in _DOES:
        return f"What does {subject} {_DOES[verb]}?", rest
    return f"What {verb} {subject}?" if verb in ("is", "are", "was", "were") else f"What {verb} {subject} do?", rest


def _from_text(text: str, question: str) -> str:
    for found in _SENTENCE.finditer(text):
        asked, answer = _about(found.group().strip())
        if asked == question:
            return answer
    return NOT_IN_TEXT
