"""From a checkpoint to a folder that four runtimes read: ONNX and GGUF, tokenizer, template, index."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pocketstill.bundle import INDEX, Bundle, Variant, write_bundle_json
from pocketstill_export.card import Provenance, read_provenance, write_card
from pocketstill_export.checkpoint import Checkpoint, read_checkpoint
from pocketstill_export.choice.budget import Budget, keep_chosen
from pocketstill_export.choice.candidates import Choice
from pocketstill_export.choice.choose import choose
from pocketstill_export.companions import write_companions
from pocketstill_export.errors import ExportError
from pocketstill_export.hub import fetch_checkpoint
from pocketstill_export.modelfile import write_modelfile
from pocketstill_export.onnx.builder import Builder, started_builder
from pocketstill_export.parity.adapters import compare_adapters
from pocketstill_export.parity.measure import Parity, measure_parity
from pocketstill_export.texts import hold_out, read_calibrations
from pocketstill_export.variants import DEFAULT, VariantSpec, parse_variants
from pocketstill_export.weights import FULL, Settings, Written, progress, weight_notes, write_weights

# The longest context that is exported unless more is asked for: rotary tables and caches grow with it.
_USUAL_CONTEXT = 4096
_FIRST = ("onnx-int4", "gguf-q4_k_m", "gguf-q8_0", "gguf-f16", "onnx-fp32")


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote. `notes` are things worth knowing that are no failures; `seconds` is by step; `choice` is
    None where no budget was set.
    """

    folder: Path
    name: str
    architecture: str
    parameters: int
    context_length: int
    default: str
    variants: tuple[Variant, ...]
    stop_ids: tuple[int, ...]
    parity: Parity
    choice: Choice | None
    notes: tuple[str, ...]
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "folder": str(self.folder),
            "name": self.name,
            "architecture": self.architecture,
            "parameters": self.parameters,
            "context_length": self.context_length,
            "default": self.default,
            "variants": [asdict(variant) | {"files": list(variant.files)} for variant in self.variants],
            "stop_ids": list(self.stop_ids),
            "parity": self.parity.to_dict(),
            "choice": self.choice.to_dict() if self.choice else None,
            "notes": list(self.notes),
            "seconds": dict(self.seconds),
        }


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    variants: Sequence[str] = DEFAULT,
    context_length: int | None = None,
    generation: Mapping[str, Any] | None = None,
    skills: Mapping[str, Mapping[str, Any]] | None = None,
    name: str | None = None,
    parity_texts: Sequence[str] | str | Path = (),
    calibration: Sequence[Sequence[int]] | str | Path = (),
    tensor_types: Mapping[str, str] | None = None,
    template: str | None = None,
    revision: str | None = None,
    converter: str | Path | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    provenance: Provenance | None = None,
    budget: Budget | None = None,
) -> ExportResult:
    """Writes the bundle folder `out`, or nothing.

    All is written beside `out` under a name that starts with a dot and renamed at the end, after every file
    has been held to the checkpoint. An `out` from an earlier export is replaced; any other folder is left
    alone. The same inputs give the same bytes.

    Args:
        checkpoint: a Hugging Face folder, or `owner/model` of the hub, with tokenizer.json and safetensors.
        out: the folder to make.
        variants: their names, see `variants.py`; `all` stands for the usual ones.
        context_length: positions that the exported files allow; None takes the checkpoint's own, 4,096 at most.
        generation: defaults, {"max_new_tokens": int, "temperature": float}.
        skills: name to {"kind", "gate"}, as pocketstill.json has them.
        name: of the bundle and of the model inside of the GGUF files; None takes the checkpoint's.
        parity_texts: held-out texts of what the student is for, or a file of them; the logits are compared over
            these. Without them, a third of a calibration file is held out.
        calibration: token ids of texts that the student is for, or a file of them, see `calibration.py`; or an
            importance matrix in a `.gguf` file, as llama-imatrix writes it.
        tensor_types: regular expression over GGUF tensor names to the type of the tensors it finds.
        template: a Jinja chat template instead of the checkpoint's own.
        revision: of a hub's model.
        converter: llama.cpp's convert_hf_to_gguf.py, for architectures that our writer does not know; GGUF alone.
        adapters: PEFT's LoRA folders by name, to be kept apart from the base.
        provenance: what the model card says of the origin; gaps are filled from the checkpoint's card.
        budget: what may be lost, and what to save; None keeps every variant.

    Raises:
        ExportError: the checkpoint cannot be exported as asked, the disk is full, a converted file differs, or no
            variant is within the budget.
    """
    out = Path(out)
    specs = parse_variants(variants)
    _check_request(out, specs, converter)
    started = time.perf_counter()
    folder = fetch_checkpoint(checkpoint, revision=revision)
    with contextlib.ExitStack() as stack:
        # Its imports take as long as reading the checkpoint does.
        wanted = any(spec.engine == "onnx" for spec in specs)
        builder = stack.enter_context(started_builder()) if wanted else None
        source = read_checkpoint(folder, template=template, any_architecture=converter is not None)
        context = _context(source, context_length)
        sequences, matrix, dataset = read_calibrations(source, calibration, context)
        sequences, texts = hold_out(source, sequences, parity_texts, context, split=dataset is not None)
        if budget is not None and not texts:
            raise ExportError("a choice is measured over texts that the model was not trained on: give --heldout FILE")
        settings = Settings(
            name=name or Path(str(checkpoint)).name,
            context_length=context,
            calibration=sequences,
            imatrix=matrix,
            dataset=dataset or "calibration",
            tensor_types=tensor_types or {},
            converter=Path(converter) if converter else None,
            adapters={key: Path(adapter) for key, adapter in (adapters or {}).items()},
        )
        said = provenance or Provenance()
        if not Path(checkpoint).is_dir():
            said = replace(said, base_model=said.base_model or str(checkpoint))
        work = _Work(
            source, settings, dict(generation or {}), dict(skills or {}), read_provenance(folder, said), builder,
            {"read": time.perf_counter() - started},
        )  # fmt: skip
        partial = stack.enter_context(_made_whole(out))
        notes = weight_notes(source, specs, settings)
        for note in notes:
            progress(note)
        parity, choice = work.fill(partial, specs, texts, budget)
    bundle = Bundle.load(out, check=False)
    return ExportResult(
        folder=out,
        name=settings.name,
        architecture=source.architecture,
        parameters=source.parameters,
        context_length=context,
        default=bundle.default,
        variants=bundle.variants,
        stop_ids=source.stop_ids,
        parity=parity,
        choice=choice,
        notes=tuple(notes),
        seconds=work.seconds,
    )


