"""One function for each operator and boundary: to the version before the one that begins there.

`LOWER[op_type, opset]` rewrites a node of opset `opset` into opset `opset - 1`. An operator that is
in neither `LOWER` nor `schemas.SAME` for a boundary that it has is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from edgekit.models.model import constant_of
from edgekit.models.opset import decompose, resizing
from edgekit.models.opset.place import Place, RefusalError

Step: TypeAlias = Callable[[Place], None]

_IDENTITY_WITHOUT_AXES = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum")


def without(**neutral: int | str) -> Step:
    """A step that removes attributes that came with this version, if they say what was so before.

    A list is neutral where each of its numbers is.
    """

    def step(place: Place) -> None:
        for name, value in neutral.items():
            if not place.given(name):
                continue
            found = place.node.attributes[name].value
            same = all(n == value for n in found) if isinstance(found, tuple) else found == value
            if not same:
                raise RefusalError(f"{name}={found} came with opset {place.opset + 1}")
            place.drop(name)

    return step


def forget(*names: str) -> Step:
    """A step that removes attributes that mean nothing for the types of the older version."""
    return lambda place: place.drop(*names)


def counted_from_the_front(place: Place) -> None:
    """Axes may count from the back from opset 11 on."""
    rank = None
    for name in ("axis", "axes"):
        if not place.given(name):
            continue
        written = place.node.attributes[name].value
        numbers = list(written) if isinstance(written, tuple) else [int(written)]
        if min(numbers, default=0) < 0:
            rank = place.rank(place.input(0))
            if place.node.op_type == "Unsqueeze":
                rank += len(numbers)
            elif place.node.op_type == "OneHot":
                rank += 1
            numbers = [n % rank for n in numbers]
            place.assign(**{name: numbers if isinstance(written, tuple) else numbers[0]})


def gather_11(place: Place) -> None:
    """Indices, too, may count from the back from opset 11 on."""
    counted_from_the_front(place)
    indices = place.constant(1, "indices")
    if (indices < 0).any():
        size = place.size(place.input(0), place.integer("axis", 0))
        place.take(place.input(0), place.hold(indices % size))


def axes_as_attribute(place: Place) -> None:
    """The axes of a reduction, of Squeeze or Unsqueeze, from the input to an attribute."""
    axes = [int(a) for a in place.constant(1, "axes").reshape(-1)] if place.has(1) else []
    keep = place.integer("noop_with_empty_axes", 0)
    place.drop("noop_with_empty_axes")
    if not axes and keep:
        if place.node.op_type not in _IDENTITY_WITHOUT_AXES:
            raise RefusalError("noop_with_empty_axes=1 came with the axes as an input")
        place.become("Identity", place.input(0))
        return
    place.take(place.input(0))
    if axes:
        place.assign(axes=axes)


def split_18(place: Place) -> None:
    """A number of parts becomes their sizes where they differ: the last one is the smaller."""
    if not place.given("num_outputs"):
        return
    count = place.integer("num_outputs", 0)
    place.drop("num_outputs")
    size = place.size(place.input(0), place.integer("axis", 0))
    if size % count:
        part = -(-size // count)
        parts = [part] * (count - 1) + [size - part * (count - 1)]
        place.take(place.input(0), place.integers_as_input(parts))


def split_13(place: Place) -> None:
    """The sizes of the parts become an attribute."""
    if place.has(1):
        parts = [int(part) for part in place.constant(1, "sizes")]
        place.take(place.input(0))
        place.assign(split=parts)


def coerced_softmax(place: Place) -> None:
    """Before opset 13 all axes from `axis` on were one; a single inner axis goes last and back."""
    x, op_type = place.input(0), place.node.op_type
    axis = place.integer("axis", -1)
    if axis == -1:
        place.assign(axis=-1)
        return
    rank = place.rank(x)
    axis %= rank
    behind = [] if x.shape is None else list(x.shape)[axis + 1 :]
    if all(size == 1 for size in behind):
        place.assign(axis=axis)
        return
    order = list(range(rank))
    order[axis], order[-1] = order[-1], order[axis]
    turned = place.put("Transpose", x, perm=order)
    place.become("Transpose", place.put(op_type, turned, like=turned, axis=-1), perm=order)


def per_tensor(place: Place) -> None:
    """One scale for the whole tensor; scales for each channel are in ONNX from opset 13 on."""
    scale = place.input(1)
    if scale.shape is None or any(size != 1 for size in scale.shape):
        raise RefusalError("its scales are for each channel, which came with opset 13")
    place.drop("axis")


def quantize_21(place: Place) -> None:
    """Blocks are refused; the type of the output goes from the attribute to a zero point."""
    without(block_size=0)(place)
    wanted = ir.DataType(place.integer("output_dtype", 0))
    place.drop("output_dtype")
    if wanted in (ir.DataType.UNDEFINED, ir.DataType.UINT8) or place.has(2):
        return
    x, scale = place.input(0), place.input(1)
    shape = [place.size(scale, axis) for axis in range(place.rank(scale))]
    zero = ir.tensor(np.zeros(shape, wanted.numpy()), dtype=wanted)
    place.take(x, scale, place.put("Constant", value=zero))


def scatter_18(place: Place) -> None:
    """Opset 18 brought the reductions max and min."""
    if place.text("reduction", "none") in ("max", "min"):
        raise RefusalError(f"reduction={place.text('reduction', '')} came with opset 18")


def scatter_elements_11(place: Place) -> None:
    """Scatter, which it took over from."""
    counted_from_the_front(place)
    place.node.op_type = "Scatter"


def grid_sample_20(place: Place) -> None:
    """The modes had other names, and the grid two axes."""
    if place.rank(place.input(0)) != 4:
        raise RefusalError("sampling of other than 4 axes came with opset 20")
    renamed = {"linear": "bilinear", "cubic": "bicubic"}
    mode = place.text("mode", "linear")
    place.assign(mode=renamed.get(mode, mode))


def dft_20(place: Place) -> None:
    """The axis becomes an attribute."""
    axis = int(place.constant(2, "axes").reshape(-1)[0]) if place.has(2) else -2
    place.take(place.input(0), *([place.input(1)] if place.has(1) else []))
    place.assign(axis=axis)


def roi_align_16(place: Place) -> None:
    """Before opset 16 the regions had no half-pixel shift, and at least one pixel."""
    mode = place.text("coordinate_transformation_mode", "half_pixel")
    if mode != "output_half_pixel":
        raise RefusalError(f"coordinate_transformation_mode={mode} came with opset 16")
    place.drop("coordinate_transformation_mode")


def shape_15(place: Place) -> None:
    """A part of a shape becomes a Slice of all of it."""
    start, end = place.integer("start", 0), place.integer("end", 2**31)
    place.drop("start", "end")
    if start == 0 and end == 2**31:
        return
    whole = place.put("Shape", place.input(0))
    place.become("Slice", whole, place.integers_as_input([start]), place.integers_as_input([end]))


def reshape_14(place: Place) -> None:
    """A size of zero in the wanted shape meant "the same as before" without a choice."""
    if place.integer("allowzero", 0) and (place.constant(1, "sizes") == 0).any():
        raise RefusalError("allowzero=1 came with opset 14, and a size is zero")
    place.drop("allowzero")


def constant_12(place: Place) -> None:
    """Numbers written as attributes become a tensor."""
    for name, dtype in (("float", np.float32), ("int", np.int64)):
        for key in (f"value_{name}", f"value_{name}s"):
            if place.given(key):
                array = np.array(place.node.attributes[key].value, dtype)
                place.become("Constant", value=ir.tensor(array))
                return
    if place.given("value_string") or place.given("value_strings"):
        raise RefusalError("text in an attribute came with opset 12")


def dropout_12(place: Place) -> None:
    """The ratio becomes an attribute; training cannot be asked for."""
    without_mask(place)
    if place.has(2) and place.constant(2, "modes").any():
        raise RefusalError("training_mode came with opset 12")
    ratio = float(place.constant(1, "ratios").reshape(-1)[0]) if place.has(1) else 0.5
    place.take(place.input(0))
    place.drop("seed")
    place.assign(ratio=ratio)


def without_mask(place: Place) -> None:
    """Before opset 12 nobody said what a mask is outside training, before 10 it was no bool."""
    if place.extra_outputs_used():
        raise RefusalError("its mask is read, which was another one before opset 12")
    place.node.resize_outputs(1)


def clip_11(place: Place) -> None:
    """The bounds become attributes, or Max and Min where they are computed or cross."""
    x, low, high = place.input(0), place.optional(1), place.optional(2)
    held = [constant_of(low), constant_of(high)]
    known = (low is None) == (held[0] is None) and (high is None) == (held[1] is None)
    crossed = held[0] is not None and held[1] is not None and bool((held[0] > held[1]).any())
    if known and not crossed:
        place.take(x)
        for name, bound in zip(("min", "max"), held, strict=True):
            if bound is not None:
                place.assign(**{name: float(bound.reshape(-1)[0])})
    elif high is None:
        place.become("Max", x, low)
    else:
        place.become("Min", x if low is None else place.put("Max", x, low, like=x), high)


def depth_to_space_11(place: Place) -> None:
    """The order column-row-depth becomes Reshape, Transpose, Reshape."""
    if place.text("mode", "DCR") == "DCR":
        place.drop("mode")
        return
    x, block = place.input(0), place.integer("blocksize", 1)
    channels, height, width = (place.size(x, axis) for axis in (1, 2, 3))
    depth = channels // block**2
    split = place.integers_as_input([0, depth, block, block, height, width])
    moved = place.put("Transpose", place.put("Reshape", x, split), perm=[0, 1, 4, 2, 5, 3])
    joined = place.integers_as_input([0, depth, height * block, width * block])
    place.become("Reshape", moved, joined)


def gemm_11(place: Place) -> None:
    """The third input was not optional."""
    if not place.has(2):
        zero = np.zeros(1, place.dtype(place.input(0)).numpy())
        place.take(place.input(0), place.input(1), place.hold(zero))


def top_k_11(place: Place) -> None:
    """The smallest are the largest of the negated; what need not be sorted may be."""
    x, count = place.input(0), place.input(1)
    smallest = not place.integer("largest", 1)
    place.drop("largest", "sorted")
    counted_from_the_front(place)
    if smallest:
        place.take(place.put("Neg", x, like=x), count)
        place.follow(0, "Neg")


def top_k_10(place: Place) -> None:
    """The count becomes an attribute."""
    count = int(place.constant(1, "counts").reshape(-1)[0])
    place.take(place.input(0))
    place.assign(k=count)


def slice_11(place: Place) -> None:
    """Axes may count from the back from opset 11 on."""
    if not place.has(3):
        return
    axes = place.constant(3, "axes")
    if (axes < 0).any():
        front = place.hold(axes % place.rank(place.input(0)))
        place.take(*place.node.inputs[:3], front, *place.node.inputs[4:])


def slice_10(place: Place) -> None:
    """The bounds become attributes; steps are refused."""
    if place.has(4) and (place.constant(4, "steps") != 1).any():
        raise RefusalError("steps other than 1 came with opset 10")
    names = {"starts": 1, "ends": 2, "axes": 3}
    bounds = {
        name: [int(bound) for bound in place.constant(index, name)]
        for name, index in names.items()
        if place.has(index)
    }
    place.become("Slice", place.input(0), **bounds)


def same_shapes_8(place: Place) -> None:
    """Max, Min, Mean and Sum broadcast from opset 8 on."""
    shapes = [value.shape for value in place.node.inputs if value is not None]
    if any(shape is None or shape != shapes[0] for shape in shapes):
        raise RefusalError("its inputs differ in shape, and broadcasting came with opset 8")


_REDUCE = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

LOWER: Mapping[tuple[str, int], Step] = {
    ("Attention", 25): without(left_window_size=-1, right_window_size=-1),
    ("Cast", 24): forget("round_mode"),
    ("CastLike", 24): forget("round_mode"),
    ("Swish", 24): decompose.swish,
    ("DequantizeLinear", 23): without(output_dtype=0),
    ("QuantizeLinear", 23): without(precision=0),
    ("RMSNormalization", 23): decompose.rms_normalization,
    ("DequantizeLinear", 21): without(block_size=0),
    ("GroupNormalization", 21): decompose.group_normalization,
    ("QuantizeLinear", 21): quantize_21,
    ("DFT", 20): dft_20,
    ("Gelu", 20): decompose.gelu,
    ("GridSample", 20): grid_sample_20,
    ("AveragePool", 19): without(dilations=1),
    ("Cast", 19): forget("saturate"),
    ("CastLike", 19): forget("saturate"),
    ("Pad", 19): resizing.pad_19_to_18,
    ("QuantizeLinear", 19): forget("saturate"),
    ("Resize", 19): resizing.resize_19_to_18,
    ("GroupNormalization", 18): decompose.group_normalization,
    ("LpPool", 18): without(ceil_mode=0, dilations=1),
    ("Mish", 18): decompose.mish,
    ("Pad", 18): resizing.pad_18_to_13,
    **{(f"Reduce{name}", 18): axes_as_attribute for name in _REDUCE},
    ("Resize", 18): resizing.resize_18_to_13,
    ("ScatterElements", 18): scatter_18,
    ("ScatterND", 18): scatter_18,
    ("Split", 18): split_18,
    ("LayerNormalization", 17): decompose.layer_normalization,
    ("RoiAlign", 16): roi_align_16,
    ("ScatterElements", 16): without(reduction="none"),
    ("ScatterND", 16): without(reduction="none"),
    ("CastLike", 15): decompose.cast_like,
    ("Shape", 15): shape_15,
    ("BatchNormalization", 14): without(training_mode=0),
    ("GRU", 14): without(layout=0),
    ("HardSwish", 14): decompose.hard_swish,
    ("LSTM", 14): without(layout=0),
    ("RNN", 14): without(layout=0),
    ("Reshape", 14): reshape_14,
    ("Trilu", 14): decompose.trilu,
    ("DequantizeLinear", 13): per_tensor,
    ("Hardmax", 13): coerced_softmax,
    ("LogSoftmax", 13): coerced_softmax,
    ("QuantizeLinear", 13): per_tensor,
    ("ReduceSum", 13): axes_as_attribute,
    ("Resize", 13): resizing.resize_13_to_11,
    ("Softmax", 13): coerced_softmax,
    ("Split", 13): split_13,
    ("Squeeze", 13): axes_as_attribute,
    ("Unsqueeze", 13): axes_as_attribute,
    ("ArgMax", 12): without(select_last_index=0),
    ("ArgMin", 12): without(select_last_index=0),
    ("Celu", 12): decompose.celu,
    ("Constant", 12): constant_12,
    ("Dropout", 12): dropout_12,
    ("GatherND", 12): without(batch_dims=0),
    ("GreaterOrEqual", 12): partial(decompose.or_equal, "Greater"),
    ("LessOrEqual", 12): partial(decompose.or_equal, "Less"),
    **{
        (name, 11): counted_from_the_front
        for name in (
            "ArgMax", "ArgMin", "Compress", "Concat", "Flatten", "Hardmax", "LogSoftmax", "OneHot",
            "ReduceSum", "Softmax", "Split", "Squeeze", "Unsqueeze",
            *(f"Reduce{name}" for name in _REDUCE),
        )
    },
    ("Clip", 11): clip_11,
    ("DepthToSpace", 11): depth_to_space_11,
    ("Gather", 11): gather_11,
    ("Gemm", 11): gemm_11,
    ("Pad", 11): resizing.pad_11_to_2,
    ("Resize", 11): resizing.resize_11_to_10,
    ("ScatterElements", 11): scatter_elements_11,
    ("Slice", 11): slice_11,
    ("TopK", 11): top_k_11,
    ("AveragePool", 10): without(ceil_mode=0),
    ("Dropout", 10): without_mask,
    ("MaxPool", 10): without(ceil_mode=0, dilations=1),
    ("Resize", 10): resizing.resize_10_to_9,
    ("Slice", 10): slice_10,
    ("TopK", 10): top_k_10,
    ("Upsample", 9): resizing.upsample_9_to_7,
    **{(name, 8): same_shapes_8 for name in ("Max", "Mean", "Min", "Sum")},
    ("MaxPool", 8): without(storage_order=0),
}  # fmt: skip
