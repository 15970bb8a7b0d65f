"""How operators that move and shape pass channels on: concatenation, reshapes, reductions, pads."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.compress.channels.trace import (
    Labels,
    Trace,
    freeze_around,
    named,
    pass_on,
    rank_of,
    size_of,
)  # fmt: skip
from edgekit.models.model import attribute, constant_of
from edgekit.values import Array


def concat(found: Trace, node: ir.Node) -> None:
    """The channels of all parts one after another, or merged where another axis is joined."""
    output = node.outputs[0]
    axis = int(attribute(node, "axis", 0)) % max(rank_of(output), 1)
    inputs = [value for value in node.inputs if value is not None]
    axes = {found.labels[value].axis for value in inputs if value in found.labels}
    if not axes:
        return
    carried = min(axes)
    parts: list[Array] = []
    for value in inputs:
        labels = found.labels.get(value)
        if labels is None:
            ids = found.fresh(size_of(value, carried))
            found.freeze(ids, f'the channels of "{value.name}" are not known')
            labels = Labels(carried, ids)
        parts.append(labels.ids)
    if len(axes) != 1 or any(not len(part) for part in parts):
        freeze_around(found, node)
        return
    if carried == axis:
        found.labels[output] = Labels(axis, np.concatenate(parts))
    elif len({len(part) for part in parts}) == 1:
        for other in parts[1:]:
            found.union(parts[0], other)
        found.labels[output] = Labels(carried, parts[0])
    else:
        freeze_around(found, node)


def flatten(found: Trace, node: ir.Node) -> None:
    """Channels and space merged into one axis: each channel as often as it has places."""
    source = node.inputs[0]
    if attribute(node, "axis", 1) != 1:
        freeze_around(found, node)
        return
    _merge_space(found, node, source)


def _merge_space(found: Trace, node: ir.Node, source: ir.Value | None) -> bool:
    """(n, c, h, w) to (n, c h w): each channel's id h w times. Whether it could be done."""
    labels = found.labels.get(source) if source is not None else None
    if labels is None or source is None:
        return False
    spatial = [size_of(source, axis) for axis in range(2, rank_of(source))]
    if labels.axis != 1 or not all(spatial):
        freeze_around(found, node)
        return False
    found.labels[node.outputs[0]] = Labels(1, np.repeat(labels.ids, int(np.prod(spatial))))
    return True


def reshape(found: Trace, node: ir.Node) -> None:
    """A reshape that merges channels and space, or that leaves the channel axis where it is."""
    source, output, shape = node.inputs[0], node.outputs[0], node.inputs[1]
    labels = found.labels.get(source) if source is not None else None
    if labels is None or source is None or shape is None:
        _moved_vector(found, node)
        return
    size, merged = size_of(output, 1), len(labels.ids)
    spatial = [size_of(source, axis) for axis in range(2, rank_of(source))]
    keeps_channels = (
        labels.axis == 1 and size == merged and rank_of(source) >= 2 and rank_of(output) >= 2
        and _same_batch(source, output)
    )  # fmt: skip
    merges = (
        labels.axis == 1 and rank_of(output) == 2 and all(spatial)
        and size == merged * int(np.prod(spatial)) and _same_batch(source, output)
    )  # fmt: skip
    entry = _shape_entry(shape, 1)
    if entry is None or not (keeps_channels or merges):
        freeze_around(found, node)
        return
    constant, position, written = entry
    ids = labels.ids if keeps_channels else np.repeat(labels.ids, int(np.prod(spatial)))
    follows = written in (-1, 0)  # inferred, or copied from the input
    if not follows and not found.shape_entry(constant, position, ids):
        freeze_around(found, node)
        return
    found.labels[output] = Labels(1, ids)


def _moved_vector(found: Trace, node: ir.Node) -> None:
    """One number a channel (a slope, a scale) on its way to where the channels are."""
    source, output = node.inputs[0], node.outputs[0]
    vector = constant_of(source)
    if source is None or vector is None or vector.dtype.kind != "f" or output.shape is None:
        return
    count = vector.size
    axes = [axis for axis in range(rank_of(output)) if size_of(output, axis) == count]
    if count < 2 or count != max(vector.shape) or len(axes) != 1:
        return
    ids = found.fresh(count)
    found.slot(source, int(np.argmax(vector.shape)), ids, "along")
    if node.op_type == "Reshape":
        entry = _shape_entry(node.inputs[1], axes[0]) if node.inputs[1] is not None else None
        written_out = entry is not None and entry[2] not in (-1, 0)
        if entry is None or (written_out and not found.shape_entry(entry[0], entry[1], ids)):
            found.freeze(ids, f"{named(node)} stands in the way")
    found.labels[output] = Labels(axes[0], ids)


def _same_batch(source: ir.Value, output: ir.Value) -> bool:
    """Whether the first axis is the same: by name, or because the rest has as many elements."""
    if source.shape is None or output.shape is None:
        return False
    rests = [
        [size_of(value, axis) for axis in range(1, rank_of(value))] for value in (source, output)
    ]
    known = all(all(rest) for rest in rests)
    return source.shape[0] == output.shape[0] or (known and np.prod(rests[0]) == np.prod(rests[1]))


