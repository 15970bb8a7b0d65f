"""The hard rules that TensorRT's parser has for QuantizeLinear and DequantizeLinear.

Sources: onnx-tensorrt's importers, 8.2-GA to 10.1-GA; TensorRT 10.16's NvInfer.h (IQuantizeLayer);
the 8.x developer's guide on pre-quantized weights; TensorRT-RTX 1.7 as seen. The last rule, on
activations, no parser checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.engines.operators import Version
from edgekit.models.model import Model, attribute, constant_of
from edgekit.values import Array

QDQ = ("QuantizeLinear", "DequantizeLinear")

_WEIGHT_WRAPPERS = frozenset({
    *QDQ, "Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Constant",
})  # fmt: skip
_STORED = frozenset({ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN})
_STORED_WEIGHTS_SINCE = (10, 0)
_OPTIONAL_ZERO_POINT_SINCE = (10, 0)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One rule that one node breaks."""

    node: str
    rule: str

    def __str__(self) -> str:
        return f'"{self.node}": {self.rule}'


def broken_rules(model: Model, version: Version) -> tuple[Finding, ...]:
    """Every Q/DQ rule of TensorRT `version` that the graph breaks, in the graph's order."""
    return tuple(
        Finding(node=node.name or node.op_type, rule=rule)
        for node in model.graph
        if node.op_type in QDQ and node.domain in ("", "ai.onnx")
        for rule in _rules_broken(node, model.opset, version)
    )


def _rules_broken(node: ir.Node, opset: int, version: Version) -> Iterator[str]:
    inputs = [*node.inputs, None, None][:3]
    scale, zero_point = constant_of(inputs[1]), constant_of(inputs[2])
    if scale is None:
        yield "its scale is computed; TensorRT wants a constant"
        return
    yield from _scale_rules(scale, opset, version)
    yield from _zero_point_rules(inputs[2], zero_point, scale, version)
    yield from _axis_rules(node, inputs[0], scale, opset)
    yield from _type_rules(node, inputs[0], inputs[2], version)


def _scale_rules(scale: Array, opset: int, version: Version) -> Iterator[str]:
    values = scale.astype(np.float64)
    if not (np.isfinite(values).all() and (values > 0).all()):
        wrong = int((~(np.isfinite(values) & (values > 0))).sum())
        yield f"{wrong} of its {values.size} scales are not above zero"
    if scale.dtype != np.float32:
        if version < (10, 0):
            yield f"its scale is {scale.dtype}; before TensorRT 10 it must be float32"
        elif opset < 19:
            yield f"its scale is {scale.dtype}, which ONNX has from opset 19 on"


def _zero_point_rules(
    value: ir.Value | None, zero_point: Array | None, scale: Array, version: Version
) -> Iterator[str]:
    if value is None:
        if version < _OPTIONAL_ZERO_POINT_SINCE:
            yield "it has no zero point; before TensorRT 10 it must be written, as int8 zeros"
        return
    if zero_point is None:
        yield "its zero point is computed; TensorRT wants constant zeros"
        return
    if np.any(zero_point.astype(np.float32) != 0):
        yield "its zero point is not zero; TensorRT quantizes symmetrically only"
    if zero_point.size != scale.size:
        yield f"it has {zero_point.size} zero points for {scale.size} scales"


def _axis_rules(node: ir.Node, value: ir.Value | None, scale: Array, opset: int) -> Iterator[str]:
    if scale.size == 1:
        return
    if attribute(node, "block_size", 0):
        return  # blocked: a rule of INT4 and FP4 weights, not of INT8
    if opset < 13:
        yield "scales for each channel are in ONNX from opset 13 on"
    if not _comes_from_weights(value):
        yield "an activation has one scale for each channel; TensorRT quantizes it with one"
    axis = int(attribute(node, "axis", 1))
    shape = value.shape if value is not None else None
    if shape is None:
        return
    if not -len(shape) <= axis < len(shape):
        yield f"its axis {axis} is none of the tensor's {len(shape)}"
    elif isinstance(shape[axis], int) and shape[axis] != scale.size:
        yield f"it has {scale.size} scales for {shape[axis]} channels"


def _type_rules(
    node: ir.Node, value: ir.Value | None, zero_point: ir.Value | None, version: Version
) -> Iterator[str]:
    if node.op_type == "DequantizeLinear":
        stored = value.dtype if value is not None else None
        if stored == ir.DataType.INT32:
            yield "it dequantizes INT32; a bias stays floating point, without Q/DQ"
        elif stored is not None and stored not in _STORED:
            yield f"it dequantizes {stored.name}; TensorRT wants INT8"
        if constant_of(value) is not None and version < _STORED_WEIGHTS_SINCE:
            yield "its weights are stored as integers; before TensorRT 10 they must be float32, " \
                "with QuantizeLinear and DequantizeLinear"  # fmt: skip
    elif zero_point is not None and zero_point.dtype not in _STORED:
        kind = zero_point.dtype.name if zero_point.dtype is not None else "an unknown type"
        yield f"it quantizes to {kind}; TensorRT wants INT8"


def _comes_from_weights(value: ir.Value | None) -> bool:
    while value is not None and constant_of(value) is None:
        producer = value.producer()
        if producer is None or producer.op_type not in _WEIGHT_WRAPPERS or not producer.inputs:
            return False
        value = producer.inputs[0]
    return value is not None
