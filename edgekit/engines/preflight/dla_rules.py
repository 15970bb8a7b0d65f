"""Which nodes NVIDIA's deep learning accelerator takes, before a device says so: rules as data.

Sources: TensorRT's page "DLA layer restrictions", comments of NvInfer.h 11.1, and the operator list
of Deep-Learning-Accelerator-SW. Written against them; nothing here has run on a DLA, which has
limits that no page tells. So a rule only says what will fall back to the GPU.
"""

from __future__ import annotations

from edgekit.engines.preflight import operators
from edgekit.engines.preflight.answers import Answer, NodeFinding
from edgekit.models.cost.sizes import Forms
from edgekit.models.model import Model, attribute

_TAKEN = frozenset({
    "Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool",
    "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "Add", "Mul", "Sub", "Max", "Min", "Sum", "Abs",
    "Concat", "Resize", "LRN", "Softmax",
})  # fmt: skip
# No layers of their own: folded into their neighbours, or constants.
_NO_LAYER = frozenset({
    "BatchNormalization", "Constant", "DequantizeLinear", "Dropout", "Identity", "QuantizeLinear",
})  # fmt: skip
_LARGEST = 8192
_LARGEST_BATCH = 4096
_LARGEST_KERNEL = 32


def fallbacks(model: Model, known: Forms) -> tuple[NodeFinding, ...]:
    """The nodes that will run on the GPU although a DLA was asked for, in graph order."""
    found = []
    for node in model.graph:
        reason = _reason(node, known)
        if reason:
            found.append(
                NodeFinding(
                    node=operators.name_of(node), operator=node.op_type, check="DLA",
                    answer=Answer.UNKNOWN, reason=f"{reason}: it falls back to the GPU",
                    remedy="Each change between DLA and GPU copies: keep such nodes at the ends, "
                    "or leave the DLA out.",
                )
            )  # fmt: skip
    return tuple(found)


def _reason(node: operators.Node, known: Forms) -> str:
    operator = node.op_type
    if operator in _NO_LAYER:
        return ""
    if operator not in _TAKEN:
        return "it is not in the DLA's list of layers"
    if operator in ("Conv", "ConvTranspose"):
        return _convolution(node) or _size(node, known)
    if operator == "Concat" and attribute(node, "axis", 0) not in (1, -3):
        return "the DLA concatenates channels only"
    return _size(node, known)


def _convolution(node: operators.Node) -> str:
    kernel = tuple(attribute(node, "kernel_shape", ()))
    pads = tuple(attribute(node, "pads", ()))
    group = int(attribute(node, "group", 1))
    if kernel and len(kernel) != 2:
        return "the DLA convolves over two dimensions only"
    if any(size > _LARGEST_KERNEL for size in kernel):
        return f"the DLA's kernels are at most {_LARGEST_KERNEL} wide"
    if node.op_type == "ConvTranspose" and (group != 1 or any(pads)):
        return "the DLA's deconvolution has one group and no padding"
    if group > _LARGEST:
        return f"the DLA has at most {_LARGEST} groups"
    return ""


def _size(node: operators.Node, known: Forms) -> str:
    for value in (*node.inputs[:1], *node.outputs):
        sizes = known[value].sizes if value is not None and value in known else None
        if not sizes:
            continue
        if sizes[0] > _LARGEST_BATCH:
            return f"a batch of {sizes[0]} is more than the DLA's {_LARGEST_BATCH}"
        if any(size > _LARGEST for size in sizes[1:]):
            return f"a size of {max(sizes[1:])} is more than the DLA's {_LARGEST}"
    return ""
