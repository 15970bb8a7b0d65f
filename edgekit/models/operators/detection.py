"""Operators of detectors: boxes suppressed, regions sampled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekit.models.operators import Builder, Function, Op, reals, whole
from edgekit.values import Array


def non_max_suppression(op: Op) -> Function:
    """ONNX NonMaxSuppression: (count, 3) of sample, class and box, best first in each class.

    A box goes if its overlap (intersection over union) with a better one of its class is above the
    threshold. On the CPU, without gradients.
    """
    by_centre = bool(op.get("center_point_box", 0))

    def function(
        boxes: Tensor, scores: Tensor, most: Any = None, overlap: Any = None, floor: Any = None
    ) -> Tensor:
        limit = whole(most)[0] if most is not None else 0
        threshold = reals(overlap)[0] if overlap is not None else 0.0
        least = reals(floor)[0] if floor is not None else -math.inf
        corners = _corners(boxes.detach().cpu().double().numpy(), by_centre)
        ranks = scores.detach().cpu().numpy()
        kept = [
            (sample, group, box)
            for sample in range(len(corners))
            for group in range(ranks.shape[1])
            for box in _kept(corners[sample], ranks[sample, group], limit, threshold, least)
        ]
        return torch.tensor(kept, dtype=torch.int64, device=boxes.device).reshape(-1, 3)

    return function


def _corners(boxes: Array, by_centre: bool) -> Array:
    """(n, count, 4) of low y, low x, high y, high x (or x before y: it is the same for areas)."""
    if by_centre:
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        return np.concatenate([centre - half, centre + half], axis=-1)
    low, high = (
        np.minimum(boxes[..., :2], boxes[..., 2:]),
        np.maximum(boxes[..., :2], boxes[..., 2:]),
    )
    return np.concatenate([low, high], axis=-1)


def _kept(boxes: Array, scores: Array, limit: int, threshold: float, least: float) -> list[int]:
    order = [i for i in np.argsort(-scores, kind="stable") if scores[i] > least]
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    left = np.array(order, np.int64)
    kept: list[int] = []
    while len(left) and len(kept) < limit:
        best, left = int(left[0]), left[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[left, :2])
        high = np.minimum(boxes[best, 2:], boxes[left, 2:])
        common = np.prod(np.clip(high - low, 0, None), axis=1)
        union = area[best] + area[left] - common
        ratio = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
        left = left[ratio <= threshold]
    return kept


def roi_align(op: Op) -> Function:
    """ONNX RoiAlign: each region (x1, y1, x2, y2) of its picture as (c, height, width).

    `max` takes the largest weighted corner of the bilinear samples, as ONNX defines it.
    """
    height, width = int(op.get("output_height", 1)), int(op.get("output_width", 1))
    ratio, scale = int(op.get("sampling_ratio", 0)), float(op.get("spatial_scale", 1.0))
    mode = str(op.get("mode", "avg"))
    default = "half_pixel" if op.opset >= 16 else "output_half_pixel"
    half = str(op.get("coordinate_transformation_mode", default)) == "half_pixel"

    def function(x: Tensor, rois: Tensor, batch: Tensor) -> Tensor:
        if not len(rois):
            return x.new_zeros((0, x.shape[1], height, width))
        found = [_region(x[int(n)], region) for n, region in zip(batch, rois, strict=True)]
        return torch.stack(found)

    def _region(picture: Tensor, region: Tensor) -> Tensor:
        x1, y1, x2, y2 = (region * scale - (0.5 if half else 0.0)).tolist()
        w, h = x2 - x1, y2 - y1
        if not half:
            w, h = max(w, 1.0), max(h, 1.0)
        rows = _samples(y1, h, height, ratio)
        columns = _samples(x1, w, width, ratio)
        corners = _bilinear(picture, rows, columns)  # (4, c, height * r, width * s)
        c = picture.shape[0]
        split = corners.reshape(4, c, height, -1, width, len(columns) // width)
        if mode == "max":
            return split.amax(dim=(0, 3, 5))
        return split.sum(0).mean(dim=(2, 4))

    return function


def _samples(begin: float, length: float, bins: int, ratio: int) -> list[float]:
    count = ratio if ratio > 0 else max(math.ceil(length / bins), 1)
    step = length / bins
    return [begin + b * step + (i + 0.5) * step / count for b in range(bins) for i in range(count)]


def _taps(places: list[float], size: int) -> tuple[Array, Array, Array, Array]:
    """Lower and upper neighbour of each place and their weights; outside by more than 1: 0."""
    at = np.asarray(places)
    inside = (at >= -1) & (at <= size)
    at = np.clip(at, 0, None)
    low = np.minimum(np.floor(at).astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    at = np.where(low >= size - 1, low, at)
    above = (at - low) * inside
    return low, high, inside - above, above


def _bilinear(picture: Tensor, rows: list[float], columns: list[float]) -> Tensor:
    top, bottom, wt, wb = _taps(rows, picture.shape[1])
    left, right, wl, wr = _taps(columns, picture.shape[2])
    corners = []
    for row, wy in ((top, wt), (bottom, wb)):
        for column, wx in ((left, wl), (right, wr)):
            weight = torch.from_numpy(np.outer(wy, wx)).to(picture.device, picture.dtype)
            taken = picture[:, torch.from_numpy(row)][:, :, torch.from_numpy(column)]
            corners.append(taken * weight)
    return torch.stack(corners)


BUILDERS: Mapping[str, Builder] = {
    "NonMaxSuppression": non_max_suppression,
    "RoiAlign": roi_align,
}
