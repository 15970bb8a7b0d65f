"""How operators that pick, join, pad and pool pass channels on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgekit.compress.channels.rules.meeting import common_slots
from edgekit.compress.channels.rules.shapes import follow_shape
from edgekit.compress.channels.rules.trace import (
    Part,
    Rewrite,
    Trace,
    constants_of,
    freeze_around,
    in_the_way,
    is_stored,
    named,
    pass_on,
)  # fmt: skip
from edgekit.models.model import attribute
from edgekit.values import Array

_SPLIT_BY_INPUT = 13  # the first opset in which the sizes of a Split are an input


def concat(found: Trace, node: ir.Node) -> None:
    """The channels of all inputs one after another, or merged where another axis is joined."""
    output = node.outputs[0]
    sizes = found.sizes_of(output)
    values = [value for value in node.inputs if value is not None]
    known = [found.sizes_of(value) for value in values]
    if sizes is None or any(one is None for one in known):
        freeze_around(found, node)
        return
    joined = int(attribute(node, "axis", 0)) % len(sizes)
    placed = [list(found.parts(value)) for value in values]
    lengths = [(one or ())[joined] for one in known]
    made = _across(found, node, values, placed, joined)
    chained = _one_after_another(found, node, values, placed, joined, lengths)
    found.label(output, made if chained is None else [*made, chained])


def _one_after_another(
    found: Trace, node: ir.Node, values: Sequence[ir.Value], placed: Sequence[Sequence[Part]],
    joined: int, lengths: Sequence[int],
) -> Part | None:  # fmt: skip
    """The channels along the axis that is joined; an input that knows none has some that stay."""
    moving = [
        any(joined in part.axes for part in parts) and not is_stored(value)
        for value, parts in zip(values, placed, strict=True)
    ]
    pieces: list[Array] = []
    for value, parts, length in zip(values, placed, lengths, strict=True):
        mine = [part for part in parts if joined in part.axes]
        single = found.off(mine[0], [a for a in mine[0].axes if a != joined]) if mine else None
        if not any(moving):
            for part in mine:
                found.freeze(part.ids, in_the_way(node))
        if single is None or len(single.ids) != length:
            ids = found.fresh(length)
            found.freeze(ids, f'the channels of "{value.name}" are not known')
        else:
            ids = single.ids
        pieces.append(ids)
    return Part((joined,), np.concatenate(pieces)) if any(moving) else None


def _across(
    found: Trace, node: ir.Node, values: Sequence[ir.Value], placed: Sequence[Sequence[Part]],
    joined: int,
) -> list[Part]:  # fmt: skip
    """The channels along the other axes: those of all inputs are merged."""
    all_parts = [part for parts in placed for part in parts if joined not in part.axes]
    made = []
    for axes in dict.fromkeys(part.axes for part in all_parts):
        mine = [[part for part in parts if part.axes == axes] for parts in placed]
        same = [part for parts in mine for part in parts]
        shapes = {part.ids.shape for part in same}
        overlapping = any(set(p.axes) & set(axes) and p.axes != axes for p in all_parts)
        if overlapping or not all(mine) or len(shapes) != 1:
            for part in same:
                found.freeze(part.ids, in_the_way(node))
            continue
        for part in same[1:]:
            found.union(same[0].ids, part.ids)
        made.append(replace(same[0], slots=common_slots(same)))
    return made


def split(found: Trace, node: ir.Node) -> None:
    """Each output has its share of the channels; the sizes of the shares follow a cut."""
    source = node.inputs[0]
    sizes = found.sizes_of(source)
    if not found.parts(source) or sizes is None:
        return
    axis = int(attribute(node, "axis", 0)) % len(sizes)
    lengths = [(found.sizes_of(output) or ())[axis : axis + 1] for output in node.outputs]
    if not all(lengths) or sum(length[0] for length in lengths) != sizes[axis]:
        freeze_around(found, node)
        return
    ends = np.cumsum([length[0] for length in lengths])
    begins = [0, *ends[:-1].tolist()]
    written = [length[0] for length in lengths]
    by_attribute = found.opset < _SPLIT_BY_INPUT
    computed = len(node.inputs) > 1 and node.inputs[1] is not None and constants_of(node, 1) is None
    for begin, end, index, output in zip(
        begins, ends.tolist(), range(len(written)), node.outputs, strict=True
    ):
        pieces = []
        for part in found.parts(source):
            if axis not in part.axes:
                pieces.append(part)
                continue
            if computed:
                found.freeze(part.ids, in_the_way(node))
            piece = _taken(part, axis, begin, end)
            place = "split" if by_attribute else 1
            found.rewrite(node, place, written, index, part.cells(axis)[begin:end])
            pieces.append(piece)
        found.label(output, pieces)


def _taken(part: Part, axis: int, begin: int, end: int) -> Part:
    """The part with a piece of one of its axes; one that comes to a single entry goes."""
    place = part.axes.index(axis)
    ids = np.take(part.ids, np.arange(begin, end), place)
    if end - begin == 1 and ids.ndim > 1:
        axes = tuple(a for a in part.axes if a != axis)
        return replace(part, axes=axes, ids=np.squeeze(ids, place), slots=())
    return replace(part, ids=ids, slots=())


def slice_(found: Trace, node: ir.Node) -> None:
    """Channels from one to another; the bounds follow a cut. Slices of other axes pass."""
    source, output = node.inputs[0], node.outputs[0]
    parts, sizes = found.parts(source), found.sizes_of(source)
    if not parts or sizes is None:
        return
    by_inputs = len(node.inputs) > 1
    starts, ends, axes = (
        constants_of(node, place) if by_inputs else attribute(node, name, None)
        for place, name in ((1, "starts"), (2, "ends"), (3, "axes"))
    )
    no_axes = axes is None and (len(node.inputs) < 4 or node.inputs[3] is None)
    if no_axes and found.sizes_of(output) is not None:
        count = len(starts) if starts is not None else len(sizes)
        axes = range(count)
    if axes is None:
        freeze_around(found, node)
        return
    listed = [int(axis) % len(sizes) for axis in axes]
    steps = constants_of(node, 4) if by_inputs else None
    for position, axis in enumerate(listed):
        touched = [part for part in parts if axis in part.axes]
        if not touched:
            continue
        stepped = len(node.inputs) > 4 and node.inputs[4] is not None and (
            steps is None or int(steps[position]) != 1
        )  # fmt: skip
        if starts is None or ends is None or stepped:
            freeze_around(found, node)
            return
        begin, end, _ = slice(int(starts[position]), int(ends[position])).indices(sizes[axis])
        if begin >= end:
            freeze_around(found, node)
            return
        cells = touched[0].cells(axis)
        places: tuple[int | str, int | str] = (1, 2) if by_inputs else ("starts", "ends")
        if begin:
            found.rewrite(node, places[0], starts, position, cells[:begin])
        if end < sizes[axis]:
            found.rewrite(node, places[1], ends, position, cells[:end])
        parts = tuple(_taken(part, axis, begin, end) if part in touched else part for part in parts)
    found.label(output, parts)


def gather(found: Trace, node: ir.Node) -> None:
    """Channels by their indices, which are numbered anew; a table's columns are what it makes."""
    source, output = node.inputs[0], node.outputs[0]
    sizes, indices = found.sizes_of(source), found.sizes_of(node.inputs[1])
    parts = found.parts(source)
    if not parts or sizes is None or indices is None:
        return
    axis = int(attribute(node, "axis", 0)) % len(sizes)
    chosen = constants_of(node, 1)
    is_table = is_stored(source) and chosen is None
    moved = []
    for part in parts:
        others = tuple(a if a < axis else a + len(indices) - 1 for a in part.axes if a != axis)
        if axis not in part.axes:
            for slot in part.slots if is_table else ():
                found.uses(slot, "produced")
            moved.append(replace(part, axes=others))
            continue
        if part.axes != (axis,):
            merged = found.off(part, [axis])
            if merged is not None:
                moved.append(replace(merged, axes=others))
            continue
        if chosen is None or chosen.size != max(chosen.shape, default=0):
            found.freeze(part.ids, in_the_way(node))
            continue
        places = np.where(chosen < 0, chosen + sizes[axis], chosen)
        found.rewrites[node, 1] = Rewrite(node, 1, places, chosen=part.ids)
        at = axis + int(np.argmax(chosen.shape))
        moved.append(Part((at,), part.ids[places.reshape(-1)]))
    found.label(output, moved)


def reduction(found: Trace, node: ir.Node) -> None:
    """A reduction over other axes keeps the channels; one over them stands in the way.

    But for a mean that is taken off what it is the mean of, and the mean square after it, as
    normalisation over channels is written out: channels that go leave the statistics.
    """
    source, output = node.inputs[0], node.outputs[0]
    parts, sizes = found.parts(source), found.sizes_of(source)
    if not parts or sizes is None:
        return
    listed = constants_of(node, 1)
    given = attribute(node, "axes", None) if listed is None else listed
    if given is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        freeze_around(found, node)  # the axes are computed
        return
    all_axes = given is None or not np.size(given)
    if all_axes and attribute(node, "noop_with_empty_axes", 0):
        pass_on(found, node)
        return
    axes = set(range(len(sizes))) if all_axes else {int(a) % len(sizes) for a in np.ravel(given)}
    kept = []
    for part in parts:
        left = found.off(part, sorted(axes))
        if left is None:
            if not _is_statistic(node):
                found.freeze(part.ids, in_the_way(node))
            continue
        kept.append(left)
    if not attribute(node, "keepdims", 1):
        kept = [
            replace(part, axes=tuple(a - sum(gone < a for gone in axes) for a in part.axes))
            for part in kept
        ]
    found.label(output, kept)


