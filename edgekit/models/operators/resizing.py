"""Operators that sample a picture anew: Resize, Upsample, GridSample, AffineGrid.

Resize is separable: along each axis an output is a weighted sum of inputs. Where torch has the very
same function it is used; else the weights are written as a matrix (out, in) for each axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgekit.models.operators import Builder, Function, Op, reals, whole
from edgekit.values import Array


@dataclass(frozen=True)
class _Kind:
    """The attributes of a Resize."""

    mode: str = "nearest"
    coordinates: str = "half_pixel"
    rounding: str = "round_prefer_floor"
    cubic_a: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    extrapolation: float = 0.0


@dataclass(frozen=True)
class _Axis:
    """One axis that changes: sizes, the scale as given, the part of it that is looked at."""

    size: int
    out: int
    scale: float
    begin: float = 0.0
    end: float = 1.0


def _coordinates(axis: _Axis, kind: _Kind) -> Array:
    """Where each output lies in the input (ONNX Resize, coordinate_transformation_mode)."""
    i = np.arange(axis.out, dtype=np.float64)
    size, out, scale = axis.size, axis.out, axis.scale
    if kind.coordinates == "asymmetric":
        return i / scale
    if kind.coordinates == "align_corners":
        return np.zeros(out) if out == 1 else i * (size - 1) / (out - 1)
    if kind.coordinates == "tf_half_pixel_for_nn":
        return (i + 0.5) / scale
    if kind.coordinates == "tf_crop_and_resize":
        if out == 1:
            return np.full(1, 0.5 * (axis.begin + axis.end) * (size - 1))
        return axis.begin * (size - 1) + i * (axis.end - axis.begin) * (size - 1) / (out - 1)
    if kind.coordinates == "pytorch_half_pixel" and out == 1:
        return np.zeros(1)
    if kind.coordinates == "half_pixel_symmetric":
        adjustment = out / (scale * size)
        return size / 2 * (1 - adjustment) + (i + 0.5) / scale - 0.5
    return (i + 0.5) / scale - 0.5


def _nearest(coordinates: Array, axis: _Axis, rounding: str) -> Array:
    if rounding == "round_prefer_floor":
        places = np.ceil(coordinates - 0.5)
    elif rounding == "round_prefer_ceil":
        places = np.floor(coordinates + 0.5)
    else:
        places = np.floor(coordinates) if rounding == "floor" else np.ceil(coordinates)
    found: Array = np.clip(places, 0, axis.size - 1).astype(np.int64)
    return found


def _linear(distance: Array) -> Array:
    found: Array = np.clip(1 - np.abs(distance), 0, None)
    return found


def _cubic(distance: Array, a: float) -> Array:
    """The cubic convolution kernel (Keys 1981, equation 4, with its free parameter)."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _weights(coordinates: Array, axis: _Axis, kind: _Kind) -> Array:
    """The matrix (out, in): each output's weights over the inputs of its axis."""
    squeeze = min(axis.scale, 1.0) if kind.antialias else 1.0
    reach = (2 if kind.mode == "cubic" else 1) / squeeze
    first = np.floor(coordinates) + math.floor(-reach) + 1
    taps = np.arange(2 * math.ceil(reach) + 1)
    places = first[:, None] + taps[None, :]
    distance = (places - coordinates[:, None]) * squeeze
    weight = _cubic(distance, kind.cubic_a) if kind.mode == "cubic" else _linear(distance)
    if kind.exclude_outside:
        weight = np.where((places < 0) | (places >= axis.size), 0.0, weight)
    weight = weight / weight.sum(1, keepdims=True)
    matrix = np.zeros((axis.out, axis.size))
    rows = np.repeat(np.arange(axis.out), len(taps))
    columns = np.clip(places, 0, axis.size - 1).astype(np.int64).reshape(-1)
    np.add.at(matrix, (rows, columns), weight.reshape(-1))
    return matrix


def _along(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    moved = torch.movedim(x, axis, -1) @ matrix.t()
    return torch.movedim(moved, -1, axis)


def resampled(x: Tensor, axes: Mapping[int, _Axis], kind: _Kind) -> Tensor:
    """x with the given axes sampled anew."""
    plain = _by_torch(x, axes, kind)
    if plain is not None:
        return plain
    dtype = x.dtype
    if kind.mode != "nearest" and dtype not in (torch.float32, torch.float64):
        x = x.to(torch.float32)
    outside = None
    for i, axis in axes.items():
        coordinates = _coordinates(axis, kind)
        if kind.mode == "nearest":
            places = _nearest(coordinates, axis, kind.rounding)
            x = x.index_select(i, torch.from_numpy(places).to(x.device))
        elif axis.out != axis.size or axis.scale != 1 or kind.coordinates == "tf_crop_and_resize":
            matrix = torch.from_numpy(_weights(coordinates, axis, kind))
            x = _along(x, i, matrix.to(x.device, x.dtype))
        if kind.coordinates == "tf_crop_and_resize":
            beyond = torch.from_numpy((coordinates < 0) | (coordinates > axis.size - 1))
            view = [1] * x.ndim
            view[i] = -1
            beyond = beyond.reshape(view).to(x.device)
            outside = beyond if outside is None else outside | beyond
    if outside is not None:
        x = x.masked_fill(outside, kind.extrapolation)
    return x if x.dtype == dtype else x.to(dtype)


def _by_torch(x: Tensor, axes: Mapping[int, _Axis], kind: _Kind) -> Tensor | None:
    """torch's own function where it is the same one: spatial axes, sizes that the scales give."""
    if x.ndim not in (3, 4, 5) or any(i < 2 for i in axes) or kind.antialias or not axes:
        return None
    if not x.is_floating_point() or kind.exclude_outside:
        return None
    sizes = [axes[i].out if i in axes else x.shape[i] for i in range(2, x.ndim)]
    exact = all(math.isclose(a.out, a.scale * a.size, rel_tol=1e-6) for a in axes.values())
    whole_steps = all(a.scale >= 1 and float(a.scale).is_integer() for a in axes.values())
    if kind.mode == "nearest":
        # Whole factors: each input pixel becomes a block, however ties are rounded.
        blocks = (kind.coordinates, kind.rounding) in (
            ("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"),
            ("half_pixel", "round_prefer_ceil"),
        )  # fmt: skip
        if whole_steps and exact and blocks:
            return functional.interpolate(x, size=sizes, mode="nearest")
        return None
    linear = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.ndim]
    mode = linear if kind.mode == "linear" else "bicubic" if x.ndim == 4 else ""
    if not mode or (mode == "bicubic" and kind.cubic_a != -0.75):
        return None
    if kind.coordinates == "align_corners" and all(a.out > 1 for a in axes.values()):
        return functional.interpolate(x, size=sizes, mode=mode, align_corners=True)
    half = kind.coordinates == "half_pixel" or (
        kind.coordinates == "pytorch_half_pixel" and all(a.out > 1 for a in axes.values())
    )
    if half and exact:
        return functional.interpolate(x, size=sizes, mode=mode, align_corners=False)
    return None


