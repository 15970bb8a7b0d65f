"""What a graph's parts are to a quantizer: layers with weights, activations, copies, the tail."""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np
import onnx_ir as ir

from edgekit.models.model import attribute, constant_of

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

POINTWISE = frozenset({
    "Abs", "Add", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish",
    "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Relu",
    "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Swish", "Tanh", "ThresholdedRelu",
})  # fmt: skip
"""Operators that work on each number alone: chains of them are activation functions."""

_LONGEST_ACTIVATION = 12


def weight_axis(node: ir.Node) -> int:
    """The axis of the output channels in the weight of a Conv, ConvTranspose, Gemm or MatMul."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    return 0 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 1


def multiplies_weight(node: ir.Node) -> bool:
    """Whether the node is a layer: it multiplies an activation with stored numbers."""
    if node.domain or node.op_type not in WEIGHTED:
        return False
    first, second = (constant_of(value) for value in node.inputs[:2])
    return (first is None) != (second is None)


def why_not_a_layer(node: ir.Node) -> str:
    """Why the weight of a Conv, ConvTranspose, Gemm or MatMul cannot be integers; else empty."""
    weight = constant_of(node.inputs[1])
    if weight is None and constant_of(node.inputs[0]) is not None:
        return "its weight is the first operand: it has one scale for each row of the other"
    if weight is None:
        return "a product of two activations, or its weight is computed"
    if weight.ndim < 2 or weight.dtype != np.float32:
        return "its weight is not a float32 matrix or kernel"
    if node.op_type == "MatMul" and weight.ndim != 2:
        return "its weight is a stack of matrices"
    if node.op_type == "ConvTranspose" and attribute(node, "group", 1) != 1:
        return "a grouped transposed convolution: one scale would serve several groups"
    if node.op_type == "Gemm" and (
        attribute(node, "transA", 0)
        or attribute(node, "alpha", 1.0) != 1.0
        or attribute(node, "beta", 1.0) != 1.0
    ):
        return "a Gemm with alpha, beta or transA"
    if is_expectation(node):
        return "box decoding: the mean of a distribution that a Softmax gives"
    return ""


def is_expectation(node: ir.Node) -> bool:
    """Whether the layer sums what a Softmax gives into one channel: part of a detection head."""
    weight = constant_of(node.inputs[1])
    if weight is None or weight.shape[weight_axis(node) if weight.ndim > 1 else 0] != 1:
        return False
    value = node.inputs[0]
    for _ in range(_LONGEST_ACTIVATION):
        producer = value.producer() if value is not None else None
        if producer is None:
            return False
        if producer.op_type == "Softmax":
            return True
        if producer.op_type not in ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice"):
            return False
        value = producer.inputs[0]
    return False


def data_inputs(node: ir.Node) -> list[int]:
    """The positions of the inputs that are activations: the first, or all of an Add or Concat."""
    if node.op_type in ("Add", "Mul", "Concat"):
        return [i for i, value in enumerate(node.inputs) if value is not None]
    return [0] if node.inputs else []


def tail_of(graph: ir.Graph) -> set[ir.Node]:
    """The nodes behind the last layers: none of their outputs reaches a layer with weights.

    A layer that only takes the mean of a Softmax (`is_expectation`) is part of the tail.
    """
    body: set[ir.Node] = set()
    for node in reversed(graph):
        is_layer = multiplies_weight(node) and not is_expectation(node)
        if is_layer or any(user in body for output in node.outputs for user, _ in output.uses()):
            body.add(node)
    return {node for node in graph if node not in body}


def is_float(value: ir.Value | None) -> bool:
    """Whether the value is float32, as far as it is known."""
    return value is not None and value.dtype in (ir.DataType.FLOAT, None)


def makes_no_numbers(node: ir.Node) -> bool:
    """Whether all that the node gives are sizes, indices or truth values."""
    kinds = [output.dtype for output in node.outputs]
    return bool(kinds) and all(k is not None and not k.is_floating_point() for k in kinds)


def before_activation(
    value: ir.Value, positions: Mapping[ir.Node, int], working: Set[ir.Node]
) -> ir.Value | None:
    """The one value that this is an activation function of; itself where nothing is pointwise.

    Walks back through operators that work on each number alone and read nothing else but stored
    numbers: Relu, x * Sigmoid(x), GELU in pieces; `working` nodes, which end in integers, are no
    part of one. None where two different values come together. `positions` are those of the nodes
    in the graph.
    """
    ends = {value}
    for _ in range(_LONGEST_ACTIVATION):
        producers = [producer for end in ends if (producer := end.producer()) is not None]
        within = [node for node in producers if _is_pointwise(node) and node not in working]
        if not within:
            break
        last = max(within, key=lambda node: positions[node])
        ends -= set(last.outputs)
        ends |= {v for v in last.inputs if v is not None and constant_of(v) is None}
    return ends.pop() if len(ends) == 1 else None


def activations_of(
    value: ir.Value, positions: Mapping[ir.Node, int], working: Set[ir.Node]
) -> set[ir.Value]:
    """The value and all that operators on each number alone make of it and of nothing else.

    The other direction of `before_activation`, with the same meaning of its arguments.
    """
    found = {value}
    waiting = {node for node, _ in value.uses()}
    while waiting:
        node = min(waiting, key=lambda one: positions.get(one, 0))
        waiting.discard(node)
        if node in working or not _is_pointwise(node) or node.outputs[0] in found:
            continue
        if all(v is None or v in found or constant_of(v) is not None for v in node.inputs):
            found.add(node.outputs[0])
            waiting |= {user for user, _ in node.outputs[0].uses()}
    return found


def _is_pointwise(node: ir.Node) -> bool:
    return not node.domain and node.op_type in POINTWISE and len(node.outputs) == 1
