"""Weights to few bits: three ways of choosing the scale and zero point of each block of a matrix.

A row of a matrix is cut into blocks of equally many weights; a block shares a scale and, unless it is symmetric, a
zero point: weight = scale * (q - zero). All is numpy in single precision, and a result depends on its block alone.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Rounding = Literal["rtn", "kquant", "hqq"]

# k-quant tries as many scales around the one that spans a block.
_TRIES = 20
# The half-quadratic solver's own constants, of its paper's reference implementation.
_LP_NORM, _BETA, _KAPPA, _ITERATIONS = 0.7, np.float32(10), 1.01, 20
# So many weights are rounded at a time by each thread: fewer, and the threads wait for the interpreter; more, and a
# dozen arrays of that size leave the cache. The blocks lie side by side, so that a sum over a block is one of rows.
_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Rounded:
    """A matrix of `rows` by `blocks` by `block`: q, unsigned; a scale a block; a zero point a block or None.

    Without zero points zero is half of the range: 8 for 4 bits, 128 for 8. Only hqq's are not whole numbers.
    """

    q: Bytes
    scale: Floats
    zero: Bytes | Floats | None
    bits: int

    def restored(self) -> Floats:
        """What the numbers stand for, (rows, blocks, block)."""
        zero = np.float32(1 << (self.bits - 1)) if self.zero is None else self.zero[..., None].astype(np.float32)
        restored: Floats = self.scale[..., None] * (self.q.astype(np.float32) - zero)
        return restored


def round_matrix(matrix: Floats, *, method: Rounding, bits: int, block: int, symmetric: bool) -> Rounded:
    """Rounds a matrix of shape (rows, columns), whose rows are padded with zeros to whole blocks.

    Args:
        matrix: outputs by inputs.
        method: `rtn` spans each block; `kquant` searches for the scale with the least weighted square error;
            `hqq` moves the zero points, to numbers that are not whole, and cannot be symmetric.
        bits: 4 or 8.
        block: weights that share a scale.
        symmetric: without zero points.
    """
    rows, columns = matrix.shape
    blocks = -(-columns // block)
    q = np.empty((rows, blocks, block), np.uint8)
    scale = np.empty((rows, blocks), np.float32)
    zero = np.empty((rows, blocks), np.float32 if method == "hqq" else np.uint8)
    solve = _METHODS[method]
    step = max(1, _AT_ONCE // (blocks * block))

    def round_rows(start: int) -> None:
        part = np.zeros((min(step, rows - start), blocks * block), np.float32)
        part[:, :columns] = matrix[start : start + step]
        found = solve(np.ascontiguousarray(part.reshape(-1, block).T), bits, symmetric)
        q[start : start + step] = found[0].T.reshape(-1, blocks, block)
        scale[start : start + step] = found[1].reshape(-1, blocks)
        zero[start : start + step] = found[2].reshape(-1, blocks)

    # numpy lets go of the interpreter while it computes.
    with ThreadPoolExecutor() as threads:
        list(threads.map(round_rows, range(0, rows, step)))
    return Rounded(q, scale, None if symmetric else zero, bits)


def pack(values: npt.NDArray[Any], bits: int) -> Bytes:
    """Two 4-bit numbers a byte along the last axis, the first in the low half; 8-bit ones as they are."""
    if bits == 8:
        return np.asarray(values, np.uint8)
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    return np.asarray(values[..., ::2] | (values[..., 1::2] << 4), np.uint8)


# Below, x is (block, blocks): the blocks lie side by side. Scales and zero points are (1, blocks).
_Found = tuple[Floats, Floats, Floats]


def _span(x: Floats, bits: int, symmetric: bool, stretch: float = 0.0) -> tuple[Floats, Floats]:
    """Scale and zero point that make the range of numbers, `stretch` of them more or fewer, cover each block."""
    most = np.float32((1 << bits) - 1)
    if symmetric:
        half = np.float32(1 << (bits - 1))
        # The weight of the largest size takes the end that has one number more.
        low, high = x.min(axis=0, keepdims=True), x.max(axis=0, keepdims=True)
        scale = np.where(high > -low, high, low) / np.float32(-half + stretch)
        zero = np.full_like(scale, half)
    else:
        low = np.minimum(x.min(axis=0, keepdims=True), np.float32(0))
        high = np.maximum(x.max(axis=0, keepdims=True), np.float32(0))
        scale = (high - low) / np.float32(most + stretch)
        zero = np.clip(np.rint(-low / np.where(scale == 0, np.float32(1), scale)), 0, most)
    return np.where(scale == 0, np.float32(1), scale), zero


def _numbers(x: Floats, scale: Floats, zero: Floats, bits: int) -> Floats:
    numbers: Floats = np.clip(np.rint(x / scale + zero), 0, (1 << bits) - 1)
    return numbers


def _rtn(x: Floats, bits: int, symmetric: bool) -> _Found:
    """Round to nearest, between the block's smallest and largest weight (zero is always a number)."""
    scale, zero = _span(x, bits, symmetric)
    return _numbers(x, scale, zero, bits), scale, zero


