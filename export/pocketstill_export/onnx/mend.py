"""Built ONNX files: their weights read from the file beside them, mended, and written where they belong.

Mended here: the last dimension of the key-value cache is a symbol that transformers.js reads as 0, and external
data must be named `<model>.onnx_data` for it, inside of the protobuf too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

# Large tensors start at this, the coarsest page that a runtime maps files by.
_PAGE, _LARGE, _LINE = 1 << 16, 1 << 20, 64


def load_graph(path: Path) -> Any:
    """The ModelProto of an ONNX file, its weights left on disk."""
    import onnx

    return onnx.load(path, load_external_data=False)


def mend_cache(model: Any, head: int) -> None:
    """Writes the head size into the shapes of the cache's inputs and outputs."""
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.shape.dim[-1].Clear()
            value.type.tensor_type.shape.dim[-1].dim_value = head


def move_model(source: Path, target: Path, head: int) -> None:
    """Moves a built model to `target` and its external data to `<target>_data`, mended."""
    model = load_graph(source)
    mend_cache(model, head)
    target.parent.mkdir(exist_ok=True)
    data = target.with_name(target.name + "_data")
    for tensor in all_tensors(model.graph):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data.name
    source.with_name(source.name + ".data").replace(data)
    target.write_bytes(model.SerializeToString())


def all_tensors(graph: Any) -> Iterator[Any]:
    """Every tensor that a graph stores: initializers and constants, those of subgraphs too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from all_tensors(attribute.g)
            for subgraph in attribute.graphs:
                yield from all_tensors(subgraph)


def read_tensor(tensor: Any, folder: Path) -> npt.NDArray[Any]:
    """A tensor's numbers; those of an external one are mapped from its file, not read."""
    import onnx

    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    where = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape = tuple(tensor.dims)
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(folder / where["location"], dtype, "r", int(where.get("offset", 0)), shape)


class DataFile:
    """External data being written, tensor after tensor."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")

    def __enter__(self) -> DataFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def tensor(self, name: str, array: npt.NDArray[Any]) -> Any:
        """Appends an array, and returns the TensorProto that points to it."""
        import onnx

        array = np.ascontiguousarray(array)
        step = _PAGE if array.nbytes >= _LARGE else _LINE
        offset = -(-self._file.tell() // step) * step
        self._file.write(b"\0" * (offset - self._file.tell()))
        self._file.write(array.data)
        tensor = onnx.TensorProto(
            name=name,
            data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype),
            dims=array.shape,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        for key, value in (("location", self._path.name), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor
