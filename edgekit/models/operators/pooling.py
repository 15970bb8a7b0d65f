"""Pooling, with every combination of pads, dilations, ceil_mode and indices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgekit.models.operators import Builder, Function, Op, whole
from edgekit.models.operators.convolution import same_pads, spatial, torch_pad, written_pads

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_MEAN = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_SUM = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@dataclass(frozen=True)
class _Window:
    """The attributes that all poolings share."""

    op: Op
    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    ceil: bool

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def written(self) -> tuple[list[int], list[int]] | None:
        return written_pads(self.op, self.rank)

    def pads(self, sizes: Sequence[int]) -> tuple[list[int], list[int]]:
        """Begin and end padding for an input of these sizes."""
        return self.written or same_pads(self.op, sizes, self.kernel, self.stride, self.dilation)

    def beyond(self, sizes: Sequence[int], begin: list[int], end: list[int]) -> list[int]:
        """How far the last window of ceil_mode reaches beyond the padded input.

        A window that would begin in the end's padding is left out.
        """
        found = []
        for i, size in enumerate(sizes):
            reach = (self.kernel[i] - 1) * self.dilation[i] + 1
            span = size + begin[i] + end[i] - reach
            count = span // self.stride[i] + 1
            if self.ceil:
                count = -(-span // self.stride[i]) + 1
                if (count - 1) * self.stride[i] >= size + begin[i]:
                    count -= 1
            found.append(max((count - 1) * self.stride[i] + reach - size - begin[i] - end[i], 0))
        return found


def _window(op: Op) -> _Window:
    kernel = [int(v) for v in op.get("kernel_shape")]
    rank = len(kernel)
    if rank not in _MAX:
        raise op.refuse(f"it has {rank} spatial axes")
    return _Window(
        op, kernel, spatial(op, "strides", rank), spatial(op, "dilations", rank),
        bool(op.get("ceil_mode", 0)),
    )  # fmt: skip


def _is_plain(window: _Window) -> bool:
    """Whether torch's own pooling knows these pads."""
    written = window.written
    return (
        written is not None
        and written[0] == written[1]
        and all(2 * p <= k for p, k in zip(written[0], window.kernel, strict=True))
    )


def max_pool(op: Op) -> Function:
    """ONNX MaxPool; its indices count through the whole input, in rows or in columns."""
    window = _window(op)
    function = _MAX[window.rank]
    if len(op.node.outputs) > 1:
        return _max_pool_with_indices(window)
    if _is_plain(window):
        begin = window.written[0] if window.written else []

        def plain(x: Tensor) -> Tensor:
            found: Tensor = function(
                _pooled(x), window.kernel, window.stride, begin, window.dilation, window.ceil
            )
            return found.to(x.dtype)

        return plain

    def padded(x: Tensor) -> Tensor:
        found: Tensor = function(
            _surrounded(window, x), window.kernel, window.stride, 0, window.dilation
        )
        return found.to(x.dtype)

    return padded


def _pooled(x: Tensor) -> Tensor:
    """Small integers pool as floats, which hold them."""
    return x if x.is_floating_point() else x.to(torch.float32)


def _surrounded(window: _Window, x: Tensor) -> Tensor:
    begin, end = window.pads(x.shape[2:])
    beyond = window.beyond(x.shape[2:], begin, end)
    ends = [e + b for e, b in zip(end, beyond, strict=True)]
    return functional.pad(_pooled(x), torch_pad(begin, ends), value=float("-inf"))


def _max_pool_with_indices(window: _Window) -> Function:
    function = _MAX[window.rank]
    by_columns = bool(window.op.get("storage_order", 0))

    def pooled(x: Tensor) -> tuple[Tensor, Tensor]:
        begin, _ = window.pads(x.shape[2:])
        wide = _surrounded(window, x)
        values, found = function(
            wide, window.kernel, window.stride, 0, window.dilation, return_indices=True
        )
        places = []  # of each maximum along each axis, in the input without pads
        for size, left in zip(reversed(wide.shape[2:]), reversed(begin), strict=True):
            places.append(found % size - left)
            found = torch.div(found, size, rounding_mode="floor")
        places.reverse()
        sizes = list(x.shape[2:])
        order = list(range(window.rank))
        flat = torch.zeros_like(places[0])
        for axis in reversed(order) if by_columns else order:
            flat = flat * sizes[axis] + places[axis]
        planes = torch.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *(1,) * window.rank)
        return values.to(x.dtype), flat + planes.to(flat.device) * math.prod(sizes)

    return pooled


