"""How operators pass on the channels of several tensors that meet: arithmetic and products.

A product of matrices is arithmetic in a larger space: A (…, m, k) and B (…, k, n) are multiplied
entry by entry over (…, m, n, k), and what lies along k is summed. So both have one rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgekit.compress.channels.rules.trace import (
    Part,
    Slot,
    Trace,
    freeze_around,
    in_the_way,
    is_stored,
    named,
)  # fmt: skip
from edgekit.models.model import attribute
from edgekit.values import Array

# An operand: its value, and for each of its axes the axis of the common space.
Operand = tuple[ir.Value, tuple[int, ...]]


def elementwise(found: Trace, node: ir.Node) -> None:
    """Add, Mul, PRelu, Where and the like, with broadcasting from the right."""
    output = node.outputs[0]
    sizes = found.sizes_of(output)
    values = [value for value in node.inputs if value is not None]
    if sizes is None or any(found.sizes_of(value) is None for value in values):
        freeze_around(found, node)
        return
    stored: list[Operand] = []
    moving: list[Operand] = []
    for value in values:
        rank = len(found.sizes[value] or ())
        operand = value, tuple(range(len(sizes) - rank, len(sizes)))
        (stored if is_stored(value) and value not in found.labels else moving).append(operand)
    parts = meet(found, node, moving, sizes)
    if moving:
        for value, axes in stored:
            parts = _tie_stored(found, value, axes, parts, sizes)
    else:
        parts = meet(found, node, stored, sizes)
    found.label(output, parts)


def _tie_stored(
    found: Trace, value: ir.Value, axes: Sequence[int], parts: list[Part], sizes: Sequence[int]
) -> list[Part]:
    """A stored tensor has a number for each channel that it meets."""
    own = found.sizes[value] or ()
    for part in parts:
        for mine, axis in enumerate(axes):
            if axis in part.axes and own[mine] > 1 and own[mine] == sizes[axis]:
                found.tie(value, mine, part.cells(axis), "along")
    return parts


def meet(
    found: Trace, node: ir.Node, operands: Sequence[Operand], sizes: Sequence[int]
) -> list[Part]:
    """Where the common space carries channels: parts of several operands on one axis are merged.

    Parts come back with axes of the space. What meets a tensor of unknown channels stays, and so
    does what is repeated along an axis.
    """
    placed = [
        [replace(part, axes=tuple(axes[a] for a in part.axes)) for part in found.parts(value)]
        for value, axes in operands
    ]
    for parts in placed:
        for part in list(parts):
            repeated = [a for a, n in zip(part.axes, part.ids.shape, strict=True) if n != sizes[a]]
            if repeated:
                found.freeze(part.ids, f"{named(node)} repeats it over all channels")
                parts.remove(part)
    met = []
    for axes in _components([part.axes for parts in placed for part in parts]):
        mine = [[part for part in parts if set(part.axes) <= set(axes)] for parts in placed]
        shape = tuple(sizes[axis] for axis in axes)
        involved = [part for parts in mine for part in parts]
        fewest = min(involved, key=lambda part: part.ids.ndim)
        reason = _refused(found, node, operands, mine, axes)
        if reason:
            for part in involved:
                found.freeze(part.ids, reason)
        else:
            for part in involved:
                found.union(_spread(fewest, axes, shape), _spread(part, axes, shape))
        met.append(replace(fewest, slots=common_slots(involved)))
    return met


def common_slots(parts: Sequence[Part]) -> tuple[Slot, ...]:
    """The slots that stored tensors alone came from; none where anything else takes part."""
    if not all(part.slots for part in parts):
        return ()
    return tuple(dict.fromkeys(slot for part in parts for slot in part.slots))


def _components(axes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The sets of axes that overlap one another, each sorted."""
    found: list[set[int]] = []
    for one in axes:
        touching = [group for group in found if group & set(one)]
        found = [group for group in found if not group & set(one)]
        found.append(set(one).union(*touching))
    return [tuple(sorted(group)) for group in found]


def _refused(
    found: Trace, node: ir.Node, operands: Sequence[Operand], mine: Sequence[Sequence[Part]],
    axes: Sequence[int],
) -> str:  # fmt: skip
    """Why these channels cannot be followed: an operand has entries there and says nothing.

    Or it has two parts where another has one: which entries go together is not known.
    """
    if any(len(parts) > 1 for parts in mine):
        return in_the_way(node)
    for (value, own_axes), parts in zip(operands, mine, strict=True):
        sizes = found.sizes[value] or ()
        if not parts and any(sizes[k] > 1 for k, axis in enumerate(own_axes) if axis in axes):
            return f'{named(node)} meets "{value.name}", of unknown channels'
    return ""


def _spread(part: Part, axes: Sequence[int], shape: Sequence[int]) -> Array:
    """The part's ids over more axes than its own."""
    order = np.argsort(part.axes)
    own = np.transpose(part.ids, order)
    narrow = [own.shape[sorted(part.axes).index(axis)] if axis in part.axes else 1 for axis in axes]
    return np.broadcast_to(own.reshape(narrow), shape)


