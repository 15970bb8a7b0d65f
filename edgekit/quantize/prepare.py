"""A float graph as placing wants it: new enough, every weight stored, every Gemm a plain one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    LiftConstantsToInitializersPass,
    NameFixPass,
    RemoveUnusedNodesPass,
)

from edgekit.errors import InputError
from edgekit.models.model import Model, after_step, attribute, constant_of, editable
from edgekit.models.opset import raised
from edgekit.quantize.placing.anatomy import WEIGHTED
from edgekit.values import Array

LOWEST_OPSET = 13
"""Scales for each channel are in ONNX from here on."""

_QUANTIZED = frozenset({
    "QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
    "MatMulInteger",
})  # fmt: skip

# What exporters put between a stored weight and the layer that reads it.
_REARRANGING = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def prepared(model: Model) -> Model:
    """The same network, ready for `place`.

    At opset 13 or later; every constant an initializer and every node a name of its own; weights
    stored as the layers read them; alpha and beta of a Gemm in its weight and bias. Raises
    InputError where an operator cannot be raised to opset 13, and for a Model that is quantized.
    """
    _refuse_quantized(model)
    if model.opset < LOWEST_OPSET:
        model = raised(model, LOWEST_OPSET)
    program = editable(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(program)
    NameFixPass()(program)
    changed = False
    for node in program.graph:
        if node.op_type in WEIGHTED and not node.domain:
            changed |= _store_operands(program.graph, node)
            changed |= node.op_type == "Gemm" and _plain_gemm(program.graph, node)
    if not changed:
        return Model(
            name=model.name, program=program, preprocessing=model.preprocessing,
            history=model.history,
        )  # fmt: skip
    RemoveUnusedNodesPass()(program)
    return after_step(model, program, "store_weights")


def _refuse_quantized(model: Model) -> None:
    kinds = Counter(node.op_type for node in model.graph if node.op_type in _QUANTIZED)
    if kinds:
        raise InputError(
            "this model is quantized already", where=model.name,
            got=", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())),
            wanted="a floating-point model",
            hint="Quantize the model that it was made from; `edgekit lint` looks at this one.",
        )  # fmt: skip


def _store_operands(graph: ir.Graph, node: ir.Node) -> bool:
    """Stores weight and bias as the node reads them, where they are rearranged on the way."""
    changed = False
    for index, value in list(enumerate(node.inputs))[1:]:
        if value is None or constant_of(value) is not None:
            continue
        array = _rearranged(value)
        if array is not None:
            node.replace_input_with(index, _stored(graph, f"{value.name}.stored", array))
            changed = True
    return changed


def _rearranged(value: ir.Value) -> Array | None:
    """The array of a value that is a rearranged initializer; None where it is computed."""
    stored = constant_of(value)
    if stored is not None:
        return stored
    producer = value.producer()
    if producer is None or producer.domain or producer.op_type not in _REARRANGING:
        return None
    source = producer.inputs[0]
    array = None if source is None else _rearranged(source)
    sizes = constant_of(producer.inputs[1]) if len(producer.inputs) > 1 else None
    if array is None or (len(producer.inputs) > 1 and sizes is None):
        return None
    if producer.op_type == "Transpose":
        turned: Array = array.transpose(attribute(producer, "perm", range(array.ndim)[::-1]))
        return turned
    if producer.op_type == "Cast":
        cast: Array = array.astype(ir.DataType(int(attribute(producer, "to"))).numpy())
        return cast
    if producer.op_type == "Identity":
        return array
    if producer.op_type == "Reshape":
        assert sizes is not None
        kept = [array.shape[i] if size == 0 else int(size) for i, size in enumerate(sizes)]
        return array.reshape(kept)
    axes = tuple(int(axis) for axis in sizes) if sizes is not None else None
    if producer.op_type == "Squeeze":
        return np.squeeze(array, axes)
    assert axes is not None
    return np.expand_dims(array, axes)


def _plain_gemm(graph: ir.Graph, node: ir.Node) -> bool:
    """Takes alpha into the weight and beta into the bias, where both are stored."""
    alpha, beta = float(attribute(node, "alpha", 1.0)), float(attribute(node, "beta", 1.0))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    factors = {1: alpha} if bias is None else {1: alpha, 2: beta}
    arrays = {index: constant_of(node.inputs[index]) for index in factors}
    if alpha == beta == 1.0 or any(array is None for array in arrays.values()):
        return False
    for index, factor in factors.items():
        value, array = node.inputs[index], arrays[index]
        assert value is not None
        assert array is not None
        if factor != 1.0:
            scaled = (array * np.float64(factor)).astype(array.dtype)
            node.replace_input_with(index, _stored(graph, f"{value.name}.scaled", scaled))
    for name in ("alpha", "beta"):
        node.attributes.pop(name, None)
    return True


def _stored(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    while name in graph.initializers:
        name += "_"
    value = ir.val(name, const_value=ir.tensor(np.asarray(array, order="C"), name=name))
    graph.register_initializer(value)
    return value
