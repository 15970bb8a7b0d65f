"""Reductions, sorting, running sums, and the normalisations along one axis such as Softmax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgekit.models.operators import Builder, Function, Op, whole


def _mean(x: Tensor, over: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(dim=over, keepdim=keep)
    return x.to(torch.float64).mean(dim=over, keepdim=keep).to(x.dtype)


def _sum(x: Tensor, over: list[int], keep: bool) -> Tensor:
    return x.sum(dim=over, keepdim=keep, dtype=x.dtype)


def _product(x: Tensor, over: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in over), reverse=True):
        x = x.prod(dim=axis, keepdim=keep, dtype=x.dtype)
    return x


def _extreme(x: Tensor, over: list[int], keep: bool, *, largest: bool) -> Tensor:
    """An empty set has the type's lowest (highest) number for its maximum (minimum)."""
    if any(x.shape[axis] == 0 for axis in over):
        if x.is_floating_point():
            nothing = float("-inf") if largest else float("inf")
        else:
            lowest = 0 if x.dtype == torch.bool else torch.iinfo(x.dtype).min
            highest = 1 if x.dtype == torch.bool else torch.iinfo(x.dtype).max
            nothing = lowest if largest else highest
        shape = [1 if i in {a % x.ndim for a in over} else size for i, size in enumerate(x.shape)]
        filled = torch.full(shape, nothing, dtype=x.dtype)
        return filled if keep else filled.squeeze(tuple(over))
    reduce = torch.amax if largest else torch.amin
    if x.dtype == torch.bool:
        return reduce(x.to(torch.uint8), dim=over, keepdim=keep).to(torch.bool)
    return reduce(x, dim=over, keepdim=keep)


_REDUCTIONS: Mapping[str, Function] = {
    "ReduceL1": lambda x, over, keep: _sum(x.abs(), over, keep),
    "ReduceL2": lambda x, over, keep: _root(_sum(x * x, over, keep)),
    "ReduceLogSum": lambda x, over, keep: _sum(x, over, keep).log(),
    "ReduceLogSumExp": lambda x, over, keep: torch.logsumexp(x, dim=over, keepdim=keep),
    "ReduceMax": lambda x, over, keep: _extreme(x, over, keep, largest=True),
    "ReduceMean": _mean,
    "ReduceMin": lambda x, over, keep: _extreme(x, over, keep, largest=False),
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda x, over, keep: _sum(x * x, over, keep),
}


def _root(x: Tensor) -> Tensor:
    return x.sqrt() if x.is_floating_point() else x.to(torch.float64).sqrt().to(x.dtype)


def reduction(op: Op) -> Function:
    """ONNX Reduce*: over axes from the attribute (older opsets) or the input, or over all.

    With `noop_with_empty_axes` and no axes nothing is summed up, but what is done to each element
    (ReduceL1's absolute value, the square) is still done.
    """
    written = op.get("axes")
    keep, nothing = bool(op.get("keepdims", 1)), bool(op.get("noop_with_empty_axes", 0))
    reduce = _REDUCTIONS[op.node.op_type]

    def function(x: Tensor, axes: Any = None) -> Tensor:
        over = [int(axis) for axis in written] if written is not None else whole(axes)
        if over:
            found: Tensor = reduce(x, over, keep)
            return found
        if nothing:
            alone: Tensor = reduce(x.unsqueeze(-1), [x.ndim], False)
            return alone
        if x.ndim == 0:
            single: Tensor = reduce(x.reshape(1), [0], False)
            return single
        everything: Tensor = reduce(x, list(range(x.ndim)), keep)
        return everything

    return function


def extreme_index(op: Op) -> Function:
    """ONNX ArgMax and ArgMin: the first or the last of several."""
    axis, keep = int(op.get("axis", 0)), bool(op.get("keepdims", 1))
    last = bool(op.get("select_last_index", 0))
    find = torch.argmax if op.node.op_type == "ArgMax" else torch.argmin

    def function(x: Tensor) -> Tensor:
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.to(torch.float32)
        if not last:
            return find(x, dim=axis, keepdim=keep)
        return x.shape[axis] - 1 - find(x.flip(axis), dim=axis, keepdim=keep)

    return function


def top_k(op: Op) -> Function:
    """ONNX TopK: of equal ones the first comes first."""
    axis, largest = int(op.get("axis", -1)), bool(op.get("largest", 1))
    written = op.get("k")

    def function(x: Tensor, k: Any = None) -> tuple[Tensor, Tensor]:
        count = int(written) if written is not None else whole(k)[0]
        wide = x.to(torch.int64) if x.dtype in (torch.uint16, torch.uint32, torch.uint64) else x
        values, indices = torch.sort(wide, dim=axis, descending=largest, stable=True)
        return (
            values.narrow(axis, 0, count).to(x.dtype),
            indices.narrow(axis, 0, count),
        )

    return function


def running(op: Op) -> Function:
    """ONNX CumSum and CumProd along an axis: exclusive, in reverse, or both."""
    exclusive, reverse = bool(op.get("exclusive", 0)), bool(op.get("reverse", 0))
    accumulate = torch.cumsum if op.node.op_type == "CumSum" else torch.cumprod
    neutral = 0 if op.node.op_type == "CumSum" else 1

    def function(x: Tensor, axis: Any) -> Tensor:
        over = whole(axis)[0] % x.ndim
        x = x.flip(over) if reverse else x
        if exclusive:
            first = torch.full_like(x.narrow(over, 0, 1), neutral)
            x = torch.cat([first, x.narrow(over, 0, x.shape[over] - 1)], dim=over)
        found = accumulate(x, dim=over, dtype=x.dtype)
        return found.flip(over) if reverse else found

    return function


def softmax(op: Op) -> Function:
    """ONNX Softmax, LogSoftmax and Hardmax over one axis; before opset 13 over all axes from
    `axis` on, flattened."""
    functions: dict[str, Function] = {
        "Softmax": functional.softmax, "LogSoftmax": functional.log_softmax, "Hardmax": _hardmax,
    }  # fmt: skip
    soft = functions[op.node.op_type]
    axis = int(op.get("axis", -1 if op.opset >= 13 else 1))
    if op.opset >= 13:
        return lambda x: soft(x, dim=axis)

    def flattened(x: Tensor) -> Tensor:
        begin = axis + x.ndim if axis < 0 else axis
        found: Tensor = soft(x.reshape(*x.shape[:begin], -1), dim=-1)
        return found.reshape(x.shape)

    return flattened


def _hardmax(x: Tensor, dim: int) -> Tensor:
    return torch.zeros_like(x).scatter(dim, x.argmax(dim, keepdim=True), 1.0)


def lp_normalization(op: Op) -> Function:
    """ONNX LpNormalization along one axis; where the norm is 0, 0."""
    axis, p = int(op.get("axis", -1)), int(op.get("p", 2))

    def function(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, ord=p, dim=axis, keepdim=True)
        return x / torch.where(norm == 0, torch.ones_like(norm), norm)

    return function


BUILDERS: Mapping[str, Builder] = {
    **dict.fromkeys(_REDUCTIONS, reduction),
    **dict.fromkeys(("ArgMax", "ArgMin"), extreme_index),
    **dict.fromkeys(("CumSum", "CumProd"), running),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), softmax),
    "LpNormalization": lp_normalization,
    "TopK": top_k,
}
