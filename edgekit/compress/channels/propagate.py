"""How each operator passes channels on: a rule for each, and the walk that applies them.

What no rule explains is frozen, with the operator as the reason, never guessed. A new operator is
one function in a `rules_*.py`, named here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from edgekit.compress.channels import rules_shapes as shapes
from edgekit.compress.channels import rules_weights as weights
from edgekit.compress.channels.trace import Labels, Trace, freeze_around, pass_on, size_of

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
        rule = RULES.get(node.op_type) if not node.domain else None
        if rule is None or any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
            freeze_around(found, node)
        else:
            rule(found, node)
    for value in graph.outputs:
        found.freeze_value(value, f'"{value.name}" is a graph output')
    return found


_PASSING = (
    "Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Clip", "Elu", "Selu",
    "Celu", "Softplus", "Softsign", "Mish", "Gelu", "Swish", "Erf", "Exp", "Log", "Sqrt", "Neg",
    "Abs", "Reciprocal", "Floor", "Ceil", "Round", "Sign", "ThresholdedRelu", "Identity", "Dropout",
    "Cast", "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool",
)  # fmt: skip

_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu")
_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_PASSING, pass_on),
    **dict.fromkeys(
        ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu"), weights.elementwise
    ),
    **dict.fromkeys(("Conv", "ConvTranspose"), weights.convolution),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), weights.normalisation),
    **dict.fromkeys(("Gemm", "MatMul"), weights.gemm),
    **dict.fromkeys(
        ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"), shapes.reduction
    ),
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
