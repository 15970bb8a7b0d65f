"""How operators that only give a tensor another shape pass channels on: reshapes and transposes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgekit.compress.channels.rules.trace import (
    Part,
    Trace,
    constants_of,
    freeze_around,
    in_the_way,
    makes_real,
    named,
)  # fmt: skip
from edgekit.models.model import attribute
from edgekit.values import Array

_MOST_CELLS = 1 << 23  # ids that one tensor may carry
_MOST_MIXED = 1 << 18  # and where several axes of channels are mixed with places

# Consecutive axes of a tensor before and after that hold the same elements.
Block = tuple[tuple[int, ...], tuple[int, ...]]


def reshape(found: Trace, node: ir.Node) -> None:
    """Channels split over several axes, merged with places or with each other; shapes follow."""
    source, output = node.inputs[0], node.outputs[0]
    parts = found.parts(source)
    if not parts:
        return
    before, after = found.sizes_of(source), found.sizes_of(output)
    blocks = None if before is None or after is None else aligned(before, after)
    if before is None or after is None or blocks is None:
        freeze_around(found, node)
        return
    moved = []
    for part in parts:
        new = _regrouped(found, node, part, before, after, blocks)
        if new is not None:
            moved.append(new)
    if node.op_type == "Reshape":
        for part in moved:
            follow_shape(found, node, part)
    found.label(output, moved)


def aligned(before: Sequence[int], after: Sequence[int]) -> list[Block] | None:
    """The smallest runs of axes with as many elements before as after; None where they differ."""
    if math.prod(before) != math.prod(after) or not math.prod(before):
        return None
    blocks: list[Block] = []
    left: list[int] = []
    right: list[int] = []
    i = j = 0
    before_taken = after_taken = 1
    while i < len(before) or j < len(after):
        if j == len(after) or (i < len(before) and before_taken <= after_taken):
            left.append(i)
            before_taken *= before[i]
            i += 1
        else:
            right.append(j)
            after_taken *= after[j]
            j += 1
        if before_taken == after_taken and left and right:
            blocks.append((tuple(left), tuple(right)))
            left, right = [], []
    if blocks:  # axes of one entry at the end
        blocks[-1] = (*blocks[-1][0], *left), (*blocks[-1][1], *right)
    return blocks


def _regrouped(
    found: Trace, node: ir.Node, part: Part, before: Sequence[int], after: Sequence[int],
    blocks: Sequence[Block],
) -> Part | None:  # fmt: skip
    """The part on the axes after; None, and frozen, where its channels cannot be followed."""
    touched = [block for block in blocks if set(block[0]) & set(part.axes)]
    count = math.prod(before[axis] for left, _ in touched for axis in left)
    if len(touched) > 1 and count > _MOST_MIXED:
        mixed = [a for left, _ in touched if _mixes(left, part.axes, before) for a in left]
        single = found.off(part, mixed)
        if single is None:
            found.freeze(part.ids, in_the_way(node))
            return None
        part = single
        touched = [block for block in blocks if set(block[0]) & set(part.axes)]
    old = [axis for left, _ in touched for axis in left]
    new = [axis for _, right in touched for axis in right]
    shape = [before[axis] for axis in old]
    if math.prod(shape) > _MOST_CELLS:
        found.freeze(part.ids, in_the_way(node))
        return None
    narrow = [before[axis] if axis in part.axes else 1 for axis in old]
    ids = np.broadcast_to(part.ids.reshape(narrow), shape).reshape([after[axis] for axis in new])
    axes, ids = _varying(new, ids)
    if len(axes) > len(part.axes):
        found.box(ids)
    return replace(part, axes=axes, ids=ids)


def _mixes(left: Sequence[int], axes: Sequence[int], before: Sequence[int]) -> bool:
    """Whether a run of axes holds elements beside one axis of channels."""
    return sum(before[axis] > 1 for axis in left) > 1 and bool(set(left) & set(axes))


def _varying(axes: Sequence[int], ids: Array) -> tuple[tuple[int, ...], Array]:
    """The ids without the axes along which they are all the same."""
    kept = []
    for place, axis in enumerate(axes):
        first = np.take(ids, [0], place)
        if ids.shape[place] == 1 or np.array_equal(np.broadcast_to(first, ids.shape), ids):
            ids = first
        else:
            kept.append(axis)
    if not kept:  # a single channel
        largest = int(np.argmax(ids.shape))
        return (axes[largest],), ids.reshape(-1)
    squeezed = tuple(place for place, axis in enumerate(axes) if axis not in kept)
    return tuple(kept), np.squeeze(ids, squeezed)


def follow_shape(found: Trace, node: ir.Node, part: Part) -> None:
    """The numbers in the shape that a Reshape or an Expand reads follow, or the channels stay."""
    rank = len(found.sizes_of(node.outputs[0]) or ())
    for axis in part.axes:
        cells = part.cells(axis)
        place = axis
        if node.op_type == "Expand":  # a shorter shape is broadcast from the right
            place -= rank - (found.sizes_of(node.inputs[1]) or (rank,))[0]
            if place < 0:
                continue
        entry = size_entry(found, node, 1, place)
        if isinstance(entry, Written) and entry.number == _KEPT_BY[node.op_type]:
            continue
        may_copy = node.op_type == "Reshape" and not attribute(node, "allowzero", 0)
        if may_copy and isinstance(entry, Written) and entry.number == 0:
            entry = Copied(node.inputs[0], axis)
        if isinstance(entry, Copied) and _counted_alike(found, entry, cells):
            continue
        if isinstance(entry, Written):
            found.rewrite(entry.node, entry.place, entry.array, entry.position, cells)
        elif node.op_type == "Reshape" and _can_infer(found, node):
            found.infer(node, axis, cells)
        else:
            found.freeze(cells, f"the shape of {named(node)} is computed")


_KEPT_BY = {"Reshape": -1, "Expand": 1}  # numbers that say of a size: inferred, as it is


def _counted_alike(found: Trace, entry: Copied, cells: Array) -> bool:
    """Whether an axis that a size is copied from has the same channels as the one it is for."""
    return any(
        entry.axis in part.axes and np.array_equal(part.cells(entry.axis), cells)
        for part in found.parts(entry.value)
    )


def _can_infer(found: Trace, node: ir.Node) -> bool:
    """Whether one more number of a Reshape's shape may be left to be inferred."""
    sizes = found.sizes_of(node.outputs[0]) or ()
    entries = [size_entry(found, node, 1, axis) for axis in range(len(sizes))]
    producer = node.inputs[1].producer() if node.inputs[1] is not None else None
    return (
        producer is not None
        and producer.op_type == "Concat"
        and (node, "shape") not in found.rewrites
        and not any(isinstance(entry, Written) and entry.number < 1 for entry in entries)
    )


