"""What every table of a recipe is built on."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Rate = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A table of the recipe; a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
