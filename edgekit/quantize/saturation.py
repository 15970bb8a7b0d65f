"""Weights whose products ONNX Runtime's x86 kernels without VNNI add up in 16 bits.

On AVX2 a kernel of uint8 activations and int8 weights adds two neighbouring products in 16 bits
before it goes on in 32 (the instruction VPMADDUBSW, which saturates). Neighbours are elements 2i
and 2i + 1 of a weight's row in the order (k..., c_in / group) of a Conv, (k) of a product of
matrices; a depthwise convolution has a kernel of its own, which adds in 32 bits. All seen with
ONNX Runtime 1.32. Nothing is lost where two neighbours of one sign are at most 128 together:
255 * 128 < 2^15.
"""

from __future__ import annotations

import numpy as np

from edgekit.values import Array

MOST = 128
"""What two neighbouring integer weights of one sign may come to."""

_ROOM = 2  # each of the two may be rounded away from zero, and a step further


def least_scale(weight: Array, axis: int, groups: int) -> Array:
    """The least scale of each output channel, (channels,), with which no sum of two saturates.

    0 where any scale will do. `axis` is that of the output channels.
    """
    return largest_sums(weight, axis, groups) / (MOST - _ROOM)


def largest_sums(weight: Array, axis: int, groups: int) -> Array:
    """The largest |a + b| of two neighbours of one sign, for each output channel: (channels,).

    A number with a neighbour of the other sign, or without one, counts alone. Depthwise
    convolutions have zeros.
    """
    channels = weight.shape[axis]
    if weight.ndim > 2 and weight.shape[1] == 1 and groups == channels:
        return np.zeros(channels)
    rows = np.moveaxis(weight, axis, 0)
    if weight.ndim > 2:
        rows = np.moveaxis(rows, 1, -1)
    rows = rows.reshape(channels, -1).astype(np.float64)
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    pairs = rows.reshape(channels, -1, 2)
    above = np.maximum(pairs, 0).sum(-1)
    below = np.maximum(-pairs, 0).sum(-1)
    found: Array = np.maximum(above, below).max(-1, initial=0.0)
    return found
