"""How each operator passes channels on: which entries of which tensors are one channel.

Every channel of every tensor has an id; an operator that ties two channels merges their ids. A
value that carries channels has `Labels`: the axis and one id for each of its entries. An
initializer's axis that carries channels is a slot. What an operator does not explain is frozen,
with the operator as the reason, never guessed.

A new operator is one function in `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgekit.models.model import attribute, constant_of
from edgekit.values import Array


@dataclass(frozen=True)
class Labels:
    """The axis of a value that carries channels, and the id of each entry along it."""

    axis: int
    ids: Array


@dataclass
class Slot:
    """An axis of an initializer whose entries belong to channels.

    `role` is "produced" (an entry makes the channel), "consumed" (it reads it) or "along" (a
    number for the channel, as in BatchNormalization). `norm` is the BatchNormalization behind the
    convolution that produces.
    """

    parameter: str
    axis: int
    ids: Array
    role: str
    norm: ir.Node | None = None


@dataclass
class Trace:
    """All that one walk over a graph learns. Ids are merged by `union`."""

    labels: dict[ir.Value, Labels] = field(default_factory=dict)
    slots: dict[tuple[str, int], Slot] = field(default_factory=dict)
    parents: list[int] = field(default_factory=list)
    frozen: dict[int, str] = field(default_factory=dict)
    group_counts: dict[ir.Node, Array] = field(default_factory=dict)
    shape_entries: dict[tuple[str, int], Array] = field(default_factory=dict)

    def fresh(self, count: int) -> Array:
        """New ids."""
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def find(self, one: int) -> int:
        """The id that stands for all that were merged with this one."""
        parents = self.parents
        while parents[one] != one:
            parents[one] = parents[parents[one]]
            one = parents[one]
        return one

    def union(self, left: Array, right: Array) -> None:
        """Merges two arrays of ids entry by entry."""
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            root, other = self.find(a), self.find(b)
            if root != other:
                self.parents[max(root, other)] = min(root, other)

    def freeze(self, ids: Array, reason: str) -> None:
        """These channels stay; the first reason is the one that is told."""
        for one in ids.tolist():
            self.frozen.setdefault(one, reason)

    def freeze_value(self, value: ir.Value | None, reason: str) -> None:
        """The value's channels stay."""
        if value is not None and value in self.labels:
            self.freeze(self.labels[value].ids, reason)

    def slot(self, value: ir.Value, axis: int, ids: Array, role: str) -> Slot:
        """Ties the entries of an initializer's axis to channels; used twice, both are tied."""
        name = value.name or ""
        present = self.slots.get((name, axis))
        if present is not None:
            self.union(present.ids, ids)
            return present
        self.slots[name, axis] = Slot(parameter=name, axis=axis, ids=ids, role=role)
        return self.slots[name, axis]


Rule = Callable[[Trace, ir.Node], None]


def trace(graph: ir.Graph) -> Trace:
    """What the graph alone says about its channels. Linear in nodes times channels."""
    found = Trace()
    for value in graph.inputs:
        size = _size(value, 1)
        if size:
            found.labels[value] = Labels(1, found.fresh(size))
            found.freeze(found.labels[value].ids, f'"{value.name}" is a graph input')
    for node in graph:
        rule = RULES.get(node.op_type) if not node.domain else None
        if rule is None or any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
            _freeze_around(found, node)
        else:
            rule(found, node)
    for value in graph.outputs:
        found.freeze_value(value, f'"{value.name}" is a graph output')
    return found


def _size(value: ir.Value | None, axis: int) -> int:
    """The known size of an axis, else 0."""
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return 0
    size = value.shape[axis]
    return size if isinstance(size, int) else 0


def _rank(value: ir.Value | None) -> int:
    return 0 if value is None or value.shape is None else len(value.shape)


def _named(node: ir.Node) -> str:
    return f"{node.op_type} {node.name or node.outputs[0].name}"


def _freeze_around(found: Trace, node: ir.Node) -> None:
    for value in node.inputs:
        found.freeze_value(value, f"{_named(node)} stands in the way")


def _pass_on(found: Trace, node: ir.Node) -> None:
    """The output has the channels of the first input, on the same axis."""
    source, output = node.inputs[0], node.outputs[0]
    if source not in found.labels:
        return
    labels = found.labels[source]
    if _size(output, labels.axis) != len(labels.ids) or any(o.uses() for o in node.outputs[1:]):
        _freeze_around(found, node)
        return
    found.labels[output] = labels


def _known_labels(found: Trace, value: ir.Value, size: int, node: ir.Node) -> Array:
    """The ids of an input's axis 1 of that size; frozen ones where nothing is known of it."""
    labels = found.labels.get(value)
    if labels is not None and labels.axis == 1 and len(labels.ids) == size:
        return labels.ids
    found.freeze_value(value, f"{_named(node)} reads it along another axis")
    ids = found.fresh(size)
    found.freeze(ids, f'the channels of "{value.name}" are not known')
    return ids


