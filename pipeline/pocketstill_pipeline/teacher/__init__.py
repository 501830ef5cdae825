"""The teacher: the client that asks it, and two local servers that can stand in for it (embedded, replay)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TeacherConfig:
    """What a local teacher serves.

    `mistakes` and `noise` are shares of the completions, 0 to 1; `latency_ms` is the time that each answer
    takes. With `replay`, recorded completions are served; with `fall_through` too, questions that are in none
    of these files are answered by rule instead of refused.
    """

    model: str = "embedded"
    mistakes: float = 0.12
    noise: float = 0.2
    latency_ms: float = 0.0
    seed: int = 0
    replay: tuple[str, ...] = ()
    fall_through: bool = False
