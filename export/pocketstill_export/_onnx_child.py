"""Runs onnxruntime-genai's model builder: it prints a lot and keeps its memory, so it gets a process of its
own.

Its one argument is a JSON list of jobs, each {"checkpoint", "out", "precision", "context_length", "options",
"eight_bit"}; the last names nodes whose weights get 8 bits instead of 4.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from collections.abc import Callable
from typing import Any


def main(jobs: list[dict[str, Any]]) -> None:
    """Builds the ONNX model of each job into its `out`."""
    from onnxruntime_genai.models import builder

    # The builder imports its own modules by their bare names, from a folder that it puts on the path.
    from builders import base  # type: ignore[import-not-found, unused-ignore]  # isort: skip

    # It takes every Linear with as many outputs as there are tokens for the head, and a student's width may
    # equal its vocabulary: the head is known by name.
    base.Model.has_lm_head = lambda model, module: module is model.weights.lm_head
    resolve = base.QuantConfig.from_extra_options
    for job in jobs:
        base.QuantConfig.from_extra_options = functools.partial(_with_eight_bits, resolve, job["eight_bit"])
        with tempfile.TemporaryDirectory() as cache:
            where = (job["checkpoint"], job["out"], job["precision"], "cpu", cache)
            options = builder.parse_extra_options(None, *where, [f"{k}={v}" for k, v in job["options"].items()])
            # Rotary tables are written for every position that the config allows: no more than will be used.
            options["hf_details"]["hf_config"].max_position_embeddings = job["context_length"]
            builder.create_model(None, *where, **options)


def _with_eight_bits(resolve: Callable[..., Any], names: list[str], *args: Any, **kwargs: Any) -> Any:
    """The builder's quantization settings with these nodes at 8 bits: none of its own options can name a node."""
    from quantization.quant_config import Override  # type: ignore[import-not-found, unused-ignore]

    config = resolve(*args, **kwargs)
    if names:
        config.weights.overrides = [Override(match={"name": name}, type="int8") for name in names]
    return config


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