def _is_statistic(node: ir.Node) -> bool:
    """Whether a mean belongs to a normalisation: x - mean(x), or the mean of (x - mean(x))^2."""
    source = node.inputs[0]
    if node.op_type != "ReduceMean" or source is None:
        return False

    def takes_off(other: ir.Node) -> bool:
        mean = other.inputs[1].producer() if other.op_type == "Sub" and other.inputs[1] else None
        return (
            mean is not None and mean.op_type == "ReduceMean" and mean.inputs[0] is other.inputs[0]
        )

    if any(takes_off(use.node) for use in node.outputs[0].uses()):
        return True
    square = source.producer()
    if square is None or square.op_type not in ("Pow", "Mul") or square.inputs[0] is None:
        return False
    centred = square.inputs[0].producer()
    squares = square.op_type == "Pow" or square.inputs[0] is square.inputs[1]
    return squares and centred is not None and takes_off(centred)


def softmax(found: Trace, node: ir.Node) -> None:
    """A softmax over another axis passes; over the channels it stands in the way."""
    sizes = found.sizes_of(node.inputs[0])
    if sizes is None:
        freeze_around(found, node)
        return
    axis = int(attribute(node, "axis", -1)) % max(len(sizes), 1)
    _over(found, node, [axis])


def cumulative(found: Trace, node: ir.Node) -> None:
    """A running sum along another axis passes."""
    sizes = found.sizes_of(node.inputs[0])
    axis = constants_of(node, 1)
    if sizes is None or axis is None:
        freeze_around(found, node)
    else:
        _over(found, node, [int(axis) % len(sizes)])


def places(found: Trace, node: ir.Node) -> None:
    """Pooling and the like work on the places of each channel; batch and channels pass."""
    sizes = found.sizes_of(node.inputs[0])
    _over(found, node, range(2, len(sizes or ())))


def _over(found: Trace, node: ir.Node, axes: Sequence[int]) -> None:
    """An operator that mixes what lies along these axes."""
    kept = []
    for part in found.parts(node.inputs[0]):
        left = found.off(part, axes)
        if left is None:
            found.freeze(part.ids, in_the_way(node))
        else:
            kept.append(left)
    if any(output.uses() for output in node.outputs[1:]):
        freeze_around(found, node)
    found.label(node.outputs[0], kept)


