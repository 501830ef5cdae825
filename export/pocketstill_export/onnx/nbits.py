"""A built fp32 graph with its matrices rounded to 4 or 8 bits: MatMulNBits, and GatherBlockQuantized for the embedding.

The builder could round by itself, but for each variant from the start, with zero points that its k-quants round after
the search, never by hqq, with a crash on rows of an odd number of 4-bit blocks, and with the embedding of an untied or
8-bit student left in fp32. So its fp32 graph is built once and rounded here, a matrix at a time.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pocketstill_export.errors import ExportError
from pocketstill_export.onnx.mend import DataFile, load_graph, mend_cache, read_tensor
from pocketstill_export.onnx.rounding import Rounded, Rounding, pack, round_matrix

HEAD, EMBEDDING = "/lm_head/MatMul", "/model/embed_tokens/Gather"
# Activations meet quantized weights as 8-bit numbers, which is what makes it fast on a CPU.
_ACCURACY_LEVEL = 4


@dataclass(frozen=True)
class NbitsPlan:
    """How the matrices of one variant are rounded.

    Attributes:
        method, block, symmetric: see `round_matrix`; of the 4-bit matrices.
        eight_bit: patterns (fnmatch) of the names of nodes that get 8 bits. A tied embedding is its head.
        ready: what is rounded already, by name of node.
    """

    method: Rounding
    block: int
    symmetric: bool
    eight_bit: Sequence[str]
    ready: Mapping[str, Rounded] = field(default_factory=dict)

    def bits(self, node: str) -> int:
        """4 or 8, for the node of this name."""
        return 8 if any(fnmatch.fnmatchcase(node, pattern) for pattern in self.eight_bit) else 4

    def way(self, node: str) -> tuple[Rounding, bool]:
        """Method and symmetry for a node: hqq's zero points are for MatMulNBits of 4 bits alone."""
        plain = self.method == "hqq" and (self.bits(node) == 8 or node in (HEAD, EMBEDDING))
        return ("kquant" if plain else self.method), self.symmetric


@dataclass(frozen=True)
class _Parts:
    """A rounded matrix in the file: the names of its tensors, and what a node must know of it."""

    names: list[str]
    rows: int
    columns: int
    blocks: int
    block: int
    bits: int


def round_model(source: Path, target: Path, head: int, plan: NbitsPlan) -> None:
    """Writes `target` and `<target>_data`: the fp32 model of `source` with its matrices rounded.

    Raises:
        ExportError: a pattern of `plan.eight_bit` names no matrix.
    """
    model = load_graph(source)
    mend_cache(model, head)
    target.parent.mkdir(exist_ok=True)
    with DataFile(target.with_name(target.name + "_data")) as data:
        rounder = _Rounder(model.graph, source.parent, plan, data)
        nodes = [new for node in model.graph.node for new in rounder.replaced(node)]
        rest = [tensor for tensor in model.graph.initializer if tensor.name not in rounder.done]
        tensors = [data.tensor(tensor.name, read_tensor(tensor, source.parent)) for tensor in rest]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*tensors, *rounder.tensors])
    target.write_bytes(model.SerializeToString())


