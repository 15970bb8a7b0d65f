"""Casts, and which torch type carries which of ONNX's.

torch has no 2- or 4-bit types: int8, uint8 and float32 carry their values.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgekit.models.model import constant_of
from edgekit.models.operators import Builder, Function, Op
from edgekit.values import Array

_T = ir.DataType
_TYPES: Mapping[ir.DataType, torch.dtype] = {
    _T.FLOAT: torch.float32, _T.DOUBLE: torch.float64, _T.FLOAT16: torch.float16,
    _T.BFLOAT16: torch.bfloat16, _T.BOOL: torch.bool, _T.INT8: torch.int8, _T.INT16: torch.int16,
    _T.INT32: torch.int32, _T.INT64: torch.int64, _T.UINT8: torch.uint8, _T.UINT16: torch.uint16,
    _T.UINT32: torch.uint32, _T.UINT64: torch.uint64, _T.FLOAT8E4M3FN: torch.float8_e4m3fn,
    _T.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz, _T.FLOAT8E5M2: torch.float8_e5m2,
    _T.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz, _T.INT4: torch.int8, _T.UINT4: torch.uint8,
    _T.INT2: torch.int8, _T.UINT2: torch.uint8, _T.FLOAT4E2M1: torch.float32,
}  # fmt: skip
_BITS = {_T.INT4: 4, _T.UINT4: 4, _T.INT2: 2, _T.UINT2: 2}
_FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz)
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def carrier(dtype: ir.DataType) -> torch.dtype | None:
    """The torch type that carries an ONNX type; None for text, complex numbers and the rest."""
    return _TYPES.get(dtype)


def tensor_of(array: Array) -> Tensor:
    """A torch tensor with the array's values; types that only ml_dtypes knows are carried."""
    if array.dtype.isbuiltin == 1:  # 2: a type that ml_dtypes has added
        return torch.from_numpy(np.array(array))
    dtype = ir.DataType.from_numpy(array.dtype)
    carried = carrier(dtype)
    if carried is None:
        raise TypeError(array.dtype.name)
    if dtype in _BITS:
        return torch.from_numpy(array.astype(np.int8 if _signed(dtype) else np.uint8))
    return torch.from_numpy(array.astype(np.float32)).to(carried)


def _signed(dtype: ir.DataType) -> bool:
    return dtype in (_T.INT4, _T.INT2)


def cast_to(dtype: ir.DataType, *, saturate: bool = True) -> Function | None:
    """The function that casts a tensor as ONNX's Cast does; None for a type torch cannot carry."""
    target = carrier(dtype)
    if target is None:
        return None
    if dtype in _BITS:
        return lambda x: _wrapped(x, _BITS[dtype], signed=_signed(dtype)).to(target)
    if dtype is _T.FLOAT4E2M1:
        return _to_float4
    if target in _FLOAT8:
        limit = torch.finfo(target).max
        return lambda x: _to_float8(x, target, limit, saturate=saturate)
    return lambda x: x.to(target)


def _wrapped(x: Tensor, bits: int, *, signed: bool) -> Tensor:
    """The lowest bits of the integer part, as a number of so many bits."""
    kept = x.to(torch.int64) & (1 << bits) - 1
    return torch.where(kept >= 1 << bits - 1, kept - (1 << bits), kept) if signed else kept


def _to_float4(x: Tensor) -> Tensor:
    """The nearest of the sixteen values, ties to the even mantissa, beyond the largest that.

    There is no NaN among them: it becomes -0.
    """
    levels = torch.tensor(_FLOAT4)
    x = torch.where(torch.isnan(x), torch.tensor(-0.0, dtype=x.dtype), x)
    size = x.to(torch.float32).abs()
    above = torch.searchsorted(levels, size.contiguous()).clamp(1, 7)
    low, high = levels[above - 1], levels[above]
    middle = (low + high) / 2
    upper = (size > middle) | ((size == middle) & (above % 2 == 0))
    return torch.where(upper, high, low).copysign(x.to(torch.float32))


def _to_float8(x: Tensor, target: torch.dtype, limit: float, *, saturate: bool) -> Tensor:
    """ONNX's table: saturated, or infinity (NaN where the type has none)."""
    x = x.to(torch.float32) if not x.is_floating_point() or x.dtype in _FLOAT8 else x
    if saturate:
        return x.clamp(-limit, limit).to(target)
    # Half of the last step above the largest number rounds to it; more overflows.
    exponent = torch.tensor(limit).log2().floor()
    step = 2.0 ** (exponent - (3 if "e4m3" in str(target) else 2))
    rounded = x.clamp(-limit, limit).to(target)
    over = torch.inf if target is torch.float8_e5m2 else torch.nan
    beyond = x.abs() >= limit + step / 2
    return torch.where(beyond, x.sign() * over, rounded.to(torch.float32)).to(target)


def cast(op: Op) -> Function:
    """ONNX Cast."""
    function = cast_to(
        ir.DataType(int(op.get("to"))), saturate=bool(op.get("saturate", 1))
    )  # fmt: skip
    if function is None:
        raise op.refuse("torch does not have the type")
    source = op.node.inputs[0]
    if source is not None and source.dtype is ir.DataType.STRING:
        raise op.refuse("torch has no text")
    return function


def cast_like(op: Op) -> Function:
    """ONNX CastLike: the type of the second input, as the graph gives it."""
    like = op.node.inputs[1]
    if like is None or like.dtype is None:
        return lambda x, y: x.to(y.dtype)
    function = cast_to(like.dtype, saturate=bool(op.get("saturate", 1)))
    if function is None:
        raise op.refuse("torch does not have the type")
    cast_it = function
    return lambda x, _: cast_it(x)


def bit_cast(op: Op) -> Function:
    """ONNX BitCast: the same bits as another type of the same width."""
    target = carrier(ir.DataType(int(op.get("to"))))
    if target is None:
        raise op.refuse("torch does not have the type")
    return lambda x: x.contiguous().view(target)


def constant(op: Op) -> Function:
    """ONNX Constant, for a graph that was not cleaned."""
    array = constant_of(op.node.outputs[0])
    if array is None:
        raise op.refuse("it is no tensor of numbers")
    tensor = tensor_of(array)
    return lambda: tensor


BUILDERS: Mapping[str, Builder] = {
    "Cast": cast,
    "CastLike": cast_like,
    "BitCast": bit_cast,
    "Constant": constant,
}
