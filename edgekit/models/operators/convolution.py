"""Convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from edgekit.models.model import static_shape
from edgekit.models.operators import Builder, Function, Op

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {
    1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d,
}  # fmt: skip


def spatial(op: Op, name: str, rank: int, default: int = 1) -> list[int]:
    """An attribute with one number for each spatial axis."""
    return [int(v) for v in op.get(name, (default,) * rank)]


def written_pads(op: Op, rank: int) -> tuple[list[int], list[int]] | None:
    """Begin and end padding of each spatial axis; None where it follows from the input's size."""
    mode = op.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        pads = spatial(op, "pads", 2 * rank, 0)
        return pads[:rank], pads[rank:]
    return ([0] * rank, [0] * rank) if mode == "VALID" else None


def same_pads(
    op: Op, sizes: Sequence[int], kernel: list[int], stride: list[int], dilation: list[int]
) -> tuple[list[int], list[int]]:
    """The padding of auto_pad SAME_UPPER and SAME_LOWER: outputs of ceil(size / stride)."""
    upper = op.get("auto_pad") == "SAME_UPPER"
    begin, end = [], []
    for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        smaller, larger = total // 2, total - total // 2
        begin.append(smaller if upper else larger)
        end.append(larger if upper else smaller)
    return begin, end


def torch_pad(begin: list[int], end: list[int]) -> list[int]:
    """torch's order: last axis first, begin and end in turn."""
    return [side for pair in zip(reversed(begin), reversed(end), strict=True) for side in pair]


def kernel_of(op: Op, place: int = 1) -> list[int]:
    """The spatial sizes of the kernel, from the attribute or the shape of that input."""
    given = op.get("kernel_shape")
    if given is not None:
        return [int(v) for v in given]
    value = op.node.inputs[place]
    if value is None or value.shape is None or not value.shape.is_static():
        raise op.refuse("the shape of its kernel is not known")
    return list(static_shape(value)[2:])


def conv(op: Op) -> Function:
    """ONNX Conv in one, two or three dimensions."""
    return convolution(op, kernel_of(op))


def convolution(op: Op, kernel: list[int]) -> Function:
    """The convolution (x, weight, bias) with this node's attributes and a kernel of that size."""
    rank = len(kernel)
    if rank not in _CONVOLUTIONS:
        raise op.refuse(f"it has {rank} spatial axes")
    function = _CONVOLUTIONS[rank]
    stride, dilation = spatial(op, "strides", rank), spatial(op, "dilations", rank)
    groups = int(op.get("group", 1))
    written = written_pads(op, rank)
    if written is not None and written[0] == written[1]:
        begin = written[0]

        def symmetric(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            found: Tensor = function(x, weight, bias, stride, begin, dilation, groups)
            return found

        return symmetric

    def padded(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        begin, end = written or same_pads(op, x.shape[2:], kernel, stride, dilation)
        x = functional.pad(x, torch_pad(begin, end))
        found: Tensor = function(x, weight, bias, stride, 0, dilation, groups)
        return found

    return padded


def conv_transpose(op: Op) -> Function:
    """ONNX ConvTranspose; pads may differ at the two ends, `output_shape` decides them.

    size = stride (input - 1) + output_padding + (kernel - 1) dilation + 1 - begin - end
    """
    kernel = kernel_of(op)
    rank = len(kernel)
    if rank not in _TRANSPOSED:
        raise op.refuse(f"it has {rank} spatial axes")
    function = _TRANSPOSED[rank]
    stride, dilation = spatial(op, "strides", rank), spatial(op, "dilations", rank)
    extra, groups = spatial(op, "output_padding", rank, 0), int(op.get("group", 1))
    wanted, mode = op.get("output_shape"), op.get("auto_pad", "NOTSET")
    written = written_pads(op, rank) if wanted is None else None

    def pads(sizes: Sequence[int]) -> tuple[list[int], list[int]]:
        begin, end = [], []
        for i, size in enumerate(sizes):
            full = stride[i] * (size - 1) + extra[i] + (kernel[i] - 1) * dilation[i] + 1
            want = size * stride[i] if wanted is None else int(wanted[i - len(sizes)])
            total = full - want
            half = total // 2
            begin.append(total - half if mode != "SAME_UPPER" else half)
            end.append(half if mode != "SAME_UPPER" else total - half)
        return begin, end

    def transposed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        begin, end = written or pads(x.shape[2:])
        both = [max(min(b, e), 0) for b, e in zip(begin, end, strict=True)]
        longest = [max(stride[i], dilation[i]) - 1 for i in range(rank)]
        if all(e <= m for e, m in zip(extra, longest, strict=True)) and begin == end == both:
            found: Tensor = function(x, weight, bias, stride, both, extra, groups, dilation)
            return found
        whole: Tensor = function(x, weight, bias, stride, 0, 0, groups, dilation)
        # What is cut off, or added where output_padding or the pads reach beyond the whole.
        ends = [o - e for o, e in zip(extra, end, strict=True)]
        if bias is not None and any(e > 0 for e in ends):
            whole = whole - bias.reshape(1, -1, *(1,) * rank)
        whole = functional.pad(whole, torch_pad([-b for b in begin], ends))
        if bias is not None and any(e > 0 for e in ends):
            whole = whole + bias.reshape(1, -1, *(1,) * rank)
        return whole

    return transposed


def deform_conv(op: Op) -> Function:
    """ONNX DeformConv in two dimensions: each tap of the kernel reads where its offset says.

    Offsets are (n, offset_group * kh * kw * 2, oh, ow), y before x; outside the picture is 0.
    """
    kernel = kernel_of(op)
    if len(kernel) != 2:
        raise op.refuse(f"it has {len(kernel)} spatial axes")
    stride, dilation = spatial(op, "strides", 2), spatial(op, "dilations", 2)
    begin = spatial(op, "pads", 4, 0)[:2]
    groups, offset_groups = int(op.get("group", 1)), int(op.get("offset_group", 1))

    def function(
        x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        n, c, h, w = x.shape
        oh, ow = offset.shape[2:]
        taps = kernel[0] * kernel[1]
        moves = offset.reshape(n, offset_groups, taps, 2, oh, ow)
        rows = torch.arange(oh).reshape(1, oh, 1) * stride[0] - begin[0]
        columns = torch.arange(ow).reshape(1, 1, ow) * stride[1] - begin[1]
        tap = torch.arange(taps).reshape(taps, 1, 1)
        y = moves[:, :, :, 0] + rows + tap // kernel[1] * dilation[0]
        z = moves[:, :, :, 1] + columns + tap % kernel[1] * dilation[1]
        grid = torch.stack([2 * z / max(w - 1, 1) - 1, 2 * y / max(h - 1, 1) - 1], dim=-1)
        sampled = functional.grid_sample(
            x.reshape(n * offset_groups, c // offset_groups, h, w),
            grid.reshape(n * offset_groups, taps * oh, ow, 2).to(x.dtype),
            align_corners=True,
        ).reshape(n, offset_groups, c // offset_groups, taps, oh, ow)
        if mask is not None:
            sampled = sampled * mask.reshape(n, offset_groups, 1, taps, oh, ow)
        split = sampled.reshape(n, groups, c // groups * taps, oh * ow)
        kernels = weight.reshape(groups, weight.shape[0] // groups, -1)
        found = torch.einsum("gok,ngkp->ngop", kernels, split).reshape(n, -1, oh, ow)
        return found if bias is None else found + bias.reshape(1, -1, 1, 1)

    return function


BUILDERS: Mapping[str, Builder] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "DeformConv": deform_conv,
}
