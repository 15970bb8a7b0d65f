"""The cut itself: the same graph with fewer channels, every name kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir

from edgekit.compress.channels.groups import Groups
from edgekit.compress.channels.plan import Plan
from edgekit.errors import InternalError
from edgekit.models.model import (
    Model,
    after_step,
    attribute,
    constant_of,
    editable,
    set_parameter,
    static_shape,
)
from edgekit.values import Array

SMALL_BYTES = 1024  # what shapes may depend on: axes, sizes, Reshape's constants


def plan_of(model: Model, groups: Groups, kept: Sequence[Array]) -> Plan:
    """The Plan that keeps those units of each group."""
    removed: dict[tuple[str, int], list[Array]] = {}
    for group, units in zip(groups.groups, kept, strict=True):
        gone = np.setdiff1d(np.arange(group.units), units)
        if not len(gone):
            continue
        for member in group.members:
            entries = member.indices[gone].reshape(-1)
            removed.setdefault((member.parameter, member.axis), []).append(entries)
    plan: dict[tuple[str, int], Array] = {}
    for (name, axis), entries in removed.items():
        length = static_shape(model.graph.initializers[name])[axis]
        plan[name, axis] = np.setdiff1d(np.arange(length), np.concatenate(entries))
    return Plan(kept=plan)


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

    stays = [set(units.tolist()) for units in kept]

    def count(roots: Array) -> int:
        """How many entries are left of an array of channel roots."""
        places = (groups.unit_of_root.get(root) for root in roots.tolist())
        return sum(place is None or place[1] in stays[place[0]] for place in places)

    for node in graph:
        roots = groups.group_attributes.get(node.outputs[0].name or "")
        if roots is not None:
            node.attributes["group"] = ir.AttrInt64("group", count(roots))
    for (name, position), roots in groups.shape_entries.items():
        shape = np.array(constant_of(graph.initializers[name]))
        shape[position] = count(roots)
        set_parameter(graph, name, shape)
    _infer_again(program)
    cut = after_step(model, program, "channels")
    _check(model, cut)
    return cut, plan


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
        value.name: value.shape for node in ir.from_proto(inferred).graph for value in node.outputs
    }
    for value in (value for node in program.graph for value in node.outputs):
        value.shape = found[value.name]


def _check(before: Model, after: Model) -> None:
    if after.inputs != before.inputs or after.outputs != before.outputs:
        raise InternalError("the cut changed the model's inputs or outputs")
    if set(after.graph.initializers) != set(before.graph.initializers):
        raise InternalError("the cut lost or renamed an initializer")
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
