"""Which requests a question becomes: `collect` sends them, `curate` finds their answers by the same keys."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pocketstill.files import sha256_file

from .example import Question
from .ledger import canonical, request_key
from .prompts import Messages, answer_request, first_request, reasons_first
from .recipe import Recipe, Teacher
from .teacher import TeacherConfig


@dataclass(frozen=True)
class Ask:
    """One request to the teacher; `sample` is the index of the sample that it draws."""

    endpoint: str
    model: str
    messages: Messages
    temperature: float
    max_tokens: int
    seed: int
    sample: int

    @cached_property
    def json(self) -> str:
        """The canonical JSON that is hashed: everything that determines the answer, and nothing else."""
        return canonical(vars_of(self))

    @cached_property
    def key(self) -> str:
        return request_key(self.json)


def vars_of(ask: Ask) -> dict[str, Any]:
    """The fields of a request, without what is cached on it."""
    return {name: getattr(ask, name) for name in Ask.__dataclass_fields__}


@dataclass(frozen=True)
class Reply:
    """What came back: `text`, or in `error` why there is none. `cached`: no request was sent for it."""

    key: str
    text: str = ""
    finish_reason: str = "stop"
    error: str | None = None
    cached: bool = False


def endpoint_of(recipe: Recipe) -> str:
    """Who answers, as the ledger's keys know it: the same whichever port a local teacher gets."""
    teacher = recipe.teacher
    if teacher.base_url == "embedded":
        return f"embedded?{_by_rule(recipe)}"
    if teacher.base_url == "replay":
        files = ",".join(sha256_file(path)[:16] for path in teacher.replay)
        return f"replay?files={files}" + (f"&otherwise={_by_rule(recipe)}" if falls_through(recipe) else "")
    return teacher.base_url.rstrip("/")


def _by_rule(recipe: Recipe) -> str:
    embedded = recipe.teacher.embedded
    return f"mistakes={embedded.mistakes}&noise={embedded.noise}&seed={recipe.seed}&rules={rules_digest()[:12]}"


@cache
def rules_digest() -> str:
    """SHA-256 of the code that makes and solves problems: with other rules the embedded teacher says other things."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in (*sorted((folder / "problems").glob("*.py")), folder / "teacher" / "embedded.py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def falls_through(recipe: Recipe) -> bool:
    """Whether a replay hands unrecorded questions to the embedded teacher: when questions are added."""
    return any(skill.expand > 0 for skill in recipe.skills)


def local_teacher(recipe: Recipe) -> TeacherConfig | None:
    """The local teacher that the recipe asks for; None when it names a URL."""
    teacher = recipe.teacher
    if teacher.base_url not in ("embedded", "replay"):
        return None
    return TeacherConfig(
        model=teacher.model,
        mistakes=teacher.embedded.mistakes,
        noise=teacher.embedded.noise,
        latency_ms=teacher.embedded.latency_ms,
        seed=recipe.seed,
        replay=tuple(teacher.replay) if teacher.base_url == "replay" else (),
        fall_through=falls_through(recipe),
    )


def samples_of(question: Question, teacher: Teacher) -> range:
    """The sample indices of a question: D of them for training (Ho et al. 2023), one when held out."""
    count = teacher.samples if question.split == "train" else 1
    return range(question.occurrence * count, (question.occurrence + 1) * count)


class Asker:
    """Builds the requests of a recipe's questions."""

    def __init__(self, recipe: Recipe) -> None:
        self._teacher = recipe.teacher
        self._seed = recipe.seed
        self._endpoint = endpoint_of(recipe)

    def first(self, question: Question, sample: int) -> Ask:
        """The request for the rationale, or for the whole answer where none is asked for."""
        return self._ask(question, sample, first_request(question.text, question.kind))

    def answer(self, question: Question, sample: int, rationale: str) -> Ask:
        """The request for the answer behind a rationale that came back."""
        return self._ask(question, sample, answer_request(question.text, question.kind, rationale.strip()))

    def _ask(self, question: Question, sample: int, messages: Messages) -> Ask:
        material = f"{self._seed}|{sample}|{question.text}".encode()
        seed = int.from_bytes(hashlib.blake2b(material, digest_size=4).digest(), "big") >> 1
        # Greedy for held-out questions: they measure the teacher, as the published figures were measured.
        temperature = self._teacher.temperature if question.split == "train" else 0.0
        return Ask(self._endpoint, self._teacher.model, messages, temperature, self._teacher.max_tokens, seed, sample)


@dataclass(frozen=True)
class Trace:
    """All that the teacher said to one sample of a question, in order; `missing` if it was never asked."""

    question: Question
    sample: int
    replies: tuple[Reply, ...]
    missing: bool = False

    @property
    def error(self) -> str | None:
        return next((reply.error for reply in self.replies if reply.error is not None), None)


def find_trace(asker: Asker, question: Question, sample: int, find: Callable[[str], Reply | None]) -> Trace:
    """Put together what a ledger holds of one sample; `find` looks a key up."""
    first = find(asker.first(question, sample).key)
    if first is None:
        return Trace(question, sample, (), missing=True)
    if first.error is not None or not reasons_first(question.kind):
        return Trace(question, sample, (first,))
    second = find(asker.answer(question, sample, first.text).key)
    return Trace(question, sample, (first,) if second is None else (first, second), missing=second is None)
