"""Greedy decoding on request: `python decode.py SYSTEM MODEL THREADS [VARIANT]`.

SYSTEM is `ours`, `optimum`, `exporters` or `transformers`, each run by the Python of its own environment. Opens the
model and writes "ready"; then answers each line {"prompt": [ids], "tokens": n} of stdin with one {"ids": [...],
"tok_s": rate after the first token}, so that a caller can take turns between systems.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

# Takes the prompt and the number of new tokens, and yields each as soon as it is known.
Steps = Callable[[list[int], int], Iterator[int]]


def ours(model: str, threads: int, variant: str) -> Steps:
    from pathlib import Path

    from pocketstill.bundle import Variant
    from pocketstill.engines import open_engine
    from pocketstill_export.variants import parse_variant

    spec = parse_variant(variant)
    files = (spec.file, f"{spec.file}_data") if spec.engine == "onnx" else (spec.file,)
    engine = open_engine(Path(model), Variant(variant, spec.engine, spec.file, files, 0), threads=threads)

    def steps(prompt: list[int], tokens: int) -> Iterator[int]:
        yield from engine.generate(prompt, max_new_tokens=tokens, stop_ids=())

    return steps


def exporters(model: str, threads: int, _variant: str) -> Steps:
    import onnxruntime
    import torch
    from transformers.exporters import ExportedModel

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    torch.set_num_threads(threads)
    runners = ExportedModel.from_pretrained(model, local_files_only=True, session_options=options).runners

    def steps(prompt: list[int], tokens: int) -> Iterator[int]:
        ids = torch.tensor([prompt])
        given = {"input_ids": ids, "position_ids": torch.arange(len(prompt))[None]}
        out = runners["prefill"](**given)
        for place in range(len(prompt), len(prompt) + tokens):
            token = out.logits[:, -1:].argmax(-1)
            yield int(token)
            if place + 1 < len(prompt) + tokens:
                given = {"input_ids": token, "position_ids": torch.tensor([[place]])}
                out = runners["decode"](**given, past_key_values=out.past_key_values)

    return steps


def optimum(model: str, threads: int, _variant: str) -> Steps:
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    torch.set_num_threads(threads)
    return _generate(ORTModelForCausalLM.from_pretrained(model, session_options=options, local_files_only=True))


def transformers(model: str, threads: int, _variant: str) -> Steps:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    return _generate(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True))


def _generate(model: Any) -> Steps:
    """By transformers' `generate`, whose streamer tells of each token when it is there."""
    import torch

    class Streamer:
        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, _ids: Any) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def steps(prompt: list[int], tokens: int) -> Iterator[int]:
        ids, streamer = torch.tensor([prompt]), Streamer()
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            streamer=streamer,
        )
        # The first call is the prompt.
        _clock.extend(streamer.times[1:])
        yield from out[0, len(prompt) :].tolist()

    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return steps


# When each token came, where the system tells by itself.
_clock: list[float] = []


def answer(steps: Steps, prompt: list[int], tokens: int) -> dict[str, Any]:
    _clock.clear()
    found, times = [], []
    for token in steps(prompt, tokens):
        times.append(time.perf_counter())
        found.append(int(token))
    times = _clock or times
    return {"ids": found, "tok_s": (len(times) - 1) / (times[-1] - times[0])}


def main(system: str, model: str, threads: str, variant: str = "") -> None:
    # Libraries print as they please; only answers go to the real stdout.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    opened = {"ours": ours, "optimum": optimum, "exporters": exporters, "transformers": transformers}[system]
    steps = opened(model, int(threads), variant)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(steps, **json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": sys.argv[3]}
    main(*sys.argv[1:])
