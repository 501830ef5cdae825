"""MODEL_CARD.md of an exported folder: where the model comes from, under which licence, in which forms, its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pocketstill.bundle import Variant
from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.errors import ExportError


@dataclass(frozen=True)
class Provenance:
    """What a card says of a model's origin; None where nobody said.

    `license` is an SPDX name in lower case, as model hubs have it; `base_model`, `teacher` and `data` are names or
    plain words.
    """

    base_model: str | None = None
    license: str | None = None
    teacher: str | None = None
    data: str | None = None


def read_provenance(folder: Path, said: Provenance) -> Provenance:
    """`said`, its gaps filled from the head of the checkpoint's own card (README.md or MODEL_CARD.md).

    Raises:
        ExportError: the card's head is not YAML.
    """
    path = next((folder / name for name in ("README.md", "MODEL_CARD.md") if (folder / name).is_file()), None)
    if path is None:
        return said
    import yaml
    from huggingface_hub import ModelCard

    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return said
    try:
        card = ModelCard(text, ignore_metadata_errors=True)
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ExportError(f"{path}: its head is no model card ({reason}); mend it or take the file away") from error
    head: Mapping[str, Any] = card.data.to_dict()
    return replace(
        said,
        license=said.license or _listed(head.get("license")),
        base_model=said.base_model or _listed(head.get("base_model")),
        teacher=said.teacher or _listed(head.get("teacher")),
        data=said.data or _listed(head.get("datasets")) or _listed(head.get("data")),
    )


def _listed(value: Any) -> str | None:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value) if value else None


def write_card(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    name: str,
    variants: Sequence[Variant],
    default: str,
    context_length: int,
    provenance: Provenance,
    skills: Mapping[str, Any],
    calibration_tokens: int,
) -> None:
    """Writes `folder/MODEL_CARD.md`; the same inputs give the same bytes."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pocketstill_export", "."),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
    )
    environment.filters["mib"] = lambda size: f"{size / 2**20:.2f}"
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    text = environment.get_template("card.md.jinja").render(
        name=name,
        from_=provenance,
        architecture=checkpoint.architecture,
        parameters=checkpoint.parameters,
        variants=variants,
        default=default,
        context_length=context_length,
        skills=sorted(skills),
        calibration_tokens=calibration_tokens,
    )
    (folder / "MODEL_CARD.md").write_text(text, encoding="utf-8")