def summed(
    found: Trace, node: ir.Node, operands: Sequence[Operand], sizes: Sequence[int],
    kept: Mapping[int, int],
) -> None:  # fmt: skip
    """The product of operands over a common space, summed along the axes that are not kept.

    `kept` has the output's axis for those that are. A weight consumes what lies along a summed
    axis and produces what lies along one of its own.
    """
    for value, axes in operands:
        others = [operand for operand in operands if operand[0] is not value]
        for part in found.parts(value) if is_constant(found, value) else ():
            axis = axes[part.axes[0]]
            for slot in part.slots:
                if axis not in kept:
                    found.uses(slot, "consumed")
                elif not any(_has_along(found, other, axis) for other in others):
                    found.uses(slot, "produced")
    weighted = any(is_constant(found, value) for value, _ in operands)
    outputs = []
    for part in meet(found, node, operands, sizes):
        gone = [axis for axis in part.axes if axis not in kept]
        left = found.off(part, gone)
        if left is None and not weighted:
            # Nothing that reads them could be zero: what the sum is without them is not known.
            found.freeze(part.ids, f"{named(node)} sums over it")
        if left is not None:
            axes = tuple(kept[axis] for axis in left.axes)
            outputs.append(replace(left, axes=axes, slots=()))
    found.label(node.outputs[0], outputs)


def _has_along(found: Trace, operand: Operand, axis: int) -> bool:
    """Whether an operand has more than one entry along an axis of the common space."""
    value, axes = operand
    return axis in axes and (found.sizes[value] or ())[axes.index(axis)] > 1


def is_constant(found: Trace, value: ir.Value) -> bool:
    """Whether this is a stored tensor, or one that is only moved on its way."""
    return is_stored(value) or (value in found.labels and all(p.slots for p in found.labels[value]))


def matmul(found: Trace, node: ir.Node) -> None:
    """MatMul: (…, m, k) times (…, k, n)."""
    left, right = node.inputs[0], node.inputs[1]
    sizes = [found.sizes_of(value) for value in (left, right)]
    if left is None or right is None or any(s is None or len(s) < 2 for s in sizes):
        freeze_around(found, node)
        return
    one, two = sizes[0] or (), sizes[1] or ()
    rank = max(len(one), len(two))
    batch = [max(pair) for pair in zip(_padded(one, rank), _padded(two, rank), strict=True)][:-2]
    space = (*batch, one[-2], two[-1], one[-1])
    m, n, k = rank - 2, rank - 1, rank
    operands = [
        (left, (*range(rank - len(one), rank - 2), m, k)),
        (right, (*range(rank - len(two), rank - 2), k, n)),
    ]
    summed(found, node, operands, space, {axis: axis for axis in range(rank)})


def _padded(sizes: Sequence[int], rank: int) -> tuple[int, ...]:
    return (*(1,) * (rank - len(sizes)), *sizes)


def gemm(found: Trace, node: ir.Node) -> None:
    """Gemm: A (m, k) times B (k, n), either of them transposed, and a bias C that broadcasts."""
    left, right = node.inputs[0], node.inputs[1]
    one, two = found.sizes_of(left), found.sizes_of(right)
    if left is None or right is None or one is None or two is None:
        freeze_around(found, node)
        return
    a, b = ((k, m) if attribute(node, name, 0) else (m, k) for name, m, k in _GEMM)
    space = (one[a.index(0)], two[b.index(1)], one[a.index(2)])
    summed(found, node, [(left, a), (right, b)], space, {0: 0, 1: 1})
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return
    own = found.sizes_of(bias) or ()
    axes = tuple(range(2 - len(own), 2))
    output = node.outputs[0]
    if is_stored(bias):
        _tie_stored(found, bias, axes, list(found.parts(output)), space)
    else:
        operands = [(output, (0, 1)), (bias, axes)]
        found.label(output, meet(found, node, operands, space[:2]))


_GEMM = (("transA", 0, 2), ("transB", 2, 1))


def einsum(found: Trace, node: ir.Node) -> None:
    """Einsum with an explicit output and no repeated letter: a product over all letters."""
    equation = attribute(node, "equation", "")
    text = (equation.decode() if isinstance(equation, bytes) else str(equation)).replace(" ", "")
    terms, arrow, result = text.partition("->")
    values = [value for value in node.inputs if value is not None]
    letters = sorted(set(terms) - {","})
    words = terms.split(",")
    plain = bool(arrow) and "." not in text and all(len(set(w)) == len(w) for w in words)
    known = [found.sizes_of(value) for value in values]
    if not plain or any(s is None or len(s) != len(w) for s, w in zip(known, words, strict=False)):
        freeze_around(found, node)
        return
    space = [1] * len(letters)
    operands = []
    for value, word in zip(values, words, strict=True):
        axes = tuple(letters.index(letter) for letter in word)
        operands.append((value, axes))
        for axis, size in zip(axes, found.sizes[value] or (), strict=True):
            space[axis] = max(space[axis], size)
    summed(found, node, operands, space, {letters.index(x): k for k, x in enumerate(result)})
