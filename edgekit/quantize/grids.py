"""The integers that stand for a tensor's real numbers: scale, zero point, and their choice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekit.quantize.dialects import Dialect
from edgekit.values import Array

BIAS_BITS = 30
"""A bias has at most so many bits and its sign, so that sums with products stay in 32."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The integers of one tensor: real = scale * (integer - zero_point).

    `scale` (float32) and `zero_point` (the stored type) are scalars, or have one entry for each
    channel along `axis`. `bits` under 8 narrow the range to -(2^(bits-1) - 1) .. 2^(bits-1) - 1
    around the zero point; the stored type stays.
    """

    scale: Array
    zero_point: Array
    axis: int = 0
    bits: int = 8

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the most integer, before the zero point of narrow grids is looked at."""
        kind = np.iinfo(self.zero_point.dtype)
        if self.bits >= 8:
            return int(kind.min), int(kind.max)
        most = 2 ** (self.bits - 1) - 1
        middle = int(self.zero_point.flat[0])
        return middle - most, middle + most

    @property
    def range(self) -> tuple[float, float]:
        """The least and the most real number of a per-tensor grid."""
        least, most = self.limits
        scale, zero = float(self.scale), int(self.zero_point)
        return scale * (least - zero), scale * (most - zero)

    def steps(self, values: Array) -> Array:
        """The values in steps of the grid, not rounded: values / scale, float64."""
        found: Array = np.asarray(values, np.float64) / self._along(self.scale, values.ndim)
        return found

    def store(self, steps: Array) -> Array:
        """The stored integers of whole steps: the zero point added, clamped to the limits."""
        shifted = steps + self._along(self.zero_point, steps.ndim).astype(np.float64)
        found: Array = np.clip(shifted, *self.limits).astype(self.zero_point.dtype)
        return found

    def quantize(self, values: Array) -> Array:
        """The integers nearest to the values (ties to even), clamped to the limits."""
        return self.store(np.rint(self.steps(values)))

    def dequantize(self, integers: Array) -> Array:
        """The real numbers (float32) of integers, as DequantizeLinear gives them."""
        zero = self._along(self.zero_point, integers.ndim).astype(np.float32)
        found: Array = (integers.astype(np.float32) - zero) * self._along(self.scale, integers.ndim)
        return found

    def round_trip(self, values: Array) -> Array:
        """What is left of the values (float32) behind QuantizeLinear and DequantizeLinear."""
        return self.dequantize(self.quantize(values))

    def _along(self, numbers: Array, rank: int) -> Array:
        if not numbers.ndim:
            return numbers
        shape = [1] * rank
        shape[self.axis] = -1
        return numbers.reshape(shape)


def activation_grid(low: float, high: float, dialect: Dialect) -> Grid:
    """The per-tensor grid that covers [low, high] and holds 0 exactly.

    Symmetric: scale = max(|low|, |high|) / 127. Affine: scale = (high - low) / 255 over the range
    widened to 0, the zero point being the integer of 0.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    smallest = float(np.finfo(np.float32).tiny)
    if dialect.symmetric:
        scale = max(-low, high, smallest) / 127
        zero = 0
    else:
        scale = max(high - low, smallest) / 255
        zero = round(-low / scale) + np.iinfo(dialect.activation).min
    return Grid(
        scale=np.asarray(scale, np.float32), zero_point=np.asarray(zero, dialect.activation)
    )


def weight_grid(
    weight: Array, axis: int, dialect: Dialect, floor: Array | float = 0.0, *, bits: int = 8,
    per_tensor: bool = False,
) -> Grid:  # fmt: skip
    """The grid of a weight: scale = max|w| / (2^(bits-1) - 1), never 0 and never under `floor`.

    One scale for each output channel along `axis`, or one for all with `per_tensor`.
    """
    others = tuple(a for a in range(weight.ndim) if a != axis)
    amax = np.abs(weight).max(axis=others).astype(np.float64)
    smallest = max(float(amax.max()) * 1e-6, 1e-12)  # a dead channel must not have scale 0
    scale = np.maximum(np.maximum(amax, smallest) / (2 ** (bits - 1) - 1), floor)
    if per_tensor:
        scale = scale.max()
    zero = 128 if dialect.weight == "uint8" else 0
    return Grid(
        scale=np.asarray(scale, np.float32),
        zero_point=np.full(np.shape(scale), zero, dialect.weight), axis=axis, bits=bits,
    )  # fmt: skip


def bias_grid(source: Grid, weight: Grid, count: int) -> Grid:
    """The grid of an integer bias (count,): int32, scale s_x * s_w[k], zero point 0."""
    scale = np.broadcast_to(weight.scale * np.float32(source.scale), (count,)).astype(np.float32)
    return Grid(scale=scale, zero_point=np.zeros(scale.shape, np.int32))
