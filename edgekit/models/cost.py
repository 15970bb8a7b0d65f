"""What each node costs: multiply-accumulates, parameters, weight and activation bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from edgekit.errors import InputError
from edgekit.models.model import Model, attribute, constant_of


@dataclass(frozen=True, kw_only=True)
class NodeCost:
    """One node's cost at one batch size. `parameters` counts floating-point initializers only.

    `activation_bytes` are those of its outputs, as far as anything reads them.
    """

    node: str
    op: str
    macs: int
    parameters: int
    weight_bytes: int
    activation_bytes: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The sums over a Model; an initializer that two nodes read is counted once."""

    macs: int
    parameters: int
    weight_bytes: int
    activation_bytes: int


def node_costs(model: Model, *, batch: int = 1) -> tuple[NodeCost, ...]:
    """The cost of every node in the graph's order; a dynamic first dimension is `batch`.

    MACs, with o the output's number of elements (ONNX operator definitions):

        Conv            o * prod(kernel.shape[1:])        (kernel (c_out, c_in / group, k...))
        ConvTranspose   i * prod(kernel.shape[1:])        (i: elements of the input)
        Gemm, MatMul    o * k                             (k: the axis that is summed over)

    Other operators have 0 MACs: their cost is their bytes. What runs inside an If or a Loop is not
    counted. Raises InputError where a shape that is needed is not known.
    """
    return tuple(_node_cost(node, batch) for node in model.graph)


def total_cost(model: Model, *, batch: int = 1) -> Cost:
    """The sums over the graph. Raises as `node_costs` does."""
    costs = node_costs(model, batch=batch)
    weights = [
        value.const_value
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.uses()
    ]
    return Cost(
        macs=sum(cost.macs for cost in costs),
        parameters=sum(w.size for w in weights if w.dtype.is_floating_point()),
        weight_bytes=sum(w.nbytes for w in weights),
        activation_bytes=sum(cost.activation_bytes for cost in costs),
    )


def _node_cost(node: ir.Node, batch: int) -> NodeCost:
    weights = [
        value.const_value
        for value in node.inputs
        if value is not None and value.is_initializer() and value.const_value is not None
    ]
    activation_bytes = 0
    for output in node.outputs:
        is_read = bool(output.uses()) or output.is_graph_output()
        if output.shape is not None and output.dtype is not None and is_read:
            activation_bytes += elements(output, batch) * max(output.dtype.bitwidth, 8) // 8
    return NodeCost(
        node=node.name or node.outputs[0].name or node.op_type,
        op=node.op_type,
        macs=_macs(node, batch),
        parameters=sum(w.size for w in weights if w.dtype.is_floating_point()),
        weight_bytes=sum(w.nbytes for w in weights),
        activation_bytes=activation_bytes,
    )


def _macs(node: ir.Node, batch: int) -> int:
    if node.domain:
        return 0
    if node.op_type in ("Conv", "ConvTranspose"):
        kernel = node.inputs[1]
        if kernel is None or kernel.shape is None:
            raise _unknown(node.inputs[1], node)
        counted = node.outputs[0] if node.op_type == "Conv" else node.inputs[0]
        return elements(counted, batch) * math.prod(_sizes(kernel, node, batch)[1:])
    if node.op_type in ("Gemm", "MatMul"):
        left = _sizes(node.inputs[0], node, batch)
        summed = left[0] if attribute(node, "transA", 0) else left[-1]
        return elements(node.outputs[0], batch) * summed
    return 0


def elements(value: ir.Value | None, batch: int) -> int:
    """The number of elements of a value. Raises InputError where its shape is not known."""
    return math.prod(_sizes(value, None, batch))


def _sizes(value: ir.Value | None, node: ir.Node | None, batch: int) -> tuple[int, ...]:
    if value is None or (value.shape is None and constant_of(value) is None):
        raise _unknown(value, node)
    if value.shape is None:
        array = constant_of(value)
        return () if array is None else array.shape
    sizes = [d if isinstance(d, int) else None for d in value.shape]
    if sizes and sizes[0] is None:
        sizes[0] = batch
    if any(size is None for size in sizes):
        raise _unknown(value, node)
    return tuple(size for size in sizes if size is not None)


def _unknown(value: ir.Value | None, node: ir.Node | None) -> InputError:
    name = "" if value is None else value.name or ""
    return InputError(
        f'the shape of "{name}" is not known, so its cost is not either',
        where="" if node is None else f"{node.op_type} {node.name}",
        got="no shape" if value is None or value.shape is None else str(value.shape),
        hint="Export the model with fixed sizes but for the batch.",
    )