@dataclass
class _Work:
    """One export under way: what it is made of, and the seconds that each step took."""

    source: Checkpoint
    settings: Settings
    generation: dict[str, Any]
    skills: dict[str, Mapping[str, Any]]
    origin: Provenance
    builder: Builder | None
    seconds: dict[str, float]

    def fill(
        self, folder: Path, specs: Sequence[VariantSpec], texts: Sequence[str], budget: Budget | None
    ) -> tuple[Parity, Choice | None]:
        """Everything that `folder` shall hold, held to the checkpoint."""
        written = write_weights(self.source, folder, specs, self.settings, self.builder)
        self.seconds.update(written.seconds)
        default, choice = _first([variant.name for variant in written.variants]), None
        self._surround(folder, specs, written)
        if budget is not None:
            choice = self._choose(folder, written, texts, budget)
            default = choice.required().name
            specs, written = keep_chosen(folder, specs, written, choice, budget)
            self._surround(folder, specs, written)
        (folder / FULL).unlink(missing_ok=True)
        parity = self._compare(folder, written.variants, texts)
        self._finish(folder, written.variants, default)
        return parity, choice

    def _surround(self, folder: Path, specs: Sequence[VariantSpec], written: Written) -> None:
        """The files that the engines open the weights with."""
        write_companions(
            self.source,
            folder,
            context_length=self.settings.context_length,
            generation=self.generation,
            onnx=[spec for spec in specs if spec.engine == "onnx"],
            genai_config=written.genai_config,
        )

    def _choose(self, folder: Path, written: Written, texts: Sequence[str], budget: Budget) -> Choice:
        started = time.perf_counter()
        full = folder / FULL
        choice = choose(
            self.source,
            folder,
            written.variants,
            texts,
            tolerance=budget.tolerance,
            objective=budget.objective,
            context_length=self.settings.context_length,
            imatrix=written.imatrix,
            mixed=budget.mixed and any(variant.engine == "gguf" for variant in written.variants),
            suite=budget.suite or None,
            max_bytes=budget.max_bytes,
            full_gguf=full if full.is_file() else None,
        )
        self.seconds["choose"] = time.perf_counter() - started
        return choice

    def _finish(self, folder: Path, variants: Sequence[Variant], default: str) -> None:
        """Modelfile, card, and last the index over all files."""
        files = {variant.name: variant.file for variant in variants if variant.engine == "gguf"}
        write_modelfile(
            self.source,
            folder,
            files.get(default) or (files[_first(list(files))] if files else None),
            context_length=self.settings.context_length,
            generation=self.generation,
            license_name=self.origin.license,
        )
        write_card(
            self.source,
            folder,
            name=self.settings.name,
            variants=[replace(v, bytes=sum((folder / f).stat().st_size for f in v.files)) for v in variants],
            default=default,
            context_length=self.settings.context_length,
            provenance=self.origin,
            skills=self.skills,
            calibration_tokens=sum(map(len, self.settings.calibration)),
        )
        write_bundle_json(
            folder,
            name=self.settings.name,
            variants=variants,
            default=default,
            stop_ids=self.source.stop_ids,
            generation=self.generation,
            context_length=self.settings.context_length,
            skills=self.skills,
        )

    def _compare(self, folder: Path, variants: Sequence[Variant], texts: Sequence[str]) -> Parity:
        started = time.perf_counter()
        progress(f"comparing {len(variants)} variants with the checkpoint")
        parity = measure_parity(self.source, folder, variants, texts, context_length=self.settings.context_length)
        if self.settings.adapters:
            adapted = compare_adapters(
                self.source,
                folder,
                variants,
                self.settings.adapters,
                texts,
                context_length=self.settings.context_length,
            )
            wrong = [f"{c.variant}: logits differ from PEFT's: {c.difference}" for c in adapted if not c.passed]
            parity = replace(
                parity,
                passed=parity.passed and not wrong,
                logits=(*parity.logits, *adapted),
                failures=(*parity.failures, *wrong),
            )
        self.seconds["parity"] = self.seconds.get("parity", 0.0) + time.perf_counter() - started
        if not parity.passed:
            raise ExportError(
                f"the export of {self.source.folder} is not faithful and was removed: {parity.failures[0]}"
            )
        return parity


