"""Rules of layers and of what joins them: whether Q/DQ stand where kernels can take them in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from edgekit.models.model import attribute, constant_of
from edgekit.quantize.linting.facts import (
    LAYERS,
    Facts,
    Rule,
    behind_dequantize,
    is_standard,
    stored_weight,
)
from edgekit.quantize.placing.anatomy import POINTWISE, weight_axis
from edgekit.values import Array

_GUIDE = 'TensorRT guide, "Q/DQ Layer-Placement Recommendations"'
_SEEN = "ONNX Runtime 1.32, CPU provider, its optimised graphs as seen"
_LEAST_CHANNELS = 16
_QOPERATORS = frozenset({
    "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear",
})  # fmt: skip


def _is_layer(node: ir.Node) -> bool:
    return is_standard(node) and node.op_type in LAYERS


def _is_quantized(node: ir.Node) -> bool:
    return _is_layer(node) and behind_dequantize(node.inputs[0]) is not None


def _readers(value: ir.Value) -> list[ir.Node]:
    return [node for node, _ in value.uses()]


def qoperator(node: ir.Node, facts: Facts) -> Iterator[str]:
    """TensorRT reads Q/DQ, not operators on integers."""
    if node.op_type in _QOPERATORS or node.op_type.startswith("QLinear"):
        yield f"{node.op_type} is an operator on integers, which TensorRT does not read"


def unfolded_batchnorm(node: ir.Node, facts: Facts) -> Iterator[str]:
    """A BatchNormalization behind a quantized layer is part of its weights."""
    if node.op_type != "BatchNormalization":
        return
    value = node.inputs[0]
    pair = behind_dequantize(value)
    source = value if pair is None else pair.inputs[0]
    producer = source.producer() if source is not None else None
    if producer is not None and producer.op_type == "QuantizeLinear":
        before = producer.inputs[0]
        producer = before.producer() if before is not None else None
    if producer is not None and _is_quantized(producer):
        yield f'it stands unfolded behind the quantized {producer.op_type} "{producer.name}"'


def half_quantized(node: ir.Node, facts: Facts) -> Iterator[str]:
    """A layer is quantized on both sides or on none."""
    if not _is_layer(node) or len(node.inputs) < 2:
        return
    sides = [behind_dequantize(value) is not None for value in node.inputs[:2]]
    if sides[0] != sides[1]:
        which = "activation" if sides[0] else "weight"
        yield f"only its {which} is quantized, so it runs in floating point"


def concat_scales(node: ir.Node, facts: Facts) -> Iterator[str]:
    """The inputs of a Concat in integers have one scale."""
    if node.op_type != "Concat":
        return
    pairs = [behind_dequantize(value) for value in node.inputs]
    scales = [constant_of(pair.inputs[1]) for pair in pairs if pair is not None]
    known = {float(scale) for scale in scales if scale is not None and scale.size == 1}
    is_read = any(user.op_type == "QuantizeLinear" for user in _readers(node.outputs[0]))
    if len(scales) == len(node.inputs) and is_read and len(known) > 1:
        yield f"its {len(scales)} inputs have {len(known)} different scales: each is requantized"


def before_activation(node: ir.Node, facts: Facts) -> Iterator[str]:
    """Nothing is quantized between a layer and the activation that its kernel takes in."""
    if node.op_type not in ("Conv", "ConvTranspose") or not _is_quantized(node):
        return
    readers = _readers(node.outputs[0])
    if not readers or any(reader.op_type != "QuantizeLinear" for reader in readers):
        return
    behind = [user for q in readers for dq in _readers(q.outputs[0]) for user in
              _readers(dq.outputs[0])]  # fmt: skip
    kinds = {user.op_type for user in behind}
    if behind and kinds <= (POINTWISE - {"Add"}):
        yield f"its output is quantized in front of the activation ({', '.join(sorted(kinds))})"


def residual_add(node: ir.Node, facts: Facts) -> Iterator[str]:
    """Of a residual Add the skip is quantized, and not the convolution that it is folded into."""
    if node.op_type != "Add" or len(node.inputs) != 2:
        return
    pairs = [behind_dequantize(value) for value in node.inputs]
    layers = [_layer_behind(pair) for pair in pairs]
    if all(pair is not None for pair in pairs):
        if fused := [layer for layer in layers if layer is not None]:
            yield (
                f'both its inputs are quantized: "{fused[-1].name}" cannot take it in; only the '
                "skip should be"
            )
        return
    read_as_integers = any(r.op_type == "QuantizeLinear" for r in _behind_relu(node.outputs[0]))
    producers = [value.producer() if value is not None else None for value in node.inputs]
    folding = [p for p in producers if p is not None and p.op_type == "Conv" and _is_quantized(p)]
    if folding and all(pair is None for pair in pairs) and read_as_integers:
        yield f'its skip is not quantized, so "{folding[-1].name}" writes floating point'


def _behind_relu(value: ir.Value) -> list[ir.Node]:
    readers = _readers(value)
    if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
        return _readers(readers[0].outputs[0])
    return readers


def _layer_behind(pair: ir.Node | None) -> ir.Node | None:
    """The convolution whose output goes through this pair and nowhere else."""
    if pair is None or len(pair.outputs[0].uses()) != 1 or pair.inputs[0] is None:
        return None
    quantize = pair.inputs[0].producer()
    if quantize is None or len(quantize.outputs[0].uses()) != 1 or quantize.inputs[0] is None:
        return None
    source = quantize.inputs[0]
    producer = source.producer()
    is_convolution = producer is not None and producer.op_type == "Conv"
    return producer if is_convolution and len(source.uses()) == 1 else None


def least_channels(node: ir.Node, facts: Facts) -> Iterator[str]:
    """Integer kernels work on blocks of channels: narrow layers gain nothing."""
    if node.op_type != "Conv" or not _is_quantized(node):
        return
    weight = stored_weight(node)
    shape = weight.shape.numpy() if weight is not None and weight.shape is not None else ()
    if len(shape) < 3:
        return
    groups = int(attribute(node, "group", 1))
    made, read = int(shape[0]) // groups, int(shape[1])
    if groups == 1 and min(made, read) < _LEAST_CHANNELS:
        yield f"it has {read} channels in and {made} out; under {_LEAST_CHANNELS} INT8 gains little"


def vector_product(node: ir.Node, facts: Facts) -> Iterator[str]:
    """A product of a matrix and one vector is bound by memory."""
    if node.op_type not in ("Gemm", "MatMul") or not _is_quantized(node):
        return
    weight = stored_weight(node)
    made = None
    if weight is not None and weight.shape is not None:
        made = weight.shape.numpy()[weight_axis(node)]
    output = node.outputs[0].shape
    rows = output[-2] if output is not None and len(output) > 1 else None
    if rows == 1 or made == 1:
        yield "it multiplies a matrix with one vector, for which no tensor core is used"


def floating_kernel(node: ir.Node, facts: Facts) -> Iterator[str]:
    """ONNX Runtime has an integer convolution only with a quantized output."""
    if node.op_type != "Conv" or not _is_quantized(node):
        return
    value, clamping = node.outputs[0], ""
    readers = _readers(value)
    if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
        clamping = readers[0].op_type
        value = readers[0].outputs[0]
        readers = _readers(value)
    quantize = [reader for reader in readers if reader.op_type == "QuantizeLinear"]
    if len(quantize) != 1 or len(readers) != 1 or value.is_graph_output():
        yield "its output is not quantized, so it runs in floating point"
    elif clamping and (zero := _zero(quantize[0])) is not None and zero != np.iinfo(zero.dtype).min:
        yield (
            f"the {clamping} behind it is not absorbed, since the zero point {int(zero)} is not "
            "the least integer: it runs in floating point"
        )


def _zero(node: ir.Node) -> Array | None:
    zero = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    return zero if zero is not None and zero.ndim == 0 else None


def transposed_kernel(node: ir.Node, facts: Facts) -> Iterator[str]:
    """ONNX Runtime has no integer ConvTranspose."""
    if node.op_type == "ConvTranspose" and _is_quantized(node):
        yield "ONNX Runtime has no integer ConvTranspose: the pairs around it only cost time"


def _rule(name: str, runtime: str, severity: str, source: str, fix: str, check: object) -> Rule:
    runtimes = ("tensorrt", "onnxruntime") if runtime == "both" else (runtime,)
    return Rule(
        name=name, runtimes=runtimes, severity=severity, source=source, fix=fix, check=check  # type: ignore[arg-type]
    )  # fmt: skip


RULES: tuple[Rule, ...] = (
    _rule("qoperator", "tensorrt", "error", "onnx-tensorrt, operators.md, 8.4 to 10.15",
          "Quantize in the QDQ format instead of QOperator.", qoperator),
    _rule("unfolded-batchnorm", "both", "warning", "measured: pairs around each BatchNormalization "
          "cost accuracy and time", "Fold BatchNormalization before quantizing.",
          unfolded_batchnorm),
    _rule("half-quantized", "both", "warning", f"{_GUIDE}: quantize all inputs of weighted layers",
          "Quantize the other input too, or take this pair out.", half_quantized),
    _rule("concat-scales", "tensorrt", "warning", f"{_GUIDE}; inputs of one scale are copied",
          "Give all inputs of the Concat one scale.", concat_scales),
    _rule("before-activation", "tensorrt", "warning", f"{_GUIDE}: outputs of weighted layers are "
          "not quantized by default", "Quantize behind the activation.", before_activation),
    _rule("residual-add", "tensorrt", "warning", f"{_GUIDE}: quantize the residual input",
          "Quantize the skip alone.", residual_add),
    _rule("least-channels", "tensorrt", "note", "ModelOpt leaves such layers out of INT8; tensor "
          "cores pad channels", "Keep channel counts at multiples of 32.", least_channels),
    _rule("vector-product", "tensorrt", "note", "ModelOpt leaves such layers out of INT8",
          "Leave it in FP16 if it is slow.", vector_product),
    _rule("floating-kernel", "onnxruntime", "warning", _SEEN,
          "Quantize the output, with the zero point at the type's minimum behind a Relu.",
          floating_kernel),
    _rule("transposed-kernel", "onnxruntime", "warning", _SEEN,
          "Leave ConvTranspose in floating point.", transposed_kernel),
)  # fmt: skip
