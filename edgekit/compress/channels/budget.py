"""How many units to take from where, so that the MACs fit a budget."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.compress.channels.groups import ChannelGroup
from edgekit.errors import InputError
from edgekit.models.cost import elements, node_costs
from edgekit.models.model import Model, static_shape
from edgekit.values import Array

NARROW_MULTIPLE = 8
FLOOR = 0.25  # a group keeps at least this share of its units


@dataclass(frozen=True, kw_only=True)
class MacsModel:
    """The MACs of a graph as a function of its weights' axis lengths.

    A node's MACs are `positions` times the product of its weight's shape: the output positions of
    a Conv, the rows of a Gemm. `fixed` are those of nodes without a constant weight.
    """

    positions: Mapping[str, float]
    shapes: Mapping[str, tuple[int, ...]]
    fixed: int

    def total(self, lengths: Mapping[tuple[str, int], int]) -> float:
        """The MACs where some axes have other lengths."""
        return self.fixed + sum(self.of(name, lengths) for name in self.positions)

    def of(self, name: str, lengths: Mapping[tuple[str, int], int]) -> float:
        """The MACs of the nodes that read one weight."""
        shape = self.shapes[name]
        sizes = (lengths.get((name, axis), size) for axis, size in enumerate(shape))
        return self.positions[name] * math.prod(sizes)


def macs_model(model: Model) -> MacsModel:
    """How the Model's MACs follow from its weights' shapes. Raises as `node_costs` does."""
    positions: dict[str, float] = defaultdict(float)
    shapes: dict[str, tuple[int, ...]] = {}
    fixed = 0
    for node, cost in zip(model.graph, node_costs(model), strict=True):
        if not cost.macs:
            continue
        weight = node.inputs[1]
        if weight is None or not weight.is_initializer():
            fixed += cost.macs
            continue
        name = weight.name or ""
        shapes[name] = static_shape(weight)
        positions[name] += cost.macs / elements(weight, 1)
    return MacsModel(positions=positions, shapes=shapes, fixed=fixed)


def allowed_counts(units: int, multiple: int, channels_per_unit: int = 1) -> tuple[int, ...]:
    """The numbers of units that a group may keep, largest first; `units` itself always.

    The channels that are kept are a multiple of `multiple` where there are at least twice as many,
    else of 8; never less than a quarter of the group, never 0.
    """
    channels = units * channels_per_unit
    wanted = multiple if channels >= 2 * multiple else min(NARROW_MULTIPLE, multiple)
    step = wanted // math.gcd(wanted, channels_per_unit)
    least = max(1, math.ceil(units * FLOOR))
    counts = [count for count in range(step, units, step) if count >= least]
    return (units, *reversed(counts))


def choose_kept(
    model: Model, groups: Sequence[ChannelGroup], scores: Sequence[Array], *, macs: float,
    multiple: int,
) -> tuple[Array, ...]:  # fmt: skip
    """For each group the sorted indices of the units to keep, for at most `macs` of the MACs.

    Step by step the group is narrowed to its next allowed count whose lost score is the least for
    the MACs that it saves; then steps that turn out not to be needed are taken back, the dearest
    first. Raises InputError where even the narrowest cut costs more, naming what can be reached.
    """
    cost = macs_model(model)
    whole = cost.total({})
    budget = macs * whole
    order = [np.argsort(-score, kind="stable") for score in scores]
    ladders = [allowed_counts(g.units, multiple, g.channels_per_unit) for g in groups]
    rungs = [0] * len(groups)
    lengths = {
        (member.parameter, member.axis): _length(model, member.parameter, member.axis)
        for group in groups
        for member in group.members
    }
    # A unit's loss counts once for each weight that makes it or reads it: taking a channel out of a
    # residual stream hurts every layer on the stream.
    weights = [sum(m.role != "along" for m in group.members) for group in groups]
    touched = [sorted({m.parameter for m in g.members} & cost.positions.keys()) for g in groups]

    def narrowed(index: int, rung: int) -> dict[tuple[str, int], int]:
        removed = ladders[index][rungs[index]] - ladders[index][rung]
        return {
            (m.parameter, m.axis): lengths[m.parameter, m.axis] - removed * m.indices.shape[1]
            for m in groups[index].members
        }

    # What a step saves changes only when a group moves that shares a weight with this one.
    shared = [[j for j, other in enumerate(touched) if set(one) & set(other)] for one in touched]
    saved: dict[int, float] = {}

    def change(index: int, rung: int) -> float:
        """The MACs saved (negative: spent) by moving one group to another rung."""
        after = {**lengths, **narrowed(index, rung)}
        return sum(cost.of(name, lengths) - cost.of(name, after) for name in touched[index])

    def lost(index: int, rung: int) -> float:
        upper, lower = ladders[index][rung - 1], ladders[index][rung]
        return weights[index] * float(scores[index][order[index][lower:upper]].sum())

    def next_saves(index: int) -> float:
        if index not in saved:
            below = rungs[index] + 1
            saved[index] = change(index, below) if below < len(ladders[index]) else 0.0
        return saved[index]

    def move(index: int, rung: int) -> float:
        gained = change(index, rung)
        lengths.update(narrowed(index, rung))
        rungs[index] = rung
        for other in (index, *shared[index]):
            saved.pop(other, None)
        return gained

    total = whole
    while total > budget * (1 + 1e-12):
        steps = [
            (lost(index, rungs[index] + 1) / next_saves(index), index)
            for index in range(len(groups))
            if next_saves(index) > 0
        ]
        if not steps:
            raise InputError(
                "this budget cannot be met",
                where="compress.channels.macs", got=f"{macs:g} of the MACs",
                wanted=f"at least {total / whole:.3f}, the narrowest cut with multiples of "
                f"{multiple}",
                hint="Ask for more MACs, or see `edgekit inspect` for what cannot be cut and why.",
            )  # fmt: skip
        _, index = min(steps)
        total -= move(index, rungs[index] + 1)
    for index in sorted(
        (i for i in range(len(groups)) if rungs[i]), key=lambda i: -lost(i, rungs[i])
    ):
        spent = -change(index, rungs[index] - 1)
        if total + spent <= budget:
            move(index, rungs[index] - 1)
            total += spent
    return tuple(
        np.sort(chosen[: ladder[rung]])
        for chosen, ladder, rung in zip(order, ladders, rungs, strict=True)
    )


def _length(model: Model, parameter: str, axis: int) -> int:
    return static_shape(model.graph.initializers[parameter])[axis]
