"""A checkpoint by name: a folder as it is, or a model of the Hugging Face hub without its pickles and code."""

from __future__ import annotations

from pathlib import Path

from pocketstill_export.errors import ExportError

# Weights as safetensors and text; never a pickle, never code.
_WANTED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "README.md",
)
# Copies of the same weights in other forms, which some models carry in folders.
_UNWANTED = ("*/*",)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def fetch_checkpoint(name: str | Path, *, revision: str | None = None) -> Path:
    """The folder `name`, or where the hub's model of that name lies once its files are here.

    Files go to the hub's own cache, and a model that is there already is not fetched again.

    Args:
        name: a folder, or `owner/model`.
        revision: a branch, tag or commit of the hub's model; None takes the main branch.

    Raises:
        ExportError: neither a folder nor a model of the hub, no way to reach it, no access, or no safetensors.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    parts = str(name).split("/")
    if len(parts) != 2 or not all(parts) or folder.is_absolute() or parts[0] in (".", "..", "~"):
        raise ExportError(f"{name} is no folder, and no `owner/model` of the hub; give one of the two")
    return _fetch(str(name), revision)


def _fetch(name: str, revision: str | None) -> Path:
    import httpx2
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"{name}@{revision}" if revision else name
    try:
        try:
            _refuse_pickles(at, HfApi().list_repo_files(name, revision=revision))
            reached = True
        except (OfflineModeIsEnabled, httpx2.TransportError):
            # Without the hub, what is in the cache will do.
            reached = False
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(_WANTED),
                ignore_patterns=list(_UNWANTED),
                local_files_only=not reached,
            )
        )
    except GatedRepoError as error:
        raise ExportError(
            f"{at} asks for consent: accept its terms on the hub, then set HF_TOKEN to a token of that account"
        ) from error
    except RevisionNotFoundError as error:
        raise ExportError(f"{name} has no revision {revision}; see its branches and tags on the hub") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ExportError(
            f"{name} is neither a folder here nor a model of the hub; mend the name, or set HF_TOKEN if it is private"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled, httpx2.TransportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(
            f"{at} is not in the local cache and the hub cannot be reached ({reason}); "
            "connect once, or give a folder that holds the checkpoint"
        ) from error


def _refuse_pickles(at: str, files: list[str]) -> None:
    top = [file for file in files if "/" not in file]
    if any(file.endswith(".safetensors") for file in top):
        return
    pickles = [file for file in top if file.endswith(_PICKLES)]
    kind = f"{pickles[0]}, a pickle, which can run code when it is read," if pickles else "no weights that we read"
    raise ExportError(f"{at} holds {kind} and no safetensors; look for a revision or a copy that has them")
