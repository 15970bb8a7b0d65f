"""The reference for a cut: the full network in which nothing reads what was removed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.compress.channels.groups import Groups
from edgekit.compress.channels.plan import Plan
from edgekit.models.model import (
    Model,
    add_parameter,
    after_step,
    attribute,
    constant_of,
    editable,
    set_parameter,
)

NORMALISATIONS = ("LayerNormalization", "RMSNormalization")


def masked(model: Model, groups: Groups, plan: Plan) -> Model:
    """The full graph in which every weight that reads a removed channel is zero.

    A LayerNormalization over removed channels leaves them out of its statistics: it runs over the
    others, and zeros stand in for those that are gone.
    """
    program = editable(model)
    graph = program.graph
    consumed = {
        (m.parameter, m.axis) for g in groups.groups for m in g.members if m.role == "consumed"
    }
    for (name, axis), kept in plan.kept.items():
        if (name, axis) in consumed:
            weight = np.array(constant_of(graph.initializers[name]))
            gone = np.setdiff1d(np.arange(weight.shape[axis]), kept)
            np.moveaxis(weight, axis, 0)[gone] = 0
            set_parameter(graph, name, weight)
    for node in list(graph):
        if node.op_type not in NORMALISATIONS or node.inputs[1] is None:
            continue
        left = plan.kept.get((node.inputs[1].name or "", 0))
        if left is not None:
            _leave_out(graph, node, left)
    return after_step(model, program, "masked")


def _leave_out(graph: ir.Graph, node: ir.Node, left: np.ndarray) -> None:
    """Makes a normalisation of the last axis run over the entries that are left."""
    assert int(attribute(node, "axis", -1)) == -1 or node.inputs[0].shape is not None
    scale = node.inputs[1]
    width = scale.shape[0]
    name = node.outputs[0].name

    def constant(suffix: str, array: np.ndarray) -> ir.Value:
        return add_parameter(graph, f"{name}.{suffix}", array)

    indices = constant("left", left)
    narrow = ir.node("Gather", [node.inputs[0], indices], {"axis": -1})
    inputs = [narrow.outputs[0]]
    for place, value in enumerate(node.inputs[1:], 1):
        inputs.append(constant(f"part{place}", np.array(constant_of(value))[left]))
    inside = ir.node(node.op_type, inputs, node.attributes)
    spread = np.zeros((len(left), width), np.float32)
    spread[np.arange(len(left)), left] = 1
    wide = ir.node("MatMul", [inside.outputs[0], constant("spread", spread)])
    for made, suffix in ((narrow, "narrow"), (inside, "inside"), (wide, "wide")):
        made.outputs[0].name = f"{name}.{suffix}"
        made.name = f"{name}.{suffix}"
    graph.insert_before(node, [narrow, inside, wide])
    node.outputs[0].replace_all_uses_with(wide.outputs[0])
    graph.remove(node, safe=True)
