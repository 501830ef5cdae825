"""The LoRA adapters of a folder against PEFT: base and adapter together must give PEFT's numbers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pocketstill.bundle import Variant
from pocketstill.engines import open_engine
from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.parity.corpus import TEXTS
from pocketstill_export.parity.logits import (
    LogitsCheck,
    Reference,
    compare_logits,
    load_reference,
    log_softmax,
    token_sequences,
)

_MOST_TOKENS = 1024
_LONGEST = 256


def compare_adapters(
    checkpoint: Checkpoint,
    folder: Path,
    variants: Sequence[Variant],
    adapters: Mapping[str, Path],
    texts: Sequence[str],
    *,
    context_length: int,
) -> list[LogitsCheck]:
    """Every variant with every adapter that it keeps apart; a check's name is `<variant>+<adapter>`.

    The bounds are those of the variant itself: exact ones for unquantized variants.
    """
    longest = min(context_length - 1, _LONGEST)
    sequences = token_sequences(checkpoint.load_tokenizer(), (*texts, *TEXTS), longest, _MOST_TOKENS)
    checks = []
    for name, adapter in adapters.items():
        reference = _with_adapter(checkpoint, adapter)
        expected = [log_softmax(reference.logits(ids)).astype(np.float32) for ids in sequences]
        for variant in variants:
            engine = open_engine(
                folder, variant, threads=checkpoint.threads, context_length=context_length, adapter=name
            )
            try:
                check = compare_logits(variant.name, engine.logits, sequences, expected, config=checkpoint.config)
                checks.append(replace(check, variant=f"{variant.name}+{name}"))
            finally:
                engine.close()
    return checks


def _with_adapter(checkpoint: Checkpoint, adapter: Path) -> Reference:
    from peft import PeftModel

    base = load_reference(checkpoint).model
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5 for an attribute by its old name.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return Reference(PeftModel.from_pretrained(base, str(adapter), is_trainable=False).eval())