@dataclass(frozen=True)
class Written:
    """A size that stands in a constant: who reads the constant, at which input, and where."""

    node: ir.Node
    place: int
    array: Array
    position: int

    @property
    def number(self) -> int:
        """The size as it is written."""
        return int(self.array.reshape(-1)[self.position])


@dataclass(frozen=True)
class Copied:
    """A size that is taken from the shape of a value."""

    value: ir.Value | None
    axis: int


def size_entry(found: Trace, node: ir.Node, place: int, axis: int) -> Written | Copied | None:
    """Where the number for an axis in a shape that a node reads comes from; None: it is computed.

    A Concat of constants and of sizes of other values is looked into, unless anything but a Reshape
    or an Expand reads it.
    """
    written = constants_of(node, place)
    if written is not None:
        return Written(node, place, written, axis) if axis < written.size else None
    value = node.inputs[place] if len(node.inputs) > place else None
    producer = value.producer() if value is not None else None
    if value is None or producer is None:
        return None
    if producer.op_type == "Concat":
        if any(use.node.op_type not in ("Reshape", "Expand") for use in value.uses()):
            return None
        begin = 0
        for index, piece in enumerate(producer.inputs):
            length = (found.sizes_of(piece) or (0,))[0]
            if not length:
                return None
            if begin <= axis < begin + length:
                return size_entry(found, producer, index, axis - begin)
            begin += length
        return None
    if producer.op_type == "Shape":
        start = int(attribute(producer, "start", 0))
        rank = len(found.sizes_of(producer.inputs[0]) or ())
        return Copied(producer.inputs[0], axis + (start + rank if start < 0 else start))
    if producer.op_type in ("Squeeze", "Unsqueeze", "Identity", "Cast", "Reshape"):
        return _copied(size_entry(found, producer, 0, axis))
    if producer.op_type in ("Gather", "Slice"):
        length = (found.sizes_of(producer.inputs[0]) or (0,))[0]
        position = _picked(producer, length, axis)
        return None if position is None else _copied(size_entry(found, producer, 0, position))
    return None


