"""LoRA adapters beside an ONNX model: one graph, many `.onnx_adapter` files, chosen when the model runs.

onnxruntime gives the tensors of an active adapter to the inputs of their names; onnxruntime-genai loads them with
`Adapters.load` and `Generator.set_active_adapter`. The builder can only bake one adapter in. Here each projection
that an adapter touches gets two inputs of any rank, whose default has rank 0 and adds an exact zero: without an
adapter the model is its base.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketstill_export.adapters import Adapter, check_names, read_adapter
from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.errors import ExportError
from pocketstill_export.variants import VariantSpec

# Of the base that adapters are made for: onnxruntime stores it and leaves its meaning to us.
_VERSION = 1


@dataclass(frozen=True)
class Slot:
    """Where adapters enter the graph: one pair of inputs for projections that read the same values.

    Query, key and value share a pair, whose B is block-diagonal. That suits the builder's one node for all three as
    well as three nodes, and costs two small products a layer instead of six.

    Attributes:
        name: of the slot, and of the builder's node where one does it all.
        inputs: values a token that it reads.
        nodes: the builder's nodes otherwise, in the order of the outputs, with the outputs of each.
        weights: first output row of each base weight that lies in the slot.
    """

    name: str
    inputs: int
    nodes: tuple[tuple[str, int], ...]
    weights: dict[str, int]

    @property
    def outputs(self) -> int:
        return sum(width for _, width in self.nodes)

    @property
    def a(self) -> str:
        """The name of the graph's input for A transposed, (inputs, rank)."""
        return self.name.strip("/").replace("/", ".") + ".lora_A.weight"

    @property
    def b(self) -> str:
        """The name of the graph's input for B transposed, (rank, outputs)."""
        return self.name.strip("/").replace("/", ".") + ".lora_B.weight"


def add_onnx_adapters(
    checkpoint: Checkpoint, folder: str | Path, specs: Sequence[VariantSpec], adapters: Mapping[str, str | Path]
) -> dict[str, list[str]]:
    """Opens the ONNX models of `specs` to adapters, and writes `adapters/NAME.onnx_adapter` beside them.

    Args:
        checkpoint: the base.
        folder: the bundle, in which `build_onnx` has written.
        specs: the variants; those of other engines are passed over.
        adapters: PEFT's folders by name.

    Returns:
        each adapter's files, relative to `folder`, by its name: a graph in half precision wants a file of its own,
        `adapters/NAME-fp16.onnx_adapter`.

    Raises:
        ExportError: an adapter cannot be kept apart (see `read_adapter`), or touches what has no place in the graph.
    """
    import onnx

    folder = Path(folder)
    check_names(adapters)
    read = {name: read_adapter(checkpoint, path) for name, path in adapters.items()}
    slots = adapter_slots(checkpoint, read.values())
    types: set[int] = set()
    for spec in specs:
        if spec.engine == "onnx":
            path = folder / spec.file
            model = onnx.load(path, load_external_data=False)
            types.add(_open_graph(model.graph, slots, path))
            path.write_bytes(model.SerializeToString(deterministic=True))
    written: dict[str, list[str]] = {name: [] for name in read}
    for kind in sorted(types):
        (folder / "adapters").mkdir(exist_ok=True)
        half = kind == onnx.TensorProto.FLOAT16
        for name, adapter in read.items():
            file = f"adapters/{name}{'-fp16' if half else ''}.onnx_adapter"
            _write_adapter(adapter, slots, folder / file, np.float16 if half else np.float32)
            written[name].append(file)
    return written


def adapter_slots(checkpoint: Checkpoint, adapters: Iterable[Adapter]) -> list[Slot]:
    """The slots that these adapters need, first layer first.

    Raises:
        ExportError: a weight that an adapter touches has no slot.
    """
    wanted = {weight: adapter.folder for adapter in adapters for weight in adapter.pairs}
    slots = [slot for slot in _all_slots(checkpoint) if any(weight in wanted for weight in slot.weights)]
    reached = {weight for slot in slots for weight in slot.weights}
    for weight, folder in wanted.items():
        if weight not in reached:
            raise ExportError(
                f"{folder}: {weight} has no place for an adapter in ONNX; merge the adapter into the base instead"
            )
    return slots


