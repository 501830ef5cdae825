"""What an exported file costs in right answers: the suite answered greedily by the checkpoint and by each variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pocketstill.bundle import SuiteItem
from pocketstill.engines import Engine
from pocketstill.errors import UserError
from pocketstill.stats import paired_difference
from pocketstill.template import render
from pocketstill.verify import graded_answer
from pocketstill_export.checkpoint import Checkpoint, token_string
from pocketstill_export.errors import ExportError
from pocketstill_export.parity.logits import Reference

_BATCH = 64


@dataclass(frozen=True)
class Loss:
    """Right answers on the same `n` questions, as shares. `lost` is the checkpoint's share minus the variant's.

    `low` and `high` are the ends of one standard error: Newcombe's paired interval (1998, method 10) with z = 1.
    """

    n: int
    accuracy: float
    checkpoint: float
    lost: float
    low: float
    high: float


class Suite:
    """The questions with the checkpoint's own answers to them, made once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        reference: Reference,
        items: Sequence[SuiteItem],
        *,
        max_new_tokens: int,
        context_length: int,
    ) -> None:
        """
        Raises:
            ExportError: there is no question, or one leaves no room for an answer in the context.
        """
        if not items:
            raise ExportError("the suite has no question; give some, or leave accuracy out of the tolerance")
        self._items = list(items)
        self._max_new_tokens = max_new_tokens
        self._stop_ids = checkpoint.stop_ids
        self._tokenizer = checkpoint.load_tokenizer()
        config = checkpoint.tokenizer_config
        names: dict[str, Any] = {key: token_string(config.get(key)) or "" for key in ("bos_token", "eos_token")}
        prompts = [render(checkpoint.template, item.messages, **names) for item in self._items]
        self._prompts = [list(self._tokenizer.encode(text, add_special_tokens=False).ids) for text in prompts]
        for item, ids in zip(self._items, self._prompts, strict=True):
            if len(ids) >= context_length:
                raise ExportError(
                    f"question {item.id} of the suite has {len(ids)} tokens, and the context {context_length}; "
                    "leave it out or allow a longer context"
                )
        said = _greedy(reference, self._prompts, self._stop_ids, max_new_tokens, context_length)
        self._reference = self._right(said)

    def losses(self, engine: Engine) -> tuple[Loss, dict[str, Loss]]:
        """What the variant behind `engine` loses: over all questions, and by skill.

        Raises:
            UserError: the engine fails on a question.
        """
        said = [
            list(engine.generate(ids, max_new_tokens=self._max_new_tokens, stop_ids=self._stop_ids))
            for ids in self._prompts
        ]
        found = self._right(said)
        everything = range(len(self._items))
        skills: dict[str, list[int]] = {}
        for index, item in enumerate(self._items):
            skills.setdefault(item.skill, []).append(index)
        return self._loss(found, everything), {name: self._loss(found, own) for name, own in skills.items()}

    def _loss(self, found: Sequence[bool], among: Sequence[int]) -> Loss:
        own, theirs = [found[index] for index in among], [self._reference[index] for index in among]
        difference, low, high = paired_difference(own, theirs, z=1.0)
        return Loss(len(own), sum(own) / len(own), sum(theirs) / len(theirs), -difference, -high, -low)

    def _right(self, said: Sequence[Sequence[int]]) -> list[bool]:
        """Whether each answer, given as ids, is right."""
        found = []
        for item, ids in zip(self._items, said, strict=True):
            try:
                found.append(bool(graded_answer(item, self._tokenizer.decode(list(ids)))["correct"]))
            except UserError as error:
                raise ExportError(f"question {item.id} of the suite cannot be graded: {error}") from error
        return found


def _greedy(
    reference: Reference,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    context_length: int,
) -> list[list[int]]:
    """The checkpoint's greedy continuations in transformers, in batches, without the stop token."""
    import torch
    from transformers import GenerationConfig

    model, pad = reference.model, stop_ids[0]
    said: list[list[int]] = [[] for _ in prompts]
    # Of like lengths together: padding costs time.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    # Its own settings, not the checkpoint's, which may sample.
    own = model.generation_config
    try:
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            width = max(len(prompts[index]) for index in batch)
            ids = torch.tensor([[pad] * (width - len(prompts[i])) + list(prompts[i]) for i in batch])
            mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in batch])
            model.generation_config = GenerationConfig(
                do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(stop_ids), pad_token_id=pad
            )
            with torch.inference_mode():
                made = model.generate(input_ids=ids, attention_mask=mask)
            for index, row in zip(batch, made.tolist(), strict=True):
                # A question alone has what its own length leaves of the context, however long the others are.
                new = row[width:][: context_length - len(prompts[index])]
                end = next((at for at, token in enumerate(new) if token in stop_ids), len(new))
                said[index] = new[:end]
    finally:
        model.generation_config = own
    return said