def _copied(entry: Written | Copied | None) -> Copied | None:
    return entry if isinstance(entry, Copied) else None


def _picked(node: ir.Node, length: int, position: int) -> int | None:
    """Which entry of a vector of sizes stands at a position after a Gather or a Slice."""
    first = constants_of(node, 1)
    if first is None:
        return None
    if node.op_type == "Gather":
        return int(np.atleast_1d(first).reshape(-1)[position]) % length if length else None
    last, steps = constants_of(node, 2), constants_of(node, 4)
    if last is None or (steps is not None and int(steps[0]) != 1):
        return None
    return slice(int(first[0]), int(last[0])).indices(length)[0] + position


def moved_axes(found: Trace, node: ir.Node) -> None:
    """Squeeze and Unsqueeze: axes of one entry go or come, the others keep their order."""
    source, output = node.inputs[0], node.outputs[0]
    before, after = found.sizes_of(source), found.sizes_of(output)
    if not found.parts(source):
        return
    listed = constants_of(node, 1)
    given = attribute(node, "axes", None) if listed is None else listed
    if before is None or after is None or (given is None and node.op_type == "Unsqueeze"):
        freeze_around(found, node)
        return
    longer, shorter = (after, before) if node.op_type == "Unsqueeze" else (before, after)
    if given is None:
        extra = {axis for axis, size in enumerate(longer) if size == 1}
    else:
        extra = {int(axis) % len(longer) for axis in np.atleast_1d(given)}
    rest = [axis for axis in range(len(longer)) if axis not in extra]
    if len(rest) != len(shorter):
        freeze_around(found, node)
        return
    moved = []
    for part in found.parts(source):
        if node.op_type == "Unsqueeze":
            moved.append(replace(part, axes=tuple(rest[axis] for axis in part.axes)))
        elif any(axis in extra for axis in part.axes):
            found.freeze(part.ids, in_the_way(node))
        else:
            moved.append(replace(part, axes=tuple(rest.index(axis) for axis in part.axes)))
    found.label(output, moved)


def transpose(found: Trace, node: ir.Node) -> None:
    """The axes that carry channels go where `perm` puts them."""
    source = node.inputs[0]
    parts = found.parts(source)
    sizes = found.sizes_of(source)
    if not parts or sizes is None:
        freeze_around(found, node)
        return
    order = list(attribute(node, "perm", tuple(reversed(range(len(sizes))))))
    found.label(
        node.outputs[0],
        [replace(part, axes=tuple(order.index(axis) for axis in part.axes)) for part in parts],
    )


def depth_to_space(found: Trace, node: ir.Node) -> None:
    """Each output channel takes block x block input channels with it."""
    source, output = node.inputs[0], node.outputs[0]
    block = int(attribute(node, "blocksize", 1)) ** 2
    mode = attribute(node, "mode", "DCR")
    for part in found.parts(source):
        single = found.off(part, [axis for axis in part.axes if axis != 1])
        if single is None or single.axes != (1,):
            found.freeze(part.ids, in_the_way(node))
            continue
        if node.op_type == "SpaceToDepth":
            found.label(output, [replace(single, ids=np.tile(single.ids, block))])
            continue
        places_first = mode in ("DCR", b"DCR")
        boxed = single.ids.reshape((block, -1) if places_first else (-1, block))
        boxed = boxed if places_first else boxed.T
        found.union(boxed, boxed[:1])
        found.label(output, [replace(single, ids=boxed[0])])


def shape(found: Trace, node: ir.Node) -> None:
    """Shapes follow the channels by themselves, but not where they become numbers to compute with.

    A scale that is taken from a size (one over the square root of the width) would change.
    """
    waiting = [node.outputs[0]]
    seen = set(waiting)
    while waiting:
        value = waiting.pop()
        for reader, _ in value.uses():
            if reader.op_type == "Cast" and makes_real(reader):
                found.freeze_value(node.inputs[0], f"{named(reader)} computes with its sizes")
                return
            new = [out for out in reader.outputs if out not in seen]
            if reader.op_type in _SIZE_ARITHMETIC:
                waiting += new
                seen.update(new)


_SIZE_ARITHMETIC = (
    "Gather", "Slice", "Squeeze", "Unsqueeze", "Concat", "Add", "Sub", "Mul", "Div", "Cast",
    "Identity", "Reshape", "ReduceProd",
)  # fmt: skip
