"""How operators with weights pass channels on: convolutions, normalisation."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.compress.channels.rules.trace import (
    Fork,
    Part,
    Trace,
    along_axis,
    freeze_around,
    in_the_way,
    is_stored,
    named,
)  # fmt: skip
from edgekit.models.model import attribute
from edgekit.values import Array


def convolution(found: Trace, node: ir.Node) -> None:
    """Fresh channels out of those that are read; depthwise ones go with their input.

    A kernel is (out, in / groups, …), of a ConvTranspose (in, out / groups, …).
    """
    source, kernel = node.inputs[0], node.inputs[1]
    if source is None or not is_stored(kernel) or kernel is None:
        freeze_around(found, node)
        return
    transposed = node.op_type in ("ConvTranspose",)
    groups = int(attribute(node, "group", 1))
    first, second = found.sizes[kernel][:2]  # type: ignore[index]
    into, out_of = (first, second * groups) if transposed else (second * groups, first)
    read = along_axis(found, source, 1, f"{named(node)} reads it along another axis")
    if read is None or len(read) != into:
        found.freeze_value(source, f"{named(node)} reads it along another axis")
        read = found.fresh(into)
        found.freeze(read, f'the channels of "{source.name}" are not known')
    by_group = read.reshape(groups, -1)
    depthwise = groups == into > 1
    if depthwise:
        # Depthwise: each input channel makes out/in output channels, and goes with them.
        made = np.repeat(read, out_of // into).reshape(groups, -1)
    else:
        made = found.fresh(groups, out_of // groups)
        if groups > 1:
            found.forks.append(_by_place_or_by_group(by_group, made))
    if groups > 1:
        found.rewrite(node, "group", [groups], 0, by_group)
    along_in, along_out = (0, 1) if transposed else (1, 0)
    if transposed:
        slot = found.tie(kernel, along_in, read, "produced" if depthwise else "consumed")
        if second > 1 or not depthwise:
            slot = found.tie(kernel, along_out, made.T, "produced")
    else:
        slot = found.tie(kernel, along_out, made.reshape(-1), "produced")
        if not depthwise:
            found.tie(kernel, along_in, by_group.T, "consumed")
    _bias(found, node, 2, made.reshape(-1))
    output = node.outputs[0]
    found.label(output, [Part((1,), made.reshape(-1))])
    uses = list(output.uses())
    if len(uses) == 1 and uses[0].node.op_type == "BatchNormalization":
        slot.norm = uses[0].node


def _by_place_or_by_group(read: Array, made: Array) -> Fork:
    """A grouped convolution loses the same places of each group, or whole groups.

    Both arrays are (groups, channels of each).
    """
    same_places = ((read, read[:1]), (made, made[:1]))
    whole_groups = ((read, read[:, :1]), (made, read[:, :1]))
    cells = np.concatenate([read.reshape(-1), made.reshape(-1)])
    return Fork(cells, (same_places, whole_groups))


def _bias(found: Trace, node: ir.Node, place: int, made: Array) -> None:
    """One number a channel at one of the node's inputs, if it is there."""
    bias = node.inputs[place] if len(node.inputs) > place else None
    if bias is None:
        return
    sizes = found.sizes_of(bias)
    if not is_stored(bias) or sizes is None:
        found.freeze(made, f"an input of {named(node)} is computed")
    elif sizes and sizes[-1] == len(made):
        found.tie(bias, len(sizes) - 1, made, "along")


def normalisation(found: Trace, node: ir.Node) -> None:
    """BatchNormalization and InstanceNormalization: one number a channel in each parameter.

    InstanceNormalization's statistics run over the places; channels that lie there (a group of
    them, as exporters write GroupNormalization) leave the statistics when they go.
    """
    source = node.inputs[0]
    by_sample = node.op_type == "InstanceNormalization"
    kept = []
    for part in found.parts(source):
        if 1 not in part.axes:
            if by_sample and 0 not in part.axes:
                kept.append(part)
            else:
                found.freeze(part.ids, in_the_way(node))
            continue
        whole = part if by_sample and 0 not in part.axes else None
        single = whole or found.off(part, [axis for axis in part.axes if axis != 1])
        assert single is not None
        for place in range(1, len(node.inputs)):
            value = node.inputs[place]
            if value is not None and is_stored(value):
                found.tie(value, 0, single.cells(1), "along")
            else:
                found.freeze(single.ids, f"an input of {named(node)} is computed")
        kept.append(single)
    found.label(node.outputs[0], kept)


def layer_normalisation(found: Trace, node: ir.Node) -> None:
    """LayerNormalization, RMSNormalization: the channels that go leave the statistics.

    Scale and bias lie along the axes that are normalised; one that is smaller is repeated.
    """
    source = node.inputs[0]
    sizes = found.sizes_of(source)
    if sizes is None:
        freeze_around(found, node)
        return
    axis = int(attribute(node, "axis", -1)) % len(sizes)
    for value in node.inputs[1:3]:
        _along(found, node, value, found.parts(source), sizes)
    kept = []
    for part in found.parts(source):
        inside = [a for a in part.axes if a >= axis]
        # Of a box some of whose axes are normalised, whole statistics go, or entries of all.
        kept.append(part)
        if inside and len(inside) < len(part.axes) and part.ids.ndim > 2:
            found.freeze(part.ids, in_the_way(node))
    found.label(node.outputs[0], kept)


def _along(
    found: Trace, node: ir.Node, value: ir.Value | None, parts: tuple[Part, ...],
    sizes: tuple[int, ...],
) -> None:  # fmt: skip
    """Numbers for the channels of a larger tensor, broadcast from the right."""
    own = found.sizes_of(value)
    if value is None or own is None or not own:
        return
    for part in parts:
        for axis in part.axes:
            mine = axis - (len(sizes) - len(own))
            if mine < 0 or own[mine] == 1:
                continue
            if is_stored(value) and own[mine] == sizes[axis]:
                found.tie(value, mine, part.cells(axis), "along")
            else:
                found.freeze(part.ids, f'{named(node)} meets "{value.name}", of unknown channels')


def group_normalisation(found: Trace, node: ir.Node) -> None:
    """GroupNormalization: each group of channels loses the same places."""
    source = node.inputs[0]
    groups = int(attribute(node, "num_groups", 1))
    ids = along_axis(found, source, 1, in_the_way(node))
    if ids is None or len(ids) % groups:
        freeze_around(found, node)
        return
    by_group = ids.reshape(groups, -1)
    found.union(by_group, by_group[:1])
    for place in (1, 2):
        sizes = found.sizes_of(node.inputs[place])
        if sizes == (len(ids),):  # opset 21; before, one number for each group
            _bias(found, node, place, ids)
        elif sizes != (groups,):
            found.freeze(ids, in_the_way(node))
    found.label(node.outputs[0], [Part((1,), ids)])


def recurrent(found: Trace, node: ir.Node) -> None:
    """LSTM, GRU, RNN: what goes in can be cut, (t, n, in) or (n, t, in); the hidden state stays."""
    source, weight = node.inputs[0], node.inputs[1]
    ids = along_axis(found, source, 2, in_the_way(node))
    if ids is None:
        return
    if weight is None or not is_stored(weight):
        found.freeze(ids, in_the_way(node))
    else:
        found.tie(weight, 2, ids, "consumed")
    for other in node.inputs[2:]:
        found.freeze_value(other, in_the_way(node))
