"""Tiny checkpoints whose weights are the same everywhere, to hold our importance matrices to llama.cpp's own.

    POCKETSTILL_LLAMA_BIN=FOLDER python tests/imatrix_cases.py

writes tests/data/imatrix/*.gguf anew by the llama-imatrix program in FOLDER.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from conftest import write_tokenizer

DATA = Path(__file__).parent / "data" / "imatrix"
TEXT = DATA / "text.txt"
CONTEXT = 64
BOS = 3
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"num_key_value_heads": 2}),
    "llama-bos": ("Llama", {"num_key_value_heads": 2, "tie_word_embeddings": False, "bos_token_id": BOS}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 32}),
    "gemma3": ("Gemma3", {"num_key_value_heads": 2, "head_dim": 32, "sliding_window": 32}),
    "phi3": ("Phi3", {"num_key_value_heads": 2}),
    "gpt2": ("GPT2", {}),
}


def make_case(name: str, folder: Path) -> Path:
    """The checkpoint of a case: two layers of width 64, weights that are multiples of 1/4096."""
    import torch
    import transformers

    family, changes = CASES[name]
    vocabulary = write_tokenizer(folder)
    if "bos_token_id" in changes:
        _add_bos(folder)
    common = {"vocab_size": vocabulary, "eos_token_id": 0, "bos_token_id": None, "pad_token_id": 0}
    if family == "GPT2":
        shape = {"n_embd": 64, "n_inner": 96, "n_layer": 2, "n_head": 4, "n_positions": 128}
        head = "GPT2LMHeadModel"
    else:
        shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "max_position_embeddings": 128, "tie_word_embeddings": True}  # fmt: skip
        head = f"{family}ForCausalLM"
    config_class = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config")
    model = getattr(transformers, head)(config_class(**(common | shape | changes)))
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(_weights(path, tuple(parameter.shape))))
    model.generation_config = transformers.GenerationConfig(eos_token_id=0)
    model.save_pretrained(folder)
    return folder


def _weights(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Whole numbers over 4096, so that no library's arithmetic has a say; vectors move a quarter from their start."""
    draws = np.random.Generator(np.random.PCG64(zlib.crc32(path.encode()))).integers(-1024, 1025, shape)
    start = 1.0 if len(shape) == 1 and path.endswith("weight") else 0.0
    return (start + draws / 4096).astype(np.float32)


def _add_bos(folder: Path) -> None:
    """Lets the tokenizer begin every text with <|system|>."""
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    steps = [processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
        single="<|system|> $A", pair="<|system|> $A $B", special_tokens=[("<|system|>", BOS)]
    )]  # fmt: skip
    tokenizer.post_processor = processors.Sequence(steps)
    tokenizer.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "<|system|>", "add_bos_token": True}))


def run_tool(programs: Path, checkpoint: Path, text: Path, out: Path, *, context: int = CONTEXT) -> None:
    """llama-imatrix over `text`, a sequence at a time: with several at once it leaves out some last tokens."""
    from pocketstill_export.checkpoint import read_checkpoint
    from pocketstill_export.gguf.write import write_gguf

    with tempfile.TemporaryDirectory() as folder:
        source = read_checkpoint(checkpoint)
        length = int(source.config.max_position_embeddings)
        write_gguf(source, Path(folder) / "m.gguf", precision="f32", context_length=length, name="case")
        # The tool notes the text's path in the file; a bare name tells nothing of this machine.
        shutil.copyfile(text, Path(folder) / text.name)
        options = f"-m m.gguf -f {text.name} -o out.gguf -c {context} -b {context} -t 1 --no-ppl --process-output"
        subprocess.run(
            [str(programs / "llama-imatrix"), *options.split()],
            cwd=folder,
            env=os.environ | {"LD_LIBRARY_PATH": str(programs)},
            check=True,
            capture_output=True,
        )
        shutil.copyfile(Path(folder) / "out.gguf", out)


def main() -> None:
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = make_case(name, Path(folder))
            run_tool(Path(os.environ["POCKETSTILL_LLAMA_BIN"]).resolve(), checkpoint, TEXT, DATA / f"{name}.gguf")
        print(name, file=sys.stderr)


if __name__ == "__main__":
    main()
