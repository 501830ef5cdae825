"""The texts of an export: those that weights are rounded for, and those, held out, that variants are compared over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pocketstill_export.calibration import read_calibration
from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.errors import ExportError
from pocketstill_export.gguf.imatrix import Imatrix, read_imatrix

# One text in so many is held out: a choice to within a hundredth of a nat takes some ten thousand tokens.
_HELD_OUT = 3
_CALIBRATION_TOKENS = 98_304
_HELDOUT_TOKENS = 32_768
_LONGEST = 512


def read_calibrations(
    checkpoint: Checkpoint, given: Sequence[Sequence[int]] | str | Path, context_length: int
) -> tuple[list[list[int]], Imatrix | None, str | None]:
    """Token ids to calibrate on, given as they are or as a file, or an importance matrix made before; and the file's
    name, None for ids.

    Raises:
        ExportError: the file cannot be read.
    """
    if not isinstance(given, (str, Path)):
        return [list(ids) for ids in given], None, None
    path = Path(given)
    if path.suffix == ".gguf":
        return [], read_imatrix(path), path.name
    length = min(_LONGEST, context_length)
    read = read_calibration(path, checkpoint, max_tokens=_CALIBRATION_TOKENS, context_length=length)
    return read, None, path.name


def hold_out(
    checkpoint: Checkpoint,
    calibration: list[list[int]],
    heldout: Sequence[str] | str | Path,
    context_length: int,
    *,
    split: bool,
) -> tuple[list[list[int]], list[str]]:
    """What is left to calibrate on, and the texts to compare over, given as they are or as a file.

    With nothing held out every third of the calibration texts is, where `split` allows it.

    Raises:
        ExportError: a file cannot be read, or there is too little for a third to be held out.
    """
    if isinstance(heldout, (str, Path)):
        length = min(_LONGEST, context_length)
        ids = read_calibration(heldout, checkpoint, max_tokens=_HELDOUT_TOKENS, context_length=length)
        return calibration, _decoded(checkpoint, ids)
    if heldout or not split or not calibration:
        return calibration, list(heldout)
    left = [ids for number, ids in enumerate(calibration) if number % _HELD_OUT]
    if not left:
        raise ExportError("the calibration file holds one text only; give more, or others with --heldout FILE")
    return left, _decoded(checkpoint, calibration[::_HELD_OUT])


def _decoded(checkpoint: Checkpoint, sequences: Sequence[Sequence[int]]) -> list[str]:
    tokenizer = checkpoint.load_tokenizer()
    return [tokenizer.decode(list(ids), skip_special_tokens=False) for ids in sequences]
