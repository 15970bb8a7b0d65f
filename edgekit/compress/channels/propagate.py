"""How each operator passes channels on: a rule for each, and the walk that applies them.

What no rule explains is frozen, with the operator as the reason, never guessed. A new operator is
one function in a `rules_*.py`, named here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from edgekit.compress.channels import rules_shapes as shapes
from edgekit.compress.channels import rules_weights as weights
from edgekit.compress.channels.trace import (
    Labels,
    ShapeEntry,
    Slot,
    Trace,
    freeze_around,
    named,
    pass_on,
    size_of,
)  # fmt: skip

Rule = Callable[[Trace, ir.Node], None]


def trace(graph: ir.Graph) -> Trace:
    """What the graph alone says about its channels. Linear in nodes times channels."""
    found = Trace()
    for value in graph.inputs:
        size = size_of(value, 1)
        if size:
            found.labels[value] = Labels(1, found.fresh(size))
            found.freeze(found.labels[value].ids, f'"{value.name}" is a graph input')
    for node in graph:
        found.node = node
        rule = RULES.get(node.op_type) if not node.domain else None
        if rule is None or any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
            freeze_around(found, node)
        else:
            rule(found, node)
    for value in graph.outputs:
        found.freeze_value(value, f'"{value.name}" is a graph output')
    _freeze_captured(found, graph)
    _freeze_read_otherwise(found)
    return found


def _freeze_captured(found: Trace, graph: ir.Graph) -> None:
    """What the inside of an If or a Loop reads has no rule: it stays."""
    for value in found.labels:
        for reader, _ in value.uses():
            if reader.graph is not graph:
                found.freeze_value(value, f"{named(reader)}, in a subgraph, stands in the way")


def _freeze_read_otherwise(found: Trace) -> None:
    """An initializer is cut only where a rule knows each of its readers."""
    tied_constants: list[Slot | ShapeEntry] = [*found.slots.values(), *found.shape_entries.values()]
    for tied in tied_constants:
        value = tied.value
        if not value.is_initializer() or value.is_graph_input() or value.is_graph_output():
            found.freeze(tied.ids, f'"{value.name}" is not an inner constant of the graph')
            continue
        known = list(tied.readers)
        for reader in _readers(value):
            if reader in known:
                known.remove(reader)
            else:
                found.freeze(tied.ids, f'{named(reader)} reads "{value.name}" too')


def _readers(value: ir.Value) -> list[ir.Node]:
    """Who reads a constant, once for each time; of a shape that is put together, who reads that."""
    readers: list[ir.Node] = []
    for node, _ in value.uses():
        is_shape = value.dtype == ir.DataType.INT64 and node.op_type == "Concat"
        readers.extend(_readers(node.outputs[0]) if is_shape else [node])
    return readers


_PASSING = (
    "Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Clip", "Elu", "Selu",
    "Celu", "Softplus", "Softsign", "Mish", "Gelu", "Swish", "Erf", "Exp", "Log", "Sqrt", "Neg",
    "Abs", "Reciprocal", "Floor", "Ceil", "Round", "Sign", "ThresholdedRelu", "Identity", "Dropout",
    "Cast",
)  # fmt: skip
_POOLS = ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool")

_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu")
_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_PASSING, pass_on),
    **dict.fromkeys(_POOLS, shapes.pool),
    **dict.fromkeys(_ARITHMETIC, weights.elementwise),
    **dict.fromkeys(("Conv", "ConvTranspose"), weights.convolution),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), weights.normalisation),
    **dict.fromkeys(("Gemm", "MatMul"), weights.gemm),
    **dict.fromkeys(_REDUCTIONS, shapes.reduction),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), shapes.squeeze),
    "Concat": shapes.concat,
    "Flatten": shapes.flatten,
    "Reshape": shapes.reshape,
    "Transpose": shapes.transpose,
    "Softmax": shapes.softmax,
    "LogSoftmax": shapes.softmax,
    "Pad": shapes.pad,
    "Slice": shapes.slice_,
    "Resize": shapes.resize,
    "Shape": shapes.nothing,
}
