"""Which ONNX operators TensorRT takes, and from which version on: rules as data.

Sources: onnx-tensorrt's docs/operators.md (8.2-GA to 10.1-GA, 10.15), its changelog and TensorRT's;
MaxPool's indices, QLinearConv and DynamicQuantizeLinear also seen refused by TensorRT-RTX 1.7.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from edgekit.models.model import attribute, constant_of

Version = tuple[int, int]
Node = ir.Node

NEVER = frozenset({
    "MaxUnpool", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
    "MatMulInteger", "Col2Im", "Unique", "Compress", "BitShift", "BitwiseAnd", "BitwiseNot",
    "BitwiseOr", "BitwiseXor", "DFT", "STFT", "CenterCropPad", "AffineGrid", "Optional",
    "OptionalGetElement", "OptionalHasElement", "SequenceAt", "SequenceConstruct",
    "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap",
    "SplitToSequence", "ConcatFromSequence",
})  # fmt: skip

SINCE: Mapping[str, Version] = {
    "GridSample": (8, 5),
    "NonMaxSuppression": (8, 5),
    "RoiAlign": (8, 5),
    "Mod": (8, 5),
    "Trilu": (8, 5),
    "LayerNormalization": (8, 6),
    "GroupNormalization": (8, 6),
    "Hardmax": (9, 2),
    "DeformConv": (10, 1),
    "Attention": (10, 14),
    "RMSNormalization": (10, 15),
    "RotaryEmbedding": (10, 15),
    "Swish": (11, 0),
}

_RESIZE_MODES = frozenset({"nearest", "linear"})
_RESIZE_COORDINATES = frozenset({
    "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners",
})  # fmt: skip
_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
_CONSTANT_INPUTS: Mapping[str, tuple[int, ...]] = {
    "Slice": (3,), "Squeeze": (1,), "Unsqueeze": (1,), **dict.fromkeys(_REDUCTIONS, (1,)),
}  # fmt: skip
_COMPUTED_WEIGHTS: Version = (8, 5)

_INTEGER_FORM = "Give the float model to edgekit quantize: it writes Q/DQ, which TensorRT fuses."
_REMEDIES: Mapping[str, str] = {
    **dict.fromkeys(
        ("DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"),
        _INTEGER_FORM,
    ),
    "NonMaxSuppression": "Cut the model before it, and suppress boxes on the CPU.",
    "LayerNormalization": "Lower the model to opset 16, which writes it in simpler operators.",
    "GroupNormalization": "Lower the model to opset 17 or below, or export it decomposed.",
    "GridSample": "Warp on the CPU, or take a JetPack with TensorRT 8.5.",
    "Attention": "Export it decomposed, into MatMul and Softmax: opset 22 or below.",
    "RMSNormalization": "Export it decomposed: opset 22 or below.",
    "RotaryEmbedding": "Export it decomposed: opset 22 or below.",
    "Swish": "Export it as Sigmoid and Mul: opset 23 or below.",
    "MaxUnpool": "Replace it by a Resize or a ConvTranspose, and train again.",
    "MaxPool": "Use its values only, without dilations, over two or three dimensions.",
    "AveragePool": "Pool without dilations, over two or three dimensions.",
    "Resize": "Export it with mode nearest or linear, without antialias.",
    "DeformConv": "Take TensorRT 10.1 with its plug-ins, or replace it by a Conv.",
}
_ANY_REMEDY = "Write it in other operators, or cut the model before it."


def refusal(node: ir.Node, version: Version) -> str:
    """Why TensorRT of that version does not take the node; empty where no rule speaks against it.

    A node of a plug-in's domain has no rule here.
    """
    if node.domain not in ("", "ai.onnx"):
        return ""
    operator = node.op_type
    if operator in NEVER:
        return "TensorRT has no such operator"
    since = SINCE.get(operator)
    if since is not None and version < since:
        return f"TensorRT has it from {since[0]}.{since[1]} on"
    if operator == "MaxPool" and len(node.outputs) > 1 and node.outputs[1].uses():
        return "TensorRT gives no indices of a MaxPool"
    if operator in ("MaxPool", "AveragePool"):
        return _pool_refusal(node)
    if operator == "Resize":
        return _resize_refusal(node)
    if operator in ("Conv", "ConvTranspose") and version < _COMPUTED_WEIGHTS:
        return _weight_refusal(node)
    return ""


def remedy(node: ir.Node) -> str:
    """What can be done about a node that is refused or doubted."""
    if node.domain not in ("", "ai.onnx"):
        return "Register a plug-in of that name with TensorRT, or export it in ONNX's operators."
    if node.op_type in _CONSTANT_INPUTS:
        return "Fold constants at fixed sizes: its axes become constants."
    if node.op_type in ("Conv", "ConvTranspose"):
        return "Fold constants, so that its weight is stored."
    return _REMEDIES.get(node.op_type, _ANY_REMEDY)


def name_of(node: ir.Node) -> str:
    """The node's name, its first output's where it has none."""
    return node.name or next((value.name for value in node.outputs if value.name), node.op_type)


def version_numbers(text: str) -> Version:
    """ "8.7" as numbers; nothing is (0, 0)."""
    major, _, minor = text.partition(".")
    return (int(major or 0), int(minor or 0))


def _weight_refusal(node: ir.Node) -> str:
    """Before 8.5 a weight is stored, or behind Q/DQ."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    producer = weight.producer() if weight is not None else None
    if weight is None or constant_of(weight) is not None:
        return ""
    if producer is not None and producer.op_type == "DequantizeLinear":
        return ""
    return "its weight is computed, which TensorRT takes from 8.5 on"


def _pool_refusal(node: ir.Node) -> str:
    if any(step != 1 for step in attribute(node, "dilations", ())):
        return "TensorRT's pooling has no dilations"
    if len(attribute(node, "kernel_shape", ())) not in (2, 3):
        return "TensorRT pools over two or three dimensions only"
    return ""


def _resize_refusal(node: ir.Node) -> str:
    if attribute(node, "antialias", 0):
        return "TensorRT's Resize has no antialias"
    return ""


def doubt(node: ir.Node) -> str:
    """What is known of a node that may be refused or may not: no source decides it."""
    if node.domain not in ("", "ai.onnx"):
        return f'it is of the domain "{node.domain}": a plug-in would have to know it'
    if node.op_type == "Resize" and attribute(node, "mode", "nearest") not in _RESIZE_MODES:
        return "only nearest and linear are in TensorRT's list of modes"
    if node.op_type == "Resize":
        mapping = attribute(node, "coordinate_transformation_mode", "half_pixel")
        if mapping not in _RESIZE_COORDINATES:
            return f"{mapping} is not in TensorRT's list of coordinate modes"
    for index in _CONSTANT_INPUTS.get(node.op_type, ()):
        given = node.inputs[index] if index < len(node.inputs) else None
        if given is not None and constant_of(given) is None:
            return "its axes are computed; most versions want constants"
    return ""
