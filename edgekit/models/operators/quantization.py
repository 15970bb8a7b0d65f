"""Quantization, with straight-through gradients: a Q/DQ graph can be trained as it will be run.

Between a QuantizeLinear and a DequantizeLinear the integers are carried as floating-point numbers
while gradients are wanted, since torch's integers have none. The gradient of rounding is taken as
1 inside the range and 0 where a value is clamped (Bengio et al. 2013, arXiv:1308.3432; Jacob et
al. 2018, arXiv:1712.05877).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from edgekit.models.operators import Builder, Function, Op
from edgekit.models.operators.convolution import convolution, kernel_of
from edgekit.models.operators.types import carrier, cast_to

_RANGES: Mapping[ir.DataType, tuple[int, int]] = {
    ir.DataType.INT8: (-128, 127), ir.DataType.UINT8: (0, 255), ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15), ir.DataType.INT2: (-2, 1), ir.DataType.UINT2: (0, 3),
    ir.DataType.INT16: (-32768, 32767), ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT32: (-(2**31), 2**31 - 1),
}  # fmt: skip


class _Round(torch.autograd.Function):
    """Rounds half to even and clamps; the gradient passes where nothing was clamped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        rounded = x.round()
        ctx.save_for_backward((rounded >= low) & (rounded <= high))
        return rounded.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None


def round_into(levels: Tensor, zero: Tensor | None, bounds: tuple[int, int]) -> Tensor:
    """saturate(round(levels) + zero point), with a straight-through gradient."""
    offset = torch.zeros((), dtype=levels.dtype, device=levels.device) if zero is None else zero
    low, high = bounds[0] - offset, bounds[1] - offset
    found: Tensor = _Round.apply(levels, low, high)  # type: ignore[no-untyped-call]
    return found + offset


