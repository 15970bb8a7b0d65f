"""Operators that move and shape, and those that compute shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from edgekit.models.operators import Builder, Function, Op, whole
from edgekit.models.operators.types import carrier, tensor_of


def concat(op: Op) -> Function:
    """ONNX Concat."""
    axis = int(op.get("axis", 1))
    return lambda *parts: torch.cat(parts, dim=axis)


def flatten(op: Op) -> Function:
    """ONNX Flatten: always to two axes."""
    axis = int(op.get("axis", 1))

    def function(x: Tensor) -> Tensor:
        split = axis + x.ndim if axis < 0 else axis
        rows = 1
        for size in x.shape[:split]:
            rows *= size
        columns = 1
        for size in x.shape[split:]:
            columns *= size
        return x.reshape(rows, columns)

    return function


def reshape(op: Op) -> Function:
    """ONNX Reshape: 0 keeps a size unless allowzero, -1 is what is left."""
    zero_is_zero = bool(op.get("allowzero", 0))
    written = op.get("shape")

    def function(x: Tensor, shape: Any = None) -> Tensor:
        sizes = whole(shape) if written is None else [int(v) for v in written]
        if not zero_is_zero:
            sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
        return x.reshape(tuple(sizes))

    return function


def transpose(op: Op) -> Function:
    """ONNX Transpose."""
    order = op.get("perm")
    return lambda x: x.permute(order if order is not None else tuple(reversed(range(x.ndim))))


def squeeze(op: Op) -> Function:
    """ONNX Squeeze: the given axes, or all of size 1."""
    written = op.get("axes")

    def function(x: Tensor, axes: Any = None) -> Tensor:
        if written is None and axes is None:
            return x.squeeze()
        return x.squeeze(tuple(written) if written is not None else tuple(whole(axes)))

    return function


def unsqueeze(op: Op) -> Function:
    """ONNX Unsqueeze."""
    written = op.get("axes")

    def function(x: Tensor, axes: Any = None) -> Tensor:
        new = list(written) if written is not None else whole(axes)
        rank = x.ndim + len(new)
        for axis in sorted(axis % rank for axis in new):
            x = x.unsqueeze(axis)
        return x

    return function


def pad(op: Op) -> Function:
    """ONNX Pad: a constant, the reflection, the edge or the other end; negative pads cut."""
    mode = op.get("mode", "constant")
    written, value = op.get("pads", op.get("paddings")), float(op.get("value", 0.0))

    def function(
        x: Tensor, pads: Any = None, filler: Tensor | None = None, axes: Any = None
    ) -> Any:
        given = whole(pads) if written is None else [int(p) for p in written]
        over = whole(axes) if axes is not None else list(range(len(given) // 2))
        begin, end = [0] * x.ndim, [0] * x.ndim
        for i, axis in enumerate(over):
            begin[axis], end[axis] = given[i], given[i + len(over)]
        if mode != "constant":
            return _pad_by_index(x, begin, end, mode)
        sides = [side for axis in reversed(range(x.ndim)) for side in (begin[axis], end[axis])]
        constant: Any = value if filler is None else filler.item()
        if x.dtype == torch.bool:
            return functional.pad(x.to(torch.uint8), sides, value=int(constant)).to(torch.bool)
        return functional.pad(x, sides, value=constant)

    return function


def _pad_by_index(x: Tensor, begin: list[int], end: list[int], mode: str) -> Tensor:
    for axis, (left, right) in enumerate(zip(begin, end, strict=True)):
        if not left and not right:
            continue
        size = x.shape[axis]
        places = torch.arange(-left, size + right, device=x.device)
        if mode == "edge":
            places = places.clamp(0, size - 1)
        elif mode == "wrap":
            places = places % size
        else:  # reflect: the edge itself is not repeated
            period = max(2 * (size - 1), 1)
            places = places % period
            places = torch.where(places >= size, period - places, places)
        x = x.index_select(axis, places)
    return x


def shape(op: Op) -> Function:
    """ONNX Shape, from `start` to `end`."""
    start, end = int(op.get("start", 0)), op.get("end")
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64)


def size(op: Op) -> Function:
    """ONNX Size: the number of elements."""
    return lambda x: torch.tensor(x.numel(), dtype=torch.int64)


def constant_of_shape(op: Op) -> Function:
    """ONNX ConstantOfShape."""
    given = op.get("value")
    value = torch.zeros(1) if given is None else tensor_of(given)

    def function(sizes: Any) -> Tensor:
        return torch.full(whole(sizes), value.item(), dtype=value.dtype)

    return function


def range_(op: Op) -> Function:
    """ONNX Range."""
    source = op.node.outputs[0].dtype or (op.node.inputs[0].dtype if op.node.inputs[0] else None)
    dtype = carrier(source) if source is not None else None

    def function(*bounds: Any) -> Tensor:
        start, limit, delta = (b[0] if isinstance(b, list) else b for b in bounds)
        count = max(-(-(limit - start) // delta), 0)
        kind = dtype or (torch.int64 if isinstance(start, int) else torch.float32)
        steps: Tensor = torch.arange(int(count), dtype=torch.float64)
        return steps.mul(delta).add(start).to(kind)

    return function


def split(op: Op) -> Function:
    """ONNX Split into given sizes or equal parts, the last one smaller."""
    axis = int(op.get("axis", 0))
    written = op.get("split")
    parts = int(op.get("num_outputs", len(op.node.outputs)))

    def function(x: Tensor, sizes: Any = None) -> tuple[Tensor, ...]:
        given = [int(s) for s in written] if written is not None else whole(sizes)
        if not given:
            each = -(-x.shape[axis] // parts)
            given = [each] * (parts - 1) + [x.shape[axis] - each * (parts - 1)]
        return torch.split(x, given, dim=axis)

    return function


def expand(op: Op) -> Function:
    """ONNX Expand: two-way broadcasting."""

    def function(x: Tensor, shape: Any) -> Tensor:
        sizes = whole(shape)
        sizes = [1] * (x.ndim - len(sizes)) + sizes
        own = [1] * (len(sizes) - x.ndim) + list(x.shape)
        return x.expand([b if a == 1 else a for a, b in zip(own, sizes, strict=True)])

    return function


def tile(op: Op) -> Function:
    """ONNX Tile."""
    return lambda x, repeats: x.repeat(whole(repeats))


def depth_to_space(op: Op) -> Function:
    """ONNX DepthToSpace in both modes."""
    block = int(op.get("blocksize"))
    if op.get("mode", "DCR") == "CRD":
        return lambda x: functional.pixel_shuffle(x, block)

    def function(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return x.reshape(n, c // block**2, h * block, w * block)

    return function


def space_to_depth(op: Op) -> Function:
    """ONNX SpaceToDepth; `CRD` (opset 27) keeps the depth of the input outermost."""
    block = int(op.get("blocksize"))
    if op.get("mode", "DCR") == "CRD":
        return lambda x: functional.pixel_unshuffle(x, block)

    def function(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(n, c * block**2, h // block, w // block)

    return function


def center_crop_pad(op: Op) -> Function:
    """ONNX CenterCropPad: cut or zero-padded around the centre to the wanted sizes."""
    written = op.get("axes")

    def function(x: Tensor, shape: Any) -> Tensor:
        wanted = whole(shape)
        over = [int(a) % x.ndim for a in written] if written is not None else range(x.ndim)
        sides = [0] * (2 * x.ndim)
        for axis, want in zip(over, wanted, strict=True):
            have = x.shape[axis]
            left = (want - have) // 2 if want >= have else -((have - want) // 2)
            sides[2 * (x.ndim - 1 - axis)] = left
            sides[2 * (x.ndim - 1 - axis) + 1] = want - have - left
        return functional.pad(x, sides)

    return function


def reverse_sequence(op: Op) -> Function:
    """ONNX ReverseSequence: the first so many steps of each sample, backwards."""
    batch_axis, time_axis = int(op.get("batch_axis", 1)), int(op.get("time_axis", 0))

    def function(x: Tensor, lengths: Tensor) -> Tensor:
        steps = torch.arange(x.shape[time_axis], device=x.device).reshape(1, -1)
        ends = lengths.reshape(-1, 1)
        places = torch.where(steps < ends, ends - 1 - steps, steps)
        view = [1] * x.ndim
        view[batch_axis], view[time_axis] = places.shape
        places = places if batch_axis < time_axis else places.t()
        return x.gather(time_axis, places.reshape(view).expand(x.shape))

    return function


def columns_to_image(op: Op) -> Function:
    """ONNX Col2Im in two dimensions."""
    stride = tuple(int(v) for v in op.get("strides", (1, 1)))
    dilation = tuple(int(v) for v in op.get("dilations", (1, 1)))
    pads = [int(v) for v in op.get("pads", (0,) * 4)]
    if len(stride) != 2 or pads[:2] != pads[2:]:
        raise op.refuse("its pads differ at the two ends, or it is not in two dimensions")

    def function(x: Tensor, image: Any, block: Any) -> Tensor:
        if len(whole(image)) != 2:
            raise op.refuse("it is not in two dimensions")
        return functional.fold(
            x, tuple(whole(image)), tuple(whole(block)), dilation, tuple(pads[:2]), stride
        )

    return function


def eye_like(op: Op) -> Function:
    """ONNX EyeLike."""
    k, given = int(op.get("k", 0)), op.get("dtype")
    dtype = carrier(ir.DataType(int(given))) if given is not None else None

    def function(x: Tensor) -> Tensor:
        rows = torch.arange(x.shape[0]).reshape(-1, 1)
        columns = torch.arange(x.shape[1]).reshape(1, -1)
        return (columns - rows == k).to(dtype or x.dtype).to(x.device)

    return function


def identity(op: Op) -> Function:
    """ONNX Identity."""
    return lambda x: x


BUILDERS: Mapping[str, Builder] = {
    "CenterCropPad": center_crop_pad,
    "Col2Im": columns_to_image,
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "EyeLike": eye_like,
    "Flatten": flatten,
    "Identity": identity,
    "Pad": pad,
    "Range": range_,
    "Reshape": reshape,
    "ReverseSequence": reverse_sequence,
    "Shape": shape,
    "Size": size,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
