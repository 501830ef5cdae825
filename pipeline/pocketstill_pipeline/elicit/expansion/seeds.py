"""What expansion starts from: tasks that people wrote, with instances to show how they are meant."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from pocketstill.errors import UserError
from pocketstill_pipeline.elicit.prompts.expansion import Instance, Shown
from pocketstill_pipeline.jsonl import read_jsonl
from pocketstill_pipeline.sections import Section


class _Instance(Section):
    input: str = ""
    output: str = Field(min_length=1)


class _Seed(Section):
    instruction: str = Field(min_length=1)
    is_classification: bool = False
    instances: list[_Instance] = Field(default_factory=list)


def read_seeds(path: Path) -> list[Shown]:
    """The seed tasks of a JSONL file: `instruction`, and if wanted `is_classification` and `instances`.

    Raises:
        UserError: the file cannot be read, or a row is no seed; it names file, row and field.
    """
    found = []
    for number, row in enumerate(read_jsonl(path, ("instruction",)), start=1):
        try:
            seed = _Seed.model_validate({name: row[name] for name in _Seed.model_fields if name in row})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{path}, row {number}: {where}: {first['msg']}; mend or remove the row") from None
        instances = tuple(Instance(item.input, item.output) for item in seed.instances)
        found.append(Shown(" ".join(seed.instruction.split()), seed.is_classification, instances))
    return found


def as_asked(instruction: str, given: str) -> str:
    """An instruction with its input behind it, as somebody would be asked."""
    return f"{instruction}\n\n{given}" if given else instruction