def spread(value: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """A scale or zero point against x: one number, one for each entry of the axis, or blocks."""
    if block:
        return value.repeat_interleave(block, dim=axis).narrow(axis, 0, x.shape[axis])
    if value.ndim == 0 or value.numel() == 1:
        return value.reshape(())
    shape = [1] * x.ndim
    shape[axis] = -1
    return value.reshape(shape)


def _result_type(op: Op) -> ir.DataType:
    given = int(op.get("output_dtype", 0))
    if given:
        return ir.DataType(given)
    zero = op.node.inputs[2] if len(op.node.inputs) > 2 else None
    if zero is not None and zero.dtype is not None:
        return zero.dtype
    return op.node.outputs[0].dtype or ir.DataType.UINT8


def quantize(op: Op) -> Function:
    """ONNX QuantizeLinear: saturate(round(x / scale) + zero point)."""
    axis, block = int(op.get("axis", 1)), int(op.get("block_size", 0))
    kind = _result_type(op)
    if kind not in _RANGES:
        return _quantize_to_float(op, kind, axis, block)
    bounds = _RANGES[kind]
    target = carrier(kind)
    assert target is not None

    def function(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        real = x if x.is_floating_point() else x.to(torch.float32)
        levels = real / spread(scale, x, axis, block)
        offset = None if zero is None else spread(zero, x, axis, block).to(real.dtype)
        found = round_into(levels, offset, bounds)
        return found if torch.is_grad_enabled() and levels.requires_grad else found.to(target)

    return function


def _quantize_to_float(op: Op, kind: ir.DataType, axis: int, block: int) -> Function:
    cast = cast_to(kind, saturate=bool(op.get("saturate", 1)))
    if cast is None:
        raise op.refuse("torch does not have the type")
    convert = cast

    def function(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        found: Tensor = convert(x / spread(scale, x, axis, block))
        return found

    return function


def dequantize(op: Op) -> Function:
    """ONNX DequantizeLinear: (x - zero point) * scale."""
    axis, block = int(op.get("axis", 1)), int(op.get("block_size", 0))
    given = int(op.get("output_dtype", 0))
    target = carrier(ir.DataType(given)) if given else None

    def function(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        kind = target or scale.dtype
        step = spread(scale, x, axis, block).to(torch.float32)
        real = x if x.is_floating_point() and x.element_size() > 2 else x.to(torch.float32)
        if zero is not None:
            real = real - spread(zero, x, axis, block).to(torch.float32)
        return (real * step).to(kind)

    return function


def latent_dequantize(op: Op) -> Function:
    """DequantizeLinear of a stored weight that is trained: the weight comes as the real numbers.

    They are quantized and dequantized with the node's own scale, as the stored integers will be.
    """
    quantized, real = quantize_as(op), dequantize(op)

    def function(latent: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        found: Tensor = real(quantized(latent, scale, zero), scale, zero)
        return found

    return function


def quantize_as(op: Op) -> Function:
    """What turns real numbers into the integers that this DequantizeLinear reads."""
    axis, block = int(op.get("axis", 1)), int(op.get("block_size", 0))
    source = op.node.inputs[0]
    kind = ir.DataType.INT8 if source is None or source.dtype is None else source.dtype
    bounds = _RANGES[kind]

    def function(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        offset = None if zero is None else spread(zero, x, axis, block).to(x.dtype)
        return round_into(x / spread(scale, x, axis, block), offset, bounds)

    return function


def dynamic_quantize(op: Op) -> Function:
    """ONNX DynamicQuantizeLinear: uint8, the range of this one tensor with 0 in it."""

    def function(x: Tensor) -> tuple[Tensor, ...]:
        low, high = x.min().clamp(max=0), x.max().clamp(min=0)
        scale = (high - low) / 255
        safe = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero = (0 - low / safe).round().clamp(0, 255)
        levels = ((x / safe).round() + zero).clamp(0, 255).to(torch.uint8)
        return levels, scale, zero.to(torch.uint8)

    return function


def quantized_product(op: Op) -> Function:
    """ONNX QLinearMatMul."""
    return lambda a, a_scale, a_zero, b, b_scale, b_zero, scale, zero: _quantized(
        _real(a, a_scale, a_zero, -2) @ _real(b, b_scale, b_zero, -1), scale, zero
    )


def _real(x: Tensor, scale: Tensor, zero: Tensor, axis: int) -> Tensor:
    return (x.to(torch.float64) - spread(zero, x, axis, 0).to(torch.float64)) * spread(
        scale, x, axis, 0
    ).to(torch.float64)


def _quantized(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    bounds = torch.iinfo(zero.dtype)
    levels = (x / scale.to(torch.float64)).round() + zero.to(torch.float64)
    return levels.clamp(bounds.min, bounds.max).to(zero.dtype)


def quantized_convolution(op: Op) -> Function:
    """ONNX QLinearConv; the bias is in units of the input's scale times the kernel's."""
    convolve = convolution(op, kernel_of(op, 3))

    def function(
        x: Tensor, x_scale: Tensor, x_zero: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor,
        scale: Tensor, zero: Tensor, bias: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        real = convolve(_real(x, x_scale, x_zero, 1), _real(w, w_scale, w_zero, 0))
        if bias is not None:
            step = (x_scale * w_scale).to(torch.float64) * bias.to(torch.float64)
            real = real + step.reshape(1, -1, *(1,) * (x.ndim - 2))
        return _quantized(real, scale, zero)

    return function


def integer_convolution(op: Op) -> Function:
    """ONNX ConvInteger: the int32 result of both less their zero points."""
    convolve = convolution(op, kernel_of(op))

    def function(
        x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
    ) -> Tensor:
        left, right = x.to(torch.float64), w.to(torch.float64)
        left = left if x_zero is None else left - x_zero.to(torch.float64)
        if w_zero is not None:
            right = right - spread(w_zero, w, 0, 0).to(torch.float64)
        found: Tensor = convolve(left, right)
        return found.to(torch.int32)

    return function


BUILDERS: Mapping[str, Builder] = {
    "ConvInteger": integer_convolution,
    "DequantizeLinear": dequantize,
    "DynamicQuantizeLinear": dynamic_quantize,
    "QLinearConv": quantized_convolution,
    "QLinearMatMul": quantized_product,
    "QuantizeLinear": quantize,
}
