"""Operators that move and shape, and those that compute shapes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgekit.errors import InputError
from edgekit.models.model import constant_of
from edgekit.models.operators import Builder, Function, Op

_TYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32,
    7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


def concat(op: Op) -> Function:
    """ONNX Concat."""
    axis = int(op.get("axis"))
    return lambda *parts: torch.cat(parts, dim=axis)


def flatten(op: Op) -> Function:
    """ONNX Flatten: always to two axes."""
    axis = int(op.get("axis", 1))

    def function(x: Tensor) -> Tensor:
        split = axis + x.ndim if axis < 0 else axis
        rows = 1
        for size in x.shape[:split]:
            rows *= size
        return x.reshape(rows, -1)

    return function


def reshape(op: Op) -> Function:
    """ONNX Reshape: 0 keeps a size unless allowzero, -1 is what is left."""
    zero_is_zero = bool(op.get("allowzero", 0))
    constant = op.constant(1)
    written = None if constant is None else [int(v) for v in constant.reshape(-1)]

    def function(x: Tensor, shape: Tensor) -> Tensor:
        sizes = written if written is not None else [int(v) for v in shape.tolist()]
        if not zero_is_zero:
            sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
        return x.reshape(sizes)

    return function


def transpose(op: Op) -> Function:
    """ONNX Transpose."""
    order = op.get("perm")
    return lambda x: x.permute(order if order is not None else tuple(reversed(range(x.ndim))))


def squeeze(op: Op) -> Function:
    """ONNX Squeeze: the given axes, or all of size 1."""
    axes = op.axes()

    def function(x: Tensor, *_: Tensor) -> Tensor:
        if axes is None:
            return x.squeeze()
        return x.squeeze(tuple(axes))

    return function


def unsqueeze(op: Op) -> Function:
    """ONNX Unsqueeze."""
    axes = op.axes()
    if axes is None:
        raise InputError("an Unsqueeze has computed axes", where=op.node.name or "")

    def function(x: Tensor, *_: Tensor) -> Tensor:
        rank = x.ndim + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return function


def pad(op: Op) -> Function:
    """ONNX Pad with constant pads: constant, reflect or edge."""
    given = op.constant(1)
    pads = op.get("pads") if given is None else given.reshape(-1).tolist()
    if pads is None or op.computed(2) or (len(op.node.inputs) > 3 and op.node.inputs[3]):
        raise InputError("a Pad has computed pads or a list of axes", where=op.node.name or "")
    rank = len(pads) // 2
    sides = [int(p) for axis in reversed(range(rank)) for p in (pads[axis], pads[axis + rank])]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}[
        op.get("mode", "constant")
    ]
    filler = op.constant(2)
    value = float(op.get("value", 0.0) if filler is None else filler)
    if mode != "constant":
        while len(sides) > 2 and sides[-2:] == [0, 0]:
            sides = sides[:-2]
        return lambda x, *_: functional.pad(x, sides, mode=mode)
    return lambda x, *_: functional.pad(x, sides, value=value)


def shape(op: Op) -> Function:
    """ONNX Shape, from `start` to `end`."""
    start, end = int(op.get("start", 0)), op.get("end")
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64)


def gather(op: Op) -> Function:
    """ONNX Gather along one axis."""
    axis = int(op.get("axis", 0))

    def function(x: Tensor, indices: Tensor) -> Tensor:
        positive = torch.where(indices < 0, indices + x.shape[axis], indices)
        picked = x.index_select(axis, positive.reshape(-1))
        whole = axis % x.ndim
        return picked.reshape(*x.shape[:whole], *indices.shape, *x.shape[whole + 1 :])

    return function


def slice_(op: Op) -> Function:
    """ONNX Slice with positive steps; bounds as attributes (before opset 10) or as inputs."""

    def function(
        x: Tensor, starts: Tensor | None = None, ends: Tensor | None = None,
        axes: Tensor | None = None, steps: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        begin = op.get("starts") if starts is None else starts.tolist()
        end = op.get("ends") if ends is None else ends.tolist()
        over = op.get("axes") if axes is None else axes.tolist()
        over = list(range(len(begin))) if over is None else over
        stride = [1] * len(begin) if steps is None else steps.tolist()
        index = [slice(None)] * x.ndim
        for b, e, axis, s in zip(begin, end, over, stride, strict=True):
            if s < 1:
                raise InputError("a Slice goes backwards", where=op.node.name or "")
            index[axis] = slice(int(b), int(e), int(s))
        return x[tuple(index)]

    return function


def split(op: Op) -> Function:
    """ONNX Split into given sizes or equal parts."""
    axis = int(op.get("axis", 0))
    given = op.constant(1)
    sizes = op.get("split") if given is None else given.tolist()
    parts = len(op.node.outputs)

    def function(x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        if sizes is not None:
            return torch.split(x, [int(size) for size in sizes], dim=axis)
        return torch.split(x, -(-x.shape[axis] // parts), dim=axis)

    return function


def cast(op: Op) -> Function:
    """ONNX Cast."""
    kind = int(op.get("to"))
    if kind not in _TYPES:
        raise InputError("a Cast to a type that torch does not have", where=op.node.name or "")
    target = _TYPES[kind]
    return lambda x: x.to(target)


def cast_like(op: Op) -> Function:
    """ONNX CastLike."""
    del op
    return lambda x, like: x.to(like.dtype)


def constant(op: Op) -> Function:
    """ONNX Constant, for a graph that was not cleaned."""
    array = constant_of(op.node.outputs[0])
    if array is None:
        raise InputError("a Constant is no tensor", where=op.node.name or "")
    tensor = torch.from_numpy(np.array(array))
    return lambda: tensor


def expand(op: Op) -> Function:
    """ONNX Expand: two-way broadcasting."""

    def function(x: Tensor, shape: Tensor) -> Tensor:
        sizes = [int(v) for v in shape.tolist()]
        sizes = [1] * (x.ndim - len(sizes)) + sizes
        own = [1] * (len(sizes) - x.ndim) + list(x.shape)
        return x.expand([max(a, b) if a and b else 0 for a, b in zip(own, sizes, strict=True)])

    return function


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


def identity(op: Op) -> Function:
    """ONNX Identity."""
    return lambda x: x


BUILDERS: Mapping[str, Builder] = {
    "Concat": concat,
    "Flatten": flatten,
    "Reshape": reshape,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Pad": pad,
    "Shape": shape,
    "Gather": gather,
    "Slice": slice_,
    "Split": split,
    "Cast": cast,
    "CastLike": cast_like,
    "Constant": constant,
    "Expand": expand,
    "DepthToSpace": depth_to_space,
    "Identity": identity,
}
