"""Multi-turn dialogue by self-chat (Baize, Xu et al. 2023, arXiv 2304.01196): the teacher plays both sides."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

from pydantic import Field, model_validator

from pocketstill.errors import UserError
from pocketstill_pipeline.asking import Messages
from pocketstill_pipeline.example import Elicited

from .base import Context, Planned, Settings, declined, system_turns, trouble
from .prompts.curation import END, user_request

_USER_TOKENS, _ASSISTANT_TOKENS = (5.0, 40.0), (15.0, 200.0)


class SelfChat(Settings):
    """Conversations about given topics; every turn of the assistant is an example, with what was said before it."""

    method: Literal["self_chat"] = "self_chat"
    skill: str = Field(description="that the examples count as")
    topics: list[str] = Field(default_factory=list, description="what they are about; the skill's questions if empty")
    conversations: int = Field(50, ge=1, description="conversations; topic by topic, then from the first again")
    turns: int = Field(3, ge=1, description="most turns of the assistant in a conversation")
    system: str = Field("", description="a system message for the assistant, kept in the example")

    @model_validator(mode="after")
    def _says_something(self) -> SelfChat:
        if any(not topic.strip() for topic in self.topics):
            raise ValueError("a topic is empty")
        return self


async def self_chat(settings: SelfChat, context: Context) -> AsyncIterator[Elicited]:
    """Conversation by conversation, turn by turn.

    Raises:
        UserError: the recipe has no such skill, or neither topics nor questions.
    """

    async def one(unit: tuple[int, str]) -> list[Elicited]:
        return await _converse(settings, context, *unit)

    async for several in context.teacher.map(one, _subjects(settings, context)):
        for found in several:
            yield found


async def _converse(settings: SelfChat, context: Context, number: int, topic: str) -> list[Elicited]:
    options = {"sample": number, "temperature": settings.temperature, "max_tokens": settings.max_tokens}
    said: Messages = []
    keys: list[str] = []
    made: list[Elicited] = []
    for turn in range(settings.turns):
        asked = await context.teacher.ask(user_request(topic, said), **options)  # type: ignore[arg-type]
        keys.append(asked.key)
        if made and END in asked.text:
            break
        words = asked.text.replace(END, "").strip()
        said = [*said, {"role": "user", "content": words}]
        problem = trouble(asked) or (declined(words) if words else ("empty", "nothing is asked"))
        reply = None
        if problem is None:
            reply = await context.teacher.ask([*system_turns(settings.system), *said], **options)  # type: ignore[arg-type]
            keys.append(reply.key)
            problem = trouble(reply)
        text = reply.text.strip() if reply else ""
        reason, detail = problem or (None, "")
        name = f"{settings.entry}-{number}/{turn}"
        made.append(_turn(settings, name, topic, said, text, tuple(keys), reason, detail))
        if problem is not None:
            break
        said = [*said, {"role": "assistant", "content": text}]
    return made


def _turn(
    settings: SelfChat, name: str, topic: str, said: Messages, text: str, keys: tuple[str, ...], reason: str | None,
    detail: str,
) -> Elicited:  # fmt: skip
    return Elicited(
        id=name,
        skill=settings.skill,
        route="curation",
        method=settings.method,
        messages=[*system_turns(settings.system), *said],
        answer=text or None,
        completion=text,
        kind="text",
        source=keys,
        tags=(f"topic:{topic}", f"turn:{sum(turn['role'] == 'user' for turn in said)}"),
        # The conversation so far: the same last words in another one are another question.
        group="\n".join(turn["content"] for turn in said),
        reason=reason,
        detail=detail,
    )


def _subjects(settings: SelfChat, context: Context) -> list[tuple[int, str]]:
    asked = [question.text for question in context.of_skills([settings.skill]) if question.split == "train"]
    topics = settings.topics or asked
    if not topics:
        raise UserError(f"elicit {settings.entry!r}: no topics to talk about; give topics, or the skill questions")
    return [(number, topics[number % len(topics)]) for number in range(settings.conversations)]


def plan(settings: SelfChat, context: Context) -> list[Planned]:
    """Two requests a turn; the history grows with each."""
    context.check_skill(settings.skill)
    count = settings.conversations
    most = count * settings.turns
    grown = (_USER_TOKENS[1] + _ASSISTANT_TOKENS[1]) * (settings.turns - 1) / 2
    return [
        Planned("user's turns", (count, most), (60.0, 60.0 + grown), _USER_TOKENS),
        Planned("assistant's turns", (count, most), (_USER_TOKENS[0], _USER_TOKENS[1] + grown), _ASSISTANT_TOKENS),
    ]
