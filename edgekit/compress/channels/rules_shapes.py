"""How operators that only give a tensor another shape pass channels on: reshapes and transposes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgekit.compress.channels.trace import (
    Part,
    Trace,
    constants_of,
    freeze_around,
    in_the_way,
    named,
)  # fmt: skip
from edgekit.models.model import attribute, constant_of
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
            _follow(found, node, part, parts)
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


def _follow(found: Trace, node: ir.Node, part: Part, before: Sequence[Part]) -> None:
    """The numbers of a Reshape's shape follow, or its channels stay."""
    for axis in part.axes:
        entry = shape_entry(found, node, 1, axis)
        if entry is None:
            fixed = found.off(part, [other for other in part.axes if other != axis])
            found.freeze((fixed or part).ids, f"the shape of {named(node)} is computed")
            continue
        holder, place, written, position = entry
        if written[position] == -1:
            continue
        same = any(
            axis in old.axes and np.array_equal(old.cells(axis), part.cells(axis)) for old in before
        )
        if written[position] == 0 and not attribute(node, "allowzero", 0) and same:
            continue
        found.rewrite(holder, place, written, position, part.cells(axis))


def shape_entry(
    found: Trace, node: ir.Node, place: int, axis: int
) -> tuple[ir.Node, int, Array, int] | None:
    """Who holds the number of an axis in a shape: node, input, its array and the position in it.

    A Concat of constants and of computed entries (the batch) is looked into. None where the number
    is computed.
    """
    written = constants_of(node, place)
    if written is not None:
        return (node, place, written, axis) if axis < written.size else None
    value = node.inputs[place] if len(node.inputs) > place else None
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "Concat":
        return None
    begin = 0
    for index, piece in enumerate(producer.inputs):
        array = constant_of(piece)
        sizes = found.sizes_of(piece)
        length = array.size if array is not None else (sizes[0] if sizes else 0)
        if not length:
            return None
        if begin <= axis < begin + length:
            return None if array is None else (producer, index, array, axis - begin)
        begin += length
    return None


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
            if reader.op_type == "Cast" and _makes_real(reader):
                found.freeze_value(node.inputs[0], f"{named(reader)} computes with its sizes")
                return
            new = [out for out in reader.outputs if out not in seen]
            if reader.op_type in _SIZE_ARITHMETIC:
                waiting += new
                seen.update(new)


def _makes_real(node: ir.Node) -> bool:
    kind = attribute(node, "to", 0)
    return ir.DataType(int(kind)).is_floating_point()


_SIZE_ARITHMETIC = (
    "Gather", "Slice", "Squeeze", "Unsqueeze", "Concat", "Add", "Sub", "Mul", "Div", "Cast",
    "Identity", "Reshape", "ReduceProd",
)  # fmt: skip