def _kquant(x: Floats, bits: int, symmetric: bool) -> _Found:
    """The scale with the least square error, larger weights counting more, as llama.cpp's k-quants search it.

    Tries scales that span a little more or less than the block, fits each by least squares to the numbers that it
    gives, and keeps the best. Unlike there the zero point is a whole number, and the error is judged with it.
    At 8 bits it is plain rounding: on the default student the search there bought less than one standard error.
    """
    if bits == 8:
        return _rtn(x, bits, symmetric)
    weight = np.sqrt(np.square(x).mean(axis=0, keepdims=True)) + np.abs(x)
    best_scale, best_zero = _span(x, bits, symmetric)
    best = _error(x, weight, best_scale, best_zero, bits)
    for number in range(_TRIES):
        scale, zero = _span(x, bits, symmetric, -1.0 + 0.1 * number)
        q = _numbers(x, scale, zero, bits)
        if not symmetric:
            scale, zero = _fit_line(x, q, weight, scale, zero, bits)
            q = _numbers(x, scale, zero, bits)
        scale = _fit_scale(x, q - zero, weight, scale)
        error = _error(x, weight, scale, zero, bits)
        better = error < best
        best = np.where(better, error, best)
        best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zero, best_zero)
    return _numbers(x, best_scale, best_zero, bits), best_scale, best_zero


def _error(x: Floats, weight: Floats, scale: Floats, zero: Floats, bits: int) -> Floats:
    rest = scale * (_numbers(x, scale, zero, bits) - zero) - x
    error: Floats = (weight * rest * rest).sum(axis=0, keepdims=True)
    return error


def _fit_scale(x: Floats, steps: Floats, weight: Floats, scale: Floats) -> Floats:
    """The scale s with the least weighted error of s * steps; the old one where there is nothing to fit."""
    above = (weight * steps * x).sum(axis=0, keepdims=True)
    below = (weight * steps * steps).sum(axis=0, keepdims=True)
    fitted: Floats = np.where((below > 0) & (above != 0), above / np.where(below > 0, below, 1), scale)
    return fitted


def _fit_line(x: Floats, q: Floats, weight: Floats, scale: Floats, zero: Floats, bits: int) -> tuple[Floats, Floats]:
    """Scale and zero point of the line through the weights over their numbers, by weighted least squares."""
    w, wq = weight.sum(axis=0, keepdims=True), (weight * q).sum(axis=0, keepdims=True)
    wqq, wx = (weight * q * q).sum(axis=0, keepdims=True), (weight * x).sum(axis=0, keepdims=True)
    wqx = (weight * q * x).sum(axis=0, keepdims=True)
    spread = w * wqq - wq * wq
    safe = np.where(spread > 0, spread, np.float32(1))
    slope = (w * wqx - wq * wx) / safe
    fits = (spread > 0) & (slope > 0)
    slope = np.where(fits, slope, scale)
    least = (wqq * wx - wq * wqx) / safe
    return slope, np.where(fits, np.clip(np.rint(-least / slope), 0, (1 << bits) - 1), zero)


def _hqq(x: Floats, bits: int, symmetric: bool) -> _Found:
    """Half-quadratic quantization (Badri and Shaji 2023, mobiusml.github.io/hqq_blog): zero points that leave few
    large errors.

    Minimizes the l_0.7 norm of the error by turns: the error is shrunk towards zero, then the zero point becomes the
    mean that the shrunk error asks for. The scale stays. Rounded to whole numbers these zero points would be those
    that rtn has.
    """
    if symmetric:
        raise ValueError("hqq moves the zero points, and symmetric blocks have none")
    low, high = x.min(axis=0, keepdims=True), x.max(axis=0, keepdims=True)
    scale = np.where(high > low, (high - low) / np.float32((1 << bits) - 1), np.float32(1))
    zero = np.rint(-low / scale)
    best_zero, best = zero, np.full_like(scale, np.inf)
    beta = _BETA
    for _ in range(_ITERATIONS):
        q = _numbers(x, scale, zero, bits)
        rest = x - scale * (q - zero)
        size = np.abs(rest)
        total = size.sum(axis=0, keepdims=True)
        better = total < best
        best, best_zero = np.where(better, total, best), np.where(better, zero, best_zero)
        shrunk = np.sign(rest) * np.maximum(size - (size + np.float32(1e-8)) ** np.float32(_LP_NORM - 1) / beta, 0)
        zero = (q - (x - shrunk) / scale).mean(axis=0, keepdims=True, dtype=np.float32)
        beta *= np.float32(_KAPPA)
    return _numbers(x, scale, best_zero, bits), scale, best_zero


_METHODS: dict[Rounding, Callable[[Floats, int, bool], _Found]] = {"rtn": _rtn, "kquant": _kquant, "hqq": _hqq}
