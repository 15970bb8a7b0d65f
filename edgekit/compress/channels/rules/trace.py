"""What one walk over a graph learns: ids of channels, where they lie, and which must stay.

Every channel of every tensor has an id; an operator that ties two channels merges their ids. Where
a value carries channels, a `Part` says along which axes and which ids. An initializer's axis that
carries channels is a `Slot`. Numbers in constants and attributes that count or name channels
(the shape of a Reshape, the sizes of a Split) are kept too: they follow a cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from edgekit.models.model import attribute, constant_of
from edgekit.values import Array

Role = Literal["produced", "consumed", "along"]
_RANK: Mapping[Role, int] = {"along": 0, "consumed": 1, "produced": 2}


Option: TypeAlias = "tuple[tuple[Array, Array], ...]"
"""Pairs of arrays of ids that one way of a Fork merges, broadcasting."""


@dataclass(eq=False)
class Slot:
    """An axis of an initializer whose entries belong to channels.

    `cells` (entries, k): an entry can go when all its k channels go. `role` is "produced" (an entry
    makes the channel), "consumed" (it reads it) or "along" (a number for the channel, as in
    BatchNormalization). `readers` are the nodes whose rules tied it. `norm` is the
    BatchNormalization behind the convolution that produces.
    """

    value: ir.Value
    axis: int
    cells: Array
    role: Role
    readers: set[ir.Node] = field(default_factory=set)
    norm: ir.Node | None = None


@dataclass(frozen=True)
class Part:
    """The channels along some axes of a value: `ids` has one axis for each of `axes`, in order.

    Two axes in one Part belong together, as after a Reshape of one axis into two. `slots` are the
    initializers' axes that a constant on its way (a transposed weight) came from.
    """

    axes: tuple[int, ...]
    ids: Array
    slots: tuple[Slot, ...] = ()

    def cells(self, axis: int) -> Array:
        """The ids for each entry along one of the axes (entries, k)."""
        moved = np.moveaxis(self.ids, self.axes.index(axis), 0)
        return moved.reshape(moved.shape[0], -1)


@dataclass(frozen=True)
class Fork:
    """Channels that must be removed in one of several ways: `options` says what each would merge.

    A box of channels must remain a box: whole slices along one axis, or along another.
    """

    cells: Array
    options: tuple[Option, ...]


@dataclass(eq=False)
class Rewrite:
    """Numbers in a node's constant input (its index) or attribute (its name) that follow a cut.

    `written` are the numbers as they are, `counts` has by position the cells (entries, k) that one
    of them counts. With `chosen`, the numbers are indices among these channels instead, and go with
    them. The place "shape" is the second input of a Reshape, put together by a Concat: its number
    becomes -1. `separates`: channels that are counted in different places are never
    interchangeable, so that no count falls to 0.
    """

    node: ir.Node
    place: int | str
    written: Array
    counts: dict[int, Array] = field(default_factory=dict)
    chosen: Array | None = None
    separates: bool = True


@dataclass
class Trace:
    """All that one walk over a graph learns; `node` is the one whose rule is at work.

    `sizes` has the sizes of every value, at a batch of 1 where the batch is open. `opset` is the
    graph's: what a shape is written in, an input or an attribute, depends on it.
    """

    opset: int
    sizes: Mapping[ir.Value, tuple[int, ...] | None]
    labels: dict[ir.Value, tuple[Part, ...]] = field(default_factory=dict)
    slots: dict[tuple[str, int], Slot] = field(default_factory=dict)
    count: int = 0
    merged: list[tuple[Array, Array]] = field(default_factory=list)
    frozen: list[tuple[Array, str]] = field(default_factory=list)
    forks: list[Fork] = field(default_factory=list)
    rewrites: dict[tuple[ir.Node, int | str], Rewrite] = field(default_factory=dict)
    node: ir.Node | None = None

    def fresh(self, *shape: int) -> Array:
        """New ids in an array of that shape."""
        first, self.count = self.count, self.count + int(np.prod(shape))
        return np.arange(first, self.count).reshape(shape)

    def union(self, left: Array, right: Array) -> None:
        """Merges two arrays of ids entry by entry, broadcasting."""
        if left is not right:
            a, b = np.broadcast_arrays(left, right)
            self.merged.append((a.reshape(-1), b.reshape(-1)))

    def freeze(self, ids: Array, reason: str) -> None:
        """These channels stay; the first reason is the one that is told."""
        self.frozen.append((ids.reshape(-1), reason))

    def freeze_value(self, value: ir.Value | None, reason: str) -> None:
        """All of the value's channels stay."""
        for part in self.labels.get(value, ()) if value is not None else ():
            self.freeze(part.ids, reason)

    def box(self, ids: Array) -> None:
        """These channels remain a box: they go in whole slices along one of its axes."""
        if ids.ndim < 2:
            return
        options = []
        for axis in range(ids.ndim):
            slices = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)
            options.append(((slices, slices[:, :1]),))
        self.forks.append(Fork(ids.reshape(-1), tuple(options)))

    def off(self, part: Part, axes: Sequence[int]) -> Part | None:
        """The part with its channels merged along these axes; None where no other axis is left."""
        gone = [place for place, axis in enumerate(part.axes) if axis in axes]
        if not gone:
            return part
        if len(gone) == len(part.axes):
            return None
        first = part.ids[tuple(slice(0, 1) if k in gone else slice(None)
                               for k in range(part.ids.ndim))]  # fmt: skip
        self.union(part.ids, first)
        left = tuple(axis for place, axis in enumerate(part.axes) if place not in gone)
        return replace(part, axes=left, ids=np.squeeze(first, tuple(gone)))

    def tie(self, value: ir.Value, axis: int, cells: Array, role: Role) -> Slot:
        """Ties the entries of an initializer's axis to channels; used twice, both are tied."""
        key = value.name or "", axis
        wanted = cells.reshape(len(cells), -1)
        present = self.slots.get(key)
        if present is None:
            present = self.slots[key] = Slot(value=value, axis=axis, cells=wanted, role=role)
        elif present.cells.shape == wanted.shape:
            self.union(present.cells, wanted)
        else:
            self.union(present.cells, present.cells[:, :1])
            self.union(wanted, present.cells[:, :1])
        self.uses(present, role)
        return present

    def uses(self, slot: Slot, role: Role) -> None:
        """The node at work reads this slot in that role; the strongest role is the one it has."""
        if _RANK[role] > _RANK[slot.role]:
            slot.role = role
        if self.node is not None:
            slot.readers.add(self.node)

    def parts(self, value: ir.Value | None) -> tuple[Part, ...]:
        """Where a value carries channels; a stored floating-point tensor does along every axis."""
        if value is None:
            return ()
        if value not in self.labels:
            sizes = self.sizes.get(value)
            if not is_stored(value) or sizes is None:
                return ()
            self.labels[value] = tuple(
                Part((axis,), slot.cells[:, 0], (slot,))
                for axis, size in enumerate(sizes)
                if size > 1
                for slot in [self.tie(value, axis, self.fresh(size, 1), "along")]
            )
        for part in self.labels[value]:
            for slot in part.slots:
                self.uses(slot, "along")
        return self.labels[value]

    def label(self, value: ir.Value, parts: Sequence[Part]) -> None:
        """Says where a value carries channels."""
        ordered = []
        for part in parts:
            order = np.argsort(part.axes)
            axes = tuple(part.axes[k] for k in order)
            ordered.append(replace(part, axes=axes, ids=np.transpose(part.ids, order)))
        if ordered:
            self.labels[value] = tuple(ordered)

    def rewrite(
        self, node: ir.Node, place: int | str, written: Sequence[int] | Array, position: int,
        cells: Array, *, separates: bool = True,
    ) -> None:  # fmt: skip
        """A number of a node that counts channels; see `Rewrite`."""
        key = node, place
        wanted = cells.reshape(len(cells), -1)
        made = self.rewrites.setdefault(key, Rewrite(node, place, np.array(written, np.int64)))
        present = made.counts.setdefault(position, wanted)
        if present.shape == wanted.shape:
            self.union(present, wanted)
        else:
            self.freeze(present, f"one number of {named(node)} counts other channels too")
            self.freeze(wanted, f"one number of {named(node)} counts other channels too")
        made.separates = separates

    def infer(self, node: ir.Node, axis: int, cells: Array) -> None:
        """The number for an axis in a Reshape's shape is left to be inferred after a cut."""
        written = np.array(self.sizes_of(node.outputs[0]), np.int64)
        self.rewrites[node, "shape"] = Rewrite(
            node, "shape", written, {axis: cells.reshape(len(cells), -1)}
        )

    def sizes_of(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The sizes of a value, None where they are not known."""
        return None if value is None else self.sizes.get(value)


def is_stored(value: ir.Value | None) -> bool:
    """Whether this is an initializer of floating-point numbers."""
    if value is None or not value.is_initializer():
        return False
    array = value.const_value
    return array is not None and array.dtype.is_floating_point()


def named(node: ir.Node) -> str:
    """The operator and the node, as reasons name it."""
    return f"{node.op_type} {node.name or node.outputs[0].name}"


def in_the_way(node: ir.Node) -> str:
    """The reason that most rules give."""
    return f"{named(node)} stands in the way"


def freeze_around(found: Trace, node: ir.Node) -> None:
    """All channels that the node reads stay: no rule explains it."""
    for value in node.inputs:
        found.freeze_value(value, in_the_way(node))


def pass_on(found: Trace, node: ir.Node) -> None:
    """The output has the channels of the first input, on the same axes."""
    source, output = node.inputs[0], node.outputs[0]
    parts = found.parts(source)
    same = all(_same_along(found, source, output, part.axes) for part in parts)
    if not same or any(other.uses() for other in node.outputs[1:]):
        freeze_around(found, node)
    else:
        found.label(output, parts)


def _same_along(
    found: Trace, source: ir.Value | None, output: ir.Value, axes: Sequence[int]
) -> bool:
    before, after = found.sizes_of(source), found.sizes_of(output)
    if before is None or after is None or len(before) != len(after):
        return False
    return all(before[axis] == after[axis] for axis in axes)


def along_axis(found: Trace, value: ir.Value | None, axis: int, why: str) -> Array | None:
    """The ids along one axis of a value, merged over all others; None where none are known.

    Channels on other axes alone stay, for the reason that is given.
    """
    ids = None
    for part in found.parts(value):
        if axis in part.axes:
            single = found.off(part, [other for other in part.axes if other != axis])
            ids = None if single is None else single.ids
        else:
            found.freeze(part.ids, why)
    return ids


def constants_of(node: ir.Node, place: int) -> Array | None:
    """The constant at one of the node's inputs; None where there is none or it is computed.

    A vector of whole numbers that is only cast or reshaped to a vector on its way is a constant.
    """
    value = node.inputs[place] if len(node.inputs) > place else None
    array = constant_of(value)
    producer = value.producer() if value is not None else None
    if array is not None or producer is None or producer.op_type not in ("Cast", "Reshape"):
        return array
    source = constants_of(producer, 0)
    if producer.op_type == "Cast" and makes_real(producer):
        return None
    whole = source is not None and source.dtype.kind == "i" and source.ndim == 1
    same = value is not None and value.shape is not None and len(value.shape) == 1
    return source if whole and same else None


def makes_real(cast: ir.Node) -> bool:
    """Whether a Cast is to floating-point numbers."""
    return ir.DataType(int(attribute(cast, "to", 1))).is_floating_point()
