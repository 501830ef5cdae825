"""The importance matrix: how strongly each column of each matrix is driven, measured in PyTorch on the student's own
data.

A weight's rounding error reaches the output times the input that meets it, so llama.cpp's quantizer weighs a column's
error by the mean square of that input (https://github.com/ggml-org/llama.cpp/pull/4861). The sums are those of its
llama-imatrix tool, and so is the file.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketstill_export.checkpoint import Checkpoint, load_model
from pocketstill_export.errors import ExportError

_BATCH_TOKENS = 2048
_REPORT_SECONDS = 10.0


@dataclass(frozen=True)
class Imatrix:
    """`sums` holds, by GGUF tensor name, the sum over tokens of the squared inputs, a value a column of the matrix;
    `counts` the number of those tokens.

    `dataset` names the data, `chunks` and `chunk_size` say how they were cut: sequences, and tokens in the longest.
    """

    sums: dict[str, npt.NDArray[np.float32]]
    counts: dict[str, int]
    dataset: str
    chunks: int = 0
    chunk_size: int = 0


def compute_imatrix(
    checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], *, dataset: str = "", head: bool = True
) -> Imatrix:
    """Runs the checkpoint in fp32 over `sequences` and sums the squared inputs of every matrix that GGUF stores.

    Args:
        checkpoint: its weights are loaded by transformers, on the CPU.
        sequences: token ids, each as the model would see them, none longer than its context.
        dataset: a name for what they were made of.
        head: also the head's inputs; with a tied head they stand under the embedding's name, which llama.cpp's own
            tool never collects though its quantizer reads them. On our default student that lowers the KL of every
            kind a little (benchmarks/bench_imatrix.py).

    Raises:
        ExportError: no token at all, a sequence beyond the model's context, an id beyond its vocabulary, or inputs
            that are no finite numbers.
    """
    import torch

    _check_sequences(checkpoint, sequences)
    names = _names(checkpoint)
    model = load_model(checkpoint)
    collector = _Collector()
    targets = _targets(model, names)
    hooks = [module.register_forward_pre_hook(collector.hook(name)) for module, name in targets]
    report = _reporter(sum(map(len, sequences)))
    try:
        with torch.inference_mode():
            for ids, mask in _batches(sequences):
                collector.mask = mask.bool()
                output = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
                if head:
                    collector.add(_head_name(checkpoint), output.last_hidden_state)
                report(int(mask.sum()))
    finally:
        for hook in hooks:
            hook.remove()
    tokens = sum(map(len, sequences))
    sums = {name: collector.sums[name].to(torch.float32).numpy() for name in sorted(collector.sums)}
    for name, values in sums.items():
        if not np.isfinite(values).all():
            raise ExportError(
                f"{checkpoint.folder}: the inputs of {name} are not finite; train again from a sound state"
            )
    return Imatrix(sums, dict.fromkeys(sums, tokens), dataset, sum(map(bool, sequences)), max(map(len, sequences)))


class _Collector:
    """Adds up squared inputs; `mask` says which positions of the running batch are tokens, shape (B, T)."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}
        self.mask: Any = None

    def hook(self, name: str) -> Callable[[Any, Any], None]:
        return lambda _module, inputs: self.add(name, inputs[0])

    def add(self, name: str, values: Any) -> None:
        import torch

        # Over a batch fp32 is exact enough; over a whole data set small inputs would be lost beside the sum.
        batch = torch.square(values[self.mask].float()).sum(0).double()
        self.sums[name] = self.sums[name] + batch if name in self.sums else batch


def _check_sequences(checkpoint: Checkpoint, sequences: Sequence[Sequence[int]]) -> None:
    if not any(sequences):
        raise ExportError("there is no token to compute the importance matrix on; give a text that is not empty")
    most, rows = int(checkpoint.config.max_position_embeddings), int(checkpoint.config.vocab_size)
    longest, largest = max(map(len, sequences)), max(max(ids) for ids in sequences if ids)
    if longest > most:
        raise ExportError(f"a calibration text has {longest} tokens, {checkpoint.folder} takes {most}; cut it")
    if largest >= rows:
        raise ExportError(f"calibration id {largest} is beyond the {rows} of {checkpoint.folder}; use its tokenizer")