class _Rounder:
    """Replaces the nodes of one graph; `tensors` are the new initializers, `done` the weights not needed any more."""

    def __init__(self, graph: Any, folder: Path, plan: NbitsPlan, data: DataFile) -> None:
        self._folder, self._plan, self._data = folder, plan, data
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._matrices = {node.name for node in graph.node if self._is_matrix(node)}
        lookup = next(node for node in graph.node if node.name == EMBEDDING)
        # Where head and embedding are tied, the builder looks rows up in the transposed weight of the head.
        self._transpose = next(
            (n for n in graph.node if n.op_type == "Transpose" and n.output[0] == lookup.input[0]), None
        )
        self._parts: dict[str, _Parts] = {}
        self.tensors: list[Any] = []
        self.done: set[str] = set()
        names = sorted(self._matrices) + ([] if self._transpose else [EMBEDDING])
        for pattern in plan.eight_bit:
            if not fnmatch.filter([*names, EMBEDDING], pattern):
                raise ExportError(f"eight_bit: no matrix is named {pattern!r}; the names are {', '.join(names[:9])}...")

    def _is_matrix(self, node: Any) -> bool:
        weight = self._weights.get(node.input[1]) if node.op_type == "MatMul" else None
        return weight is not None and len(weight.dims) == 2

    def replaced(self, node: Any) -> list[Any]:
        """The nodes that stand for this one."""
        if node.name in self._matrices:
            return [self._matmul(node)]
        if node.name == EMBEDDING:
            return self._embedding(node)
        return [] if self._transpose is not None and node.name == self._transpose.name else [node]

    def _rounded(self, node: str, weight: str) -> _Parts:
        """The matrix of a node, rounded and written as outputs by inputs; a tied one once."""
        if weight in self._parts:
            return self._parts[weight]
        matrix = read_tensor(self._weights[weight], self._folder)
        matrix = matrix if node == EMBEDDING else matrix.T
        plan, bits = self._plan, self._plan.bits(node)
        method, symmetric = plan.way(node)
        rounded = None if bits == 8 else plan.ready.get(node)
        if rounded is None:
            rounded = round_matrix(matrix, method=method, bits=bits, block=plan.block, symmetric=symmetric)
        rows, blocks, block = rounded.q.shape
        if rows != matrix.shape[0] or blocks != -(-matrix.shape[1] // block):
            raise ExportError(f"{node} is {matrix.shape}, what was calibrated for it {rounded.q.shape}; export again")
        arrays: dict[str, Any] = {"q": pack(rounded.q, bits), "scale": rounded.scale}
        if rounded.zero is not None:
            arrays["zero"] = pack(rounded.zero, bits) if rounded.zero.dtype == np.uint8 else rounded.zero
        tensors = [self._data.tensor(f"{weight}.{part}{bits}", array) for part, array in arrays.items()]
        self.tensors += tensors
        self.done.add(weight)
        self._parts[weight] = _Parts([t.name for t in tensors], rows, matrix.shape[1], blocks, block, bits)
        return self._parts[weight]

    def _matmul(self, node: Any) -> Any:
        import onnx

        parts = self._rounded(node.name, node.input[1])
        return onnx.helper.make_node(
            "MatMulNBits",
            [node.input[0], *parts.names],
            list(node.output),
            name=f"{node.name}_Q{parts.bits}",
            domain="com.microsoft",
            K=parts.columns,
            N=parts.rows,
            bits=parts.bits,
            block_size=parts.block,
            accuracy_level=_ACCURACY_LEVEL,
        )

    def _embedding(self, node: Any) -> list[Any]:
        """Looks rows up in the rounded head, or in the embedding's own matrix; cuts off what pads them."""
        import onnx

        if self._transpose is None:
            parts = self._rounded(EMBEDDING, node.input[0])
        else:
            parts = self._rounded(HEAD, self._transpose.input[0])
        width = parts.blocks * parts.block
        q, *rest = parts.names
        base, out = EMBEDDING.removesuffix("/Gather"), node.output[0]
        found = out if width == parts.columns else f"{base}/padded"
        make = onnx.helper.make_node
        flat = self._numbers(f"{base}/flat", [parts.rows, width * parts.bits // 8])
        nodes = [
            make("Reshape", [q, flat], [f"{base}/Reshape/output_0"], name=f"{base}/Reshape"),
            make(
                "GatherBlockQuantized",
                [f"{base}/Reshape/output_0", node.input[1], *rest],
                [found],
                name=f"{base}/GatherBlockQuantized",
                domain="com.microsoft",
                bits=parts.bits,
                block_size=parts.block,
                gather_axis=0,
                quantize_axis=1,
            ),
        ]
        if found != out:
            cut = [self._numbers(f"{base}/{n}", [v]) for n, v in (("from", 0), ("to", parts.columns), ("axis", -1))]
            nodes.append(make("Slice", [found, *cut], [out], name=f"{base}/Slice"))
        return nodes

    def _numbers(self, name: str, values: list[int]) -> str:
        """A small constant, kept in the graph itself."""
        import onnx

        self.tensors.append(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
        return name
