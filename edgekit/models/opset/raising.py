"""One function for each operator and boundary: from the version before to the one beginning there.

`RAISE[op_type, opset]` rewrites a node of opset `opset - 1` into opset `opset`. An operator that is
in neither `RAISE` nor `schemas.SAME` for a boundary that it has is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgekit.models.opset import resizing
from edgekit.models.opset.lowering import Step, without_mask
from edgekit.models.opset.place import Place, RefusalError


def unchanged(place: Place) -> None:
    """The newer version reads the older one's nodes as they were meant."""


def batch_normalization_9(place: Place) -> None:
    """Statistics for each place, not only each channel, become arithmetic."""
    if place.integer("spatial", 1):
        place.drop("spatial")
        return
    if place.extra_outputs_used():
        raise RefusalError("it trains with statistics for each place, which ended with opset 9")
    x, scale, bias, mean, var = (place.input(index) for index in range(5))
    epsilon = place.scalar(place.number("epsilon", 1e-5), x)
    deviation = place.put("Sqrt", place.put("Add", var, epsilon, like=var), like=var)
    normal = place.put("Div", place.put("Sub", x, mean, like=x), deviation, like=x)
    place.node.resize_outputs(1)
    place.become("Add", place.put("Mul", normal, scale, like=x), bias)


def batch_normalization_14(place: Place) -> None:
    """More outputs than one meant training."""
    if len(place.node.outputs) == 1 or not any(value.name for value in place.node.outputs[1:]):
        place.node.resize_outputs(1)
        return
    if any(value.uses() or value.is_graph_output() for value in place.node.outputs[3:]):
        raise RefusalError("its saved statistics are read, which ended with opset 14")
    place.node.resize_outputs(3)
    place.assign(training_mode=1)


def slice_10(place: Place) -> None:
    """The bounds become inputs."""
    starts, ends, axes = (place.integers(name) for name in ("starts", "ends", "axes"))
    bounds = [starts or [], ends or [], axes or list(range(len(starts or [])))]
    place.become("Slice", place.input(0), *(place.integers_as_input(bound) for bound in bounds))


def top_k_10(place: Place) -> None:
    """The count becomes an input."""
    count = place.integer("k", 0)
    place.drop("k")
    place.take(place.input(0), place.integers_as_input([count]))


def clip_11(place: Place) -> None:
    """The bounds become inputs."""
    x = place.input(0)
    bounds = [
        place.scalar(place.number(name, 0.0), x) if place.given(name) else None
        for name in ("min", "max")
    ]
    while bounds and bounds[-1] is None:
        bounds.pop()
    place.become("Clip", x, *bounds)


def scatter_11(place: Place) -> None:
    """ScatterElements, which took over."""
    place.node.op_type = "ScatterElements"


def dropout_12(place: Place) -> None:
    """The ratio becomes an input."""
    without_mask(place)
    ratio = place.number("ratio", 0.5)
    place.drop("ratio")
    place.take(place.input(0), place.hold(np.array(ratio, np.float32)))


def uncoerced_softmax(place: Place) -> None:
    """From opset 13 on one axis alone: all axes from `axis` on are made one, and split again."""
    x, op_type, axis = place.input(0), place.node.op_type, place.integer("axis", 1)
    sizes = None if x.shape is None else list(x.shape)
    if axis == -1 or (sizes is not None and axis % len(sizes) == len(sizes) - 1):
        place.assign(axis=-1)
        return
    if sizes is not None and all(size == 1 for size in sizes[axis % len(sizes) + 1 :]):
        place.assign(axis=axis % len(sizes))
        return
    flat = place.put("Flatten", x, axis=axis)
    place.become(
        "Reshape", place.put(op_type, flat, like=flat, axis=-1), place.put("Shape", x)
    )  # fmt: skip


def axes_as_input(place: Place) -> None:
    """The axes of a reduction, of Squeeze or Unsqueeze, from an attribute to the input."""
    axes = place.integers("axes")
    place.drop("axes")
    if axes:
        place.take(place.input(0), place.integers_as_input(axes))


def split_13(place: Place) -> None:
    """The sizes of the parts become an input."""
    parts = place.integers("split")
    place.drop("split")
    if parts:
        place.take(place.input(0), place.integers_as_input(parts))


def split_18(place: Place) -> None:
    """Equal parts are counted."""
    if not place.has(1):
        place.assign(num_outputs=len(place.node.outputs))


def roi_align_16(place: Place) -> None:
    """What the older version always did is a choice from opset 16 on."""
    place.assign(coordinate_transformation_mode="output_half_pixel")


def grid_sample_20(place: Place) -> None:
    """The modes have other names."""
    renamed = {"bilinear": "linear", "bicubic": "cubic"}
    mode = place.text("mode", "bilinear")
    place.assign(mode=renamed.get(mode, mode))


def dft_20(place: Place) -> None:
    """The axis becomes an input."""
    axis = place.integer("axis", 1)
    place.drop("axis")
    place.take(place.input(0), place.optional(1), place.hold(np.array(axis, np.int64)))


def group_normalization_21(place: Place) -> None:
    """Scale and bias of a group become those of each of its channels."""
    x, groups = place.input(0), place.integer("num_groups", 1)
    channels = place.size(x, 1)
    wide = place.integers_as_input([groups, channels // groups])
    inputs = [x]
    for index in (1, 2):
        value = place.input(index)
        if place.size(value, 0) != channels:
            column = place.put("Reshape", value, place.integers_as_input([groups, 1]))
            spread = place.put("Expand", column, wide)
            value = place.put("Reshape", spread, place.integers_as_input([channels]))
        inputs.append(value)
    place.take(*inputs)


_REDUCE = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

RAISE: Mapping[tuple[str, int], Step] = {
    ("BatchNormalization", 9): batch_normalization_9,
    ("Upsample", 9): resizing.upsample_7_to_9,
    ("Dropout", 10): without_mask,
    ("Slice", 10): slice_10,
    ("TopK", 10): top_k_10,
    ("Upsample", 10): resizing.upsample_9_to_10,
    **{
        (name, 11): unchanged
        for name in (
            "ArgMax", "ArgMin", "Concat", "DepthToSpace", "Flatten", "Gather", "Hardmax",
            "LogSoftmax", "OneHot", "ReduceSum", "Slice", "Softmax", "Split", "Squeeze", "TopK",
            "Unsqueeze", *(f"Reduce{name}" for name in _REDUCE),
        )
    },
    ("Clip", 11): clip_11,
    ("Pad", 11): resizing.pad_2_to_11,
    ("Resize", 11): resizing.resize_10_to_11,
    ("Scatter", 11): scatter_11,
    ("Dropout", 12): dropout_12,
    ("Hardmax", 13): uncoerced_softmax,
    ("LogSoftmax", 13): uncoerced_softmax,
    ("ReduceSum", 13): axes_as_input,
    ("Resize", 13): resizing.resize_11_to_13,
    ("Softmax", 13): uncoerced_softmax,
    ("Split", 13): split_13,
    ("Squeeze", 13): axes_as_input,
    ("Unsqueeze", 13): axes_as_input,
    ("BatchNormalization", 14): batch_normalization_14,
    ("RoiAlign", 16): roi_align_16,
    **{(f"Reduce{name}", 18): axes_as_input for name in _REDUCE},
    ("Split", 18): split_18,
    ("DFT", 20): dft_20,
    ("GridSample", 20): grid_sample_20,
    ("GroupNormalization", 21): group_normalization_21,
}  # fmt: skip
