"""When an operator without weights works on integers: one function for each pattern.

Each is given what is planned so far and a node, and returns why the node stays in floating point,
empty where it need not. An answer may only turn from empty to a reason as more nodes are left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

import onnx_ir as ir

from edgekit.models.model import attribute, constant_of
from edgekit.quantize.dialects import Dialect, Side
from edgekit.quantize.placing.anatomy import (
    WEIGHTED,
    activations_of,
    before_activation,
    data_inputs,
    is_float,
)

TAIL = "behind the last layer with weights: outputs and their decoding stay in floating point"
_NO_READER = "no layer reads its output as integers"
_NO_SOURCE = "what it reads does not come from integers"


@dataclass(kw_only=True)
class Plan:
    """What is planned: `working` nodes so far, layers and others, and what holds for the graph."""

    dialect: Dialect
    positions: Mapping[ir.Node, int]
    tail: Set[ir.Node]
    working: set[ir.Node] = field(default_factory=set)

    def end_of(self, value: ir.Value) -> ir.Value:
        """The value, or what the activation makes of it that its grid absorbs."""
        absorbed = self.absorbed_behind(value)
        return value if absorbed is None else absorbed.outputs[0]

    def absorbed_behind(self, value: ir.Value) -> ir.Node | None:
        """The Relu or Clip that alone reads the value and that clamping to a grid replaces."""
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            return None
        behind = uses[0].node
        return behind if is_absorbed(behind, self.dialect) else None

    def is_made(self, value: ir.Value | None) -> bool:
        """Whether the value comes out of a kernel that can write integers."""
        producer = value.producer() if value is not None else None
        if value is None or producer is None:
            return False
        if producer in self.working:
            return True
        if producer.op_type == "Pad":
            return self.is_made(producer.inputs[0])
        if self.dialect.quantized_outputs:
            source = producer.inputs[0] if is_absorbed(producer, self.dialect) else None
            return source is not None and source.producer() in self.working
        origin = before_activation(value, self.positions, self.working)
        source_node = origin.producer() if origin is not None else None
        # A convolution's kernel takes its activation in.
        return (
            source_node is not None
            and source_node in self.working
            and (is_convolution(source_node) or source_node.op_type not in WEIGHTED)
        )

    def is_wanted(self, value: ir.Value) -> bool:
        """Whether a node reads the value as integers, be it behind an activation.

        Where outputs have to be quantized for their kernels, only one that the grid absorbs.
        """
        values = {self.end_of(value)}
        if not self.dialect.quantized_outputs:
            values = activations_of(value, self.positions, self.working)
        return any(node in self.working for one in values for node, _ in one.uses())


def is_absorbed(node: ir.Node, dialect: Dialect) -> bool:
    """Whether clamping to the grid of its output does what the node does: Relu, Clip(0, 6)."""
    if node.domain or node.op_type not in dialect.fused_activations:
        return False
    if node.op_type != "Clip":
        return True
    bounds = [constant_of(v) for v in (*node.inputs[1:], None, None)[:2] if v is not None]
    return all(bound is not None for bound in bounds)


def add(plan: Plan, node: ir.Node) -> str:
    """A residual Add: integers where one input is made of some and its output is wanted.

    The other input is quantized for it. TensorRT's layer in front gives integers only if the skip
    that its kernel adds is quantized; in ONNX Runtime a floating-point Add would cost more, and
    every Add behind it would stay in floating point too.
    """
    if not plan.is_wanted(node.outputs[0]):
        return _NO_READER
    return "" if any(map(plan.is_made, _read(node))) else _NO_SOURCE


def concat(plan: Plan, node: ir.Node) -> str:
    """A Concat: integers where one input is made of some, and only layers of the body read it."""
    if not plan.is_wanted(node.outputs[0]):
        return _NO_READER
    if any(user in plan.tail for user, _ in node.outputs[0].uses()):
        return "an output of the model reads it too, whose parts may differ in range"
    return "" if any(map(plan.is_made, _read(node))) else _NO_SOURCE


def gate(plan: Plan, node: ir.Node) -> str:
    """A Mul, such as that of squeeze and excitation: integers where its wide input is made of some.

    The narrow one, a number for each channel, may come from anywhere: it costs nothing.
    """
    if not plan.is_wanted(node.outputs[0]):
        return _NO_READER
    values = _read(node)
    wide = [value for value in values if not _is_narrow(value)] or values
    if not all(map(plan.is_made, wide)):
        return _NO_SOURCE
    if plan.dialect.runtime == "tensorrt" and len(wide) > 1:
        return "it is part of an activation, which its layer's kernel takes in"
    return ""


def pool(plan: Plan, node: ir.Node) -> str:
    """An average over space, or an activation with an integer kernel: one input, one output."""
    if not plan.is_wanted(node.outputs[0]):
        return _NO_READER
    return "" if plan.is_made(node.inputs[0]) else _NO_SOURCE


def copy(plan: Plan, node: ir.Node) -> str:
    """What moves numbers and computes none: it takes integers in and gives them out."""
    if node.op_type == "Resize" and (
        attribute(node, "mode", "nearest") != "nearest" or attribute(node, "antialias", 0)
    ):
        return "it interpolates: only the nearest number is copied as it is"
    if node.op_type == "MaxPool" and len(node.outputs) > 1:
        return "its indices are read"
    if node.op_type == "Gather" and constant_of(node.inputs[0]) is not None:
        return "it looks up a table"
    if not any(map(plan.is_wanted, node.outputs)):
        return _NO_READER
    return "" if plan.is_made(node.inputs[0]) else _NO_SOURCE


_PATTERNS: Mapping[str, Callable[[Plan, ir.Node], str]] = {
    "Add": add, "Concat": concat, "Mul": gate, "AveragePool": pool, "GlobalAveragePool": pool,
    "LeakyRelu": pool, "Sigmoid": pool,
}  # fmt: skip


def obstacle(plan: Plan, node: ir.Node) -> str:
    """Why a node without weights stays in floating point; empty where it need not."""
    if node in plan.tail:
        return TAIL
    values = _read(node)
    if not all(map(is_float, values)):
        return "an input is not float32"
    if any(constant_of(value) is not None for value in values):
        return "an input is a constant"
    return _PATTERNS.get(node.op_type, copy)(plan, node)


def inputs_read(plan: Plan, node: ir.Node) -> list[int]:
    """The positions at which a working node reads integers.

    TensorRT folds an Add into the layer in front of it if that one's output goes nowhere else and
    the other input, the skip, is quantized. Where two layers end here, the later one in the graph
    is fused and the earlier one, the shortcut, is quantized. Without a layer both are read.
    """
    if plan.dialect.places[node.op_type] is not Side.SKIP or len(node.inputs) != 2:
        return data_inputs(node)
    fusable: dict[int, int] = {}
    for index, value in enumerate(node.inputs):
        if value is None or len(value.uses()) != 1:
            continue
        origin = before_activation(value, plan.positions, plan.working)
        producer = origin.producer() if origin is not None else None
        if producer is not None and producer in plan.working and is_convolution(producer):
            fusable[index] = plan.positions[producer]
    if not fusable:
        return data_inputs(node)
    return [1 - max(fusable, key=lambda index: fusable[index])]


def is_convolution(node: ir.Node) -> bool:
    """Whether the node is one whose kernel takes in an activation and a residual Add."""
    return node.op_type in ("Conv", "ConvTranspose")


def _read(node: ir.Node) -> list[ir.Value]:
    found = (node.inputs[index] for index in data_inputs(node))
    return [value for value in found if value is not None]


def _is_narrow(value: ir.Value) -> bool:
    """Whether the value has one number for each channel: (n, c, 1, 1)."""
    if value.shape is None or len(value.shape) < 3:
        return False
    return all(size == 1 for size in list(value.shape)[2:])
