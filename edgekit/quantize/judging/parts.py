"""The parts of a network's outputs: what a concatenation behind an output is made of.

Boxes (0 to 1024) and class scores (0 to 1) that end in one tensor are two results: an error that
nobody sees among the boxes may be all that there is of the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgekit.models.model import Model, attribute, constant_of
from edgekit.values import Array

MOST_PARTS = 64

_EACH_ENTRY = frozenset({
    "Abs", "Cast", "Clip", "Elu", "Exp", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log",
    "Mish", "Neg", "Relu", "Sigmoid", "Softplus", "Sqrt", "Tanh", "QuantizeLinear",
    "DequantizeLinear",
})  # fmt: skip
_WITH_CONSTANT = frozenset({"Add", "Sub", "Mul", "Div", "Pow"})


@dataclass(frozen=True, kw_only=True)
class Part:
    """A region of an output: `ranges` has for each axis that is cut its (begin, end).

    `name` is the tensor that ends there, the output itself where there is but one part.
    """

    output: str
    name: str
    ranges: tuple[tuple[int, int, int], ...] = ()

    def of(self, array: Array) -> Array:
        """The part's entries of the output's array."""
        chosen: list[slice] = [slice(None)] * array.ndim
        for axis, begin, end in self.ranges:
            chosen[axis] = slice(begin, end)
        return array[tuple(chosen)]

    def __str__(self) -> str:
        places = ", ".join(f"{begin}:{end} of axis {axis}" for axis, begin, end in self.ranges)
        return f"{self.output} [{places}]" if places else self.output


def output_parts(model: Model) -> tuple[Part, ...]:
    """The parts of every output, in the outputs' order; an output that is no concatenation is one.

    A Concat is looked for behind operators that keep each entry (Sigmoid, a product with a
    constant) or only move them (Transpose, Squeeze, a Reshape that leaves the concatenated axis),
    and again behind its own inputs. Where a size is not known, or there would be more than
    MOST_PARTS, the tensor stays whole.
    """
    found: list[Part] = []
    for value in model.graph.outputs:
        rank = len(value.shape) if value.shape is not None else 0
        name = value.name or ""
        whole = _View(part=Part(output=name, name=name), axes=dict(enumerate(range(rank))))
        parts = _split(value, whole)
        found += parts if len(parts) <= MOST_PARTS else [whole.part]
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class _View:
    """A tensor as it is seen in the output: which of its axes is which of the output's."""

    part: Part
    axes: Mapping[int, int]

    def narrowed(self, name: str, axis: int, begin: int, end: int) -> _View:
        """What lies from `begin` to `end` along an axis of the tensor."""
        at = self.axes[axis]
        start = next((b for a, b, _ in self.part.ranges if a == at), 0)
        others = [one for one in self.part.ranges if one[0] != at]
        ranges = tuple(sorted([*others, (at, start + begin, start + end)]))
        return replace(self, part=replace(self.part, name=name, ranges=ranges))


def _split(value: ir.Value, view: _View) -> list[Part]:
    while True:
        node = value.producer()
        if node is None or node.domain:
            return [view.part]
        if node.op_type == "Concat":
            return _inputs_of(node, value, view)
        source = _source(node)
        axes = None if source is None else _axes_before(node, source, value)
        if source is None or axes is None:
            return [view.part]
        view = replace(view, axes={a: view.axes[b] for a, b in axes.items() if b in view.axes})
        value = source


def _inputs_of(node: ir.Node, value: ir.Value, view: _View) -> list[Part]:
    rank = len(value.shape) if value.shape is not None else 0
    axis = int(attribute(node, "axis", 0))
    axis = axis + rank if axis < 0 else axis
    inputs = [one for one in node.inputs if one is not None]
    sizes = [_size(one, axis) for one in inputs]
    if axis not in view.axes or None in sizes or len(inputs) < 2:
        return [view.part]
    found: list[Part] = []
    begin = 0
    for one, size in zip(inputs, sizes, strict=True):
        end = begin + (size or 0)
        found += _split(one, view.narrowed(one.name or "", axis, begin, end))
        begin = end
    return found


def _source(node: ir.Node) -> ir.Value | None:
    """The one input whose entries the node's output has, changed one by one or moved."""
    if node.op_type in _WITH_CONSTANT:
        moving = [value for value in node.inputs if constant_of(value) is None]
        return moving[0] if len(moving) == 1 else None
    moves = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
    if node.op_type in _EACH_ENTRY or node.op_type in moves:
        return node.inputs[0]
    return None


def _axes_before(node: ir.Node, source: ir.Value, value: ir.Value) -> dict[int, int] | None:
    """For axes of the source the axis of the node's output that they become; None if unknown."""
    before, after = _sizes(source), _sizes(value)
    if before is None or after is None:
        return None
    if node.op_type == "Transpose":
        order = attribute(node, "perm", tuple(reversed(range(len(before)))))
        return {axis: at for at, axis in enumerate(order)}
    if node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        return _kept_axes(before, after)
    same = len(before) == len(after)
    return {axis: axis for axis in range(len(before))} if same else None


def _kept_axes(before: Sequence[object], after: Sequence[object]) -> dict[int, int]:
    """The axes that a Reshape leaves: equal ones from the left and from the right."""
    found: dict[int, int] = {}
    most = min(len(before), len(after))
    left = 0
    while left < most and before[left] == after[left]:
        found[left] = left
        left += 1
    right = 1
    while right <= most - left and before[-right] == after[-right]:
        found[len(before) - right] = len(after) - right
        right += 1
    # An axis of size 1 that comes or goes has no entries to tell apart, and is none.
    return {a: b for a, b in found.items() if before[a] != 1}


def _sizes(value: ir.Value) -> tuple[object, ...] | None:
    if value.shape is None:
        return None
    # Two unknown sizes without a name are not known to be the same.
    return tuple(
        size if isinstance(size, int) else (size.value or object()) for size in value.shape
    )


def _size(value: ir.Value, axis: int) -> int | None:
    sizes = _sizes(value)
    size = sizes[axis] if sizes is not None and axis < len(sizes) else None
    return size if isinstance(size, int) else None
