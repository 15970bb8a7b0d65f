"""Weights in integers that were chosen by what the layers put out, from unlabelled samples.

Layer after layer, in the network whose activations are quantized and whose earlier weights are
final: with x what the layer reads there and y what the float network puts out,

    W*, b* = argmin  sum |x W + b - y|^2 + lambda |W - W0|^2      (compress: repair.least_squares)
    Q      = integers near to W* in the metric of H = X^T X + lambda I, X centred where b is free
    b      = mean(y) - mean(x) W(Q)

so that a layer makes up for what the layers before it have lost, and its rounding errors for one
another. The rounding is GPTQ's (`rounding`); that the fit comes first is possible because the
squared error is exactly that of W* plus E(Q).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from edgekit.compress.channels.repair.least_squares import Fit, Sums, fit
from edgekit.data.batches import Batches
from edgekit.errors import InputError
from edgekit.models.model import Model, after_step
from edgekit.quantize.grids import BIAS_BITS, Grid
from edgekit.quantize.refine.graph import with_biases, with_parameters
from edgekit.quantize.refine.overflow import bounded
from edgekit.quantize.refine.rounding import rounded_steps
from edgekit.quantize.refine.walk import Aim, Layer, Rows, Walk, some_samples
from edgekit.quantize.saturation import least_scale
from edgekit.quantize.scheme import Scheme, StoredWeight, array_of, with_weights
from edgekit.values import Array

_WIDEST = 5000  # inputs of a row: a Hessian of 200 MB
_WIDE = 1500  # from here on one sweep less and fewer rows
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55)
_DAMPING = 1e-2  # the most that H's diagonal gets, as a share of its mean
_TINY = 1e-20

OnFraction = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class RoundOptions:
    """How weights are fitted and rounded.

    At most `samples` are looked at. Of the places of a layer's output about `rows` times as many
    are drawn as a weight has inputs, and never fewer than `least_rows`. The pull toward the float
    weight is chosen from `ridges`, shares of the inputs' mean square. In front of a Relu or Clip
    the fit is done `rectified` more times to what these let through. `scales`: the step of each
    channel's grid may shrink where that serves; None: only under 8 bits. `memory_bytes` bounds
    what is kept of activations between layers.
    """

    samples: int = 512
    rows: int = 40
    least_rows: int = 4000
    ridges: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    rectified: int = 2
    scales: bool | None = None
    sweeps: int = 4
    memory_bytes: int = 1 << 30
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class RoundedLayer:
    """The squared error of one node's output, as shares of its variance, on `rows` rows.

    `before` with the weight as it came, `fitted` with W* in real numbers, `after` with integers.
    """

    node: str
    rows: int
    before: float
    fitted: float
    after: float
    ridge: float


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """What rounding gained, layer by layer; why weights in `left` stayed as they were."""

    samples: int
    layers: tuple[RoundedLayer, ...]
    left: dict[str, str]

    def __str__(self) -> str:
        before, after = (
            float(np.mean([getattr(one, side) for one in self.layers] or [0.0]))
            for side in ("before", "after")
        )
        left = f"; {len(self.left)} left: {'; '.join(set(self.left.values()))}" if self.left else ""
        return (
            f"{len(self.layers)} weights fitted and rounded on {self.samples} samples, the mean "
            f"error of their layers {before:.1e} to {after:.1e}{left}"
        )


def round_weights(
    model: Model,
    scheme: Scheme,
    batches: Batches,
    options: RoundOptions | None = None,
    *,
    reference: Model | None = None,
    on_fraction: OnFraction = lambda share: None,
) -> tuple[Model, Scheme, RoundReport]:
    """The Scheme with other integers, and the Model with other biases.

    Places, types, bits and the grids of activations stay. A weight that is fitted no better than it
    was stays too. `reference` is the float network to come near to, the Model itself where its
    biases are as they were. Raises InputError where there are too few samples, and for NaN or
    infinity.
    """
    options = options or RoundOptions()
    reference = reference or model
    model, scheme = with_biases(model, scheme)
    some = some_samples(model, batches, options.samples, options.memory_bytes)
    walk = Walk(model, scheme, reference, some, options.memory_bytes)
    generator = torch.Generator().manual_seed(options.seed)
    layers: list[RoundedLayer] = []
    stored: dict[str, StoredWeight] = {}
    biases: dict[str, Array] = {}
    for done, layer in enumerate(walk.layers()):
        if layer.product.width > _WIDEST:
            walk.left[layer.name] = f"a row of it has more than {_WIDEST} numbers"
            continue
        gathered = gather(walk, layer, options, generator)
        weight, bias, said = _rounded(walk, layer, gathered, options)
        layers.append(said)
        if said.after < said.before:
            stored[layer.name] = weight
            walk.put(layer, weight, bias)
            if bias is not None:
                biases[layer.place.bias] = bias
        on_fraction((done + 1) / len(walk))
    changed = after_step(
        model, with_parameters(model, biases_like(model, biases)).program, "round_weights"
    )
    report = RoundReport(samples=some.count, layers=tuple(layers), left=walk.left)
    return changed, with_weights(scheme, stored), report


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """The sums of a layer's rows in two halves of the samples, and the fit to them.

    The targets are those of the product without the bias that the node adds by now.
    """

    halves: tuple[Sums, Sums]
    fit: Fit
    present: Tensor
    movable: bool

    def whole(self) -> Sums:
        """Both halves."""
        return self.halves[0].joined(self.halves[1])


def gather(walk: Walk, layer: Layer, options: RoundOptions, generator: torch.Generator) -> Gathered:
    """What the layer's rows come to; targets where its reader's output is flat are relaxed.

    There the present fit's own output is asked for, as far as it is flat too: no squared error that
    the reader sees grows from turn to turn (majorisation and minimisation; Hunter and Lange 2004).
    """
    product, aim = layer.product, layer.aim
    present = walk.weight(layer)
    groups, width, made = present.shape
    bias = torch.tensor(walk.bias(layer), dtype=torch.float32).reshape(groups, 1, made)
    times = options.rows if width < _WIDE else max(options.rows // 4, 5)
    most = max(times * width, options.least_rows)
    flat = np.isfinite([aim.low, aim.high]).any()
    turns = 1 + (options.rectified if flat else 0)
    halves = (Sums(groups, width, made), Sums(groups, width, made))
    movable = bool(layer.place.bias)
    places: list[Tensor] = []
    found: Fit | None = None
    for turn in range(turns):
        for half in halves if turn else ():
            half.forget_targets()
        for i, rows in enumerate(walk.rows(layer, places, most, generator)):
            end = rows.end if found is None else _relaxed(aim, rows, bias, found)
            wanted = end - rows.other - bias
            if turn:
                halves[i % 2].add_targets(rows.x, wanted)
            else:
                halves[i % 2].add(rows.x, wanted)
        shares = options.ridges if found is None else [found.ridge]
        again = fit(halves, present, movable=movable, shares=shares)
        found = again if found is None else replace(again, before=found.before)
    assert found is not None
    if not (np.isfinite([found.before, found.after]).all() and bool(found.weight.isfinite().all())):
        raise InputError(
            f'what "{product.name}" reads or should make becomes NaN or infinite on these samples',
            where="quantize.refine", hint="Look for an overflow in the model, or for a bad sample.",
        )  # fmt: skip
    return Gathered(halves=halves, fit=found, present=present, movable=movable)


def _relaxed(aim: Aim, rows: Rows, bias: Tensor, found: Fit) -> Tensor:
    """What the end should be, where its reader tells it apart from the fit's own output there."""
    now = rows.x @ found.weight.float() + found.intercept.float()[:, None] + bias + rows.other
    end = torch.where(rows.end <= aim.low, now.clamp(max=aim.low), rows.end)
    return torch.where(rows.end >= aim.high, now.clamp(min=aim.high), end)


