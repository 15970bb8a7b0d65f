"""Resize, Upsample and Pad from one version to the next, in both directions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgekit.models.model import constant_of
from edgekit.models.opset.place import Place, RefusalError
from edgekit.values import Array


def resize_19_to_18(place: Place) -> None:
    """Opset 19 brought one more way to place the samples."""
    mode = place.text("coordinate_transformation_mode", "half_pixel")
    if mode == "half_pixel_symmetric":
        raise RefusalError(f"coordinate_transformation_mode={mode} came with opset 19")


def resize_18_to_13(place: Place) -> None:
    """Scales and sizes of some axes become those of all; antialiasing must have nothing to do."""
    x = place.input(0)
    scales, sizes = _bounds(place)
    policy = place.text("keep_aspect_ratio_policy", "stretch")
    if sizes is not None and policy != "stretch":
        raise RefusalError(f"keep_aspect_ratio_policy={policy} came with opset 18")
    if place.integer("antialias", 0) and not _enlarges(place, scales, sizes):
        raise RefusalError("antialias=1 came with opset 18, and it makes the picture smaller")
    axes = place.integers("axes")
    place.drop("axes", "antialias", "keep_aspect_ratio_policy")
    if axes is None:
        return
    rank = place.rank(x)
    axes = [axis % rank for axis in axes]
    if axes == list(range(rank)):
        return
    if place.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise RefusalError("a region of some axes came with opset 18")
    if scales is not None:
        held = constant_of(scales)
        if held is None:
            raise RefusalError("its scales are for some axes and computed")
        full = np.ones(rank, held.dtype)
        full[axes] = held
        place.take(x, place.optional(1), place.hold(full))
    elif sizes is not None:
        place.take(x, place.optional(1), None, spread(place, sizes, axes, x))


def spread(place: Place, numbers: ir.Value, axes: Sequence[int], x: ir.Value) -> ir.Value:
    """Sizes for all axes of x: of the axes listed as given, of the others its own."""
    rank, held = place.rank(x), constant_of(numbers)
    own = list(x.shape or ())
    others = [own[axis] for axis in range(rank) if axis not in axes]
    if held is not None and all(isinstance(size, int) for size in others):
        full = [int(held[axes.index(a)]) if a in axes else int(str(own[a])) for a in range(rank)]
        return place.integers_as_input(full)
    shape = place.put("Shape", x)
    parts = []
    for axis in range(rank):
        source, index = (numbers, axes.index(axis)) if axis in axes else (shape, axis)
        parts.append(place.put("Gather", source, place.integers_as_input([index]), axis=0))
    return place.put("Concat", *parts, axis=0)


def resize_13_to_11(place: Place) -> None:
    """Opset 11 wants the region and the scales, if only as empty tensors."""
    scales, sizes = _bounds(place)
    roi = place.optional(1) or place.hold(np.zeros(0, np.float32))
    inputs = [place.input(0), roi, scales or place.hold(np.zeros(0, np.float32))]
    place.take(*inputs, *([] if sizes is None else [sizes]))


def resize_11_to_13(place: Place) -> None:
    """Empty tensors that stood for an absent region or scales go."""
    scales, sizes = _bounds(place)
    roi = place.optional(1)
    inputs = [place.input(0), None if _is_empty(roi) else roi, scales, sizes]
    while inputs[-1] is None:
        inputs.pop()
    place.take(*inputs)


def resize_11_to_10(place: Place) -> None:
    """Opset 10 knows samples at x / scale alone, and the nearest one below it.

    By a whole factor s, the nearest sample to (i + 1/2) / s - 1/2 is floor(i / s) too.
    """
    mode = place.text("mode", "nearest")
    where = place.text("coordinate_transformation_mode", "half_pixel")
    rounding = place.text("nearest_mode", "round_prefer_floor")
    scales = _constant_scales(place)
    enlarges, shrinks = bool((scales >= 1).all()), bool((scales <= 1).all())
    whole = enlarges and bool((scales == np.round(scales)).all())
    known = {
        "nearest": (where == "asymmetric" and rounding == "floor" and enlarges)
        or (where == "asymmetric" and rounding == "ceil" and shrinks)
        or (
            where in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round") and whole
        ),
        "linear": where == "asymmetric",
    }
    if not known.get(mode, False):
        raise RefusalError(f"mode {mode} with {where} ({rounding}) came with opset 11")
    place.become("Resize", place.input(0), place.hold(scales.astype(np.float32)), mode=mode)


def resize_10_to_11(place: Place) -> None:
    """Opset 10's samples lie at x / scale; the nearest is the one below, above when shrinking.

    Opset 10 does not say how to round; ONNX Runtime rounds up along an axis that becomes smaller.
    Scales that are computed are taken as enlarging, as Upsample's are by definition.
    """
    mode, scales = place.text("mode", "nearest"), place.input(1)
    held = constant_of(scales)
    shrinks = held is not None and bool((held < 1).any())
    if mode == "nearest" and held is not None and shrinks and bool((held > 1).any()):
        raise RefusalError("it enlarges one axis and shrinks another, each rounded its own way")
    roi = place.hold(np.zeros(0, np.float32))
    place.become(
        "Resize", place.input(0), roi, scales, mode=mode,
        coordinate_transformation_mode="asymmetric", nearest_mode="ceil" if shrinks else "floor",
    )  # fmt: skip


def resize_10_to_9(place: Place) -> None:
    """Upsample, which never makes anything smaller."""
    if not bool((place.constant(1, "scales") >= 1).all()):
        raise RefusalError("it makes the picture smaller, and Upsample does not")
    place.node.op_type = "Upsample"


def upsample_9_to_10(place: Place) -> None:
    """Resize, which took over from Upsample."""
    place.node.op_type = "Resize"


def upsample_9_to_7(place: Place) -> None:
    """The scales become an attribute."""
    scales = [float(scale) for scale in place.constant(1, "scales")]
    place.take(place.input(0))
    place.assign(scales=scales)


def upsample_7_to_9(place: Place) -> None:
    """The scales become an input."""
    scales = np.array(place.node.attributes["scales"].as_floats(), np.float32)
    place.drop("scales")
    place.take(place.input(0), place.hold(scales))


def pad_19_to_18(place: Place) -> None:
    """Wrapping around becomes a Concat of the end, the tensor and its beginning."""
    if place.text("mode", "constant") != "wrap":
        return
    x = place.input(0)
    axes, pads = _axes_and_pads(place)
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        if min(before, after) < 0 or max(before, after) > place.size(place.input(0), axis):
            raise RefusalError("it wraps around by more than the size, or by less than nothing")
        size = place.size(place.input(0), axis)
        parts = [x]
        if before:
            parts.insert(0, _cut(place, x, axis, size - before, size))
        if after:
            parts.append(_cut(place, x, axis, 0, after))
        x = place.put("Concat", *parts, axis=axis) if len(parts) > 1 else x
    place.become("Identity", x)


def pad_18_to_13(place: Place) -> None:
    """Pads of some axes become those of all."""
    if not place.has(3):
        place.take(*place.node.inputs[:3])
        return
    x, pads = place.input(0), place.input(1)
    rank = place.rank(x)
    axes = [int(axis) % rank for axis in place.constant(3, "axes")]
    held, count = constant_of(pads), len(axes)
    where = [axes.index(a) if a in axes else None for a in range(rank)]
    sources = [*where, *(None if index is None else count + index for index in where)]
    if held is not None:
        full = place.integers_as_input([0 if i is None else int(held[i]) for i in sources])
    else:
        none = place.integers_as_input([0])
        parts = [
            none if i is None else place.put("Gather", pads, place.integers_as_input([i]), axis=0)
            for i in sources
        ]
        full = place.put("Concat", *parts, axis=0)
    place.take(x, full, *([place.input(2)] if place.has(2) else []))


def pad_11_to_2(place: Place) -> None:
    """Pads and value become attributes."""
    pads = [int(pad) for pad in place.constant(1, "pads")]
    value = float(place.constant(2, "values").reshape(-1)[0]) if place.has(2) else 0.0
    place.take(place.input(0))
    place.assign(pads=pads, value=value)


def pad_2_to_11(place: Place) -> None:
    """Pads and value become inputs."""
    x, pads, value = place.input(0), place.integers("pads") or [], place.number("value", 0.0)
    inputs = [x, place.integers_as_input(pads)]
    if value:
        inputs.append(place.scalar(value, x))
    place.drop("pads", "value")
    place.take(*inputs)


def _axes_and_pads(place: Place) -> tuple[list[int], list[int]]:
    pads = [int(pad) for pad in place.constant(1, "pads")]
    rank = place.rank(place.input(0))
    axes = [int(a) % rank for a in place.constant(3, "axes")] if place.has(3) else range(rank)
    return list(axes), pads


def _cut(place: Place, x: ir.Value, axis: int, start: int, end: int) -> ir.Value:
    bounds = (place.integers_as_input([number]) for number in (start, end, axis))
    return place.put("Slice", x, *bounds)


def _is_empty(value: ir.Value | None) -> bool:
    held = constant_of(value)
    return value is None or (held is not None and held.size == 0)


def _bounds(place: Place) -> tuple[ir.Value | None, ir.Value | None]:
    """The scales and the sizes, None for one that is absent or empty."""
    scales, sizes = place.optional(2), place.optional(3)
    return (None if _is_empty(scales) else scales), (None if _is_empty(sizes) else sizes)


def _constant_scales(place: Place) -> Array:
    """The scales of all axes as constants, from the sizes where those are given."""
    _, sizes = _bounds(place)
    if sizes is None:
        return place.constant(2, "scales")
    x, wanted = place.input(0), place.constant(3, "sizes")
    own = np.array([place.size(x, axis) for axis in range(place.rank(x))])
    found: Array = (wanted / own).astype(np.float32)
    if not bool((np.floor(own * found) == wanted).all()):
        raise RefusalError("its sizes are no scales in float32, and opset 10 takes scales")
    return found


def _enlarges(place: Place, scales: ir.Value | None, sizes: ir.Value | None) -> bool:
    """Whether no axis is known to become, or may become, smaller."""
    held, wanted, x = constant_of(scales), constant_of(sizes), place.input(0)
    if held is not None:
        return bool((held >= 1).all())
    if wanted is None or x.shape is None:
        return False
    axes = place.integers("axes") or list(range(len(x.shape)))
    return bool(all(wanted[i] >= place.size(x, axis) for i, axis in enumerate(axes)))
