"""What refinements change in a float graph: biases, and arrays under their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgekit.models.model import Model, add_parameter, constant_of, editable, set_parameter
from edgekit.quantize.scheme import Placement, Scheme, WeightPlace
from edgekit.values import Array

_TAKES_BIAS = ("Conv", "ConvTranspose", "Gemm")


def with_biases(model: Model, scheme: Scheme) -> tuple[Model, Scheme]:
    """The same network with a bias of its own for every weighted node that can have one."""
    program = editable(model)
    graph = program.graph
    weights = dict(scheme.placement.weights)
    for node in graph:
        place = weights.get(node.name or "")
        if place is None or place.op not in _TAKES_BIAS:
            continue
        count = _channels(place, scheme.weights[place.node].integers)
        value = node.inputs[2] if len(node.inputs) > 2 else None
        present = constant_of(value)
        if value is not None and (present is None or present.size not in (1, count)):
            continue
        if place.bias and len(list(value.uses() if value else ())) == 1:
            continue
        array = np.zeros(count, np.float32)
        if present is not None:
            array += present.reshape(-1)
        own = add_parameter(graph, free_name(graph, f"{place.node}.bias"), array)
        node.resize_inputs(3)
        node.replace_input_with(2, own)
        weights[place.node] = replace(place, bias=own.name or "")
    return replace(model, program=program), _placed(scheme, weights)


def _channels(place: WeightPlace, integers: Array) -> int:
    return int(integers.shape[place.axis])


def _placed(scheme: Scheme, weights: Mapping[str, WeightPlace]) -> Scheme:
    placement: Placement = replace(scheme.placement, weights=weights)
    return replace(scheme, placement=placement)


def with_parameters(model: Model, arrays: Mapping[str, Array]) -> Model:
    """The Model with some initializers replaced; names, shapes and types stay."""
    program = editable(model)
    for name, array in arrays.items():
        set_parameter(program.graph, name, array)
    return replace(model, program=program)


def free_name(graph: ir.Graph, name: str) -> str:
    """A name that no initializer has: this one, or one that begins with it."""
    while name in graph.initializers:
        name += "_"
    return name


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads a value of its own graph; None where there is no such one."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.graph is not value.graph:
        return None
    return uses[0].node