def _rounded(
    walk: Walk, layer: Layer, gathered: Gathered, options: RoundOptions
) -> tuple[StoredWeight, Array | None, RoundedLayer]:
    """The layer's weight as it is best stored, the bias that goes with it, and what that gains."""
    product, found, whole = layer.product, gathered.fit, gathered.whole()
    stored = walk.scheme.weights[layer.name]
    hessian = hessian_of(whole, min(found.ridge, _DAMPING), movable=gathered.movable)
    grid = stored.grid
    if options.scales or (options.scales is None and grid.bits < 8):
        grid = _shrunk(walk, layer, found.weight, hessian, grid)
    place = layer.place
    if walk.scheme.dialect.adds_in_16_bits:
        as_stored = product.stored(found.weight, np.zeros(stored.integers.shape))
        least = least_scale(as_stored, place.axis, place.groups)
        least = least if grid.scale.ndim else least.max(initial=0.0)
        grid = replace(grid, scale=np.maximum(grid.scale, least).astype(np.float32))
    step = by_channel(grid.scale, found.weight)
    low, high = signed_limits(grid)
    sweeps = options.sweeps if product.width < _WIDE else 1
    steps = rounded_steps(found.weight / step, hessian, low, high, sweeps=sweeps)
    integers = grid.store(product.stored(steps, np.zeros(stored.integers.shape)))
    rounded = StoredWeight(integers=integers, grid=grid)
    if walk.scheme.dialect.adds_in_16_bits:
        rounded = bounded(rounded, place)
    weight = product.matrix(rounded.values)
    before = product.matrix(stored.values)
    variance = whole.variance() or _TINY
    intercept = _intercept(whole, weight, movable=gathered.movable)
    bias = None
    if gathered.movable:
        bias = bounded_bias(walk, layer, grid, walk.bias(layer) + intercept.numpy().reshape(-1))
    report = RoundedLayer(
        node=layer.name, rows=whole.count, ridge=found.ridge, fitted=found.after,
        before=whole.error(before, torch.zeros_like(intercept)) / variance,
        after=whole.error(weight, intercept) / variance,
    )  # fmt: skip
    return rounded, bias, report


