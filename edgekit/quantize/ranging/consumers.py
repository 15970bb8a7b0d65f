"""What a tensor's weighted consumers make of it: their rows, and the range that serves them best.

Convolutions and matrix products are rows times a matrix: a row is what one output position reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.models.model import Model, attribute, constant_of
from edgekit.quantize.ranging.histogram import TensorRange
from edgekit.quantize.ranging.levels import mse
from edgekit.values import Array

MOST_ROWS = 512
"""Rows kept of each consumer."""

_FEWEST_ROWS = 16
_ROWS_OF_A_BATCH = 16  # where nobody knows how many batches there are
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
SHARES = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Of the observed ends: candidates of `best` beside those of the other ways to choose."""


def weighted_consumers(model: Model) -> dict[str, tuple[ir.Node, ...]]:
    """By tensor, the named nodes that multiply it with a constant matrix or kernel."""
    found: dict[str, tuple[ir.Node, ...]] = {}
    for node in model.graph:
        source = node.inputs[0] if node.inputs else None
        if node.name and source is not None and source.name and weights_of(node) is not None:
            found[source.name] = (*found.get(source.name, ()), node)
    return found


def weights_of(node: ir.Node) -> Array | None:
    """The weights as (groups, inputs of a group, outputs of a group); None where it has none."""
    if node.domain or node.op_type not in _WEIGHTED or len(node.inputs) < 2:
        return None
    weight = constant_of(node.inputs[1])
    if weight is None or weight.dtype != np.float32 or weight.ndim < 2:
        return None
    groups = int(attribute(node, "group", 1))
    if node.op_type == "Conv":
        kernels: Array = weight.reshape(groups, weight.shape[0] // groups, -1).transpose(0, 2, 1)
        return kernels
    if node.op_type == "ConvTranspose":
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    if weight.ndim != 2 or attribute(node, "transA", 0):
        return None
    return (weight.T if attribute(node, "transB", 0) else weight)[None]


def row_indices(
    node: ir.Node, shape: Sequence[int], count: int, noise: np.random.Generator
) -> tuple[Array, Array | None]:
    """Where `count` random rows of the node lie in its flattened input, and what is padding.

    Both (count, groups, inputs of a group): int64, and True where the row reads padding (None where
    none can).
    """
    if node.op_type in ("Gemm", "MatMul"):
        width = shape[-1]
        rows = noise.integers(0, max(int(np.prod(shape[:-1])), 1), count)
        return (rows[:, None] * width + np.arange(width))[:, None, :], None
    batch, channels, *sizes = shape
    groups = int(attribute(node, "group", 1))
    plane = int(np.prod(sizes))
    offsets, outside = np.zeros((count, 1), np.int64), np.zeros((count, 1), bool)
    for axis, size in enumerate(sizes):
        positions = _positions(node, axis, size, count, noise)
        offsets = offsets[:, :, None] * size + positions.clip(0, size - 1)[:, None, :]
        outside = outside[:, :, None] | ((positions < 0) | (positions >= size))[:, None, :]
        offsets, outside = offsets.reshape(count, -1), outside.reshape(count, -1)
    samples = noise.integers(0, batch, count)
    planes = samples[:, None] * channels + np.arange(channels)
    found = planes[:, :, None] * plane + offsets[:, None, :]
    padding = np.broadcast_to(outside[:, None, :], found.shape)
    shaped = (count, groups, -1)
    return found.reshape(shaped), padding.reshape(shaped) if outside.any() else None


class RowSample:
    """A bounded number of the rows that one consumer reads, spread over the batches."""

    def __init__(self, node: ir.Node, most_bytes: int, batches: int) -> None:
        weights = weights_of(node)
        assert weights is not None
        groups, inputs, _ = weights.shape
        fitting = most_bytes // (4 * groups * inputs)
        self._node = node
        self._shape = groups, inputs
        self._most = max(min(MOST_ROWS, fitting), _FEWEST_ROWS)
        self._each = -(-self._most // batches) if batches else _ROWS_OF_A_BATCH
        self._kept: Array = np.empty((self._most, groups, inputs), np.float32)
        self._count = 0
        self._padding: Array | None = None
        self.drawn = 0

    def draw(self, shape: Array, noise: np.random.Generator) -> Array:
        """Where the next rows lie in the flattened tensor (n,); `take` gets what is there."""
        count = min(self._each, self._most - self._count)
        sizes = [int(size) for size in shape]
        self.drawn = 0
        if not count:
            return np.zeros(0, np.int64)
        indices, self._padding = row_indices(self._node, sizes, count, noise)
        self.drawn = indices.size
        return indices.reshape(-1)

    def take(self, values: Array) -> None:
        """Keeps the values (n,) at the indices that `draw` gave."""
        if not values.size:
            return
        rows = values.reshape(-1, *self._shape)
        if self._padding is not None:
            rows = np.where(self._padding, np.float32(0), rows)
        # Copied: `values` is a part of a larger array, which would stay alive with it.
        self._kept[self._count : self._count + len(rows)] = rows
        self._count += len(rows)

    def finished(self) -> Array:
        """The rows so far: (rows, groups, inputs of a group) float32."""
        return self._kept[: self._count]


@dataclass(frozen=True, kw_only=True)
class Best:
    """For each tensor the range with the least error at the output of its consumers.

    `weights` are those of `weights_of` by node name. A tensor of which no rows were kept gets the
    range of `mse`.
    """

    weights: Mapping[str, Array]
    symmetric: bool

    def choose(
        self, observed: TensorRange, others: Sequence[tuple[float, float]]
    ) -> tuple[float, float]:
        """The best of `others` and of shares of the observed ends.

        The error of a candidate is the sum over the consumers of |(x_q - x) W|^2 / |x W|^2, x being
        the kept rows and x_q what the integers make of them.
        """
        known = {node: rows for node, rows in observed.rows.items() if node in self.weights}
        if not known or not observed.amax:
            return mse(observed, symmetric=self.symmetric)
        candidates = list(dict.fromkeys([*others, *self._shares(observed)]))
        errors = np.zeros(len(candidates))
        for node, rows in known.items():
            weights = self.weights[node]
            power = _energy(rows, weights)
            if power <= 0:
                continue
            for place, (low, high) in enumerate(candidates):
                rounded = rounded_rows(rows, low, high, symmetric=self.symmetric)
                errors[place] += _energy(rounded - rows, weights) / power
        return candidates[int(errors.argmin())]

    def _shares(self, observed: TensorRange) -> list[tuple[float, float]]:
        low, high = min(observed.low, 0.0), max(observed.high, 0.0)
        if self.symmetric:
            amax = observed.amax
            return [(max(low, -s * amax), min(high, s * amax)) for s in SHARES]
        if low == 0 or high == 0:
            return [(s * low, s * high) for s in SHARES]
        both = [(s * low, s * high) for s in SHARES]
        return [*both, *((low, s * high) for s in SHARES), *((s * low, high) for s in SHARES)]


def rounded_rows(rows: Array, low: float, high: float, *, symmetric: bool) -> Array:
    """The values that integers over the range make of the rows, float32, of the same shape."""
    low, high = min(low, 0.0), max(high, 0.0)
    smallest = float(np.finfo(np.float32).tiny)
    if symmetric:
        scale, first = max(-low, high, smallest) / 127, -128
    else:
        scale = max(high - low, smallest) / 255
        first = -round(-low / scale)
    steps: Array = rows * np.float32(1 / scale)
    np.rint(steps, out=steps)
    np.clip(steps, first, first + 255, out=steps)
    steps *= np.float32(scale)
    return steps


def _energy(rows: Array, weights: Array) -> float:
    """|rows W|^2 summed over rows, groups and outputs: (rows, groups, k) and (groups, k, n)."""
    if weights.shape[2] == 1:  # depthwise: one product each
        outputs = np.einsum("rgk,gk->rg", rows, weights[:, :, 0])
    elif len(weights) == 1:
        outputs = rows[:, 0] @ weights[0]
    else:
        outputs = rows.transpose(1, 0, 2) @ weights
    return float(np.vdot(outputs, outputs))


def _positions(
    node: ir.Node, axis: int, size: int, count: int, noise: np.random.Generator
) -> Array:
    """What `count` random outputs read along one axis: (count, kernel size), may be outside."""
    if node.op_type == "ConvTranspose":
        return noise.integers(0, size, (count, 1))
    weight = node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    kernel = int(str(weight.shape[2 + axis]))
    stride = int(_listed(node, "strides", axis, 1))
    dilation = int(_listed(node, "dilations", axis, 1))
    reach = dilation * (kernel - 1) + 1
    begin, outputs = _listed(node, "pads", axis, 0), 0
    end = _listed(node, "pads", axis + weight.shape.rank() - 2, 0)
    kind = attribute(node, "auto_pad", "NOTSET")
    if kind.startswith("SAME"):
        outputs = -(-size // stride)
        needed = max((outputs - 1) * stride + reach - size, 0)
        begin = needed // 2 if kind == "SAME_UPPER" else needed - needed // 2
    else:
        outputs = (size + begin + end - reach) // stride + 1
    starts = noise.integers(0, max(outputs, 1), count) * stride - begin
    found: Array = starts[:, None] + np.arange(kernel) * dilation
    return found


def _listed(node: ir.Node, name: str, index: int, default: int) -> int:
    found = attribute(node, name)
    return default if found is None else int(found[index])
