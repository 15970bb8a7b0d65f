"""How much of a quantized model ONNX Runtime really runs on integers, read from its own graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from edgekit.engines import onnxruntime
from edgekit.models.cost import node_costs
from edgekit.models.model import Model, constant_of

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_INTEGER_KERNELS = frozenset({
    "QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "ConvInteger", "MatMulInteger",
})  # fmt: skip
_HALVES = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True, kw_only=True)
class IntegerShare:
    """The layers that run on integers and those that do not, by name with their MACs.

    Layers are Conv, ConvTranspose, Gemm and the MatMul of a stored weight. `operators` counts those
    of the graph as ONNX Runtime runs it.
    """

    integer: Mapping[str, int]
    floating: Mapping[str, int]
    operators: Mapping[str, int]

    @property
    def of_macs(self) -> float:
        """The share, 0 to 1, of the layers' multiply-accumulates; 1 where there is no layer."""
        done, left = sum(self.integer.values()), sum(self.floating.values())
        return done / (done + left) if done + left else 1.0


def integer_share(model: Model, *, as_on_arm: bool = False) -> IntegerShare:
    """What ONNX Runtime's CPU provider makes of a model with Q/DQ.

    A layer runs on integers where a kernel for integers reads the very weight that is stored for
    it. `as_on_arm` as for `onnxruntime.fused_bytes`. A dynamic batch is 1. Raises InputError where
    ONNX Runtime refuses the model, or a shape is not known.
    """
    fused = onnx.load_model_from_string(onnxruntime.fused_bytes(model, as_on_arm=as_on_arm)).graph
    kernels = [node for node in fused.node if node.op_type in _INTEGER_KERNELS]
    read = {name for node in kernels for name in node.input}
    macs = {cost.node: cost.macs for cost in node_costs(model)}
    found: dict[bool, dict[str, int]] = {True: {}, False: {}}
    for node in model.graph:
        name = node.name or ""
        if node.op_type in _LAYERS and not node.domain and name in macs:
            stored = [source for value in node.inputs[:2] if (source := _stored_behind(value))]
            if len(stored) == 1:
                found[stored[0] in read][name] = macs[name]
    operators: dict[str, int] = {}
    for fused_node in fused.node:
        operators[fused_node.op_type] = operators.get(fused_node.op_type, 0) + 1
    return IntegerShare(integer=found[True], floating=found[False], operators=operators)


def _stored_behind(value: ir.Value | None) -> str:
    """The name of the stored tensor that a layer reads through Q/DQ; "" for an activation."""
    while value is not None and constant_of(value) is None:
        producer = value.producer()
        if producer is None or producer.op_type not in _HALVES:
            return ""
        value = producer.inputs[0]
    return "" if value is None else value.name or ""
