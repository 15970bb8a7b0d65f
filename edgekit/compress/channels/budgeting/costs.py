"""What a network costs as a function of how many units leave each group: MACs, parameters, time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import onnx_ir as ir

from edgekit.compress.channels.budgeting.extents import Extents, extents_of
from edgekit.compress.channels.groups import ChannelGroup
from edgekit.models.cost import node_costs, stored_numbers
from edgekit.models.cost.anatomy import live_nodes, stored_values
from edgekit.models.cost.parameters import Role, role_of, weights_of
from edgekit.models.cost.sizes import Forms, forms
from edgekit.models.model import Model, static_shape
from edgekit.values import Array


class CostModel(Protocol):
    """One quantity as a function of `removed` (g,): how many units leave each group."""

    @property
    def whole(self) -> float:
        """The quantity where nothing leaves."""

    @property
    def joined(self) -> Array:
        """Which groups change what the others' moves cost (g, g), bool."""

    def total(self, removed: Array) -> float:
        """The quantity where these leave."""

    def along(self, removed: Array, group: int, to: Array) -> Array:
        """How much it changes where one group loses `to` (n,) units instead: (n,)."""

    def together(self, first: tuple[Array, Array], second: tuple[Array, Array]) -> Array:
        """What two moves change beyond the sum of both: (n, m).

        A move is a group and by how much it loses more units: two arrays for each side.
        """