def _first(names: Sequence[str]) -> str:
    """The variant that most would take."""
    return next((name for name in _FIRST if name in names), names[0])


def _check_request(out: Path, specs: Sequence[VariantSpec], converter: str | Path | None) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ExportError(f"{out} is not a folder; choose another place for the export")
    if out.is_dir() and any(out.iterdir()) and not (out / INDEX).is_file():
        raise ExportError(f"{out} holds other files and no {INDEX}; choose an empty place for the export")
    onnx = [spec.name for spec in specs if spec.engine == "onnx"]
    if converter is not None and onnx:
        raise ExportError(f"llama.cpp's converter writes GGUF alone; leave {', '.join(onnx)} out of the variants")


def _context(checkpoint: Checkpoint, asked: int | None) -> int:
    most = int(checkpoint.config.max_position_embeddings)
    if asked is None:
        return min(most, _USUAL_CONTEXT)
    if not 2 <= asked <= most:
        raise ExportError(f"context_length is {asked}; the checkpoint was made for 2 to {most} positions")
    return asked


@contextlib.contextmanager
def _made_whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends well, and is gone when it does not.

    Between the two renames of a replacement there is no `out` at all, never half of one.

    Raises:
        ExportError: the disk is full, or the place cannot be written to.
    """
    for stale in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        shutil.rmtree(stale, ignore_errors=True)
    partial, old = out.with_name(f".{out.name}.{os.getpid()}.partial"), out.with_name(f".{out.name}.old")
    try:
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        partial.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        # numpy's own writer gives no errno when it could write a part only.
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None):
            raise ExportError(
                f"no space left for {out}: free some, or leave out a variant, then export again"
            ) from error
        raise ExportError(f"cannot write {out}: {error.strerror or error}; mend the path or its permissions") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
