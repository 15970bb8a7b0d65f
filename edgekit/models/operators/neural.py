"""Convolution, normalisation and pooling."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from edgekit.errors import InputError
from edgekit.models.model import static_shape
from edgekit.models.operators import Builder, Function, Op


def _spatial(op: Op, name: str, rank: int, default: int = 1) -> list[int]:
    return [int(v) for v in op.get(name, (default,) * rank)]


def _pads(op: Op, kernel: list[int], rank: int) -> tuple[list[int], list[int]]:
    """Begin and end padding of each spatial axis. Raises InputError for a computed one."""
    mode = op.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        pads = _spatial(op, "pads", 2 * rank, 0)
        return pads[:rank], pads[rank:]
    if mode == "VALID":
        return [0] * rank, [0] * rank
    strides, dilations = _spatial(op, "strides", rank), _spatial(op, "dilations", rank)
    source = op.node.inputs[0]
    sizes = list(source.shape)[2:] if source is not None and source.shape is not None else []
    if len(sizes) != rank or not all(isinstance(size, int) for size in sizes):
        raise InputError(
            "auto_pad needs a known input size", where=f"{op.node.op_type} {op.node.name}"
        )
    begin, end = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        assert isinstance(size, int)
        total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        smaller, larger = total // 2, total - total // 2
        begin.append(smaller if mode == "SAME_UPPER" else larger)
        end.append(larger if mode == "SAME_UPPER" else smaller)
    return begin, end


def _torch_pad(begin: list[int], end: list[int]) -> list[int]:
    """torch's order: last axis first, begin and end in turn."""
    return [side for pair in zip(reversed(begin), reversed(end), strict=True) for side in pair]


def conv(op: Op) -> Function:
    """ONNX Conv in one, two or three dimensions."""
    kernel_value = op.node.inputs[1]
    assert kernel_value is not None
    kernel = list(op.get("kernel_shape", static_shape(kernel_value)[2:]))
    rank = len(kernel)
    function = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[rank]
    stride, dilation = _spatial(op, "strides", rank), _spatial(op, "dilations", rank)
    groups = int(op.get("group", 1))
    begin, end = _pads(op, kernel, rank)
    if begin == end:

        def symmetric(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            found: Tensor = function(x, weight, bias, stride, begin, dilation, groups)
            return found

        return symmetric
    pads = _torch_pad(begin, end)

    def padded(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x = functional.pad(x, pads)
        found: Tensor = function(x, weight, bias, stride, 0, dilation, groups)
        return found

    return padded


def batch_normalization(op: Op) -> Function:
    """ONNX BatchNormalization; in training the running statistics follow the batches.

    running = running * momentum + batch * (1 - momentum). torch takes the unbiased variance of
    the batch for the running one, where ONNX takes the population's.
    """
    if op.get("training_mode", 0):
        raise InputError(
            "this BatchNormalization was exported in training mode", where=op.node.name or "",
            hint="Call model.eval() before the export.",
        )  # fmt: skip
    epsilon, momentum = float(op.get("epsilon", 1e-5)), 1 - float(op.get("momentum", 0.9))
    mode = op.mode

    def function(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        follow = 1.0 if mode.observing else momentum
        return functional.batch_norm(x, mean, var, scale, bias, mode.training, follow, epsilon)

    return function


def instance_normalization(op: Op) -> Function:
    """ONNX InstanceNormalization."""
    epsilon = float(op.get("epsilon", 1e-5))
    return lambda x, scale, bias: functional.instance_norm(
        x, weight=scale, bias=bias, use_input_stats=True, eps=epsilon
    )


def layer_normalization(op: Op) -> Function:
    """ONNX LayerNormalization over the axes from `axis` on."""
    axis, epsilon = int(op.get("axis", -1)), float(op.get("epsilon", 1e-5))

    def function(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.layer_norm(x, x.shape[axis % x.ndim :], scale, bias, epsilon)

    return function


def _pool(op: Op) -> tuple[list[int], list[int], list[int], list[int], bool]:
    kernel = [int(v) for v in op.get("kernel_shape")]
    begin, end = _pads(op, kernel, len(kernel))
    if any(d != 1 for d in _spatial(op, "dilations", len(kernel))):
        raise InputError("a dilated pooling cannot be run", where=op.node.name or "")
    ceil = bool(op.get("ceil_mode", 0))
    if ceil and begin != end:
        raise InputError("pooling with ceil_mode and uneven pads", where=op.node.name or "")
    return kernel, _spatial(op, "strides", len(kernel)), begin, end, ceil


def max_pool(op: Op) -> Function:
    """ONNX MaxPool with one output."""
    kernel, stride, begin, end, ceil = _pool(op)
    function = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[
        len(kernel)
    ]
    if begin == end and all(2 * p <= k for p, k in zip(begin, kernel, strict=True)):
        return lambda x: function(x, kernel, stride, begin, ceil_mode=ceil)
    pads = _torch_pad(begin, end)
    return lambda x: function(functional.pad(x, pads, value=float("-inf")), kernel, stride)


def average_pool(op: Op) -> Function:
    """ONNX AveragePool, padding counted or not."""
    kernel, stride, begin, end, ceil = _pool(op)
    counted = bool(op.get("count_include_pad", 0))
    function = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[
        len(kernel)
    ]
    if begin == end and all(2 * p <= k for p, k in zip(begin, kernel, strict=True)):
        return lambda x: function(x, kernel, stride, begin, ceil, counted)
    pads = _torch_pad(begin, end)

    def uneven(x: Tensor) -> Tensor:
        pooled: Tensor = function(functional.pad(x, pads), kernel, stride)
        if counted:
            return pooled
        share = function(functional.pad(torch.ones_like(x[:1, :1]), pads), kernel, stride)
        return pooled / share

    return uneven


def global_average_pool(op: Op) -> Function:
    """ONNX GlobalAveragePool."""
    return lambda x: x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


def global_max_pool(op: Op) -> Function:
    """ONNX GlobalMaxPool."""
    return lambda x: x.amax(dim=tuple(range(2, x.ndim)), keepdim=True)


def dropout(op: Op) -> Function:
    """ONNX Dropout: the identity outside training."""
    given = op.constant(1)
    ratio = float(op.get("ratio", 0.5) if given is None else given)
    mode = op.mode
    return lambda x, *_: functional.dropout(x, ratio, mode.training)


BUILDERS: Mapping[str, Builder] = {
    "Conv": conv,
    "BatchNormalization": batch_normalization,
    "InstanceNormalization": instance_normalization,
    "LayerNormalization": layer_normalization,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "Dropout": dropout,
}
