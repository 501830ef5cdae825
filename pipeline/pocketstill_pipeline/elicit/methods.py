"""Every method of elicitation by its name in a recipe."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

from pydantic import Field

from pocketstill_pipeline.example import Elicited

from . import direct, zero_shot
from .base import Context, Planned, Settings


class Method(NamedTuple):
    """What a recipe may say of it, the function that elicits, and the one that says what that will ask for."""

    settings: type[Settings]
    elicit: Callable[[Any, Context], AsyncIterator[Elicited]]
    plan: Callable[[Any, Context], list[Planned]]


METHODS: dict[str, Method] = {
    "zero_shot_cot": Method(zero_shot.ZeroShot, zero_shot.zero_shot_cot, zero_shot.plan),
    "direct": Method(direct.Direct, direct.direct, direct.plan),
}

# The settings of an `[[elicit]]` entry: those of its method.
if TYPE_CHECKING:
    Entry: TypeAlias = Settings
else:
    _SETTINGS = reduce(or_, (method.settings for method in METHODS.values()))
    Entry = Annotated[_SETTINGS, Field(discriminator="method")]