def _names(checkpoint: Checkpoint) -> dict[str, str]:
    from pocketstill_export.gguf.params import ARCHITECTURES
    from pocketstill_export.gguf.write import tensor_names

    if checkpoint.architecture not in ARCHITECTURES:
        raise ExportError(
            f"{checkpoint.folder}: no importance matrix for {checkpoint.architecture}, whose names in GGUF only "
            "llama.cpp's converter knows; leave --calibrate out"
        )
    return tensor_names(checkpoint)


def _targets(model: Any, names: Mapping[str, str]) -> list[tuple[Any, str]]:
    """The modules inside the blocks that multiply by a matrix, with its GGUF name."""
    import torch
    from transformers.pytorch_utils import Conv1D

    found = []
    for path, module in model.named_modules():
        name = names.get(f"{path}.weight", "")
        if isinstance(module, (torch.nn.Linear, Conv1D)) and name.startswith("blk."):
            found.append((module, name))
    return found


def _head_name(checkpoint: Checkpoint) -> str:
    return "token_embd.weight" if checkpoint.tied else "output.weight"


def _batches(sequences: Sequence[Sequence[int]]) -> Iterator[tuple[Any, Any]]:
    """Ids and attention mask, shape (B, T), padded at the right; like lengths together, about 2,048 tokens each."""
    import torch

    order = sorted((list(ids) for ids in sequences if ids), key=len, reverse=True)
    while order:
        width = len(order[0])
        rows, order = order[: (size := max(1, _BATCH_TOKENS // width))], order[size:]
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        yield ids, mask


def _reporter(total: int) -> Callable[[int], None]:
    """Says on stderr how far it is, every ten seconds."""
    done, last = 0, time.monotonic()

    def report(tokens: int) -> None:
        nonlocal done, last
        done += tokens
        if time.monotonic() - last > _REPORT_SECONDS:
            last = time.monotonic()
            print(f"export: importance matrix, {done:,} of {total:,} tokens", file=sys.stderr, flush=True)

    return report


def write_imatrix(imatrix: Imatrix, path: str | Path) -> None:
    """Writes llama.cpp's GGUF imatrix file, which its quantize tool takes with --imatrix.

    The same matrix gives the same bytes; `path` is put in place only when it is whole.
    """
    import gguf

    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    writer = gguf.GGUFWriter(path=partial, arch="")
    # The tool's own files name no architecture.
    writer.kv_data[0].clear()
    writer.add_type(gguf.GGUFType.IMATRIX)
    writer.add_array(gguf.Keys.IMatrix.DATASETS, [imatrix.dataset])
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, imatrix.chunks)
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, imatrix.chunk_size)
    for name in sorted(imatrix.sums):
        writer.add_tensor(f"{name}.in_sum2", imatrix.sums[name].astype(np.float32))
        writer.add_tensor(f"{name}.counts", np.array([imatrix.counts[name]], dtype=np.float32))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.replace(path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)


def read_imatrix(path: str | Path) -> Imatrix:
    """Reads such a file, ours or llama-imatrix's own.

    Raises:
        ExportError: it is none, is of the old format, or holds a mixture of experts.
    """
    import gguf

    advice = "make it with llama-imatrix, whose files end in .gguf"
    try:
        reader = gguf.GGUFReader(path)
        tensors = {tensor.name: np.array(tensor.data, dtype=np.float32).ravel() for tensor in reader.tensors}
        keys = gguf.Keys.IMatrix
        fields = {key: reader.fields[key].contents() for key in (keys.DATASETS, keys.CHUNK_COUNT, keys.CHUNK_SIZE)}
    except FileNotFoundError:
        raise ExportError(f"{path} is not there; {advice}") from None
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise ExportError(f"{path} is no importance matrix in GGUF; {advice}") from error
    names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
    for name in names:
        count = tensors.get(f"{name}.counts")
        if count is None or count.size != 1:
            raise ExportError(f"{path}: {name} has {'no' if count is None else count.size} counts, not one; {advice}")
    if not names:
        raise ExportError(f"{path} holds no matrix; {advice}")
    return Imatrix(
        {name: tensors[f"{name}.in_sum2"] for name in names},
        {name: round(float(tensors[f"{name}.counts"][0])) for name in names},
        str((fields[keys.DATASETS] or [""])[0]),
        int(fields[keys.CHUNK_COUNT]),
        int(fields[keys.CHUNK_SIZE]),
    )
