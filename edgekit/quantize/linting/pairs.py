"""Rules of one QuantizeLinear or DequantizeLinear: scales, zero points, axes, types."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from edgekit.models.model import attribute, constant_of
from edgekit.quantize.linting.facts import Facts, Rule, comes_from_weights, is_pair_half
from edgekit.quantize.placing.anatomy import WEIGHTED, weight_axis
from edgekit.quantize.saturation import MOST, largest_sums
from edgekit.values import Array

_PARSER = "onnx-tensorrt, importers of Q/DQ, 8.2-GA to 10.1-GA"
_ONNX = "ONNX, QuantizeLinear and DequantizeLinear"
_STORED = frozenset({ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN})
_NARROW = frozenset({*_STORED, ir.DataType.UINT8, ir.DataType.UINT4})
_BOTH = ("tensorrt", "onnxruntime")


def _scale(node: ir.Node) -> Array | None:
    return constant_of(node.inputs[1])


def _zero_point(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None


def computed_scale(node: ir.Node, facts: Facts) -> Iterator[str]:
    """A scale is a constant."""
    if _scale(node) is None:
        yield f"its scale is computed; {facts.reader.name} wants a constant"


def scale_above_zero(node: ir.Node, facts: Facts) -> Iterator[str]:
    """Every scale is a number above zero."""
    scale = _scale(node)
    if scale is None:
        return
    values = scale.astype(np.float64)
    good = np.isfinite(values) & (values > 0)
    if not good.all():
        yield f"{int((~good).sum())} of its {values.size} scales are not above zero"


def scale_type(node: ir.Node, facts: Facts) -> Iterator[str]:
    """A scale is float32, or from opset 19 on another floating-point type."""
    scale = _scale(node)
    if scale is None or scale.dtype == np.float32:
        return
    if facts.is_tensorrt and facts.reader.version < (10, 0):
        yield f"its scale is {scale.dtype}; before TensorRT 10 it must be float32"
    elif facts.model.opset < 19:
        yield f"its scale is {scale.dtype}, which ONNX has from opset 19 on"


def zero_point_missing(node: ir.Node, facts: Facts) -> Iterator[str]:
    """Before TensorRT 10 the zero point is written out."""
    if _zero_point(node) is None and facts.reader.version < (10, 0):
        yield "it has no zero point; before TensorRT 10 it must be written, as int8 zeros"


def zero_point_computed(node: ir.Node, facts: Facts) -> Iterator[str]:
    """A zero point is a constant."""
    value = _zero_point(node)
    if value is not None and constant_of(value) is None:
        yield "its zero point is computed; TensorRT wants constant zeros"


def zero_point_zero(node: ir.Node, facts: Facts) -> Iterator[str]:
    """TensorRT quantizes symmetrically."""
    zero = constant_of(_zero_point(node))
    if zero is not None and np.any(zero.astype(np.float32) != 0):
        yield "its zero point is not zero; TensorRT quantizes symmetrically only"


def zero_point_shape(node: ir.Node, facts: Facts) -> Iterator[str]:
    """There are as many zero points as scales."""
    zero, scale = constant_of(_zero_point(node)), _scale(node)
    if zero is not None and scale is not None and zero.size != scale.size:
        yield f"it has {zero.size} zero points for {scale.size} scales"


def channel_scales_opset(node: ir.Node, facts: Facts) -> Iterator[str]:
    """Scales for each channel need opset 13."""
    if _is_along_axis(node) and facts.model.opset < 13:
        yield "scales for each channel are in ONNX from opset 13 on"


def channel_scales_of_activation(node: ir.Node, facts: Facts) -> Iterator[str]:
    """An activation has one scale. No parser checks it."""
    if _is_along_axis(node) and not comes_from_weights(node.inputs[0]):
        yield (
            f"an activation has one scale for each channel; {facts.reader.name} quantizes it "
            "with one"
        )


def channel_scales_count(node: ir.Node, facts: Facts) -> Iterator[str]:
    """There are as many scales as channels along the axis."""
    value, scale = node.inputs[0], _scale(node)
    shape = value.shape if value is not None else None
    if not _is_along_axis(node) or shape is None or scale is None:
        return
    axis = int(attribute(node, "axis", 1))
    if not -len(shape) <= axis < len(shape):
        yield f"its axis {axis} is none of the tensor's {len(shape)}"
    elif isinstance(shape[axis], int) and shape[axis] != scale.size:
        yield f"it has {scale.size} scales for {shape[axis]} channels"


def quantized_bias(node: ir.Node, facts: Facts) -> Iterator[str]:
    """TensorRT's biases are floating point."""
    if node.op_type == "DequantizeLinear" and _kind(node.inputs[0]) == ir.DataType.INT32:
        yield "it dequantizes INT32; a bias stays floating point, without Q/DQ"


def integer_type(node: ir.Node, facts: Facts) -> Iterator[str]:
    """TensorRT's integers are signed."""
    if node.op_type == "DequantizeLinear":
        kind = _kind(node.inputs[0])
        if kind is not None and kind not in _STORED and kind != ir.DataType.INT32:
            yield f"it dequantizes {kind.name}; TensorRT wants INT8"
        return
    zero = _zero_point(node)
    if zero is not None and _kind(zero) not in _STORED:
        found = _kind(zero)
        kind_name = found.name if found is not None else "an unknown type"
        yield f"it quantizes to {kind_name}; TensorRT wants INT8"


