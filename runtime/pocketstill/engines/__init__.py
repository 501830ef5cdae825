"""One small interface over the two engines: token ids in, token ids or logits out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pocketstill.bundle import Bundle, Variant

_PACKAGES = {"onnx": "onnxruntime_genai", "gguf": "llama_cpp"}


class Engine(Protocol):
    """A loaded model. Text is none of its business: ids go in, ids come out. One generation at a time."""

    @property
    def context_length(self) -> int:
        """The most tokens that prompt and answer may have together."""
        ...

    def generate(
        self,
        ids: Sequence[int],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[int]:
        """Yields new ids one by one, until a stop id (not yielded), `max_new_tokens` or a full context.

        Stop ids are those given, and no others. A temperature of 0 is greedy decoding. Starting a new
        generation ends the one before.

        Raises:
            UserError: when the prompt is empty, or leaves no room in the context for one more token.
        """
        ...

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits after each of `ids`, float32 of shape (len(ids), vocabulary)."""
        ...

    def native_encode(self, text: str) -> list[int]:
        """The ids that the engine's own tokenizer gives, special tokens parsed, none added."""
        ...

    def close(self) -> None:
        """Frees the model; the engine cannot be used afterwards."""
        ...


def installed_variant(bundle: Bundle) -> Variant:
    """The bundle's default variant, or its first one whose engine is installed here; the default when none is."""
    default = bundle.variant()
    choice = (default, *bundle.variants)
    return next((variant for variant in choice if find_spec(_PACKAGES[variant.engine])), default)


def open_engine(
    folder: str | Path,
    variant: Variant,
    *,
    threads: int | None = None,
    context_length: int | None = None,
    adapter: str | None = None,
) -> Engine:
    """Loads one variant of the bundle at `folder`.

    Args:
        folder: the bundle.
        variant: which of its variants.
        threads: CPU threads of one decode step; None leaves the choice to the engine.
        context_length: in tokens; None takes the model's own, with llama.cpp 4,096 at most, for it allocates
            the whole of it at once.
        adapter: name of the variant's LoRA adapter to answer with; None answers as the base.

    Raises:
        BundleError: when the variant has no such adapter.
        EngineError: when the engine is not installed, or cannot load the file.
    """
    options = {"threads": threads, "context_length": context_length}
    file = None if adapter is None else Path(folder) / variant.adapter_file(adapter)
    if variant.engine == "gguf":
        from pocketstill.engines.gguf import GgufEngine

        return GgufEngine(Path(folder), variant, adapter=file, **options)
    from pocketstill.engines.onnx import OnnxEngine

    return OnnxEngine(Path(folder), variant, adapter=file, **options)