def _convolution(found: Trace, node: ir.Node) -> None:
    source, kernel = node.inputs[0], node.inputs[1]
    weight = constant_of(kernel)
    if source is None or kernel is None or weight is None:
        _freeze_around(found, node)
        return
    transposed = node.op_type == "ConvTranspose"
    groups = int(attribute(node, "group", 1))
    into = weight.shape[0] if transposed else weight.shape[1] * groups
    out_of = weight.shape[1] * groups if transposed else weight.shape[0]
    read = _known_labels(found, source, into, node)
    made = found.fresh(out_of)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if groups == 1:
        found.slot(kernel, 0 if transposed else 1, read, "consumed")
        slot = found.slot(kernel, 1 if transposed else 0, made, "produced")
    elif groups == into and not transposed:
        # Depthwise: each input channel makes out/in output channels, and goes with them.
        made = np.repeat(read, out_of // into)
        slot = found.slot(kernel, 0, made, "produced")
        found.group_counts[node] = read
    elif not transposed:
        # All groups lose the same of their inputs and outputs, so that they stay alike.
        by_group = read.reshape(groups, -1)
        for other in by_group[1:]:
            found.union(by_group[0], other)
        found.slot(kernel, 1, by_group[0], "consumed")
        made_by_group = made.reshape(groups, -1)
        for other in made_by_group[1:]:
            found.union(made_by_group[0], other)
        slot = found.slot(kernel, 0, made, "produced")
    else:
        found.freeze(read, f"{_named(node)} is a grouped transposed convolution")
        found.freeze(made, f"{_named(node)} is a grouped transposed convolution")
        slot = None
    if bias is not None:
        if constant_of(bias) is None:
            found.freeze(made, f"the bias of {_named(node)} is computed")
        else:
            found.slot(bias, 0, made, "along")
    output = node.outputs[0]
    found.labels[output] = Labels(1, made)
    uses = list(output.uses())
    if slot is not None and len(uses) == 1 and uses[0].node.op_type == "BatchNormalization":
        slot.norm = uses[0].node


def _normalisation(found: Trace, node: ir.Node) -> None:
    """BatchNormalization and InstanceNormalization: one number a channel in each parameter."""
    source = node.inputs[0]
    labels = found.labels.get(source) if source is not None else None
    parameters = [value for value in node.inputs[1:] if value is not None]
    if labels is None or labels.axis != 1 or any(constant_of(v) is None for v in parameters):
        _freeze_around(found, node)
        return
    for value in parameters:
        found.slot(value, 0, labels.ids, "along")
    found.labels[node.outputs[0]] = labels


def _elementwise(found: Trace, node: ir.Node) -> None:
    """Add, Mul, PRelu, Where and the like, with broadcasting from the right."""
    output = node.outputs[0]
    rank = _rank(output)
    axis = next(
        (
            rank - _rank(value) + found.labels[value].axis
            for value in node.inputs
            if value is not None and value in found.labels
        ),
        None,
    )
    if axis is None:
        return
    size = _size(output, axis)
    meeting: list[Array] = []
    reasons: list[str] = []
    for value in node.inputs:
        if value is None:
            continue
        own = axis - (rank - _rank(value))
        labels = found.labels.get(value)
        if labels is not None:
            if labels.axis != own or (_size(value, own) not in (size, 1)):
                reasons.append(f"{_named(node)} meets it along another axis")
            elif _size(value, own) == size:
                meeting.append(labels.ids)
            else:
                found.freeze(labels.ids, f"{_named(node)} repeats it over all channels")
        elif own >= 0 and _size(value, own) > 1:
            if value.is_initializer() and constant_of(value) is not None:
                ids = meeting[0] if meeting else found.fresh(size)
                found.slot(value, own, ids, "along")
                meeting.append(ids)
            else:
                reasons.append(f'{_named(node)} meets "{value.name}", of unknown channels')
    if not size or not meeting:
        reasons.append(f"{_named(node)} stands in the way")
    if reasons:
        for value in node.inputs:
            found.freeze_value(value, reasons[0])
        if not meeting or not size:
            return
    for other in meeting[1:]:
        found.union(meeting[0], other)
    found.labels[output] = Labels(axis, meeting[0])


def _concat(found: Trace, node: ir.Node) -> None:
    output = node.outputs[0]
    axis = int(attribute(node, "axis", 0)) % max(_rank(output), 1)
    inputs = [value for value in node.inputs if value is not None]
    if not any(value in found.labels for value in inputs):
        return
    parts: list[Array] = []
    for value in inputs:
        labels = found.labels.get(value)
        if labels is None:
            size = _size(value, axis if axis == 1 else 1)
            ids = found.fresh(size)
            found.freeze(ids, f'the channels of "{value.name}" are not known')
            labels = Labels(1, ids)
        parts.append(labels.ids)
    axes = {found.labels[value].axis for value in inputs if value in found.labels}
    if len(axes) != 1 or any(not len(part) for part in parts):
        _freeze_around(found, node)
        return
    carried = axes.pop()
    if carried == axis:
        found.labels[output] = Labels(axis, np.concatenate(parts))
    elif len({len(part) for part in parts}) == 1:
        for other in parts[1:]:
            found.union(parts[0], other)
        found.labels[output] = Labels(carried, parts[0])
    else:
        _freeze_around(found, node)


def _gemm(found: Trace, node: ir.Node) -> None:
    source, matrix = node.inputs[0], node.inputs[1]
    weight = constant_of(matrix)
    is_gemm = node.op_type == "Gemm"
    plain = _rank(source) == 2 and not attribute(node, "transA", 0)
    if source is None or matrix is None or weight is None or weight.ndim != 2 or not plain:
        _freeze_around(found, node)
        return
    transposed = bool(is_gemm and attribute(node, "transB", 0))
    inner, outer = (1, 0) if transposed else (0, 1)
    read = _known_labels(found, source, weight.shape[inner], node)
    made = found.fresh(weight.shape[outer])
    found.slot(matrix, inner, read, "consumed")
    found.slot(matrix, outer, made, "produced")
    found.labels[node.outputs[0]] = Labels(1, made)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return
    addend = constant_of(bias)
    if addend is None:
        found.freeze(made, f"the bias of {_named(node)} is computed")
    elif addend.ndim and addend.shape[-1] == len(made):
        found.slot(bias, addend.ndim - 1, made, "along")


def _flatten(found: Trace, node: ir.Node) -> None:
    source = node.inputs[0]
    if attribute(node, "axis", 1) != 1:
        _freeze_around(found, node)
        return
    _merge_space(found, node, source)


def _merge_space(found: Trace, node: ir.Node, source: ir.Value | None) -> bool:
    """(n, c, h, w) to (n, c h w): each channel's id h w times. Whether it could be done."""
    labels = found.labels.get(source) if source is not None else None
    if labels is None or source is None:
        return False
    spatial = [_size(source, axis) for axis in range(2, _rank(source))]
    if labels.axis != 1 or not all(spatial):
        _freeze_around(found, node)
        return False
    found.labels[node.outputs[0]] = Labels(1, np.repeat(labels.ids, int(np.prod(spatial))))
    return True


def _reshape(found: Trace, node: ir.Node) -> None:
    """A reshape that merges channels and space, or that leaves the channel axis where it is."""
    source, output, shape = node.inputs[0], node.outputs[0], node.inputs[1]
    labels = found.labels.get(source) if source is not None else None
    if labels is None or source is None or shape is None:
        return
    size, merged = _size(output, 1), len(labels.ids)
    spatial = [_size(source, axis) for axis in range(2, _rank(source))]
    keeps_channels = (
        labels.axis == 1 and size == merged and _rank(source) >= 2 and _rank(output) >= 2
        and _same_batch(source, output)
    )  # fmt: skip
    merges = (
        labels.axis == 1 and _rank(output) == 2 and all(spatial)
        and size == merged * int(np.prod(spatial)) and _same_batch(source, output)
    )  # fmt: skip
    if not keeps_channels and not merges:
        _freeze_around(found, node)
        return
    entry = _shape_entry(shape, 1)
    if entry is None:
        _freeze_around(found, node)
        return
    name, position, written = entry
    ids = labels.ids if keeps_channels else np.repeat(labels.ids, int(np.prod(spatial)))
    if written not in (-1, 0):
        if written != len(ids):
            _freeze_around(found, node)
            return
        known = found.shape_entries.setdefault((name, position), ids)
        if known is not ids:
            if len(known) != len(ids):
                _freeze_around(found, node)
                return
            found.union(known, ids)
    found.labels[output] = Labels(1, ids)


def _same_batch(source: ir.Value, output: ir.Value) -> bool:
    return bool(source.shape and output.shape and source.shape[0] == output.shape[0])


def _shape_entry(shape: ir.Value, axis: int) -> tuple[str, int, int] | None:
    """Where the entry of an axis is written: initializer, position and number; None if computed.

    A Concat of constants and of computed single entries (the batch) is looked into.
    """
    constant = constant_of(shape)
    if constant is not None and shape.is_initializer() and len(constant) > axis:
        return shape.name or "", axis, int(constant[axis])
    producer = shape.producer()
    if producer is None or producer.op_type != "Concat":
        return None
    begin = 0
    for part in producer.inputs:
        array = constant_of(part)
        length = len(array) if array is not None else _size(part, 0)
        if not length:
            return None
        if begin <= axis < begin + length:
            if array is None or part is None or not part.is_initializer():
                return None
            return part.name or "", axis - begin, int(array[axis - begin])
        begin += length
    return None


def _reduction(found: Trace, node: ir.Node) -> None:
    source, output = node.inputs[0], node.outputs[0]
    labels = found.labels.get(source) if source is not None else None
    if labels is None:
        return
    listed = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    given = attribute(node, "axes", None) if listed is None else listed
    if given is None:
        _freeze_around(found, node)
        return
    axes = {int(axis) % _rank(source) for axis in np.atleast_1d(given)}
    if labels.axis in axes:
        _freeze_around(found, node)
        return
    kept = attribute(node, "keepdims", 1)
    axis = labels.axis if kept else labels.axis - sum(a < labels.axis for a in axes)
    found.labels[output] = Labels(axis, labels.ids)


def _squeeze(found: Trace, node: ir.Node) -> None:
    source, output = node.inputs[0], node.outputs[0]
    labels = found.labels.get(source) if source is not None else None
    if labels is None:
        return
    listed = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    given = attribute(node, "axes", None) if listed is None else listed
    if given is None:
        _freeze_around(found, node)
        return
    adds = node.op_type == "Unsqueeze"
    rank = _rank(output) if adds else _rank(source)
    axes = sorted(int(axis) % rank for axis in np.atleast_1d(given))
    axis = labels.axis
    if adds:
        for added in axes:
            axis += added <= axis
    elif axis in axes:
        _freeze_around(found, node)
        return
    else:
        axis -= sum(a < axis for a in axes)
    found.labels[output] = Labels(axis, labels.ids)


def _transpose(found: Trace, node: ir.Node) -> None:
    source = node.inputs[0]
    labels = found.labels.get(source) if source is not None else None
    if labels is None:
        return
    order = attribute(node, "perm", tuple(reversed(range(_rank(source)))))
    found.labels[node.outputs[0]] = Labels(list(order).index(labels.axis), labels.ids)


def _softmax(found: Trace, node: ir.Node) -> None:
    labels = found.labels.get(node.inputs[0]) if node.inputs[0] is not None else None
    if labels is None:
        return
    if int(attribute(node, "axis", -1)) % _rank(node.inputs[0]) == labels.axis:
        _freeze_around(found, node)
    else:
        _pass_on(found, node)


def _pad(found: Trace, node: ir.Node) -> None:
    """Padding in space passes; along the channels it stands in the way."""
    source = node.inputs[0]
    labels = found.labels.get(source) if source is not None else None
    if labels is None:
        return
    listed = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    pads = attribute(node, "pads", None) if listed is None else listed
    rank = _rank(source)
    over_axes = len(node.inputs) > 3 and node.inputs[3] is not None
    if pads is None or over_axes or pads[labels.axis] or pads[labels.axis + rank]:
        _freeze_around(found, node)
    else:
        _pass_on(found, node)


def _slice(found: Trace, node: ir.Node) -> None:
    """A slice of another axis passes; one of the channels stands in the way."""
    source = node.inputs[0]
    labels = found.labels.get(source) if source is not None else None
    if labels is None:
        return
    axes = constant_of(node.inputs[3]) if len(node.inputs) > 3 else attribute(node, "axes", None)
    if axes is None or labels.axis in {int(axis) % _rank(source) for axis in axes}:
        _freeze_around(found, node)
    else:
        _pass_on(found, node)


def _resize(found: Trace, node: ir.Node) -> None:
    """Resizing by factors passes; by sizes it would name the number of channels."""
    by_sizes = len(node.inputs) > 3 and node.inputs[3] is not None
    if by_sizes:
        _freeze_around(found, node)
    else:
        _pass_on(found, node)


def _nothing(found: Trace, node: ir.Node) -> None:
    """Shapes follow the channels by themselves."""


_PASSING = (
    "Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Clip", "Elu", "Selu",
    "Celu", "Softplus", "Softsign", "Mish", "Gelu", "Swish", "Erf", "Exp", "Log", "Sqrt", "Neg",
    "Abs", "Reciprocal", "Floor", "Ceil", "Round", "Sign", "ThresholdedRelu", "Identity", "Dropout",
    "Cast", "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool",
)  # fmt: skip

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_PASSING, _pass_on),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu"), _elementwise),
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolution),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _normalisation),
    **dict.fromkeys(("Gemm", "MatMul"), _gemm),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"), _reduction),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), _squeeze),
    "Concat": _concat,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Pad": _pad,
    "Slice": _slice,
    "Resize": _resize,
    "Shape": _nothing,
}