def stored_weights(node: ir.Node, facts: Facts) -> Iterator[str]:
    """Before TensorRT 10 weights are float32, behind both halves of a pair."""
    value = node.inputs[0]
    if (
        facts.reader.version < (10, 0)
        and node.op_type == "DequantizeLinear"
        and constant_of(value) is not None
        and _kind(value) != ir.DataType.INT32
    ):
        yield (
            "its weights are stored as integers; before TensorRT 10 they must be float32, with "
            "QuantizeLinear and DequantizeLinear"
        )


def transposed_axis(node: ir.Node, facts: Facts) -> Iterator[str]:
    """The output channels of a ConvTranspose are on axis 1 of its weight."""
    readers = {user.op_type for output in node.outputs for user, i in output.uses() if i == 1}
    if "ConvTranspose" not in readers or not _is_along_axis(node):
        return
    axis = int(attribute(node, "axis", 1))
    if axis != 1:
        yield f"its scales lie along axis {axis}; a ConvTranspose has its output channels on axis 1"


def saturating_weights(node: ir.Node, facts: Facts) -> Iterator[str]:
    """On x86 without VNNI two products of uint8 and int8 are added up in 16 bits."""
    if not facts.reader.saturates or node.op_type != "DequantizeLinear":
        return
    weight = constant_of(node.inputs[0])
    readers = [user for user, i in node.outputs[0].uses() if i == 1 and user.op_type in WEIGHTED]
    if weight is None or weight.dtype != np.int8 or weight.ndim < 2 or not readers:
        return
    groups = int(attribute(readers[0], "group", 1))
    sums = largest_sums(weight, weight_axis(readers[0]), groups)
    if int(sums.max(initial=0)) > MOST:
        count = int((sums > MOST).sum())
        yield (
            f"{count} of its {len(sums)} channels have two neighbouring weights that come to more "
            f"than {MOST}: their products may saturate in this processor's kernels"
        )


def _kind(value: ir.Value | None) -> ir.DataType | None:
    return None if value is None else value.dtype


def _is_along_axis(node: ir.Node) -> bool:
    """Whether there is a scale for each channel; blocks are a matter of INT4 and FP4."""
    scale = _scale(node)
    return scale is not None and scale.size > 1 and not attribute(node, "block_size", 0)


def _rule(name: str, runtimes: tuple[str, ...], source: str, fix: str, check: object) -> Rule:
    return Rule(
        name=name, runtimes=runtimes, severity="error", source=source, fix=fix, check=check  # type: ignore[arg-type]
    )  # fmt: skip


_TENSORRT = ("tensorrt",)

RULES: tuple[Rule, ...] = (
    _rule("computed-scale", _BOTH, _PARSER, "Store the scale as an initializer.", computed_scale),
    _rule("scale-above-zero", _BOTH, _PARSER,
          "Give a dead channel a small scale; look where NaN comes from.", scale_above_zero),
    _rule("scale-type", _BOTH, f"{_PARSER}; {_ONNX}", "Store the scale as float32.", scale_type),
    _rule("zero-point-missing", _TENSORRT, f"{_PARSER}: three inputs are asserted up to 8.5",
          "Add int8 zeros of the scale's shape.", zero_point_missing),
    _rule("zero-point-computed", _TENSORRT, _PARSER, "Store int8 zeros.", zero_point_computed),
    _rule("zero-point-zero", _TENSORRT, f"{_PARSER}: shiftIsAllZeros",
          "Quantize symmetrically: edgekit quantize with this target.", zero_point_zero),
    _rule("zero-point-shape", _BOTH, f"{_PARSER}; {_ONNX}",
          "Give the zero point the scale's shape.", zero_point_shape),
    _rule("channel-scales-opset", _BOTH, _ONNX, "Raise the model to opset 13 first.",
          channel_scales_opset),
    _rule("channel-scales-of-activation", _BOTH, "TensorRT, IQuantizeLayer: activations cannot be "
          "quantized for each channel; ONNX Runtime, QLinearConv: x_scale is a scalar",
          "Quantize the activation with one scale.", channel_scales_of_activation),
    _rule("channel-scales-count", _BOTH, f"{_PARSER}; {_ONNX}",
          "Give one scale for each channel along the axis.", channel_scales_count),
    _rule("quantized-bias", _TENSORRT, "TensorRT-RTX 1.7, as seen: Int32 is refused",
          "Leave the bias floating point.", quantized_bias),
    _rule("integer-type", _TENSORRT, f"{_PARSER}: UINT8 is no valid type",
          "Quantize to int8 with zero points of zero.", integer_type),
    _rule("stored-weights", _TENSORRT, "TensorRT 8.x guide: pre-quantized models are not supported",
          "Store float32 and add a QuantizeLinear.", stored_weights),
    _rule("transposed-axis", _TENSORRT, "ONNX, ConvTranspose: W is (c_in, c_out / group, k...)",
          "Quantize the weight along axis 1.", transposed_axis),
    Rule(name="saturating-weights", runtimes=("onnxruntime",), severity="warning",
         source="ONNX Runtime, quantization: reduce_range on AVX2; measured on 1.32",
         fix="Give these channels larger scales, or store uint8 weights with zero point 128.",
         check=saturating_weights),
)  # fmt: skip


def applies(node: ir.Node) -> bool:
    """Whether the rules here are about this node."""
    return is_pair_half(node)
