"""Run: walk a recipe from its teacher to the folder that ships; what is up to date is skipped."""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pocketstill.errors import UserError
from pocketstill.manifest import MANIFEST

from .recipe import Recipe, load_recipe

STAGES = ("collect", "curate", "distill", "export", "verify", "bundle")


def run_recipe(
    recipe_path: Path,
    runs: Path,
    *,
    data: Path | None = None,
    until: str = "bundle",
    only: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Run the stages of a recipe up to `until`, or that one alone; returns the last one's result, JSON-ready.

    Args:
        recipe_path: A recipe's TOML file.
        runs: The folder that holds `<recipe name>/<stage>/`.
        data: Where the data files that the recipe names lie, when not beside it.
        until: One of `STAGES`.
        only: Run this stage alone, on what the one before it left.
        force: Run stages again that are up to date. The ledger is kept all the same: its answers were paid for.

    Raises:
        UserError: a stage's input is missing, broken or unfit, or another process is at work on the same run.
    """
    if until not in STAGES:
        raise UserError(f"there is no stage {until!r}; the stages are {', '.join(STAGES)}")
    recipe = load_recipe(recipe_path, data)
    root = runs / recipe.name
    console = Console(stderr=True)
    chosen = (until,) if only else STAGES[: STAGES.index(until) + 1]
    result: dict[str, Any] = {}
    with _alone(root):
        for stage in chosen:
            if force:
                (_folder(root, stage) / MANIFEST).unlink(missing_ok=True)
            started = time.monotonic()
            with _full_disk_told(stage, root):
                result = _plain(_CALLS[stage](recipe, root, console))
            console.print(f"[bold]{stage}[/] done in {time.monotonic() - started:.1f} s")
    return {"stage": until, "run": str(root)} | result


def _folder(root: Path, stage: str) -> Path:
    return root if stage == "bundle" else root / stage


def _collect(recipe: Recipe, root: Path, console: Console) -> Any:
    from .collect import collect

    return collect(recipe, root / "collect", progress=console)


def _curate(recipe: Recipe, root: Path, console: Console) -> Any:
    from .curate import curate

    return curate(recipe, root / "collect", root / "curate")


def _distill(recipe: Recipe, root: Path, console: Console) -> Any:
    from .distill import distill

    return distill(recipe, root / "curate", root / "distill")


def _export(recipe: Recipe, root: Path, console: Console) -> Any:
    from .export import export

    return export(recipe, root / "curate", root / "distill", root / "export")


def _verify(recipe: Recipe, root: Path, console: Console) -> Any:
    from .verify import verify

    return verify(recipe, root / "curate", root / "distill", root / "export", root / "verify")


def _bundle(recipe: Recipe, root: Path, console: Console) -> Any:
    from .bundle import bundle

    return bundle(recipe, root)


_CALLS: dict[str, Callable[[Recipe, Path, Console], Any]] = {
    "collect": _collect,
    "curate": _curate,
    "distill": _distill,
    "export": _export,
    "verify": _verify,
    "bundle": _bundle,
}


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold a lock on the run, so that two processes never write the same stage."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{root}: cannot be written ({error.strerror}); free some space or mend --runs") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{root}: another process is at work on this run; wait for it or end it") from None
        yield


@contextmanager
def _full_disk_told(stage: str, root: Path) -> Iterator[None]:
    """Make one line of a full disk, whichever library met it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not _met_full_disk(error):
            raise
        said = "free some and run again, what was finished is kept"
        raise UserError(f"{stage}: no space left under {root}; {said}") from error


def _met_full_disk(error: BaseException | None) -> bool:
    while error is not None:
        said = str(error).lower()
        if getattr(error, "errno", None) in _FULL_ERRNOS or any(words in said for words in _FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# safetensors (Rust), torch's writer (C++) and shutil.copytree raise errors of their own, without an errno.
_FULL_WORDS = (
    "no space left", "os error 28)", "os error 122)", "os error 27)", "unexpected pos", "pytorchstreamwriter failed",
)  # fmt: skip


def _plain(result: Any) -> dict[str, Any]:
    values = asdict(result) if is_dataclass(result) and not isinstance(result, type) else dict(result)
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
