"""The cut itself: the same graph with fewer channels, every name kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir

from edgekit.compress.channels.groups import Count, Groups
from edgekit.compress.channels.plan import Plan
from edgekit.errors import InternalError
from edgekit.models.model import (
    Model,
    add_parameter,
    after_step,
    attribute,
    constant_of,
    editable,
    parameters,
    set_parameter,
    static_shape,
)
from edgekit.values import Array

SMALL_BYTES = 1024  # what shapes may depend on: axes, sizes, Reshape's constants


def plan_of(model: Model, groups: Groups, kept: Sequence[Array]) -> Plan:
    """The Plan that keeps those units of each group."""
    stays: dict[tuple[str, int], Array] = {}
    for group, units in zip(groups.groups, kept, strict=True):
        gone = np.ones(group.units, bool)
        gone[units] = False
        if not gone.any():
            continue
        for member in group.members:
            key = member.parameter, member.axis
            if key not in stays:
                length = static_shape(model.graph.initializers[member.parameter])[member.axis]
                stays[key] = np.ones(length, bool)
            stays[key][member.indices[gone]] = False
    return Plan(kept={key: np.flatnonzero(mask) for key, mask in stays.items()})


def remove_channels(model: Model, groups: Groups, kept: Sequence[Array]) -> tuple[Model, Plan]:
    """The Model without the units that are not kept, and the Plan that says what stayed.

    Weights are sliced, the `group` of depthwise convolutions and the numbers in Reshape's constants
    follow, all shapes are inferred anew. Afterwards every name is the one it was.
    """
    plan = plan_of(model, groups, kept)
    program = editable(model)
    graph = program.graph
    for (name, axis), indices in plan.kept.items():
        array = constant_of(graph.initializers[name])
        assert array is not None
        set_parameter(graph, name, np.take(array, indices, axis))

    removed = _removed(groups, kept)
    makers = {node.outputs[0].name or "": node for node in graph}
    for count in groups.numbers:
        _follow(graph, makers[count.output], count, removed)
    _infer_again(program)
    cut = after_step(model, program, "channels")
    _check(model, cut)
    return cut, plan


def _removed(groups: Groups, kept: Sequence[Array]) -> Array:
    """For each class of channels whether it goes."""
    stays = [set(units.tolist()) for units in kept]
    last = max((int(count.largest()) for count in groups.numbers), default=0)
    gone = np.zeros(max(last, *groups.unit_of_root, 0) + 1, bool)
    for root, (group, unit) in groups.unit_of_root.items():
        gone[root] = unit not in stays[group]
    return gone


def _follow(graph: ir.Graph, node: ir.Node, count: Count, removed: Array) -> None:
    """Writes the numbers of a node anew that count or name channels."""
    if count.chosen is not None:
        stays = ~removed[count.chosen]
        number = np.cumsum(stays) - 1
        left = count.written[stays[count.written]]
        numbers = number[left].reshape([len(left) if n > 1 else 1 for n in count.written.shape])
    else:
        numbers = count.written.copy()
        for position, cells in count.counts.items():
            numbers[position] = (~removed[cells].all(axis=1)).sum()
    if np.array_equal(numbers, count.written):
        return
    if count.place == "shape":
        _infer_size(graph, node, next(iter(count.counts)))
        return
    if isinstance(count.place, str):
        single = count.place == "group"
        make = ir.AttrInt64(count.place, int(numbers[0])) if single else ir.AttrInt64s(
            count.place, numbers.tolist()
        )  # fmt: skip
        node.attributes[count.place] = make
        return
    present = node.inputs[count.place] if len(node.inputs) > count.place else None
    if present is None:
        node.attributes.pop("num_outputs", None)
        node.resize_inputs(count.place + 1)
    elif present.is_initializer() and len(present.uses()) == 1:
        before = constant_of(present)
        assert before is not None
        set_parameter(graph, present.name or "", numbers.astype(before.dtype))
        return
    name = f"{node.outputs[0].name}.{count.place}"
    while name in graph.initializers:
        name += "_"
    node.replace_input_with(count.place, add_parameter(graph, name, numbers))
    if present is not None and present.is_initializer() and not present.uses():
        del graph.initializers[present.name or ""]


def _infer_size(graph: ir.Graph, node: ir.Node, axis: int) -> None:
    """Puts -1 for one axis into the shape that a Concat puts together for a Reshape."""
    shape = node.inputs[1]
    assert shape is not None
    producer = shape.producer()
    assert producer is not None
    name = f"{node.outputs[0].name}.size"
    inferred = add_parameter(graph, name, np.array([-1], np.int64))
    lengths = [static_shape(value)[0] if value is not None else 0 for value in producer.inputs]
    place = int(np.searchsorted(np.cumsum(lengths), axis, "right"))
    assert lengths[place] == 1
    pieces = [inferred if k == place else value for k, value in enumerate(producer.inputs)]
    made = ir.node("Concat", pieces, {"axis": 0}, name=f"{name}.shape")
    made.outputs[0].name = f"{name}.shape"
    made.outputs[0].type, made.outputs[0].shape = shape.type, shape.shape
    graph.insert_before(node, made)
    node.replace_input_with(1, made.outputs[0])


def _infer_again(program: ir.Model) -> None:
    """Gives all inner values of a graph the shapes that follow from its new weights.

    Inference sees the weights' shapes only, so that none of them is copied.
    """
    hollow = program.clone()
    outputs = set(hollow.graph.outputs)
    for value in (value for node in hollow.graph for value in node.outputs):
        if value not in outputs:
            value.shape = None
    for name, value in list(hollow.graph.initializers.items()):
        if value.const_value is not None and value.const_value.nbytes > SMALL_BYTES:
            del hollow.graph.initializers[name]
            value.const_value = None
            if not value.is_graph_input():
                hollow.graph.inputs.append(value)
    proto = ir.to_proto(hollow)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise InternalError(
            "the cut graph's shapes contradict each other", got=str(error)
        ) from error
    found = {
        value.name: ir.serde.deserialize_type_proto_for_shape(value.type)
        for value in inferred.graph.value_info
    }
    for value in (value for node in program.graph for value in node.outputs):
        if value.name in found:
            value.shape = found[value.name]
        elif not value.is_graph_output():
            value.shape = None


def _check(before: Model, after: Model) -> None:
    if after.inputs != before.inputs or after.outputs != before.outputs:
        raise InternalError("the cut changed the model's inputs or outputs")
    if {name for name, _ in parameters(after)} != {name for name, _ in parameters(before)}:
        raise InternalError("the cut lost or renamed a parameter")
    for node in after.graph:
        if node.op_type != "Conv":
            continue
        source, kernel = node.inputs[0], node.inputs[1]
        if source is None or source.shape is None or kernel is None:
            continue
        channels = source.shape[1]
        wanted = static_shape(kernel)[1] * int(attribute(node, "group", 1))
        if isinstance(channels, int) and channels != wanted:
            raise InternalError(
                "the cut left a convolution with the wrong number of channels",
                where=node.name or "", got=str(channels), wanted=str(wanted),
            )  # fmt: skip
