"""Runs optimum's GPTQ over a checkpoint, and writes the numbers that it chose; its own packed layout is not used.

Its one argument is a JSON file {"checkpoint", "calibration": lists of token ids, "jobs": [{"out", "block",
"symmetric"}]}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(work: dict[str, Any]) -> None:
    """Writes for every matrix q (rows, columns), scale and zero (rows, blocks) to the safetensors file of each job."""
    for job in work["jobs"]:
        quantize(work["checkpoint"], work["calibration"], job["out"], job["block"], job["symmetric"])


def quantize(checkpoint: str, calibration: list[list[int]], out: str, block: int, symmetric: bool) -> None:
    """One run of GPTQ over the whole model."""
    import torch
    from optimum.gptq import GPTQQuantizer
    from optimum.gptq.utils import get_layers
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    kept: dict[str, torch.Tensor] = {}

    class Quantizer(GPTQQuantizer):  # type: ignore[misc, unused-ignore]
        """Keeps the rounded weights and their scales before they would be packed for a kernel."""

        def pack_model(self, model: Any, quantizers: dict[str, Any]) -> None:
            layers = get_layers(model)
            for name, (_, scale, zero, groups) in quantizers.items():
                weight = layers[name].weight
                blocks = torch.arange(weight.shape[1]) // block
                if not torch.equal(groups.cpu().long(), blocks):
                    raise RuntimeError(f"the columns of {name} are not in order")
                q = torch.round(weight.float() / scale[:, blocks] + zero[:, blocks])
                if float((scale[:, blocks] * (q - zero[:, blocks]) - weight).abs().max()) > 1e-4:
                    raise RuntimeError(f"the weights of {name} are not on their scales")
                kept[f"{name}.q"] = q.to(torch.uint8).contiguous()
                kept[f"{name}.scale"] = scale.float().contiguous()
                kept[f"{name}.zero"] = zero.to(torch.uint8).contiguous()

        def post_init_model(self, model: Any) -> Any:
            return model

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, local_files_only=True
    )
    texts = [torch.tensor([ids]) for ids in calibration]
    dataset = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in texts]
    torch.manual_seed(0)
    Quantizer(bits=4, dataset=dataset, group_size=block, sym=symmetric).quantize_model(model)
    save_file(kept, out)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
