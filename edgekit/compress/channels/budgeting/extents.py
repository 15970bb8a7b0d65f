"""How much of each tensor is left as a function of what leaves the groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.compress.channels.groups import ChannelGroup
from edgekit.models.cost.anatomy import fixed_values
from edgekit.models.cost.parameters import weights_of
from edgekit.models.cost.sizes import Forms
from edgekit.models.model import Model, static_shape
from edgekit.values import Array

_PRODUCTS = frozenset({"MatMul", "Einsum", "Attention"})
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm"}) | _PRODUCTS


@dataclass(frozen=True, kw_only=True)
class Extents:
    """Rows (g,): where r units leave, 1 - row . r of an axis or of a tensor is left.

    `axis_rows` are those of initializers' axes, `value_rows` those of activations; what has none
    keeps its size. `groups` is g, `fixed` what follows from stored numbers alone.
    """

    groups: int
    fixed: set[ir.Value]
    axis_rows: Mapping[tuple[str, int], Array]
    value_rows: Mapping[ir.Value, Array]

    def of(self, value: ir.Value | None) -> Array:
        """The row of an activation."""
        row = self.value_rows.get(value) if value is not None else None
        return np.zeros(self.groups) if row is None else row

    def axes(self, parameter: str, rank: int) -> list[Array]:
        """The rows of those of an initializer's axes that depend on groups."""
        keys = ((parameter, axis) for axis in range(rank))
        return [self.axis_rows[key] for key in keys if key in self.axis_rows]


def extents_of(model: Model, groups: Sequence[ChannelGroup], known: Forms) -> Extents:
    """The Extents of a Model.

    Exact for initializers. An activation follows what made it: exact but behind a Split or a Slice
    of channels, of which every part is taken to lose the same share.
    """
    axis_rows: dict[tuple[str, int], Array] = {}
    produced: dict[str, int] = {}
    for index, group in enumerate(groups):
        for member in group.members:
            key = member.parameter, member.axis
            length = static_shape(model.graph.initializers[member.parameter])[member.axis]
            row = axis_rows.setdefault(key, np.zeros(len(groups)))
            row[index] += member.indices.shape[1] / length
            if member.role == "produced":
                produced[member.parameter] = member.axis
    makes = {name: axis_rows[name, axis] for name, axis in produced.items()}
    fixed = fixed_values(model.graph)
    return Extents(
        groups=len(groups),
        fixed=fixed,
        axis_rows=axis_rows,
        value_rows=_value_rows(model, known, makes, fixed),
    )


def _value_rows(
    model: Model, known: Forms, makes: Mapping[str, Array], fixed: set[ir.Value]
) -> dict[ir.Value, Array]:
    rows: dict[ir.Value, Array] = {}
    for node in model.graph:
        sources = [v for v in node.inputs if v is not None and v not in fixed]
        if not sources or all(output in fixed for output in node.outputs):
            continue
        row = _made_row(node, fixed, makes) if node.op_type in _WEIGHTED else None
        if row is None and node.op_type in _WEIGHTED:
            last = sources[1] if node.op_type in _PRODUCTS and len(sources) > 1 else None
            row = rows.get(last) if last is not None else None
        elif node.op_type == "Concat":
            sizes = np.array([_elements(value, known) for value in sources])
            held = [(size, rows[v]) for size, v in zip(sizes, sources, strict=True) if v in rows]
            row = np.sum([size * other for size, other in held], 0) / sizes.sum() if held else None
        elif row is None:
            row = rows.get(max(sources, key=lambda value: _elements(value, known)))
        if row is not None:
            rows.update(dict.fromkeys(node.outputs, row))
    return rows


def _made_row(
    node: ir.Node, fixed: set[ir.Value], makes: Mapping[str, Array]
) -> Array | None:  # fmt: skip
    """The row of what a weight of the node makes."""
    operands = [v for v in node.inputs[:2] if v is not None and v in fixed]
    names = [v.name or "" for operand in operands for v in _stored(operand, fixed)]
    return next((makes[name] for name in names if name in makes), None)


def _stored(operand: ir.Value, fixed: set[ir.Value]) -> tuple[ir.Value, ...]:
    producer = operand.producer()
    if operand.is_initializer() or producer is None:
        return (operand,)
    return weights_of(producer, fixed)


def _elements(value: ir.Value, known: Forms) -> float:
    form = known.get(value)
    sizes = form.sizes if form is not None else None
    return float(math.prod(sizes)) if sizes else 1.0
