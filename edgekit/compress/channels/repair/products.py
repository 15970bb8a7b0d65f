"""Nodes that multiply what they read by a constant weight, as one matrix product of rows.

Whatever the operator, its output at a place is a row x (d,) times a matrix W (d, o), for each group
of channels: of a convolution x is the window under the kernel (channels first, then the kernel's
places), of a transposed one the window of the input with zeros between its pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from edgekit.models.model import attribute, constant_of, static_shape
from edgekit.models.operators import Mode, Op
from edgekit.models.operators.convolution import same_pads, spatial, torch_pad, written_pads
from edgekit.values import Array

CONVOLUTIONS = ("Conv", "ConvTranspose")
_PRODUCTS = (*CONVOLUTIONS, "Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True)
class Product:
    """A node and the initializer that is its weight; `turned`: by a Transpose between the two."""

    node: ir.Node
    weight: str
    shape: tuple[int, ...]
    turned: bool = False

    @property
    def name(self) -> str:
        """The node's name, or its output's where it has none."""
        return self.node.name or self.node.outputs[0].name or ""

    @property
    def source(self) -> str:
        """The name of the value that it multiplies."""
        return _name(self.node.inputs[0])

    @property
    def output(self) -> str:
        """The name of what it makes."""
        return _name(self.node.outputs[0])

    @property
    def groups(self) -> int:
        """Into how many groups of channels the product falls apart."""
        return int(attribute(self.node, "group", 1)) if self._is_convolution else 1

    @property
    def channels(self) -> int:
        """How many channels it makes."""
        times = self.groups if self.node.op_type == "ConvTranspose" else 1
        return times * self.shape[self.made_axis]

    @property
    def width(self) -> int:
        """How many numbers a row has."""
        taps = math.prod(self.shape[2:])
        if self.node.op_type == "ConvTranspose":
            return self.shape[0] // self.groups * taps
        return self.shape[self.read_axis] * taps

    @property
    def channel_axis(self) -> int:
        """The axis of the output that its channels lie on."""
        return 1 if self._is_convolution else -1

    @property
    def made_axis(self) -> int:
        """The axis of the weight that its output channels lie on."""
        if self.node.op_type == "Conv":
            return 0
        if self.node.op_type == "ConvTranspose":
            return 1
        return 0 if self._is_turned else 1

    @property
    def read_axis(self) -> int:
        """The axis of the weight that its input channels lie on (in a group, of a grouped Conv)."""
        return 1 - self.made_axis

    @property
    def _is_convolution(self) -> bool:
        return self.node.op_type in CONVOLUTIONS

    @property
    def _is_turned(self) -> bool:
        return self.turned != bool(attribute(self.node, "transB", 0))

    @property
    def _gain(self) -> float:
        """Gemm's alpha."""
        return float(attribute(self.node, "alpha", 1.0)) if self.node.op_type == "Gemm" else 1.0

    def matrix(self, stored: Array) -> Tensor:
        """The stored weight as (groups, d, o)."""
        weight = torch.from_numpy(np.asarray(stored, np.float64))
        if not self._is_convolution:
            return self._gain * (weight.mT if self._is_turned else weight)[None]
        split = _split(weight, 0, self.groups)  # (g, out or in of the group, ...)
        if self.node.op_type == "Conv":
            turned: Tensor = split.flatten(2).mT
            return turned
        flipped = split.flip(list(range(3, split.ndim))).movedim(2, -1)  # (g, in, k..., out)
        found: Tensor = flipped.flatten(1, -2)
        return found

    def stored(self, matrix: Tensor, like: Array) -> Array:
        """The matrix (groups, d, o) in the shape and type that the weight is stored in."""
        kernel = like.shape[2:]
        if not self._is_convolution:
            weight = matrix[0].mT if self._is_turned else matrix[0]
            weight = weight / self._gain
        elif self.node.op_type == "Conv":
            weight = matrix.mT.reshape(like.shape)
        else:
            inputs = like.shape[0] // self.groups
            split = matrix.reshape(self.groups, inputs, *kernel, -1).movedim(-1, 2)
            weight = split.flip(list(range(3, split.ndim))).reshape(like.shape)
        found: Array = weight.numpy().astype(like.dtype)
        return found

    def places(self, output: Tensor, most: int, generator: torch.Generator) -> Tensor:
        """At most that many places of an output batch, drawn at random, sorted."""
        count = math.prod(output.shape[2:] if self._is_convolution else output.shape[:-1])
        if most >= count:
            return torch.arange(count)
        return torch.randperm(count, generator=generator)[:most].sort().values

    def samples_apart(self, samples: int) -> int:
        """In how many samples each of the `places` is read at once."""
        return samples if self._is_convolution else 1

    def columns(self, output: Tensor, places: Tensor) -> Tensor:
        """The output at those places, (groups, rows, o) in single precision."""
        if not self._is_convolution:
            return output.flatten(0, -2)[places][None].float()
        taken = output.flatten(2)[:, :, places]  # (n, c, places)
        return _split(taken, 1, self.groups).permute(1, 0, 3, 2).flatten(1, 2).float()

    def rows(self, source: Tensor, output: Tensor, places: Tensor) -> Tensor:
        """What the weight multiplies at those places, (groups, rows, d) in single precision."""
        if not self._is_convolution:
            return source.flatten(0, -2)[places][None].float()
        window = self._windows(source, output.shape[2:])  # (n, c, o1, ..., k1, ...)
        at = np.unravel_index(places.numpy(), tuple(output.shape[2:]))
        everything: list[slice | Tensor] = [slice(None), slice(None)]
        taken = window[tuple(everything + [torch.from_numpy(axis) for axis in at])]
        split = _split(taken.flatten(3), 1, self.groups)  # (n, g, c, places, k)
        return split.permute(1, 0, 3, 2, 4).flatten(3).flatten(1, 2).float()

    def _windows(self, source: Tensor, sizes: Sequence[int]) -> Tensor:
        """A view of the padded source: the window under the kernel at each place of the output."""
        rank = source.ndim - 2
        op = Op(self.node, (), 0, Mode())
        kernel = list(self.shape[2:])
        stride, dilation = spatial(op, "strides", rank), spatial(op, "dilations", rank)
        if self.node.op_type == "Conv":
            written = written_pads(op, rank)
            begin, end = written or same_pads(op, source.shape[2:], kernel, stride, dilation)
        else:
            source, begin, end = self._spread(source, sizes, kernel)
            stride = [1] * rank
        window = functional.pad(source, torch_pad(begin, end))
        for i in range(rank):
            reach = (kernel[i] - 1) * dilation[i] + 1
            window = window.unfold(2 + i, reach, stride[i])[..., :: dilation[i]]
            window = window.narrow(2 + i, 0, sizes[i])
        return window

    def _spread(
        self, source: Tensor, sizes: Sequence[int], kernel: list[int]
    ) -> tuple[Tensor, list[int], list[int]]:
        """A transposed convolution's input with zeros between its pixels, and its padding."""
        rank = source.ndim - 2
        op = Op(self.node, (), 0, Mode())
        stride, dilation = spatial(op, "strides", rank), spatial(op, "dilations", rank)
        wide = [s * (n - 1) + 1 for s, n in zip(stride, source.shape[2:], strict=True)]
        spread = source.new_zeros(*source.shape[:2], *wide)
        steps = [slice(None), slice(None), *(slice(None, None, s) for s in stride)]
        spread[tuple(steps)] = source
        cut = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
        written = written_pads(op, rank) if op.get("output_shape") is None else None
        extra = spatial(op, "output_padding", rank, 0)
        if written is not None:
            first = written[0]
        else:
            totals = [w + c + e - s for w, c, e, s in zip(wide, cut, extra, sizes, strict=True)]
            upper = op.get("auto_pad") == "SAME_UPPER"
            first = [t // 2 if upper else t - t // 2 for t in totals]
        begin = [c - f for c, f in zip(cut, first, strict=True)]
        end = [s + c - w - b for s, c, w, b in zip(sizes, cut, wide, begin, strict=True)]
        return spread, begin, end


def _split(tensor: Tensor, axis: int, groups: int) -> Tensor:
    """An axis of channels as two: groups, and the channels of each."""
    before, after = tensor.shape[:axis], tensor.shape[axis + 1 :]
    return tensor.reshape(*before, groups, tensor.shape[axis] // groups, *after)


def _name(value: ir.Value | None) -> str:
    return (value.name or "") if value is not None else ""


def find_products(graph: ir.Graph) -> tuple[list[Product], dict[str, str]]:
    """The products of a graph in its order, and why other nodes with weights are none."""
    found: list[Product] = []
    left: dict[str, str] = {}
    for node in graph:
        if node.domain or node.op_type not in _PRODUCTS:
            continue
        weight, turned = _weight_of(node.inputs[1])
        if weight is None:
            continue
        reason = _refused(node, static_shape(weight))
        if reason:
            left[_name(weight)] = reason
            continue
        found.append(
            Product(node=node, weight=_name(weight), shape=static_shape(weight), turned=turned)
        )
    return found, left


def _weight_of(value: ir.Value | None) -> tuple[ir.Value | None, bool]:
    """The initializer behind a value, and whether a Transpose of its two axes is between."""
    if value is None:
        return None, False
    if value.is_initializer() and constant_of(value) is not None:
        return value, False
    node = value.producer()
    if node is None or node.op_type != "Transpose" or node.domain:
        return None, False
    source = node.inputs[0]
    if source is None or not source.is_initializer() or len(static_shape(source)) != 2:
        return None, False
    order = list(attribute(node, "perm", (1, 0)))
    return source, order == [1, 0]


def _refused(node: ir.Node, shape: tuple[int, ...]) -> str:
    if node.op_type in CONVOLUTIONS:
        grouped = int(attribute(node, "group", 1))
        if node.op_type == "ConvTranspose" and grouped > 1 and shape[1] > 1:
            return "it is a grouped transposed convolution"
        return ""
    if len(shape) != 2:
        return "its weight is not a matrix"
    if node.op_type == "Gemm" and attribute(node, "transA", 0):
        return "it reads its input transposed"
    source = node.inputs[0]
    if source is None or (source.shape is not None and len(source.shape) < 2):
        return "it reads a vector"
    return ""