def pad(found: Trace, node: ir.Node) -> None:
    """Padding in space passes; along the channels, constant ones are new channels."""
    source, output = node.inputs[0], node.outputs[0]
    parts, sizes = found.parts(source), found.sizes_of(source)
    if not parts or sizes is None:
        return
    by_input = len(node.inputs) > 1
    pads = constants_of(node, 1) if by_input else attribute(node, "pads", None)
    over = constants_of(node, 3)
    if pads is None or (len(node.inputs) > 3 and node.inputs[3] is not None and over is None):
        freeze_around(found, node)
        return
    axes = list(range(len(sizes))) if over is None else [int(a) % len(sizes) for a in over]
    constant = attribute(node, "mode", "constant") in ("constant", b"constant")
    moved = []
    for part in parts:
        padded = [a for a in part.axes if a in axes and _sides(pads, axes, a) != (0, 0)]
        if not padded:
            moved.append(part)
            continue
        single = found.off(part, [a for a in part.axes if a != padded[0]])
        front, back = _sides(pads, axes, padded[0])
        if not constant or single is None or min(front, back) < 0:
            found.freeze(part.ids, in_the_way(node))
            continue
        ends = found.fresh(front), found.fresh(back)
        position = axes.index(padded[0])
        for ids, where in zip(ends, (position, position + len(axes)), strict=True):
            if len(ids):
                place: int | str = 1 if by_input else "pads"
                found.rewrite(node, place, pads, where, ids, separates=False)
        ids = np.concatenate([ends[0], single.ids, ends[1]])
        moved.append(replace(single, ids=ids, slots=()))
    found.label(output, moved)


def _sides(pads: Array, axes: Sequence[int], axis: int) -> tuple[int, int]:
    position = axes.index(axis)
    return int(pads[position]), int(pads[position + len(axes)])


def resize(found: Trace, node: ir.Node) -> None:
    """Resizing places passes; a size that names the number of channels follows a cut."""
    source, output = node.inputs[0], node.outputs[0]
    before, after = found.sizes_of(source), found.sizes_of(output)
    if before is None or after is None:
        freeze_around(found, node)
        return
    listed = attribute(node, "axes", None)
    axes = list(range(len(before))) if listed is None else [int(a) % len(before) for a in listed]
    by_sizes = len(node.inputs) > 3 and node.inputs[3] is not None
    for part in found.parts(source):
        for axis in part.axes:
            sizes = constants_of(node, 3)
            if before[axis] != after[axis] or (by_sizes and axis in axes and sizes is None):
                found.freeze(part.ids, in_the_way(node))
            elif by_sizes and axis in axes and sizes is not None:
                found.rewrite(node, 3, sizes, axes.index(axis), part.cells(axis))
    found.label(output, found.parts(source))


def expand(found: Trace, node: ir.Node) -> None:
    """Axes of one entry are repeated; where channels lie, a number in the shape follows a cut."""
    source, output = node.inputs[0], node.outputs[0]
    before, after = found.sizes_of(source), found.sizes_of(output)
    parts = found.parts(source)
    if not parts:
        return
    if before is None or after is None:
        freeze_around(found, node)
        return
    shift = len(after) - len(before)
    moved = []
    for part in parts:
        placed = replace(part, axes=tuple(axis + shift for axis in part.axes))
        if any(before[axis] != after[axis + shift] for axis in part.axes):
            found.freeze(part.ids, f"{named(node)} repeats it over all channels")
            continue
        follow_shape(found, node, placed)
        moved.append(placed)
    found.label(output, moved)


def tile(found: Trace, node: ir.Node) -> None:
    """Repeats along other axes pass, repeated channels are the same channels."""
    source, output = node.inputs[0], node.outputs[0]
    repeats = constants_of(node, 1)
    moved = []
    for part in found.parts(source):
        if repeats is None or (len(part.axes) > 1 and any(repeats[a] > 1 for a in part.axes)):
            found.freeze(part.ids, in_the_way(node))
            continue
        count = int(repeats[part.axes[0]]) if len(part.axes) == 1 else 1
        moved.append(replace(part, ids=np.tile(part.ids, count)) if count > 1 else part)
    found.label(output, moved)
