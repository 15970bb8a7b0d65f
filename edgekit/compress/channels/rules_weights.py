"""How operators with weights pass channels on: convolutions, matrices, normalisation."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.compress.channels.trace import (
    Labels,
    Trace,
    freeze_around,
    known_labels,
    named,
    rank_of,
    size_of,
)  # fmt: skip
from edgekit.models.model import attribute, constant_of
from edgekit.values import Array


def convolution(found: Trace, node: ir.Node) -> None:
    """Fresh channels out of those that are read; depthwise ones go with their input."""
    source, kernel = node.inputs[0], node.inputs[1]
    weight = constant_of(kernel)
    if source is None or kernel is None or weight is None:
        freeze_around(found, node)
        return
    transposed = node.op_type == "ConvTranspose"
    groups = int(attribute(node, "group", 1))
    into = weight.shape[0] if transposed else weight.shape[1] * groups
    out_of = weight.shape[1] * groups if transposed else weight.shape[0]
    read = known_labels(found, source, into, node)
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
        found.freeze(read, f"{named(node)} is a grouped transposed convolution")
        found.freeze(made, f"{named(node)} is a grouped transposed convolution")
        slot = None
    if bias is not None:
        if constant_of(bias) is None:
            found.freeze(made, f"the bias of {named(node)} is computed")
        else:
            found.slot(bias, 0, made, "along")
    output = node.outputs[0]
    found.labels[output] = Labels(1, made)
    uses = list(output.uses())
    if slot is not None and len(uses) == 1 and uses[0].node.op_type == "BatchNormalization":
        slot.norm = uses[0].node


def normalisation(found: Trace, node: ir.Node) -> None:
    """BatchNormalization and InstanceNormalization: one number a channel in each parameter."""
    source = node.inputs[0]
    labels = found.labels.get(source) if source is not None else None
    parameters = [value for value in node.inputs[1:] if value is not None]
    if labels is None or labels.axis != 1 or any(constant_of(v) is None for v in parameters):
        freeze_around(found, node)
        return
    for value in parameters:
        found.slot(value, 0, labels.ids, "along")
    found.labels[node.outputs[0]] = labels


def elementwise(found: Trace, node: ir.Node) -> None:
    """Add, Mul, PRelu and the like, with broadcasting from the right."""
    output = node.outputs[0]
    rank = rank_of(output)
    axis = next(
        (
            rank - rank_of(value) + found.labels[value].axis
            for value in node.inputs
            if value is not None and value in found.labels
        ),
        None,
    )
    if axis is None:
        return
    size = size_of(output, axis)
    meeting: list[Array] = []
    reasons: list[str] = []
    for value in node.inputs:
        if value is None:
            continue
        if value.shape is None:
            reasons.append(f'{named(node)} meets "{value.name}", of unknown shape')
            continue
        own = axis - (rank - rank_of(value))
        labels = found.labels.get(value)
        if labels is not None:
            if labels.axis != own or (size_of(value, own) not in (size, 1)):
                reasons.append(f"{named(node)} meets it along another axis")
            elif size_of(value, own) == size:
                meeting.append(labels.ids)
            else:
                found.freeze(labels.ids, f"{named(node)} repeats it over all channels")
        elif own >= 0 and size_of(value, own) != 1:
            if value.is_initializer() and constant_of(value) is not None:
                ids = meeting[0] if meeting else found.fresh(size)
                found.slot(value, own, ids, "along")
                meeting.append(ids)
            else:
                reasons.append(f'{named(node)} meets "{value.name}", of unknown channels')
    if not size or not meeting:
        reasons.append(f"{named(node)} stands in the way")
    if reasons:
        for value in node.inputs:
            found.freeze_value(value, reasons[0])
        if not meeting or not size:
            return
    for other in meeting[1:]:
        found.union(meeting[0], other)
    found.labels[output] = Labels(axis, meeting[0])


def gemm(found: Trace, node: ir.Node) -> None:
    """A Gemm, or a MatMul with a constant: fresh columns out of those that are read."""
    source, matrix = node.inputs[0], node.inputs[1]
    weight = constant_of(matrix)
    is_gemm = node.op_type == "Gemm"
    plain = rank_of(source) == 2 and not attribute(node, "transA", 0)
    if source is None or matrix is None or weight is None or weight.ndim != 2 or not plain:
        freeze_around(found, node)
        return
    transposed = bool(is_gemm and attribute(node, "transB", 0))
    inner, outer = (1, 0) if transposed else (0, 1)
    read = known_labels(found, source, weight.shape[inner], node)
    made = found.fresh(weight.shape[outer])
    found.slot(matrix, inner, read, "consumed")
    found.slot(matrix, outer, made, "produced")
    found.labels[node.outputs[0]] = Labels(1, made)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return
    addend = constant_of(bias)
    if addend is None:
        found.freeze(made, f"the bias of {named(node)} is computed")
    elif addend.ndim and addend.shape[-1] == len(made):
        found.slot(bias, addend.ndim - 1, made, "along")
