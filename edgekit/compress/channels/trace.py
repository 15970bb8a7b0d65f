"""What one walk over a graph learns: ids of channels, where they lie, and which must stay.

Every channel of every tensor has an id; an operator that ties two channels merges their ids. A
value that carries channels has `Labels`: the axis and one id for each of its entries. An
initializer's axis that carries channels is a slot.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgekit.values import Array


@dataclass(frozen=True)
class Labels:
    """The axis of a value that carries channels, and the id of each entry along it."""

    axis: int
    ids: Array


@dataclass
class Slot:
    """An axis of an initializer whose entries belong to channels.

    `role` is "produced" (an entry makes the channel), "consumed" (it reads it) or "along" (a
    number for the channel, as in BatchNormalization). `readers` are the nodes whose rules tied it,
    once for each time that they read it. `norm` is the BatchNormalization behind the convolution
    that produces.
    """

    value: ir.Value
    axis: int
    ids: Array
    role: str
    readers: list[ir.Node] = field(default_factory=list)
    norm: ir.Node | None = None


@dataclass
class ShapeEntry:
    """A number in a shape constant that counts channels: the Reshapes in `readers` follow it."""

    value: ir.Value
    position: int
    ids: Array
    readers: list[ir.Node] = field(default_factory=list)


@dataclass
class Trace:
    """All that one walk over a graph learns. Ids are merged by `union`.

    `node` is the one whose rule is at work; `group_counts` has the depthwise convolutions, whose
    `group` follows their input.
    """

    labels: dict[ir.Value, Labels] = field(default_factory=dict)
    slots: dict[tuple[str, int], Slot] = field(default_factory=dict)
    parents: list[int] = field(default_factory=list)
    frozen: dict[int, str] = field(default_factory=dict)
    group_counts: dict[ir.Node, Array] = field(default_factory=dict)
    shape_entries: dict[tuple[str, int], ShapeEntry] = field(default_factory=dict)
    node: ir.Node | None = None

    def fresh(self, count: int) -> Array:
        """New ids."""
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def find(self, one: int) -> int:
        """The id that stands for all that were merged with this one."""
        parents = self.parents
        while parents[one] != one:
            parents[one] = parents[parents[one]]
            one = parents[one]
        return one

    def union(self, left: Array, right: Array) -> None:
        """Merges two arrays of ids entry by entry."""
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            root, other = self.find(a), self.find(b)
            if root != other:
                self.parents[max(root, other)] = min(root, other)

    def roots(self) -> Array:
        """For each id the one that stands for all that were merged with it."""
        roots = np.asarray(self.parents, np.int64)
        while not np.array_equal(further := roots[roots], roots):
            roots = further
        return roots

    def freeze(self, ids: Array, reason: str) -> None:
        """These channels stay; the first reason is the one that is told."""
        for one in ids.tolist():
            self.frozen.setdefault(one, reason)

    def freeze_value(self, value: ir.Value | None, reason: str) -> None:
        """The value's channels stay."""
        if value is not None and value in self.labels:
            self.freeze(self.labels[value].ids, reason)

    def slot(self, value: ir.Value, axis: int, ids: Array, role: str) -> Slot:
        """Ties the entries of an initializer's axis to channels; used twice, both are tied."""
        key = value.name or "", axis
        present = self.slots.setdefault(key, Slot(value=value, axis=axis, ids=ids, role=role))
        if present.ids is not ids:
            self.union(present.ids, ids)
        if self.node is not None:
            present.readers.append(self.node)
        return present

    def shape_entry(self, value: ir.Value, position: int, ids: Array) -> bool:
        """Ties a number in a shape constant to the channels that it counts, if it can be both."""
        key = value.name or "", position
        present = self.shape_entries.setdefault(key, ShapeEntry(value, position, ids))
        if len(present.ids) != len(ids):
            return False
        if present.ids is not ids:
            self.union(present.ids, ids)
        if self.node is not None:
            present.readers.append(self.node)
        return True


def size_of(value: ir.Value | None, axis: int) -> int:
    """The known size of an axis, else 0."""
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return 0
    size = value.shape[axis]
    return size if isinstance(size, int) else 0


def rank_of(value: ir.Value | None) -> int:
    """The number of axes of a value, 0 where its shape is not known."""
    return 0 if value is None or value.shape is None else len(value.shape)


def named(node: ir.Node) -> str:
    """The operator and the node, as reasons name it."""
    return f"{node.op_type} {node.name or node.outputs[0].name}"


def freeze_around(found: Trace, node: ir.Node) -> None:
    """All channels that the node reads stay: no rule explains it."""
    for value in node.inputs:
        found.freeze_value(value, f"{named(node)} stands in the way")


def pass_on(found: Trace, node: ir.Node) -> None:
    """The output has the channels of the first input, on the same axis."""
    source, output = node.inputs[0], node.outputs[0]
    if source not in found.labels:
        return
    labels = found.labels[source]
    if size_of(output, labels.axis) != len(labels.ids) or any(o.uses() for o in node.outputs[1:]):
        freeze_around(found, node)
        return
    found.labels[output] = labels


def known_labels(found: Trace, value: ir.Value, size: int, node: ir.Node) -> Array:
    """The ids of an input's axis 1 of that size; frozen ones where nothing is known of it."""
    labels = found.labels.get(value)
    if labels is not None and labels.axis == 1 and len(labels.ids) == size:
        return labels.ids
    found.freeze_value(value, f"{named(node)} reads it along another axis")
    ids = found.fresh(size)
    found.freeze(ids, f'the channels of "{value.name}" are not known')
    return ids