def _all_slots(checkpoint: Checkpoint) -> list[Slot]:
    slots: list[Slot] = []
    for layer in range(int(checkpoint.config.num_hidden_layers)):
        source, node = f"model.layers.{layer}", f"/model/layers.{layer}"
        attention = ("q_proj", "k_proj", "v_proj")
        slots += _slot(checkpoint, f"{node}/attn/qkv_proj", f"{source}.self_attn", attention, "qkv_proj")
        slots += _slot(checkpoint, f"{node}/attn/o_proj", f"{source}.self_attn", ("o_proj",))
        if f"{source}.mlp.gate_up_proj.weight" in checkpoint.shapes:
            slots += _slot(
                checkpoint, f"{node}/mlp/gate_up_proj", f"{source}.mlp", ("gate_proj", "up_proj"), "gate_up_proj"
            )
        else:
            slots += _slot(checkpoint, f"{node}/mlp/gate_proj", f"{source}.mlp", ("gate_proj",))
            slots += _slot(checkpoint, f"{node}/mlp/up_proj", f"{source}.mlp", ("up_proj",))
        slots += _slot(checkpoint, f"{node}/mlp/down_proj", f"{source}.mlp", ("down_proj",))
    if "lm_head.weight" in checkpoint.shapes:
        rows, inputs = checkpoint.shapes["lm_head.weight"]
        slots.append(Slot("/lm_head", inputs, (("/lm_head", rows),), {"lm_head.weight": 0}))
    return slots


def _slot(
    checkpoint: Checkpoint, name: str, source: str, parts: tuple[str, ...], together: str | None = None
) -> list[Slot]:
    """The slot `name` of the module `source`, whose parts the checkpoint stores apart or `together`; none where it
    has neither.
    """
    parent = name.rpartition("/")[0]
    weights = [f"{source}.{part}.weight" for part in parts]
    if together is not None and f"{source}.{together}.weight" in checkpoint.shapes:
        rows, inputs = checkpoint.shapes[f"{source}.{together}.weight"]
        widths = _widths(checkpoint, rows, len(parts))
        offsets = {f"{source}.{together}.weight": 0}
    elif all(weight in checkpoint.shapes for weight in weights):
        widths = [checkpoint.shapes[weight][0] for weight in weights]
        inputs = checkpoint.shapes[weights[0]][1]
        offsets = {weight: sum(widths[:at]) for at, weight in enumerate(weights)}
    else:
        return []
    return [Slot(name, inputs, tuple((f"{parent}/{part}", w) for part, w in zip(parts, widths, strict=True)), offsets)]


