"""What every route of elicitation works with: its settings, whom it asks, and what it may cost."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import BaseModel, Field

from pocketstill.errors import UserError
from pocketstill_pipeline.asking import Messages, Reply
from pocketstill_pipeline.curating.texts import refuses
from pocketstill_pipeline.example import Elicited, Question
from pocketstill_pipeline.question_file import select
from pocketstill_pipeline.sections import Section

T = TypeVar("T")
R = TypeVar("R")
Model = TypeVar("Model", bound=BaseModel)
# How often an answer that does not fit its schema is asked for again, each time as another sample.
_SCHEMA_RETRIES = 2
_RETRY_SAMPLE, _RETRY_TEMPERATURE = 1000, 0.7
# Bounded, so that a flood of brackets costs no quadratic time.
_MOST_OBJECTS = 256


class Settings(Section):
    """What every `[[elicit]]` entry may say. `None` takes the value of `[teacher]`."""

    # Which of its fields name files, found beside the recipe.
    FILES: ClassVar[tuple[str, ...]] = ()

    method: str
    name: str = Field("", pattern=r"^[A-Za-z0-9_.-]*$", description="of the entry; its method when left out")
    samples: int | None = Field(None, ge=1, description="D, samples a question, where it draws several")
    temperature: float | None = Field(None, ge=0.0, le=2.0, description="the recipe's when left out")
    max_tokens: int | None = Field(None, ge=1, description="most tokens of an answer; the recipe's when left out")

    @property
    def needs_student(self) -> bool:
        """Whether it asks the student, whom the recipe must then name."""
        return False

    @property
    def files(self) -> dict[str, str]:
        """The files that it names, by field."""
        named = {name: str(getattr(self, name)) for name in self.FILES}
        return {name: path for name, path in named.items() if path and not path.startswith("hf:")}

    @property
    def builds_on(self) -> str:
        """The earlier entry whose samples it takes; "" for none."""
        return str(getattr(self, "of", ""))

    @property
    def replaces(self) -> str:
        """The earlier entry all of whose samples it yields again, with more to them; "" for none."""
        return ""

    @property
    def entry(self) -> str:
        """The name that later entries and the samples' file know it by."""
        return self.name or self.method


class Asker(Protocol):
    """Somebody who answers: the teacher, or the student itself."""

    async def ask(
        self,
        messages: Messages,
        *,
        sample: int = 0,
        temperature: float | None = None,
        max_tokens: int | None = None,
        about: str | None = None,
        **extra: Any,
    ) -> Reply:
        """One answer, from the ledger if it is there; a request that fails alone is a Reply with `error`.

        Args:
            messages: the conversation, ending with a user's or a tool's turn.
            sample: index of the draw; another index is another answer to the same request.
            temperature: None takes the recipe's.
            max_tokens: None takes the recipe's.
            about: what the seed is drawn from; the last turn's text when left out.
            extra: further parameters of the API that change the answer.

        Raises:
            UserError: nobody answers there, a key is refused, the budget is spent, or the ledger cannot be written.
        """
        ...

    def map(self, fn: Callable[[T], Awaitable[R]], items: Iterable[T]) -> AsyncIterator[R]:
        """`fn` of every item, many at once; the results in the order of the items."""
        ...


@dataclass(frozen=True)
class Context:
    """What a route is given. `student` answers self-knowledge and feedback routes, when the recipe has one.

    `samples` is the folder with one JSONL file an entry; `samples_a_question` is the recipe's own D; `entries` are
    the recipe's, by name.
    """

    seed: int
    questions: Sequence[Question]
    teacher: Asker
    student: Asker | None
    samples: Path
    skills: Mapping[str, Any]
    samples_a_question: int = 1
    entries: Mapping[str, Settings] = field(default_factory=dict)

    def check_skill(self, skill: str) -> None:
        """Hold a name against the recipe's skills.

        Raises:
            UserError: the recipe has no such skill.
        """
        if skill not in self.skills:
            raise UserError(f"elicit: there is no skill {skill!r}; the recipe has {', '.join(self.skills)}")

    def of_skills(self, skills: Sequence[str]) -> Sequence[Question]:
        """The questions of these skills, in their order in the recipe, training ones of each first; of all if none.

        Raises:
            UserError: the recipe has no such skill.
        """
        for skill in skills:
            self.check_skill(skill)
        return select(self.questions, lambda question: question.skill in skills) if skills else self.questions

    def earlier(self, entry: str) -> Iterator[Elicited]:
        """What an earlier `[[elicit]]` entry made, in its order.

        Raises:
            UserError: no earlier entry has that name.
        """
        path = self.samples / f"{entry}.jsonl"
        if not path.is_file():
            made = ", ".join(sorted(p.stem for p in self.samples.glob("*.jsonl"))) or "none"
            raise UserError(f"elicit: no earlier entry is called {entry!r}; made so far: {made}")
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield Elicited.from_dict(json.loads(line))

    def asks_student(self) -> Asker:
        """The student as one that answers.

        Raises:
            UserError: the recipe names none.
        """
        if self.student is None:
            raise UserError("elicit: this method asks the student; add [student_endpoint] to the recipe")
        return self.student


