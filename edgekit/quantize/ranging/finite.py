"""Where a NaN can first appear, from finite inputs: only there does a tap have to look for it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from edgekit.models.model import Model, constant_of

# Finite values give finite ones here, or an infinity, which minimum and maximum show.
_FINITE_FROM_FINITE = frozenset({
    "Abs", "Add", "AveragePool", "Ceil", "Clip", "Concat", "Conv", "ConvTranspose", "DepthToSpace",
    "Elu", "Erf", "Expand", "Flatten", "Floor", "Gather", "Gelu", "Gemm", "GlobalAveragePool",
    "GlobalMaxPool", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "MatMul", "Max",
    "MaxPool", "Mean", "Min", "Mish", "Mul", "Neg", "PRelu", "Pad", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceSum", "Relu", "Reshape", "Resize", "Round", "Selu", "Sigmoid", "Slice",
    "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Squeeze", "Sub", "Sum", "Tanh",
    "Tile", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip


def may_turn_nan(model: Model, names: Collection[str]) -> frozenset[str]:
    """Those of the tensors whose minimum and maximum do not tell whether a NaN is among them.

    A NaN appears behind an operator that makes one of finite numbers, or behind a weight that is
    none; the first of `names` on every way from there is in the answer, and behind it the search
    begins anew. The model's inputs are taken as finite. One way remains: an overflow to infinity
    that turns into a NaN (infinity less infinity, or times 0) before the next of `names`.
    """
    suspected: set[str] = set()
    found: set[str] = set()
    for node in model.graph:
        doubted = (
            node.op_type not in _FINITE_FROM_FINITE
            or any(value is not None and value.name in suspected for value in node.inputs)
            or any(_has_no_number(value) for value in node.inputs)
        )
        if not doubted:
            continue
        for value in node.outputs:
            place = found if value.name in names else suspected
            place.add(value.name or "")
    return frozenset(found)


def _has_no_number(value: ir.Value | None) -> bool:
    """Whether it is a weight with a NaN or an infinity in it."""
    array = None if value is None else constant_of(value)
    return array is not None and array.dtype.kind == "f" and not bool(np.isfinite(array).all())
