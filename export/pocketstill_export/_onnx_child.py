"""Runs onnxruntime-genai's model builder: it prints a lot and keeps its memory, so it gets a process of its
own.

Its one argument is a JSON list of jobs, each {"checkpoint", "out", "precision", "context_length", "options"}.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any


def main(jobs: list[dict[str, Any]]) -> None:
    """Builds the ONNX model of each job into its `out`."""
    from onnxruntime_genai.models import builder

    # The builder imports its own modules by their bare names, from a folder that it puts on the path.
    from builders import base  # type: ignore[import-not-found, unused-ignore]  # isort: skip

    # It takes every Linear with as many outputs as there are tokens for the head, and a student's width may
    # equal its vocabulary: the head is known by name.
    base.Model.has_lm_head = lambda model, module: module is model.weights.lm_head
    for job in jobs:
        with tempfile.TemporaryDirectory() as cache:
            where = (job["checkpoint"], job["out"], job["precision"], "cpu", cache)
            options = builder.parse_extra_options(None, *where, [f"{k}={v}" for k, v in job["options"].items()])
            # Rotary tables are written for every position that the config allows: no more than will be used.
            options["hf_details"]["hf_config"].max_position_embeddings = job["context_length"]
            builder.create_model(None, *where, **options)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
