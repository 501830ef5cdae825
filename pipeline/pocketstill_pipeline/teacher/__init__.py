"""The teacher: the client that asks it, and two local servers that can stand in for it (embedded, replay)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

FaultKind = Literal["rate_limit", "server_error", "hang", "cut", "malformed", "truncated"]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)


@dataclass(frozen=True)
class TeacherConfig:
    """What a local teacher serves, and how badly.

    `mistakes` and `noise` are shares of the completions, 0 to 1; `latency_ms` is the time that each answer
    takes. With `replay`, recorded completions are served; with `fall_through` too, questions that are in none
    of these files are answered by rule instead of refused. With `student`, the bundle in that folder answers, in
    its variant `variant` or else its default.

    `faults` is the share of the attempts at a request that one of `fault_kinds` strikes: rate_limit (HTTP 429 with
    Retry-After `retry_after_s`), server_error (500), hang (no answer for `hang_s` seconds), cut (half of the body,
    then the connection closes), malformed (a body that is no JSON), truncated (half of the answer, which says so).
    Beyond `requests_per_minute`, `tokens_per_minute` or `max_concurrency` requests at once it answers 429.

    A batch takes `batch_latency_s` seconds, its lines one after another; what is not answered within
    `batch_window_s` expires. Those whose estimated tokens are more than `batch_tokens` together with the running
    ones are refused.
    """

    model: str = "embedded"
    mistakes: float = 0.12
    noise: float = 0.2
    latency_ms: float = 0.0
    seed: int = 0
    replay: tuple[str, ...] = ()
    fall_through: bool = False
    faults: float = 0.0
    fault_kinds: tuple[str, ...] = FAULT_KINDS
    hang_s: float = 30.0
    retry_after_s: float = 0.2
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int | None = None
    batch_latency_s: float = 0.0
    batch_window_s: float = 86_400.0
    batch_tokens: int | None = None
    student: str = ""
    variant: str | None = None

    def __post_init__(self) -> None:
        # Lists are what JSON and TOML have.
        for name in ("replay", "fault_kinds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