def max_unpool(op: Op) -> Function:
    """ONNX MaxUnpool: each value back to its index, all else 0."""
    kernel = [int(v) for v in op.get("kernel_shape")]
    rank = len(kernel)
    stride = spatial(op, "strides", rank)
    begin, end = written_pads(op, rank) or ([0] * rank, [0] * rank)

    def function(x: Tensor, indices: Tensor, size: Any = None) -> Tensor:
        natural = [
            (x.shape[i + 2] - 1) * stride[i] + kernel[i] - begin[i] - end[i] for i in range(rank)
        ]
        sizes = [*x.shape[:2], *natural]
        out = torch.zeros(math.prod(sizes), dtype=x.dtype, device=x.device)
        out = out.scatter(0, indices.reshape(-1), x.reshape(-1)).reshape(sizes)
        wanted = whole(size)
        if wanted:
            out = functional.pad(
                out,
                torch_pad([0] * rank, [w - n for w, n in zip(wanted[2:], natural, strict=True)]),
            )
        return out

    return function


def average_pool(op: Op) -> Function:
    """ONNX AveragePool, padding counted or not; what ceil_mode adds is never counted."""
    window = _window(op)
    counted = bool(op.get("count_include_pad", 0))
    function = _MEAN[window.rank]
    if _is_plain(window) and all(d == 1 for d in window.dilation):
        begin = window.written[0] if window.written else []
        return lambda x: function(x, window.kernel, window.stride, begin, window.ceil, counted)
    return lambda x: _sums(window, x) / _counts(window, x, counted)


def _sums(window: _Window, x: Tensor) -> Tensor:
    begin, end = window.pads(x.shape[2:])
    beyond = window.beyond(x.shape[2:], begin, end)
    ends = [e + b for e, b in zip(end, beyond, strict=True)]
    return _window_sums(window, functional.pad(x, torch_pad(begin, ends)))


def _window_sums(window: _Window, x: Tensor) -> Tensor:
    ones = torch.ones((1, 1, *window.kernel), dtype=x.dtype, device=x.device)
    flat = x.reshape(-1, 1, *x.shape[2:])
    sums: Tensor = _SUM[window.rank](flat, ones, None, window.stride, 0, window.dilation)
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


def _counts(window: _Window, x: Tensor, counted: bool) -> Tensor:
    """How many elements each window has: with the pads or without."""
    sizes = x.shape[2:]
    begin, end = window.pads(sizes)
    beyond = window.beyond(sizes, begin, end)
    one = torch.ones((1, 1, *sizes), dtype=x.dtype, device=x.device)
    one = functional.pad(one, torch_pad(begin, end), value=1.0 if counted else 0.0)
    return _window_sums(window, functional.pad(one, torch_pad([0] * window.rank, beyond)))


def lp_pool(op: Op) -> Function:
    """ONNX LpPool: the p-norm of each window; pads count as 0."""
    window = _window(op)
    p = int(op.get("p", 2))
    return lambda x: _sums(window, x.abs() ** p) ** (1 / p)


def global_average_pool(op: Op) -> Function:
    """ONNX GlobalAveragePool."""
    return lambda x: x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


def global_max_pool(op: Op) -> Function:
    """ONNX GlobalMaxPool."""
    return lambda x: x.amax(dim=tuple(range(2, x.ndim)), keepdim=True)


def global_lp_pool(op: Op) -> Function:
    """ONNX GlobalLpPool."""
    p = int(op.get("p", 2))
    return lambda x: torch.linalg.vector_norm(x, ord=p, dim=tuple(range(2, x.ndim)), keepdim=True)


BUILDERS: Mapping[str, Builder] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": global_max_pool,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
    "MaxUnpool": max_unpool,
}