def hessian_of(sums: Sums, ridge: float, *, movable: bool) -> Tensor:
    """X^T X + lambda I (groups, d, d), X centred where the intercept is free: positive definite."""
    hessian = sums.xx
    if movable:
        hessian = hessian - sums.x[..., None] * (sums.x[:, None] / sums.count)
    mean = hessian.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(_TINY)
    unit = torch.eye(hessian.shape[-1], dtype=hessian.dtype)
    return hessian + ridge * mean[:, None, None] * unit


def _intercept(sums: Sums, weight: Tensor, *, movable: bool) -> Tensor:
    if not movable:
        return torch.zeros_like(sums.y)
    return (sums.y - (sums.x[:, None] @ weight)[:, 0]) / sums.count


def by_channel(numbers: Array, weight: Tensor) -> Tensor:
    """One number, or one for each output channel, against a matrix (groups, d, o)."""
    tensor = torch.from_numpy(np.asarray(numbers, np.float64))
    return tensor.reshape(weight.shape[0], 1, -1) if tensor.numel() > 1 else tensor.reshape(1, 1, 1)


def signed_limits(grid: Grid) -> tuple[float, float]:
    """The least and the most steps of a weight: as many on both sides of 0."""
    _, most = grid.limits
    reach = float(most - int(grid.zero_point.flat[0]))
    return -reach, reach


def bounded_bias(walk: Walk, layer: Layer, grid: Grid, bias: Array) -> Array:
    """The bias, where it is stored as an int32 no larger than fits there."""
    if not walk.scheme.dialect.integer_bias:
        return bias
    source = walk.scheme.activations[layer.place.source]
    most = np.broadcast_to(grid.scale * np.float64(source.scale) * 2.0**BIAS_BITS, bias.shape)
    return np.clip(bias, -most, most)


def _shrunk(walk: Walk, layer: Layer, weight: Tensor, hessian: Tensor, grid: Grid) -> Grid:
    """The grid with the step of each channel shrunk to what rounds best, by H's diagonal."""
    largest = by_channel(grid.scale, weight)
    amax = weight.abs().amax(1, keepdim=True) if grid.scale.ndim else weight.abs().amax()
    low, high = signed_limits(grid)
    best_error = torch.full(largest.shape, torch.inf, dtype=torch.float64)
    best = largest.clone()
    importance = hessian.diagonal(dim1=-2, dim2=-1)[..., None]
    for shrink in _SHRINKS:
        step = (shrink * amax / high).clamp_min(_TINY).expand_as(best)
        off = (weight / step).round().clamp(low, high) * step - weight
        error = (importance * off.square()).sum(1, keepdim=True)
        error = error if grid.scale.ndim else error.sum().reshape(1, 1, 1)
        better = error < best_error
        best = torch.where(better, step, best)
        best_error = torch.where(better, error, best_error)
    scale = best.numpy().reshape(grid.scale.shape)
    if walk.scheme.dialect.integer_bias and layer.place.bias:
        source = walk.scheme.activations[layer.place.source]
        least = np.abs(walk.bias(layer)) / (float(source.scale) * 2.0**BIAS_BITS)
        scale = np.maximum(scale, least if scale.ndim else least.max())
    return replace(grid, scale=np.maximum(scale, 1e-12).astype(np.float32))


def biases_like(model: Model, biases: dict[str, Array]) -> dict[str, Array]:
    """The biases in the shape and type of the Model's own."""
    found = {}
    for name, bias in biases.items():
        before = array_of(model, name)
        found[name] = bias.astype(before.dtype).reshape(before.shape)
    return found
