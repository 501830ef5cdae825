"""Who answers for a local teacher: the rules, recorded completions, or a bundle."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

from . import TeacherConfig, embedded
from .logprobs import logprobs_of
from .protocol import ChatRequest, Choice, ProtocolError, called, count_tokens, cut, pieces, prompt_tokens
from .replay import load_recordings, replay


@dataclass(frozen=True)
class Answered:
    """The choices of a request, and the number of its own tokens."""

    choices: list[Choice]
    prompt_tokens: int


Answerer = Callable[[ChatRequest], Awaitable[Answered]]


def answerer_of(config: TeacherConfig) -> Answerer:
    """What answers a request.

    Raises:
        UserError: a replay file or the bundle is missing or broken.
    """
    if config.student:
        from .student import Student

        return Student(config.student, config.variant).answer
    choose = _recorded(config) if config.replay else partial(_by_rule, config)

    async def answer(request: ChatRequest) -> Answered:
        choices = [called(choose(request, index), request) for index in range(request.n)]
        return Answered(choices, prompt_tokens(request))

    return answer


def _by_rule(config: TeacherConfig, request: ChatRequest, index: int) -> Choice:
    choice = cut(embedded.answer(config, request, index), request)
    if request.top_logprobs is None:
        return choice
    return replace(choice, logprobs=logprobs_of(choice.text, request.top_logprobs))


def _recorded(config: TeacherConfig) -> Callable[[ChatRequest, int], Choice]:
    recordings = load_recordings(config.replay)

    def choose(request: ChatRequest, index: int) -> Choice:
        if request.top_logprobs is not None:
            raise ProtocolError(400, "Log probabilities were not recorded.", param="logprobs")
        otherwise = partial(embedded.answer, config, request, index) if config.fall_through else None
        text = replay(recordings, request, index, otherwise)
        return Choice(text, "stop", count_tokens(text))

    return choose


def halved(choice: Choice) -> Choice:
    """The choice as a token limit would leave it in the midst of its answer."""
    if choice.tool_calls:
        *before, (name, arguments) = choice.tool_calls
        last = (name, arguments[: len(arguments) // 2])
        return replace(choice, tool_calls=(*before, last), finish_reason="length", tokens=choice.tokens // 2)
    if choice.refusal is not None:
        return replace(choice, refusal=choice.refusal[: len(choice.refusal) // 2], finish_reason="length")
    if choice.logprobs is not None:
        kept = choice.logprobs[: len(choice.logprobs) // 2]
        text = b"".join(bytes(token["bytes"]) for token in kept).decode("utf-8", "ignore")
        return replace(choice, text=text, logprobs=kept, finish_reason="length", tokens=len(kept))
    said = pieces(choice.text)
    return Choice("".join(said[: len(said) // 2]), "length", len(said) // 2)
