"""Which ONNX operators TensorRT takes, and from which version on: rules as data.

Sources: onnx-tensorrt's docs/operators.md (8.2-GA to 10.1-GA, 10.15), its changelog and TensorRT's;
MaxPool's indices, QLinearConv and DynamicQuantizeLinear also seen refused by TensorRT-RTX 1.7.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from edgekit.models.model import attribute, constant_of

Version = tuple[int, int]

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
_CONSTANT_INPUTS = {
    "Slice": (1, 2, 3, 4), "Squeeze": (1,), "Unsqueeze": (1,),
}  # fmt: skip


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
    return ""


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
    for index in _CONSTANT_INPUTS.get(node.op_type, ()):
        given = node.inputs[index] if index < len(node.inputs) else None
        if given is not None and constant_of(given) is None:
            return "its axes or bounds are computed; most versions want constants"
    return ""
