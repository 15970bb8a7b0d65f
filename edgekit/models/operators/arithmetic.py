"""Arithmetic, comparison, logic and activations: what works element by element."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from edgekit.models.operators import Builder, Function, Op
from edgekit.models.operators.types import UNSIGNED


def _plain(function: Function) -> Builder:
    """The builder of an operator that has no attribute that matters."""
    return lambda op: function


def _wide(function: Function) -> Builder:
    """As `_plain`; torch computes little on wide unsigned integers, so int64 stands in for them."""

    def widened(*inputs: Tensor) -> Tensor:
        first = inputs[0]
        if first.dtype in UNSIGNED:
            found: Tensor = function(*[x.to(torch.int64) for x in inputs])
            return found.to(first.dtype) if found.dtype == torch.int64 else found
        result: Tensor = function(*inputs)
        return result

    return lambda op: widened


def relu(op: Op) -> Function:
    """ONNX Relu, in place where nobody reads its input again."""
    return functional.relu_ if op.overwrites else functional.relu


def add(op: Op) -> Function:
    """ONNX Add, in place where nobody reads its first input again."""
    if not op.overwrites:
        return _wide(torch.add)(op)

    def function(x: Tensor, y: Tensor) -> Tensor:
        return x.add_(y) if x.shape == y.shape and x.dtype == y.dtype else x + y

    return function


def leaky_relu(op: Op) -> Function:
    """ONNX LeakyRelu."""
    slope = float(op.get("alpha", 0.01))
    return lambda x: functional.leaky_relu(x, slope)


def thresholded_relu(op: Op) -> Function:
    """ONNX ThresholdedRelu: x where x > alpha, else 0."""
    alpha = float(op.get("alpha", 1.0))
    return lambda x: torch.where(x > alpha, x, torch.zeros_like(x))


def shrink(op: Op) -> Function:
    """ONNX Shrink: x + bias below -lambd, x - bias above lambd, else 0."""
    bias, lambd = float(op.get("bias", 0.0)), float(op.get("lambd", 0.5))

    def function(x: Tensor) -> Tensor:
        inner = torch.where(x > lambd, x - bias, torch.zeros_like(x))
        return torch.where(x < -lambd, x + bias, inner).to(x.dtype)

    return function


def hard_sigmoid(op: Op) -> Function:
    """ONNX HardSigmoid: max(0, min(1, alpha x + beta))."""
    alpha, beta = float(op.get("alpha", 0.2)), float(op.get("beta", 0.5))
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return functional.hardsigmoid
    return lambda x: torch.clamp(alpha * x + beta, 0, 1)


def elu(op: Op) -> Function:
    """ONNX Elu."""
    alpha = float(op.get("alpha", 1.0))
    return lambda x: functional.elu(x, alpha)


def celu(op: Op) -> Function:
    """ONNX Celu."""
    alpha = float(op.get("alpha", 1.0))
    return lambda x: functional.celu(x, alpha)


def selu(op: Op) -> Function:
    """ONNX Selu: gamma (x above 0, alpha (e^x - 1) below)."""
    alpha = float(op.get("alpha", 1.67326319217681884765625))
    gamma = float(op.get("gamma", 1.05070102214813232421875))
    return lambda x: gamma * functional.elu(x, alpha)


def gelu(op: Op) -> Function:
    """ONNX Gelu, exact or by tanh."""
    approximate = op.get("approximate", "none")
    return lambda x: functional.gelu(x, approximate=approximate)


def swish(op: Op) -> Function:
    """ONNX Swish: x sigmoid(alpha x)."""
    alpha = float(op.get("alpha", 1.0))
    return functional.silu if alpha == 1.0 else lambda x: x * torch.sigmoid(alpha * x)


def swiglu(op: Op) -> Function:
    """ONNX SwiGLU: Swish of the gate, times the value."""
    alpha = float(op.get("alpha", 1.0))
    return lambda gate, value: gate * torch.sigmoid(alpha * gate) * value


def clip(op: Op) -> Function:
    """ONNX Clip: bounds as attributes (before opset 11) or as inputs, either may be absent.

    Where the lower is above the upper, the upper wins.
    """
    if op.opset < 11:
        low, high = op.get("min"), op.get("max")
    else:
        low, high = (None if (c := op.constant(i)) is None else c.item() for i in (1, 2))
        given = [i for i in (1, 2) if i < len(op.node.inputs) and op.node.inputs[i] is not None]
        if any(op.constant(i) is None for i in given):
            return _clip_by_tensors
    if low is None and high is None:
        return lambda x, *_: x
    source = op.node.inputs[0]
    is_float = source is not None and source.dtype == ir.DataType.FLOAT
    if is_float and low is not None and high is not None and low < high:
        in_place = op.overwrites  # its gradient is faster than clamp's
        return lambda x, *_: functional.hardtanh(x, low, high, inplace=in_place)

    def function(x: Tensor, *_: Tensor) -> Tensor:
        if x.dtype in UNSIGNED:
            return torch.clamp(x.to(torch.int64), low, high).to(x.dtype)
        return torch.clamp(x, low, high)

    return function


def _clip_by_tensors(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return torch.clamp(x, low, high) if low is not None or high is not None else x


def power(x: Tensor, y: Tensor) -> Tensor:
    """ONNX Pow: the type of the base."""
    return torch.pow(x, y) if x.dtype == y.dtype else torch.pow(x, y).to(x.dtype)


def modulo(op: Op) -> Function:
    """ONNX Mod: the sign of the divisor, or with fmod that of the dividend."""
    return _wide(torch.fmod if op.get("fmod", 0) else torch.remainder)(op)


def bit_shift(op: Op) -> Function:
    """ONNX BitShift."""
    to_left = op.get("direction") == "LEFT"
    return _wide(torch.bitwise_left_shift if to_left else torch.bitwise_right_shift)(op)


def is_inf(op: Op) -> Function:
    """ONNX IsInf: which of the two signs count."""
    negative, positive = bool(op.get("detect_negative", 1)), bool(op.get("detect_positive", 1))

    def function(x: Tensor) -> Tensor:
        infinite = torch.isinf(x.to(torch.float32)) if x.element_size() == 1 else torch.isinf(x)
        if negative and positive:
            return infinite
        return infinite & ((x > 0) if positive else (x < 0) if negative else False)

    return function


def _fold(function: Function) -> Builder:
    """Max, Min, Sum: any number of inputs, from left to right."""

    def of_all(first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = function(first, other)
        return first

    return _wide(of_all)


def _mean(first: Tensor, *others: Tensor) -> Tensor:
    total = first
    for other in others:
        total = total + other
    return total / (1 + len(others))


def _divide(x: Tensor, y: Tensor) -> Tensor:
    """Integers divide towards zero, as ONNX says."""
    if x.is_floating_point():
        return x / y
    return torch.div(x, y, rounding_mode="trunc")


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    """ONNX PRelu: the slope spreads over x from the right, as in arithmetic."""
    return torch.where(x < 0, x * slope, x)


def _softplus(x: Tensor) -> Tensor:
    return (
        torch.logaddexp(x, torch.zeros_like(x))
        if x.dtype != torch.float16
        else (functional.softplus(x))
    )


def _is_nan(x: Tensor) -> Tensor:
    return torch.isnan(x.to(torch.float32) if x.element_size() == 1 else x)


def _legacy_broadcast(function: Function) -> Builder:
    """Before opset 7 one `axis` said where the second input lies."""

    def build(op: Op) -> Function:
        axis = op.get("axis")
        if axis is None or op.opset >= 7:
            return _wide(function)(op)

        def along(x: Tensor, y: Tensor) -> Any:
            trailing = x.ndim - (int(axis) % x.ndim) - y.ndim
            return function(x, y.reshape(*y.shape, *(1,) * trailing))

        return along

    return build


BUILDERS: Mapping[str, Builder] = {
    "Abs": _plain(torch.abs),
    "Acos": _plain(torch.acos),
    "Acosh": _plain(torch.acosh),
    "Add": add,
    "And": _plain(torch.logical_and),
    "Asin": _plain(torch.asin),
    "Asinh": _plain(torch.asinh),
    "Atan": _plain(torch.atan),
    "Atanh": _plain(torch.atanh),
    "BitShift": bit_shift,
    "BitwiseAnd": _wide(torch.bitwise_and),
    "BitwiseNot": _wide(torch.bitwise_not),
    "BitwiseOr": _wide(torch.bitwise_or),
    "BitwiseXor": _wide(torch.bitwise_xor),
    "Ceil": _plain(torch.ceil),
    "Celu": celu,
    "Clip": clip,
    "Cos": _plain(torch.cos),
    "Cosh": _plain(torch.cosh),
    "Div": _legacy_broadcast(_divide),
    "Elu": elu,
    "Equal": _wide(torch.eq),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Floor": _plain(torch.floor),
    "Gelu": gelu,
    "Greater": _wide(torch.gt),
    "GreaterOrEqual": _wide(torch.ge),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": _plain(functional.hardswish),
    "IsInf": is_inf,
    "IsNaN": _plain(_is_nan),
    "LeakyRelu": leaky_relu,
    "Less": _wide(torch.lt),
    "LessOrEqual": _wide(torch.le),
    "Log": _plain(torch.log),
    "Max": _fold(torch.maximum),
    "Mean": _plain(_mean),
    "Min": _fold(torch.minimum),
    "Mish": _plain(functional.mish),
    "Mod": modulo,
    "Mul": _legacy_broadcast(torch.mul),
    "Neg": _plain(torch.neg),
    "Not": _plain(torch.logical_not),
    "Or": _plain(torch.logical_or),
    "PRelu": _plain(_prelu),
    "Pow": _plain(power),
    "Reciprocal": _plain(torch.reciprocal),
    "Relu": relu,
    "Round": _plain(torch.round),
    "Selu": selu,
    "Shrink": shrink,
    "Sigmoid": _plain(torch.sigmoid),
    "Sign": _plain(torch.sign),
    "Sin": _plain(torch.sin),
    "Sinh": _plain(torch.sinh),
    "Softplus": _plain(_softplus),
    "Softsign": _plain(functional.softsign),
    "Sqrt": _plain(torch.sqrt),
    "Sub": _legacy_broadcast(torch.sub),
    "Sum": _fold(torch.add),
    "SwiGLU": swiglu,
    "Swish": swish,
    "Tan": _plain(torch.tan),
    "Tanh": _plain(torch.tanh),
    "ThresholdedRelu": thresholded_relu,
    "Xor": _plain(torch.logical_xor),
}