def _widths(checkpoint: Checkpoint, rows: int, parts: int) -> list[int]:
    """Outputs of the parts of a weight that is stored in one piece: equal ones, or queries, keys and values."""
    if parts == 2:
        return [rows // 2, rows // 2]
    queries, keys = (int(getattr(checkpoint.config, f"num_{kind}_heads")) for kind in ("attention", "key_value"))
    head = rows // (queries + 2 * keys)
    return [queries * head, keys * head, keys * head]


def _open_graph(graph: Any, slots: Sequence[Slot], path: Path) -> int:
    """Adds the inputs and products of the slots in place; returns onnx's element type of the inputs."""
    import onnx

    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    found: set[int] = set()
    additions: dict[str, list[Any]] = {}
    places = {node.name: place for place, node in enumerate(graph.node)}
    for slot in slots:
        projections = _projections(graph, slot, path)
        source = projections[0].input[0]
        kind = types.get(source) or types["past_key_values.0.key"]
        found.add(kind)
        # Of its own for each slot: onnxruntime takes sizes of one name for equal, and reuses buffers by them.
        rank = f"{slot.a}.rank"
        for name, shape in ((slot.a, (slot.inputs, rank)), (slot.b, (rank, slot.outputs))):
            graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
            empty = [0 if size == rank else size for size in shape]
            graph.initializer.append(onnx.helper.make_tensor(name, kind, empty, b"", raw=True))
        ends = _ends(graph, projections)
        last = max(ends, key=lambda end: places[end.name])
        additions[last.name] = _products(graph, slot, source, ends)
    nodes = [one for node in graph.node for one in (node, *additions.get(node.name, ()))]
    del graph.node[:]
    graph.node.extend(nodes)
    if len(found) != 1:
        raise ExportError(f"{path}: its projections are of several types, no adapter fits; leave the variant out")
    return found.pop()


def _products(graph: Any, slot: Slot, source: str, ends: Sequence[Any]) -> list[Any]:
    """The nodes of one slot; they add to the outputs of `ends`, which are renamed."""
    import onnx

    make, base = onnx.helper.make_node, f"{slot.name}/lora"
    low, added = f"{base}/A/output_0", f"{base}/B/output_0"
    nodes = [
        make("MatMul", [source, slot.a], [low], name=f"{base}/A/MatMul"),
        make("MatMul", [low, slot.b], [added], name=f"{base}/B/MatMul"),
    ]
    parts = [added]
    if len(ends) > 1:
        parts = [f"{base}/Split/output_{at}" for at in range(len(ends))]
        sizes = onnx.numpy_helper.from_array(np.array([w for _, w in slot.nodes], dtype=np.int64), f"{base}/sizes")
        graph.initializer.append(sizes)
        nodes.append(make("Split", [added, sizes.name], parts, name=f"{base}/Split", axis=-1))
    for end, part in zip(ends, parts, strict=True):
        output = end.output[0]
        end.output[0] = f"{output}/base"
        nodes.append(make("Add", [f"{output}/base", part], [output], name=f"{end.name}/lora/Add"))
    return nodes


def _projections(graph: Any, slot: Slot, path: Path) -> list[Any]:
    """The node that does the slot, or the nodes that do its parts, in the order of the graph's own."""
    by_base = {
        node.name.rpartition("/MatMul")[0]: node for node in graph.node if node.op_type in ("MatMul", "MatMulNBits")
    }
    names = [slot.name] if slot.name in by_base else [name for name, _ in slot.nodes]
    nodes = [by_base[name] for name in names if name in by_base]
    if len(nodes) < len(names) or len({node.input[0] for node in nodes}) != 1:
        raise ExportError(f"{path}: no projection {slot.name} to add adapters to; leave the variant out")
    return nodes


def _ends(graph: Any, projections: Sequence[Any]) -> list[Any]:
    """The nodes after which adapters are added: the bias where there is one, which onnxruntime then still fuses into
    the product, else the projection.
    """
    stored = {tensor.name for tensor in graph.initializer}
    ends = []
    for projection in projections:
        readers = [node for node in graph.node if projection.output[0] in node.input]
        bias = len(readers) == 1 and readers[0].op_type == "Add" and any(name in stored for name in readers[0].input)
        ends.append(readers[0] if bias else projection)
    return ends


def _write_adapter(adapter: Adapter, slots: Sequence[Slot], path: Path, dtype: type[np.floating[Any]]) -> None:
    """Writes the adapter's part of each slot in onnxruntime's own format, the scale within B."""
    import onnxruntime

    parameters = {}
    for slot in slots:
        pair = _packed(adapter, slot)
        if pair is not None:
            for name, array in zip((slot.a, slot.b), pair, strict=True):
                if not np.isfinite(narrow := array.astype(dtype)).all():
                    raise ExportError(f"{adapter.folder}: {name} is too large for f16; leave onnx-fp16 out")
                parameters[name] = onnxruntime.OrtValue.ortvalue_from_numpy(narrow)
    file = onnxruntime.AdapterFormat()
    file.set_adapter_version(_VERSION)
    file.set_model_version(_VERSION)
    file.set_parameters(parameters)
    file.export_adapter(str(path))


def _packed(adapter: Adapter, slot: Slot) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
    """A transposed, (inputs, ranks of all parts), and B transposed, block-diagonal, times the scale; None where the
    adapter leaves the slot alone.
    """
    pairs = {weight: adapter.pairs[weight] for weight in slot.weights if weight in adapter.pairs}
    if not pairs:
        return None
    ranks = sum(pair.rank for pair in pairs.values())
    a = np.concatenate([pair.a.numpy().T for pair in pairs.values()], axis=1)
    b = np.zeros((ranks, slot.outputs), dtype=np.float32)
    row = 0
    for weight, pair in pairs.items():
        block = pair.b.numpy().T * np.float32(pair.scale)
        column = slot.weights[weight]
        b[row : row + pair.rank, column : column + block.shape[1]] = block
        row += pair.rank
    return np.ascontiguousarray(a), b