@dataclass(frozen=True)
class Planned:
    """A kind of request that an entry will send, for the quote: counts and tokens a request, as (low, high)."""

    what: str
    requests: tuple[int, int]
    prompt_tokens: tuple[float, float]
    completion_tokens: tuple[float, float]
    who: Literal["teacher", "student"] = "teacher"


def system_turns(text: str) -> Messages:
    """The turns that a conversation under a system message starts with: that message, or none where it is empty."""
    return [{"role": "system", "content": text}] if text else []


def trouble(reply: Reply, *, calls: bool = False) -> tuple[str, str] | None:
    """Why a reply cannot be used, as (reason, detail); None when it can. With `calls`, calls of tools will do too."""
    if reply.error is not None:
        return "failed_request", reply.error
    if reply.refusal is not None or reply.finish_reason == "content_filter":
        return "refused", (reply.refusal or "stopped by the teacher's content filter")[:200]
    if reply.finish_reason == "length":
        return "truncated", "the token limit cut it"
    if not reply.text.strip() and not (calls and reply.tool_calls):
        return "empty", ""
    return None


def declined(asked: str) -> tuple[str, str] | None:
    """(reason, detail) where what should be a question or an instruction says that none will be written; else None.

    Who asks something may well say first what they cannot do.
    """
    said = None if "?" in asked else refuses(asked)
    return None if said is None else ("refused", said)


async def ask_json(
    asker: Asker, messages: Messages, schema: type[Model], *, sample: int = 0, **options: Any
) -> tuple[Model | None, Reply]:
    """A structured answer: JSON by the schema of a pydantic model; None with the last reply when none fits.

    The last object in an answer that fits is taken, whatever stands around it: not every server holds to schemas.
    An answer that does not fit is asked for again, up to twice, as another sample; what was asked greedily then at a
    temperature, since the same would come back.
    """
    form = {
        "type": "json_schema",
        "json_schema": {"name": schema.__name__, "schema": _strict(schema.model_json_schema()), "strict": True},
    }
    reply = await asker.ask(messages, sample=sample, response_format=form, **options)
    for again in range(1, _SCHEMA_RETRIES + 2):
        found = _fitting(schema, reply)
        if found is not None or reply.error is not None or again > _SCHEMA_RETRIES:
            return found, reply
        options["temperature"] = options.get("temperature") or _RETRY_TEMPERATURE
        reply = await asker.ask(messages, sample=sample + _RETRY_SAMPLE * again, response_format=form, **options)
    return None, reply


def _fitting(schema: type[Model], reply: Reply) -> Model | None:
    decoder, fitting, end = json.JSONDecoder(), None, 0
    for found in islice(re.finditer(r"\{", reply.text), _MOST_OBJECTS):
        if found.start() < end:
            continue
        try:
            value, after = decoder.raw_decode(reply.text, found.start())
            fitting, end = schema.model_validate(value), after
        except (ValueError, RecursionError):
            continue
    return fitting


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as the API's strict mode wants it: every object closed, every key of it required, no lengths."""
    made = {key: _strict(value) if isinstance(value, dict) else value for key, value in schema.items()}
    for refused in ("minLength", "maxLength"):
        made.pop(refused, None)
    if made.get("type") == "object":
        made |= {"additionalProperties": False, "required": list(made.get("properties", {}))}
    return made
