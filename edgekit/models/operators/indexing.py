"""Operators that pick and place by index or by condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edgekit.models.operators import Builder, Function, Op, whole
from edgekit.models.operators.types import UNSIGNED


def _positive(indices: Tensor, size: int) -> Tensor:
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


def gather(op: Op) -> Function:
    """ONNX Gather along one axis."""
    axis = int(op.get("axis", 0))

    def function(x: Tensor, indices: Tensor) -> Tensor:
        picked = x.index_select(axis, _positive(indices, x.shape[axis]).reshape(-1))
        begin = axis % x.ndim
        return picked.reshape((*x.shape[:begin], *indices.shape, *x.shape[begin + 1 :]))

    return function


def gather_elements(op: Op) -> Function:
    """ONNX GatherElements."""
    axis = int(op.get("axis", 0))
    return lambda x, indices: x.gather(axis, _positive(indices, x.shape[axis]))


def gather_nd(op: Op) -> Function:
    """ONNX GatherND: the last axis of the indices is a place in x, after `batch_dims` axes."""
    batch = int(op.get("batch_dims", 0))

    def function(x: Tensor, indices: Tensor) -> Tensor:
        depth = indices.shape[-1]
        places: list[Any] = []
        for axis in range(batch):  # each sample's own number
            view = [1] * (indices.ndim - 1)
            view[axis] = x.shape[axis]
            places.append(torch.arange(x.shape[axis], device=x.device).reshape(view))
        for i in range(depth):
            places.append(_positive(indices[..., i], x.shape[batch + i]))
        return x[tuple(places)]

    return function


_SCATTER = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(op: Op) -> Function:
    """ONNX ScatterElements (and the older Scatter)."""
    axis, reduction = int(op.get("axis", 0)), op.get("reduction", "none")

    def function(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        places = _positive(indices, x.shape[axis])
        if reduction == "none":
            return x.scatter(axis, places, updates)
        return x.scatter_reduce(axis, places, updates, _SCATTER[reduction], include_self=True)

    return function


def scatter_nd(op: Op) -> Function:
    """ONNX ScatterND."""
    reduction = op.get("reduction", "none")

    def function(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        depth = indices.shape[-1]
        places = tuple(_positive(indices[..., i], x.shape[i]) for i in range(depth))
        if reduction in ("none", "add"):
            return x.index_put(places, updates, accumulate=reduction == "add")
        # One flat axis in place of those that the indices name.
        flat = torch.zeros_like(places[0])
        for place, length in zip(places, x.shape, strict=False):
            flat = flat * length + place
        rest = x.shape[depth:]
        rows = x.reshape(-1, *rest)
        source = updates.reshape(-1, *rest)
        index = flat.reshape(-1, *(1,) * len(rest)).expand_as(source)
        found = rows.scatter_reduce(0, index, source, _SCATTER[reduction], include_self=True)
        return found.reshape(x.shape)

    return function


def slice_(op: Op) -> Function:
    """ONNX Slice, forwards and backwards; bounds as attributes (before opset 10) or inputs."""
    written = tuple(op.get(name) for name in ("starts", "ends", "axes"))

    def function(
        x: Tensor, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None
    ) -> Tensor:
        begin, end, over = (
            whole(given) if old is None else [int(v) for v in old]
            for old, given in zip(written, (starts, ends, axes), strict=True)
        )
        over = over or list(range(len(begin)))
        stride = whole(steps) or [1] * len(begin)
        index = [slice(None)] * x.ndim
        backwards = []
        for b, e, axis, s in zip(begin, end, over, stride, strict=True):
            size = x.shape[axis]
            if s > 0:  # torch warns of bounds far beyond the end
                index[axis] = slice(max(min(b, size), -size), max(min(e, size), -size), s)
                continue
            first, last, step = slice(b, None if e < -size else e, s).indices(size)
            backwards.append((axis, torch.arange(first, last, step, device=x.device)))
        x = x[tuple(index)]
        for axis, places in backwards:
            x = x.index_select(axis, places)
        return x

    return function


def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """ONNX Where."""
    return torch.where(condition, x, y)


def non_zero(op: Op) -> Function:
    """ONNX NonZero: (rank, count)."""
    return lambda x: torch.nonzero(x).t()


def compress(op: Op) -> Function:
    """ONNX Compress: the slices (or elements) whose condition holds."""
    axis = op.get("axis")

    def function(x: Tensor, condition: Tensor) -> Tensor:
        kept = torch.nonzero(condition).reshape(-1)
        return x.reshape(-1)[kept] if axis is None else x.index_select(int(axis), kept)

    return function


def one_hot(op: Op) -> Function:
    """ONNX OneHot: indices outside [-depth, depth) give the off value everywhere."""
    axis = int(op.get("axis", -1))

    def function(indices: Tensor, depth: Any, values: Tensor) -> Tensor:
        count = whole(depth)[0]
        places = indices.to(torch.int64)
        places = torch.where(places < 0, places + count, places)
        whole_rank = indices.ndim + 1
        at = axis % whole_rank
        view = [1] * whole_rank
        view[at] = count
        hot = torch.arange(count, device=indices.device).reshape(view) == places.unsqueeze(at)
        return torch.where(hot, values[1], values[0])

    return function


def trilu(op: Op) -> Function:
    """ONNX Trilu: the upper or the lower triangle from diagonal k."""
    upper = bool(op.get("upper", 1))

    def function(x: Tensor, k: Any = None) -> Tensor:
        diagonal = whole(k)[0] if k is not None else 0
        return x.triu(diagonal) if upper else x.tril(diagonal)

    return function


def unique(op: Op) -> Function:
    """ONNX Unique: values, first places, inverse, counts; sorted, or in the order met."""
    axis, in_order = op.get("axis"), bool(op.get("sorted", 1))
    outputs = len(op.node.outputs)

    def function(x: Tensor) -> tuple[Tensor, ...]:
        flat, dim = (x.reshape(-1), 0) if axis is None else (x, int(axis))
        values, inverse, counts = torch.unique(
            flat, return_inverse=True, return_counts=True, dim=dim
        )
        places = torch.arange(inverse.numel(), device=x.device)
        first = torch.full((counts.numel(),), inverse.numel(), device=x.device)
        first = first.scatter_reduce(0, inverse, places, "amin")
        if not in_order:
            order = first.argsort()
            values, first, counts = values.index_select(dim, order), first[order], counts[order]
            inverse = order.argsort()[inverse]
        return (values, first, inverse, counts)[:outputs]

    return function


def tensor_scatter(op: Op) -> Function:
    """ONNX TensorScatter: an update written into a cache from each sample's own place on."""
    axis, circular = int(op.get("axis", -2)), op.get("mode", "linear") == "circular"

    def function(cache: Tensor, update: Tensor, begin: Tensor | None = None) -> Tensor:
        at = axis % cache.ndim
        steps = torch.arange(update.shape[at], device=cache.device)
        start = torch.zeros(cache.shape[0], dtype=torch.int64) if begin is None else begin
        places = start.reshape(-1, 1) + steps.reshape(1, -1)
        places = places % cache.shape[at] if circular else places
        view = [1] * cache.ndim
        view[0], view[at] = places.shape
        return cache.scatter(at, places.reshape(view).expand(update.shape), update)

    return function


def _where(op: Op) -> Function:
    source = op.node.outputs[0].dtype

    def wide(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if x.dtype in UNSIGNED:
            return torch.where(condition, x.to(torch.int64), y.to(torch.int64)).to(x.dtype)
        return torch.where(condition, x, y)

    return wide if source is None or "UINT" in source.name else where


BUILDERS: Mapping[str, Builder] = {
    "Compress": compress,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "NonZero": non_zero,
    "OneHot": one_hot,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Slice": slice_,
    "TensorScatter": tensor_scatter,
    "Trilu": trilu,
    "Unique": unique,
    "Where": _where,
}
