"""Integers that ONNX Runtime's 16-bit sums can take (`quantize.saturation`), after a refinement."""

from __future__ import annotations

import numpy as np

from edgekit.quantize.saturation import MOST, largest_sums
from edgekit.quantize.scheme import StoredWeight, WeightPlace
from edgekit.values import Array


def bounded(stored: StoredWeight, place: WeightPlace) -> StoredWeight:
    """The weight whose neighbours of one sign come to no more than `MOST`, the larger made smaller.

    Wherever a refinement moved one a step too far; the scale stays.
    """
    zero = int(stored.grid.zero_point.flat[0])
    steps = stored.integers.astype(np.int64) - zero
    if largest_sums(steps, place.axis, place.groups).max(initial=0.0) <= MOST:
        return stored
    rows = _rows(steps, place.axis)
    pairs = rows[:, : rows.shape[1] // 2 * 2].reshape(len(rows), -1, 2)
    same = (np.sign(pairs[..., 0]) == np.sign(pairs[..., 1])) & (pairs[..., 0] != 0)
    excess = np.where(same, np.maximum(np.abs(pairs).sum(-1) - MOST, 0), 0)
    larger = np.abs(pairs).argmax(-1)[..., None]
    values = np.take_along_axis(pairs, larger, -1)
    np.put_along_axis(pairs, larger, values - np.sign(values) * excess[..., None], -1)
    rows[:, : rows.shape[1] // 2 * 2] = pairs.reshape(len(rows), -1)
    integers = (_unrolled(rows, steps, place.axis) + zero).astype(stored.integers.dtype)
    return StoredWeight(integers=integers, grid=stored.grid)


def _rows(steps: Array, axis: int) -> Array:
    """A row for each output channel, in the order in which the kernel adds up."""
    rows = np.moveaxis(steps, axis, 0)
    if steps.ndim > 2:
        rows = np.moveaxis(rows, 1, -1)
    found: Array = rows.reshape(len(rows), -1).copy()
    return found


def _unrolled(rows: Array, like: Array, axis: int) -> Array:
    """The rows in the shape of the weight again."""
    shape = np.moveaxis(like, axis, 0).shape
    if like.ndim > 2:
        turned = rows.reshape(shape[0], *shape[2:], shape[1])
        turned = np.moveaxis(turned, -1, 1)
    else:
        turned = rows.reshape(shape)
    found: Array = np.moveaxis(turned, 0, axis)
    return found
