"""Arithmetic, activations and reductions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from edgekit.errors import InputError
from edgekit.models.operators import Builder, Function, Op


def _plain(function: Function) -> Builder:
    """The builder of an operator that has no attribute that matters."""
    return lambda op: function


def leaky_relu(op: Op) -> Function:
    """ONNX LeakyRelu."""
    slope = float(op.get("alpha", 0.01))
    return lambda x: functional.leaky_relu(x, slope)


def hard_sigmoid(op: Op) -> Function:
    """ONNX HardSigmoid: max(0, min(1, alpha x + beta))."""
    alpha, beta = float(op.get("alpha", 0.2)), float(op.get("beta", 0.5))
    return lambda x: torch.clamp(alpha * x + beta, 0, 1)


def elu(op: Op) -> Function:
    """ONNX Elu."""
    alpha = float(op.get("alpha", 1.0))
    return lambda x: functional.elu(x, alpha)


def gelu(op: Op) -> Function:
    """ONNX Gelu, exact or by tanh."""
    approximate = op.get("approximate", "none")
    return lambda x: functional.gelu(x, approximate=approximate)


def clip(op: Op) -> Function:
    """ONNX Clip: bounds as attributes (before opset 11) or as inputs, either may be absent."""
    if op.computed(1) or op.computed(2):
        return lambda x, low=None, high=None: torch.clamp(x, low, high)
    if op.opset < 11:
        low, high = op.get("min"), op.get("max")
    else:
        low, high = (None if (c := op.constant(i)) is None else c.item() for i in (1, 2))
    if low is None and high is None:
        return lambda x, *_: x
    return lambda x, *_: torch.clamp(x, low, high)


def softmax(op: Op) -> Function:
    """ONNX Softmax over one axis; before opset 13 over all axes from `axis` on, flattened."""
    logarithmic = op.node.op_type == "LogSoftmax"
    soft = functional.log_softmax if logarithmic else functional.softmax
    axis = int(op.get("axis", -1 if op.opset >= 13 else 1))
    if op.opset >= 13:
        return lambda x: soft(x, dim=axis)

    def flattened(x: Tensor) -> Tensor:
        return soft(x.flatten(axis % x.ndim), dim=-1).reshape(x.shape)

    return flattened


def gemm(op: Op) -> Function:
    """ONNX Gemm: alpha A' B' + beta C."""
    alpha, beta = float(op.get("alpha", 1.0)), float(op.get("beta", 1.0))
    left, right = bool(op.get("transA", 0)), bool(op.get("transB", 0))
    if alpha == beta == 1.0 and not left and right and len(op.node.inputs) > 2:
        constant = op.constant(2)
        if constant is not None and constant.ndim == 1:
            return functional.linear

    def function(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        product = (a.t() if left else a) @ (b.t() if right else b)
        product = product if alpha == 1.0 else alpha * product
        return product if c is None else product + (c if beta == 1.0 else beta * c)

    return function


def reduction(op: Op) -> Function:
    """ONNX ReduceMean, ReduceSum, ReduceMax, ReduceMin over given axes or over all."""
    axes, keep = op.axes(), bool(op.get("keepdims", 1))
    if axes is None and op.computed(1):
        raise InputError("an operator reduces over computed axes", where=op.node.name or "")
    if not axes and op.get("noop_with_empty_axes", 0):
        return lambda x, *_: x
    reductions: dict[str, Function] = {
        "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax,
        "ReduceMin": torch.amin,
    }  # fmt: skip
    reduce = reductions[op.node.op_type]

    def function(x: Tensor, *_: Tensor) -> Tensor:
        over = axes if axes else list(range(x.ndim))
        found: Tensor = reduce(x, dim=over, keepdim=keep)
        return found

    return function


def _extreme(function: Function) -> Builder:
    def of_all(first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = function(first, other)
        return first

    return lambda op: of_all


def _sum(first: Tensor, *others: Tensor) -> Tensor:
    for other in others:
        first = first + other
    return first


def _divide(x: Tensor, y: Tensor) -> Tensor:
    """Integers divide towards zero, as ONNX says."""
    if x.is_floating_point():
        return x / y
    return torch.div(x, y, rounding_mode="trunc")


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    """ONNX PRelu: the slope spreads over x from the right, as in arithmetic."""
    return torch.where(x < 0, x * slope, x)


BUILDERS: Mapping[str, Builder] = {
    "Relu": _plain(functional.relu),
    "Sigmoid": _plain(torch.sigmoid),
    "Tanh": _plain(torch.tanh),
    "HardSwish": _plain(functional.hardswish),
    "Softplus": _plain(functional.softplus),
    "Mish": _plain(functional.mish),
    "Exp": _plain(torch.exp),
    "Log": _plain(torch.log),
    "Sqrt": _plain(torch.sqrt),
    "Erf": _plain(torch.erf),
    "Abs": _plain(torch.abs),
    "Neg": _plain(torch.neg),
    "Reciprocal": _plain(torch.reciprocal),
    "Add": _plain(torch.add),
    "Sub": _plain(torch.sub),
    "Mul": _plain(torch.mul),
    "Div": _plain(_divide),
    "Pow": _plain(torch.pow),
    "Sum": _plain(_sum),
    "MatMul": _plain(torch.matmul),
    "PRelu": _plain(_prelu),
    "Max": _extreme(torch.maximum),
    "Min": _extreme(torch.minimum),
    "LeakyRelu": leaky_relu,
    "HardSigmoid": hard_sigmoid,
    "Elu": elu,
    "Gelu": gelu,
    "Clip": clip,
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "Gemm": gemm,
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), reduction),
}
