"""What a layer of the cut network should put out: what the original has where its output ends up.

A layer's output y goes through what changes each channel alone, and linearly (BatchNormalization, a
constant that is added), and may then be added to another branch, which has drifted too. What counts
is the sum, so the sum of the original is the aim (He, Zhang and Sun 2017, Channel Pruning for
Accelerating Very Deep Neural Networks, section 3.3, do so for residual networks). With the scale s
and the shift t of each channel on the way, the other branch r and the original's value e at the end

    y should be (e - r - t) / s

and where only a Relu reads the end, a negative e asks no more than that the sum is not positive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.compress.channels.repair.products import Product
from edgekit.models.model import attribute, constant_of
from edgekit.values import Array


@dataclass(frozen=True, kw_only=True)
class Aim:
    """Where the output of a product ends up; `scale` and `shift` hold a number for each channel.

    `end` and `other` name values that both networks have; `other` is "" where nothing is added.
    `bias` is what the node itself adds to each channel. A change of the intercept is written into
    the initializer `offset`, `per` times; "" where no constant can take it up.
    """

    end: str
    other: str
    rectified: bool
    scale: Array
    shift: Array
    bias: Array
    offset: str
    per: float


def find_aim(product: Product, ready: Callable[[ir.Value], bool]) -> Aim:
    """The Aim of a product. A branch that is not `ready` is not added: it will make up for this."""
    channels = product.channels
    scale, shift = np.ones(channels), np.zeros(channels)
    bias, offset, per = _bias(product)
    value = product.node.outputs[0]
    other = ""
    while not other and (node := _only_reader(value)) is not None:
        if node.op_type == "BatchNormalization" and product.channel_axis == 1:
            numbers = [constant_of(v) for v in node.inputs[1:5]]
            if node.inputs[0] is not value or any(n is None for n in numbers):
                break
            gamma, beta, mean, var = (np.asarray(n, np.float64) for n in numbers)
            gain = gamma / np.sqrt(var + float(attribute(node, "epsilon", 1e-5)))
            if not offset and (scale == 1).all() and _is_own(node.inputs[3], channels):
                offset, per = _name(node.inputs[3]), -1.0
            scale, shift = gain * scale, gain * (shift - mean) + beta
        elif node.op_type == "Add" and not node.domain:
            added = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
            constant = _per_channel(added, product)
            if constant is not None:
                if not offset and (scale == 1).all() and _is_own(added, channels):
                    offset, per = _name(added), 1.0
                shift = shift + constant
            elif added is None or not _keeps_shape(value, node) or not ready(added):
                break
            else:
                other = _name(added)
        else:
            break
        value = node.outputs[0]
    reader = _only_reader(value)
    return Aim(
        end=_name(value),
        other=other,
        rectified=reader is not None and reader.op_type == "Relu" and not reader.domain,
        scale=scale,
        shift=shift,
        bias=bias,
        offset=offset,
        per=per,
    )


def _bias(product: Product) -> tuple[Array, str, float]:
    """What the node adds to each channel, and where that is stored, how many times."""
    node = product.node
    value = node.inputs[2] if len(node.inputs) > 2 and node.op_type != "MatMul" else None
    array = constant_of(value)
    if array is None:
        return np.zeros(product.channels), "", 1.0
    times = float(attribute(node, "beta", 1.0)) if node.op_type == "Gemm" else 1.0
    bias = times * np.broadcast_to(np.asarray(array, np.float64).reshape(-1), product.channels)
    own = times and _is_own(value, product.channels)
    return bias, _name(value) if own else "", 1 / times if times else 1.0


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.graph is not value.graph:
        return None
    return uses[0].node


def _is_own(value: ir.Value | None, channels: int) -> bool:
    """Whether a constant holds a number for each channel and nobody else reads it."""
    array = constant_of(value)
    if value is None or array is None or array.size != channels:
        return False
    return value.is_initializer() and len(list(value.uses())) == 1 and not value.is_graph_output()


def _per_channel(value: ir.Value | None, product: Product) -> Array | None:
    """A constant that is the same at all places, as a number for each channel."""
    array = constant_of(value)
    if array is None:
        return None
    rank = len(product.shape) if product.channel_axis == 1 else array.ndim
    shape = (1,) * (rank - array.ndim) + array.shape
    axis = product.channel_axis if rank else 0
    if len(shape) > rank or array.size != (shape[axis] if rank else 1):
        return None
    return np.broadcast_to(np.asarray(array, np.float64).reshape(-1), product.channels)


def _keeps_shape(value: ir.Value, node: ir.Node) -> bool:
    shape = node.outputs[0].shape
    return value.shape is not None and shape is not None and value.shape == shape


def _name(value: ir.Value | None) -> str:
    return (value.name or "") if value is not None else ""
