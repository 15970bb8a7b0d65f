"""Where a group's channels can be seen: the nodes that read or make them, and their tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.compress.channels.groups import ChannelGroup, Member
from edgekit.models.model import Model, attribute, constant_of, static_shape
from edgekit.values import Array

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_MATRICES = ("Gemm", "MatMul")
_TURNED = ("transA", "transB")


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product whose operand at `place` is the initializer `stored`.

    `permutation` is what Transposes do to it on its way to the node.
    """

    node: ir.Node
    place: int
    stored: ir.Value
    permutation: tuple[int, ...]

    @property
    def convolves(self) -> bool:
        """Whether it is a convolution: channels along axis 1, kernel places behind them."""
        return self.node.op_type in _CONVOLUTIONS

    @property
    def groups(self) -> int:
        """How many parts the channels are in that do not see one another."""
        return int(attribute(self.node, "group", 1)) if self.convolves else 1

    @property
    def axes(self) -> tuple[int, int]:
        """The axes of the weight, as the node sees it, that make channels and that read them."""
        if self.convolves:
            return (0, 1) if self.node.op_type == "Conv" else (1, 0)
        return (0, 1) if (self.place == 0) != self._is_turned(self.place) else (1, 0)

    @property
    def source(self) -> ir.Value | None:
        """What is multiplied with the weight."""
        return self.node.inputs[1 - self.place]

    @property
    def source_axis(self) -> int:
        """The axis of the source along which the channels lie that the weight reads."""
        if self.convolves:
            return 1
        other = 1 - self.place
        return -1 if (other == 0) != self._is_turned(other) else -2

    @property
    def made_axis(self) -> int:
        """The axis of the output along which the channels lie that the weight makes."""
        return 1 if self.convolves else -1 if self.place == 1 else -2

    def _is_turned(self, place: int) -> bool:
        return self.node.op_type == "Gemm" and bool(attribute(self.node, _TURNED[place], 0))

    def weight(self) -> Array:
        """The weight (groups, outputs, inputs, kernel places); outputs and inputs of a group."""
        stored = constant_of(self.stored)
        assert stored is not None
        seen = np.moveaxis(stored.transpose(self.permutation), self.axes, (0, 1))
        if self.node.op_type == "ConvTranspose":
            parts = seen.reshape(seen.shape[0], self.groups, seen.shape[1] // self.groups, -1)
            return np.ascontiguousarray(parts.swapaxes(0, 1))
        made: Array = seen.reshape(self.groups, seen.shape[0] // self.groups, seen.shape[1], -1)
        return made

    def channels_of(self, member: Member) -> Array:
        """The channels (units, k) that a member's entries stand for.

        Along axis 1 of a grouped convolution's weight an entry stands for a channel in each group.
        """
        if self.groups == 1 or self.permutation.index(member.axis) != 1:
            return member.indices
        first = np.arange(self.groups) * static_shape(self.stored)[member.axis]
        found: Array = (member.indices[:, :, None] + first).reshape(len(member.indices), -1)
        return found


@dataclass(frozen=True)
class Reader:
    """A product that reads a group's channels: `entries` (units, k) among its source's."""

    product: Product
    entries: Array


@dataclass(frozen=True)
class Carrier:
    """A tensor with a group's channels: `entries` (units, k) along `axis`."""

    tensor: str
    axis: int
    entries: Array


def readers_of(model: Model, group: ChannelGroup) -> tuple[Reader, ...]:
    """The products that read the group's channels, in the order of its members."""
    return tuple(
        Reader(product, product.channels_of(member))
        for member in group.members
        if member.role == "consumed"
        for product in products_of(model, member.parameter)
        if product.permutation.index(member.axis) == product.axes[1] and product.source is not None
    )


def carriers_of(model: Model, group: ChannelGroup) -> tuple[Carrier, ...]:
    """The tensors with the group's channels, as the weights that read them see them; each once.

    Where no weight reads them (queries and keys of an attention meet one another), what the
    weights that make them put out.
    """
    read = [
        Carrier(_name(reader.product.source), reader.product.source_axis, reader.entries)
        for reader in readers_of(model, group)
    ]
    return tuple(_distinct(read or _made(model, group)))


def _made(model: Model, group: ChannelGroup) -> Iterator[Carrier]:
    for member in group.members:
        if member.role != "produced":
            continue
        for product in products_of(model, member.parameter):
            if product.permutation.index(member.axis) == product.axes[0]:
                made = _name(product.node.outputs[0])
                yield Carrier(made, product.made_axis, product.channels_of(member))


def _distinct(carriers: Iterable[Carrier]) -> Iterator[Carrier]:
    seen = set()
    for carrier in carriers:
        key = carrier.tensor, carrier.axis, carrier.entries.tobytes()
        if key not in seen:
            seen.add(key)
            yield carrier


def _name(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""


def products_of(model: Model, parameter: str) -> tuple[Product, ...]:
    """The products of the main graph that read this initializer, as it is or transposed."""
    value = model.graph.initializers[parameter]
    axes = tuple(range(len(static_shape(value))))
    return tuple(
        Product(node, place, value, permutation)
        for node, place, permutation in _followed(value, axes, model.graph)
    )


def _followed(
    value: ir.Value, permutation: tuple[int, ...], graph: ir.Graph
) -> Iterator[tuple[ir.Node, int, tuple[int, ...]]]:
    for node, place in value.uses():
        if node.graph is not graph or node.domain:
            continue
        if node.op_type == "Identity":
            yield from _followed(node.outputs[0], permutation, graph)
        elif node.op_type == "Transpose":
            order = attribute(node, "perm") or tuple(reversed(range(len(permutation))))
            turned = tuple(permutation[axis] for axis in order)
            yield from _followed(node.outputs[0], turned, graph)
        elif _multiplies(node, place, len(permutation)):
            yield node, place, permutation


def _multiplies(node: ir.Node, place: int, rank: int) -> bool:
    """Whether what the node reads there is a weight of its product."""
    if node.op_type in _CONVOLUTIONS:
        return place == 1
    return node.op_type in _MATRICES and place < 2 and rank == 2


def norms_of(model: Model, group: ChannelGroup) -> tuple[tuple[ir.Node, Member], ...]:
    """The BatchNormalizations over the group's channels, each with the member of its gamma."""
    return tuple(
        (node, member)
        for member in group.members
        if member.role == "along"
        for node, place in model.graph.initializers[member.parameter].uses()
        if node.op_type == "BatchNormalization" and not node.domain and place == 1
    )