@dataclass(frozen=True, kw_only=True)
class Quadratic:
    """whole + linear . r + r' matrix r, r being the removed units.

    A weight's cost is a constant times the product of its axes' lengths, of which at most two
    depend on groups, and a length is linear in r: so this is exact, not an approximation.
    """

    whole: float
    linear: Array
    matrix: Array

    @property
    def joined(self) -> Array:
        """Which groups share a weight (g, g), bool."""
        found: Array = self.matrix != 0
        return found

    def total(self, removed: Array) -> float:
        """The quantity where these units leave."""
        r = np.asarray(removed, np.float64)
        return float(self.whole + self.linear @ r + r @ self.matrix @ r)

    def along(self, removed: Array, group: int, to: Array) -> Array:
        """How much it changes where one group loses `to` (n,) units instead: (n,)."""
        by = to - removed[group]
        slope = self.linear[group] + 2 * (self.matrix[group] @ removed)
        change: Array = by * (slope + by * self.matrix[group, group])
        return change

    def together(self, first: tuple[Array, Array], second: tuple[Array, Array]) -> Array:
        """What two moves change beyond the sum of both: (n, m)."""
        between = self.matrix[np.ix_(first[0], second[0])]
        change: Array = 2 * between * np.outer(first[1], second[1])
        return change

    def corrected(self, removed: Array, really: float) -> Quadratic:
        """The same with all savings scaled, so that it is `really` where these units leave."""
        saved = self.whole - self.total(removed)
        if saved <= 0:
            return self
        scale = (self.whole - really) / saved
        return replace(self, linear=scale * self.linear, matrix=scale * self.matrix)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The quantities that a limit may bound. `latency` is in milliseconds, None if unknown."""

    macs: Quadratic
    parameters: Quadratic
    latency: CostModel | None = None


def costs_of(model: Model, groups: Sequence[ChannelGroup], *, batch: int = 1) -> Costs:
    """The MACs and parameters of a Model as functions of what leaves its groups.

    MACs are those of `models.cost.macs`: for a weight o * prod(W.shape) / c, of two activations in
    proportion to the second of them (in attention: to its heads, or to a head's values). The
    second is exact for whole heads; `Quadratic.corrected` mends the rest. Parameters are those that
    `models.cost.total_cost` counts. Raises as `node_costs` does.
    """
    known = forms(model, batch=batch)
    extents = extents_of(model, groups, known)
    return Costs(
        macs=_macs(model, extents, known, batch), parameters=_parameters(model, extents)
    )  # fmt: skip


class _Sum:
    """Products of at most two lengths, being added up."""

    def __init__(self, groups: int) -> None:
        self._groups = groups
        self._whole = 0.0
        self._coefficients: list[float] = []
        self._pairs: list[tuple[Array, Array]] = []

    def add(self, cost: float, rows: Sequence[Array]) -> None:
        """A cost in proportion to (1 - row . r) for each of the rows."""
        self._whole += cost
        moving = [row for row in rows if row.any()][:2]
        if moving and cost:
            zeros = np.zeros(self._groups)
            self._coefficients.append(cost)
            self._pairs.append((moving[0], moving[1] if len(moving) > 1 else zeros))

    def quadratic(self) -> Quadratic:
        """The sum."""
        if not self._pairs:
            zeros = np.zeros(self._groups)
            return Quadratic(
                whole=self._whole, linear=zeros, matrix=np.zeros((self._groups, self._groups))
            )
        c = np.asarray(self._coefficients)[:, None]
        first, second = (np.stack(rows) for rows in zip(*self._pairs, strict=True))
        product = (c * first).T @ second
        return Quadratic(
            whole=self._whole,
            linear=-(c * (first + second)).sum(0),
            matrix=(product + product.T) / 2,
        )


def _macs(model: Model, extents: Extents, known: Forms, batch: int) -> Quadratic:
    total = _Sum(extents.groups)
    for node, cost in zip(model.graph, node_costs(model, batch=batch), strict=True):
        if cost.macs:
            total.add(cost.macs, _rows(node, extents, known))
    return total.quadratic()


def _rows(node: ir.Node, extents: Extents, known: Forms) -> list[Array]:
    """The lengths that a node's MACs are in proportion to, each as its row (see Extents)."""
    weight = weight_of(node, known, extents.fixed)
    if weight is not None:
        return extents.axes(weight.name or "", len(static_shape(weight)))
    sources = [value for value in node.inputs if value is not None and value not in extents.fixed]
    # Two activations, as in attention: q k' has as many products as k, a v as many as v.
    return [extents.of(sources[1] if len(sources) > 1 else node.outputs[0])]


def weight_of(node: ir.Node, known: Forms, fixed: set[ir.Value]) -> ir.Value | None:
    """The initializer that the node multiplies with, maybe behind a Transpose; None: no such one.

    It is the stored tensor that the matrix operand is made from, element for element.
    """
    places = (1,) if node.op_type in ("Conv", "ConvTranspose") else (1, 0)
    for place in places:
        operand = node.inputs[place] if place < len(node.inputs) else None
        if operand is None or operand not in fixed:
            continue
        if operand.is_initializer():
            return operand
        form = known.get(operand)
        elements = form.elements if form is not None else None
        behind = [
            value
            for value in _behind(operand, fixed)
            if value.is_initializer()
            and value.const_value is not None
            and value.const_value.size == elements
        ]
        return behind[0] if len(behind) == 1 else None
    return None


def _behind(value: ir.Value, fixed: set[ir.Value]) -> tuple[ir.Value, ...]:
    producer = value.producer()
    return () if producer is None else weights_of(producer, fixed)


def _parameters(model: Model, extents: Extents) -> Quadratic:
    graph = model.graph
    fixed, live = extents.fixed, set(live_nodes(graph))
    total = _Sum(extents.groups)
    for value in stored_values(graph):
        rows = extents.axes(value.name or "", len(value.shape or ()))
        if rows and role_of(value, fixed, live) is Role.PARAMETER:
            total.add(math.prod(static_shape(value)), rows)
    return replace(total.quadratic(), whole=float(stored_numbers(model).parameters))


def named_costs(costs: Costs) -> Mapping[str, CostModel | None]:
    """Each quantity under the name of its limit."""
    return {"macs": costs.macs, "parameters": costs.parameters, "latency_ms": costs.latency}