def resize(op: Op) -> Function:
    """ONNX Resize from opset 10 on, in every mode of coordinates and rounding."""
    old = op.opset < 11
    kind = _Kind(
        mode=str(op.get("mode", "nearest")),
        coordinates="asymmetric" if old else str(
            op.get("coordinate_transformation_mode", "half_pixel")
        ),
        rounding="floor" if old else str(op.get("nearest_mode", "round_prefer_floor")),
        cubic_a=float(op.get("cubic_coeff_a", -0.75)),
        exclude_outside=bool(op.get("exclude_outside", 0)),
        antialias=bool(op.get("antialias", 0)),
        extrapolation=float(op.get("extrapolation_value", 0.0)),
    )  # fmt: skip
    written, policy = op.get("axes"), str(op.get("keep_aspect_ratio_policy", "stretch"))

    def function(x: Tensor, *shapes: Any) -> Tensor:
        roi, scales, sizes = (None, shapes[0], None) if old else (*shapes, None, None)[:3]
        over = [int(a) % x.ndim for a in written] if written is not None else list(range(x.ndim))
        factors, wanted = reals(scales), whole(sizes)
        if wanted:
            wanted, factors = _kept_aspect([x.shape[i] for i in over], wanted, policy)
        part = reals(roi)
        axes = {}
        for n, i in enumerate(over):
            out = wanted[n] if wanted else math.floor(x.shape[i] * factors[n])
            begin, end = (part[n], part[n + len(over)]) if part else (0.0, 1.0)
            crops = kind.coordinates == "tf_crop_and_resize" and (begin, end) != (0.0, 1.0)
            if out != x.shape[i] or factors[n] != 1 or crops:
                axes[i] = _Axis(x.shape[i], out, factors[n], begin, end)
        return resampled(x, axes, kind)

    return function


def _kept_aspect(have: list[int], wanted: list[int], policy: str) -> tuple[list[int], list[float]]:
    """The sizes and scales of a Resize by sizes, one scale for all axes if the policy says so."""
    ratios = [want / size for want, size in zip(wanted, have, strict=True)]
    if policy == "stretch":
        return wanted, ratios
    one = min(ratios) if policy == "not_larger" else max(ratios)
    return [math.floor(one * size + 0.5) for size in have], [one] * len(have)


def upsample(op: Op) -> Function:
    """ONNX Upsample (7 to 9): Resize of opset 10 under its older name."""
    mode = str(op.get("mode", "nearest"))
    kind = _Kind(mode=mode, coordinates="asymmetric", rounding="floor")
    written = op.get("scales")

    def function(x: Tensor, scales: Any = None) -> Tensor:
        factors = [float(s) for s in written] if written is not None else reals(scales)
        axes = {
            i: _Axis(x.shape[i], math.floor(x.shape[i] * factor), factor)
            for i, factor in enumerate(factors)
            if factor != 1
        }
        return resampled(x, axes, kind)

    return function


def grid_sample(op: Op) -> Function:
    """ONNX GridSample: the input read at the places of a grid, (x, y) in [-1, 1]."""
    modes = {"linear": "bilinear", "cubic": "bicubic"}
    mode = str(op.get("mode", "linear"))
    mode = modes.get(mode, mode)
    padding, aligned = str(op.get("padding_mode", "zeros")), bool(op.get("align_corners", 0))

    def function(x: Tensor, grid: Tensor) -> Tensor:
        if mode == "bicubic" and x.ndim == 5:
            raise op.refuse("torch has no cubic sampling of volumes")
        return functional.grid_sample(
            x, grid.to(x.dtype), mode=mode, padding_mode=padding, align_corners=aligned
        )

    return function


def affine_grid(op: Op) -> Function:
    """ONNX AffineGrid, for pictures and volumes."""
    aligned = bool(op.get("align_corners", 0))
    return lambda theta, size: functional.affine_grid(theta, whole(size), align_corners=aligned)


BUILDERS: Mapping[str, Builder] = {
    "AffineGrid": affine_grid,
    "GridSample": grid_sample,
    "Resize": resize,
    "Upsample": upsample,
}
