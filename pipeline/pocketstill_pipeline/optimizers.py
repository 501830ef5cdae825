"""Muon for the matrices and AdamW for the rest, as one optimizer with one schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from .recipe import Train

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` on the hidden matrices, `torch.optim.AdamW` on embeddings, head and vectors.

    Muon orthogonalises the momentum of a matrix (Jordan et al. 2024); it is not meant for embeddings. The parameter
    groups are the two optimizers' own, so a scheduler that scales `lr` scales both.
    """

    def __init__(self, model: PreTrainedModel, train: Train) -> None:
        matrices, rest = split_parameters(model)
        self.muon = torch.optim.Muon(matrices, lr=train.learning_rate, weight_decay=train.weight_decay, momentum=0.95)
        self.adamw = torch.optim.AdamW(
            rest, lr=train.adamw_learning_rate, betas=(0.9, 0.95), weight_decay=train.weight_decay
        )
        super().__init__([*matrices, *rest], {})
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        self.muon.step()
        self.adamw.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.muon.zero_grad(set_to_none)
        self.adamw.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]


def split_parameters(model: PreTrainedModel) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """The hidden matrices, and everything else (embeddings, head, norms, biases)."""
    outside = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    learnt = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in learnt if p.ndim == 2 and id(p) not in outside]
    chosen = {id(p) for p in matrices}
    return matrices, [p for p in learnt if id(p) not in chosen]


def make_optimizer(model: PreTrainedModel, train: Train) -> torch.optim.Optimizer:
    """The recipe's optimizer over the model's parameters."""
    if train.optimizer == "muon":
        return MuonWithAdamW(model, train)
    matrices, rest = split_parameters(model)
    groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=(0.9, 0.95))


def schedule(train: Train, steps: int) -> Callable[[int], float]:
    """Warm-up, a plateau, and a linear fall to zero (Hägele et al. 2024), as a factor of the learning rate."""
    warmup = max(1, round(steps * train.warmup))
    decay = max(1, round(steps * train.decay))

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / warmup, max(0.0, (steps - step) / decay))

    return factor
