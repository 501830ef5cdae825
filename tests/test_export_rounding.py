"""Rounded weights are what onnxruntime reads, and no worse than its own quantizers make them."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("onnxruntime.quantization", reason="needs the workshop extra")

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from pocketstill_export.onnx.rounding import Rounded, pack, round_matrix

RNG = np.random.default_rng(3)
# A few outliers and a block of zeros, as trained weights have.
MATRIX = (RNG.standard_t(4, (64, 256)) * 0.05).astype(np.float32)
MATRIX[5, 32:64] = 0


def run(node: Any, inputs: dict[str, np.ndarray], constants: dict[str, np.ndarray]) -> np.ndarray:
    """One operator of onnxruntime's own."""
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in inputs.items()
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, inputs)[0]
    return found


def tensors(rounded: Rounded) -> dict[str, np.ndarray]:
    found = {"q": pack(rounded.q, rounded.bits), "scale": rounded.scale}
    if rounded.zero is not None:
        found["zero"] = pack(rounded.zero, rounded.bits) if rounded.zero.dtype == np.uint8 else rounded.zero
    return found


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("columns", "block"), [(128, 32), (96, 32), (80, 16), (64, 128), (100, 32)])
def test_onnxruntime_reads_what_was_meant(columns: int, block: int, symmetric: bool, bits: int) -> None:
    """Odd numbers of blocks and padded rows too: zero points of 4 bits are packed by the row."""
    matrix = MATRIX[:, :columns] + np.float32(0.03)
    rounded = round_matrix(matrix, method="kquant", bits=bits, block=block, symmetric=symmetric)
    meant = rounded.restored().reshape(len(matrix), -1)
    parts = tensors(rounded)
    ids = np.arange(len(matrix))
    settings: dict[str, Any] = {"domain": "com.microsoft", "bits": bits, "block_size": block}
    flat = parts | {"q": parts["q"].reshape(len(matrix), -1)}
    names = ["q", "ids", *list(flat)[1:]]
    lookup = helper.make_node("GatherBlockQuantized", names, ["out"], gather_axis=0, quantize_axis=1, **settings)
    assert np.array_equal(run(lookup, {"ids": ids}, flat), meant)
    x = RNG.normal(size=(3, columns)).astype(np.float32)
    product = helper.make_node("MatMulNBits", ["x", *parts], ["out"], K=columns, N=len(matrix), **settings)
    assert np.allclose(run(product, {"x": x}, parts), x @ meant[:, :columns].T, atol=1e-4)


def test_zero_points_of_hqq_are_read_as_fractions() -> None:
    rounded = round_matrix(MATRIX, method="hqq", bits=4, block=32, symmetric=False)
    assert rounded.zero is not None
    assert np.abs(rounded.zero - np.rint(rounded.zero)).max() > 0.1
    parts = tensors(rounded)
    x = RNG.normal(size=(3, 256)).astype(np.float32)
    product = helper.make_node(
        "MatMulNBits", ["x", *parts], ["out"], K=256, N=64, bits=4, block_size=32, domain="com.microsoft"
    )
    meant = rounded.restored().reshape(64, -1)
    assert np.allclose(run(product, {"x": x}, parts), x @ meant.T, atol=1e-4)


def weighted_error(restored: np.ndarray, block: int) -> float:
    """What k-quants minimize: squares, larger weights counting more."""
    x = MATRIX.reshape(-1, block)
    weight = np.sqrt((x * x).mean(axis=1, keepdims=True)) + np.abs(x)
    return float((weight * (restored.reshape(-1, block) - x) ** 2).sum())


@pytest.mark.parametrize("block", [16, 32, 128])
def test_kquant_has_less_error_than_onnxruntime_s(block: int) -> None:
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    q, scale, zero = quant_tensor_k_quant_cpu(np.delete(MATRIX, 5, axis=0), 4, block)
    theirs = np.insert(((q - zero) * scale).reshape(63, -1), 5, MATRIX[5], axis=0)
    ours = round_matrix(MATRIX, method="kquant", bits=4, block=block, symmetric=False)
    assert weighted_error(ours.restored(), block) < weighted_error(theirs, block)
    plain = round_matrix(MATRIX, method="rtn", bits=4, block=block, symmetric=False)
    assert weighted_error(ours.restored(), block) < 0.97 * weighted_error(plain.restored(), block)


@pytest.mark.parametrize("block", [32, 128])
def test_symmetric_rtn_is_onnxruntime_s(block: int) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    theirs = DefaultWeightOnlyQuantizer(DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True))
    _, scale, _ = theirs.qbits_block_quant(np.ascontiguousarray(MATRIX.T))
    ours = round_matrix(MATRIX, method="rtn", bits=4, block=block, symmetric=True)
    mine = np.where(MATRIX.reshape(64, -1, block).any(axis=2), ours.scale, 0)
    assert np.allclose(mine, scale, rtol=1e-6)


@pytest.mark.parametrize("block", [32, 128])
def test_hqq_leaves_no_larger_errors_than_onnxruntime_s(block: int) -> None:
    """The norm that both minimize; ours stops block by block, theirs for the whole matrix."""
    import torch
    from onnxruntime.quantization.matmul_nbits_quantizer import HQQWeightOnlyQuantConfig, HQQWeightOnlyQuantizer

    quantizer = HQQWeightOnlyQuantizer(HQQWeightOnlyQuantConfig(block_size=block, bits=4))
    q, scale, zero = (t.numpy() for t in quantizer.quantize_internal(torch.from_numpy(MATRIX), 4, group_size=block))
    theirs = (q.reshape(64, -1, block) - zero[..., None]) * scale[..., None]
    ours = round_matrix(MATRIX, method="hqq", bits=4, block=block, symmetric=False).restored()
    norm = [float((np.abs(found.reshape(MATRIX.shape) - MATRIX) ** 0.7).sum()) for found in (ours, theirs)]
    assert norm[0] < 1.002 * norm[1]


def test_a_row_is_rounded_by_itself() -> None:
    """Whatever else is in the matrix, and however much of it is rounded at a time."""
    many = np.tile(MATRIX, (40, 4))
    whole = round_matrix(many, method="kquant", bits=4, block=32, symmetric=False).restored()
    one = round_matrix(many[-1:], method="kquant", bits=4, block=32, symmetric=False).restored()
    assert np.array_equal(whole[-1:], one)