def _shape_entry(shape: ir.Value, axis: int) -> tuple[ir.Value, int, int] | None:
    """Where the entry of an axis is written: initializer, position and number; None if computed.

    A Concat of constants and of computed single entries (the batch) is looked into.
    """
    constant = constant_of(shape)
    if constant is not None and shape.is_initializer() and len(constant) > axis:
        return shape, axis, int(constant[axis])
    producer = shape.producer()
    if producer is None or producer.op_type != "Concat":
        return None
    begin = 0
    for part in producer.inputs:
        array = constant_of(part)
        length = len(array) if array is not None else size_of(part, 0)
        if not length:
            return None
        if begin <= axis < begin + length:
            if array is None or part is None or not part.is_initializer():
                return None
            return part, axis - begin, int(array[axis - begin])
        begin += length
    return None


def reduction(found: Trace, node: ir.Node) -> None:
    """A reduction over other axes keeps the channels; one over them stands in the way."""
    source, output = node.inputs[0], node.outputs[0]
    labels = found.labels.get(source) if source is not None else None
    if labels is None:
        _moved_vector(found, node)
        return
    listed = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    given = attribute(node, "axes", None) if listed is None else listed
    if given is None or not np.size(given):  # all axes
        freeze_around(found, node)
        return
    axes = {int(axis) % rank_of(source) for axis in np.atleast_1d(given)}
    if labels.axis in axes:
        freeze_around(found, node)
        return
    kept = attribute(node, "keepdims", 1)
    axis = labels.axis if kept else labels.axis - sum(a < labels.axis for a in axes)
    found.labels[output] = Labels(axis, labels.ids)


def squeeze(found: Trace, node: ir.Node) -> None:
    """Squeeze and Unsqueeze move the axis that carries channels."""
    source, output = node.inputs[0], node.outputs[0]
    labels = found.labels.get(source) if source is not None else None
    if labels is None:
        return
    listed = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    given = attribute(node, "axes", None) if listed is None else listed
    if given is None:
        freeze_around(found, node)
        return
    adds = node.op_type == "Unsqueeze"
    rank = rank_of(output) if adds else rank_of(source)
    axes = sorted(int(axis) % rank for axis in np.atleast_1d(given))
    axis = labels.axis
    if adds:
        for added in axes:
            axis += added <= axis
    elif axis in axes:
        freeze_around(found, node)
        return
    else:
        axis -= sum(a < axis for a in axes)
    found.labels[output] = Labels(axis, labels.ids)


def transpose(found: Trace, node: ir.Node) -> None:
    """The axis that carries channels goes where `perm` puts it."""
    source = node.inputs[0]
    labels = found.labels.get(source) if source is not None else None
    if labels is None:
        return
    order = attribute(node, "perm", tuple(reversed(range(rank_of(source)))))
    found.labels[node.outputs[0]] = Labels(list(order).index(labels.axis), labels.ids)


def softmax(found: Trace, node: ir.Node) -> None:
    """A softmax over other axes keeps the channels; one over them stands in the way.

    Before opset 13 it ran over all axes from `axis` on, and the default was 1.
    """
    labels = found.labels.get(node.inputs[0]) if node.inputs[0] is not None else None
    if labels is None:
        return
    opset = node.graph.opset_imports.get("", 0) if node.graph is not None else 0
    rank = rank_of(node.inputs[0])
    axis = int(attribute(node, "axis", 1 if opset < 13 else -1)) % rank
    over = range(axis, rank) if opset < 13 else (axis,)
    if labels.axis in over:
        freeze_around(found, node)
    else:
        pass_on(found, node)


def pool(found: Trace, node: ir.Node) -> None:
    """Pooling over the places of each channel passes; over a channel axis that was moved, not."""
    labels = found.labels.get(node.inputs[0]) if node.inputs[0] is not None else None
    if labels is not None and labels.axis != 1:
        freeze_around(found, node)
    else:
        pass_on(found, node)


def pad(found: Trace, node: ir.Node) -> None:
    """Padding in space passes; along the channels it stands in the way."""
    source = node.inputs[0]
    labels = found.labels.get(source) if source is not None else None
    if labels is None:
        return
    listed = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    pads = attribute(node, "pads", None) if listed is None else listed
    rank = rank_of(source)
    over_axes = len(node.inputs) > 3 and node.inputs[3] is not None
    if pads is None or over_axes or pads[labels.axis] or pads[labels.axis + rank]:
        freeze_around(found, node)
    else:
        pass_on(found, node)


def slice_(found: Trace, node: ir.Node) -> None:
    """A slice of another axis passes; one of the channels stands in the way."""
    source = node.inputs[0]
    labels = found.labels.get(source) if source is not None else None
    if labels is None:
        return
    axes = constant_of(node.inputs[3]) if len(node.inputs) > 3 else attribute(node, "axes", None)
    if axes is None or labels.axis in {int(axis) % rank_of(source) for axis in axes}:
        freeze_around(found, node)
    else:
        pass_on(found, node)


def resize(found: Trace, node: ir.Node) -> None:
    """Resizing by factors passes; by sizes it would name the number of channels."""
    by_sizes = len(node.inputs) > 3 and node.inputs[3] is not None
    if by_sizes:
        freeze_around(found, node)
    else:
        pass_on(found, node)


def nothing(found: Trace, node: ir.Node) -> None:
    """Shapes follow the channels by themselves."""
