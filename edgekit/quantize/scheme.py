"""All that is decided about a quantized model before a Q/DQ is written: places, grids, integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgekit.errors import InputError
from edgekit.models.model import Model, constant_of
from edgekit.quantize.dialects import Dialect
from edgekit.quantize.grids import BIAS_BITS, Grid, activation_grid, weight_grid
from edgekit.quantize.ranges import Choice, Ranges
from edgekit.quantize.saturation import least_scale
from edgekit.values import Array


@dataclass(frozen=True, kw_only=True)
class WeightPlace:
    """A weight that a node reads as integers, all by name; `axis` is that of its output channels.

    `source` is the activation that the node multiplies with it; `bias` is "" where there is none or
    it is computed. `added` is the Add behind a MatMul that adds a stored vector, "" without one;
    `groups` are those of a convolution.
    """

    node: str
    op: str
    weight: str
    axis: int
    bias: str
    source: str
    added: str = ""
    groups: int = 1


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which tensors are read through Q/DQ by whom, which nodes work on integers, and why not all.

    `reads` has for each activation the (node, input position) pairs that read it through its Q/DQ,
    or None where all do. `weights`, `integer` (its operator) and `left` (the reason) are by node.
    Every node that is not in `integer` is in `left`. The tensors of one set in `shared` have one
    scale.
    """

    dialect: Dialect
    reads: Mapping[str, frozenset[tuple[str, int]] | None]
    weights: Mapping[str, WeightPlace]
    integer: Mapping[str, str]
    left: Mapping[str, str]
    shared: tuple[frozenset[str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class StoredWeight:
    """A weight as it is stored: integers of the weight's shape, and what they stand for."""

    integers: Array
    grid: Grid

    @property
    def values(self) -> Array:
        """The real numbers (float32) that the node multiplies with."""
        return self.grid.dequantize(self.integers)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Where Q/DQ stand, the grid of each activation by name, the integers of each weight by node.

    A bias is no part of it: it is the Model's, and is stored as the dialect wants when it is
    written.
    """

    placement: Placement
    activations: Mapping[str, Grid]
    weights: Mapping[str, StoredWeight]

    @property
    def dialect(self) -> Dialect:
        """Whose rules the places follow."""
        return self.placement.dialect


@dataclass(frozen=True, kw_only=True)
class WeightOptions:
    """How weights are stored: `bits` of each (under 8: simulated), by channel or `per_tensor`."""

    bits: int = 8
    per_tensor: bool = False


def make_scheme(
    model: Model, placement: Placement, ranges: Ranges, choose: Choice, *,
    weights: WeightOptions | None = None,
) -> Scheme:  # fmt: skip
    """The Scheme with every range chosen by `choose` and every weight rounded to the nearest.

    Tensors that must share a scale share the hull of their ranges. Raises InputError where a tensor
    of the placement was not observed.
    """
    missing = [name for name in placement.reads if name not in ranges.tensors]
    if missing:
        raise InputError(
            "these ranges are not of this model: tensors were not observed", where=model.name,
            got=", ".join(missing[:5]), wanted=f"{len(placement.reads)} tensors",
            hint="Observe the model again.",
        )  # fmt: skip
    chosen = {name: choose(ranges.tensors[name]) for name in placement.reads}
    return scheme_of(model, placement, chosen, weights=weights)


def scheme_of(
    model: Model, placement: Placement, chosen: Mapping[str, tuple[float, float]], *,
    weights: WeightOptions | None = None,
) -> Scheme:  # fmt: skip
    """The Scheme with these ranges, (low, high) by tensor, and every weight rounded to the nearest.

    Tensors that must share a scale share the hull of their ranges.
    """
    options = weights or WeightOptions()
    dialect = placement.dialect
    together = dict(chosen)
    for names in placement.shared:
        known = [chosen[name] for name in names if name in chosen]
        if known:
            hull = (min(low for low, _ in known), max(high for _, high in known))
            together.update({name: hull for name in names if name in chosen})
    grids = {name: activation_grid(*found, dialect) for name, found in together.items()}
    stored = {
        node: rounded(model, place, grids[place.source], dialect, options)
        for node, place in placement.weights.items()
    }
    return Scheme(placement=placement, activations=grids, weights=stored)


def rounded(
    model: Model, place: WeightPlace, source: Grid, dialect: Dialect, options: WeightOptions
) -> StoredWeight:
    """A weight rounded to the nearest integers; `source` is the grid of what it multiplies."""
    weight = array_of(model, place.weight)
    floor: Array | float = 0.0
    bias = array_of(model, place.bias) if place.bias and dialect.integer_bias else None
    if bias is not None and bias.ndim == 1:
        # A channel whose weights vanish may still have a bias, which must fit in an int32.
        floor = np.abs(bias.astype(np.float64)) / (float(source.scale) * 2.0**BIAS_BITS)
    if dialect.adds_in_16_bits:
        floor = np.maximum(floor, least_scale(weight, place.axis, place.groups))
    grid = weight_grid(
        weight, place.axis, dialect, floor, bits=options.bits, per_tensor=options.per_tensor
    )
    return StoredWeight(integers=grid.quantize(weight), grid=grid)


def array_of(model: Model, name: str) -> Array:
    """The array of an initializer. Raises KeyError where there is none of that name."""
    found = constant_of(model.graph.initializers[name])
    assert found is not None
    return found


def with_weights(scheme: Scheme, changed: Mapping[str, StoredWeight]) -> Scheme:
    """The Scheme with some weights, by node, stored otherwise."""
    return replace(scheme, weights={**scheme.weights, **changed})
