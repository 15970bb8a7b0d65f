"""Normalisation and Dropout, in training and outside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from edgekit.models.operators import Builder, Function, Op
from edgekit.models.operators.types import carrier


def batch_normalization(op: Op) -> Function:
    """ONNX BatchNormalization; in training the running statistics follow the batches.

    running = running * momentum + batch * (1 - momentum). torch takes the unbiased variance of
    the batch for the running one, where ONNX takes the population's.
    """
    epsilon, momentum = float(op.get("epsilon", 1e-5)), 1 - float(op.get("momentum", 0.9))
    if op.get("training_mode", 0) or (op.opset < 14 and len(op.node.outputs) > 1):
        return lambda x, scale, bias, mean, var: _normalised_by_batch(
            x, scale, bias, mean, var, momentum, epsilon
        )[: len(op.node.outputs)]
    mode = op.mode

    def function(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        follow = 1.0 if mode.observing else momentum
        return functional.batch_norm(x, mean, var, scale, bias, mode.training, follow, epsilon)

    return function


def _normalised_by_batch(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, follow: float, epsilon: float
) -> tuple[Tensor, ...]:
    over = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    own_mean, own_var = x.mean(over), x.var(over, unbiased=False)
    factor = scale / (own_var + epsilon).sqrt()
    y = (x - own_mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)
    return y, mean * (1 - follow) + own_mean * follow, var * (1 - follow) + own_var * follow


def instance_normalization(op: Op) -> Function:
    """ONNX InstanceNormalization."""
    epsilon = float(op.get("epsilon", 1e-5))
    return lambda x, scale, bias: functional.instance_norm(
        x, weight=scale, bias=bias, use_input_stats=True, eps=epsilon
    )


def group_normalization(op: Op) -> Function:
    """ONNX GroupNormalization: scale and bias a channel (from opset 21), a group before."""
    groups, epsilon = int(op.get("num_groups")), float(op.get("epsilon", 1e-5))
    by_group = op.opset < 21

    def function(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if by_group and scale.shape[0] != x.shape[1]:
            each = x.shape[1] // groups
            scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
        return functional.group_norm(x, groups, scale, bias, epsilon)

    return function


def layer_normalization(op: Op) -> Function:
    """ONNX LayerNormalization over the axes from `axis` on; mean and 1/deviation if asked."""
    axis, epsilon = int(op.get("axis", -1)), float(op.get("epsilon", 1e-5))
    if len(op.node.outputs) > 1:
        return lambda x, scale, bias=None: _layer_statistics(x, scale, bias, axis, epsilon)

    def function(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        shape = x.shape[axis % x.ndim :]
        if scale.shape == shape and (bias is None or bias.shape == shape):
            return functional.layer_norm(x, shape, scale, bias, epsilon)
        y = functional.layer_norm(x, shape, None, None, epsilon) * scale
        return y if bias is None else y + bias

    return function


def _layer_statistics(
    x: Tensor, scale: Tensor, bias: Tensor | None, axis: int, epsilon: float
) -> tuple[Tensor, ...]:
    over = list(range(axis % x.ndim, x.ndim))
    wide = x.to(torch.float32)
    mean = wide.mean(over, keepdim=True)
    inverse = torch.rsqrt(wide.var(over, unbiased=False, keepdim=True) + epsilon)
    y = ((wide - mean) * inverse).to(x.dtype) * scale
    return (y if bias is None else y + bias), mean, inverse


def rms_normalization(op: Op) -> Function:
    """ONNX RMSNormalization: x over the root of its mean square, times the scale."""
    axis, epsilon = int(op.get("axis", -1)), float(op.get("epsilon", 1e-5))
    stash = carrier(ir.DataType(int(op.get("stash_type", 1)))) or torch.float32

    def function(x: Tensor, scale: Tensor) -> Tensor:
        over = list(range(axis % x.ndim, x.ndim))
        wide = x.to(stash)
        y = wide * torch.rsqrt(wide.square().mean(over, keepdim=True) + epsilon)
        return y.to(x.dtype) * scale

    return function


def local_response(op: Op) -> Function:
    """ONNX LRN: x / (bias + alpha / size * sum of squares over `size` channels) ** beta."""
    size, alpha = int(op.get("size")), float(op.get("alpha", 1e-4))
    beta, bias = float(op.get("beta", 0.75)), float(op.get("bias", 1.0))
    left, right = (size - 1) // 2, size - 1 - (size - 1) // 2

    def function(x: Tensor) -> Tensor:
        squares = x.square().unsqueeze(1)
        around = functional.pad(squares, [0, 0] * (x.ndim - 2) + [left, right])
        sums = around.unfold(2, size, 1).sum(-1).squeeze(1)
        return x / (bias + alpha / size * sums) ** beta

    return function


def mean_variance_normalization(op: Op) -> Function:
    """ONNX MeanVarianceNormalization."""
    axes = [int(axis) for axis in op.get("axes", (0, 2, 3))]

    def function(x: Tensor) -> Tensor:
        centred = x - x.mean(axes, keepdim=True)
        return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)

    return function


def dropout(op: Op) -> Function:
    """ONNX Dropout: the identity outside training; its mask where one is asked for.

    The graph's own third input decides where it is given (opset 12), else the module's mode.
    """
    written, mode, masked = float(op.get("ratio", 0.5)), op.mode, len(op.node.outputs) > 1

    def function(x: Tensor, ratio: Any = None, training: Any = None) -> Any:
        share = written if ratio is None else float(ratio)
        active = mode.training if training is None else bool(training)
        if not masked:
            return functional.dropout(x, share, active)
        if not active or share == 0:
            return x, torch.ones_like(x, dtype=torch.bool)
        mask = torch.rand_like(x) >= share
        return x * mask / (1 - share), mask

    return function


BUILDERS: Mapping[str, Builder] = {
    "BatchNormalization": batch_normalization,
    "Dropout": dropout,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": local_response,
    "LayerNormalization": layer_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
}
