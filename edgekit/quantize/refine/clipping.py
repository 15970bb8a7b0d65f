"""Ranges chosen by what clipping and rounding do to the network's outputs, to first order.

With e(r) what a grid over the range r does to a tensor's numbers, and g the gradient of a random
direction v of the outputs, (v . J e)^2 = (g . e)^2 has the mean |J e|^2, the change of the outputs
(Hutchinson 1989). What is rounded errs here and there by chance, what is clipped errs to one side,
so that for each sample

    damage(r) = sum over numbers inside r of  g^2 e^2  +  (sum over numbers outside of  g e)^2

which knows the first sum, all cross terms of which are 0 in the mean, better than the square of a
sum does. The g are those of the network whose activations are quantized already, straight through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgekit.data.batches import Batches
from edgekit.models.batch import fixed_batch
from edgekit.models.model import Model, constant_of, editable
from edgekit.models.torch_module import GraphModule, torch_module
from edgekit.quantize.grids import Grid, activation_grid
from edgekit.quantize.refine.judge import before_squashing
from edgekit.quantize.scheme import Scheme, WeightOptions, scheme_of
from edgekit.quantize.write import write_qdq
from edgekit.values import Array, Batch

_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
_TINY = 1e-30

OnFraction = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class ClippingOptions:
    """At most `samples` are looked at, in batches that keep their activations in `memory_bytes`;
    `draws` directions of the outputs for each batch.
    """

    samples: int = 48
    draws: int = 2
    memory_bytes: int = 1 << 30
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ClippingReport:
    """For each tensor the range's share of its minimum and maximum, and how many moved."""

    samples: int
    shares: dict[str, float]
    moved: int

    def __str__(self) -> str:
        whole = sum(share == 1 for share in self.shares.values())
        return (
            f"{self.moved} of {len(self.shares)} ranges chosen anew by the gradients of "
            f"{self.samples} samples, {whole} without clipping"
        )


def choose_ranges(
    model: Model, scheme: Scheme, batches: Batches, options: ClippingOptions | None = None, *,
    on_fraction: OnFraction = lambda share: None,
) -> tuple[Model, Scheme, ClippingReport]:  # fmt: skip
    """The Scheme with the range of each activation that damages the outputs least.

    Tried are the range that it has, and shares of the tensor's minimum and maximum on the samples.
    Tensors that must share a scale are chosen for together. Weights are rounded to the nearest
    again. Raises InputError as `torch_module` does.
    """
    options = options or ClippingOptions()
    tapped, taps = _with_taps(model, scheme)
    module = torch_module(tapped)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    some = batches.take(options.samples).with_batch_size(_batch_size(model, options))
    ends: dict[str, tuple[float, float]] = dict.fromkeys(taps, (0.0, 0.0))
    for batch in some:
        with torch.no_grad():
            found = _by_name(module, batch, model)
        for name, tap in taps.items():
            exact = tap.exact(found[tap.source])
            low, high = ends[name]
            ends[name] = (min(low, float(exact.min())), max(high, float(exact.max())))
    tried = {name: _candidates(ends[name], scheme, name) for name in taps}
    damage = {name: np.zeros(len(grids)) for name, grids in tried.items()}
    dice = torch.Generator().manual_seed(options.seed)
    seen = 0
    for batch in some:
        for _ in range(options.draws):
            for name, x, gradient in _gradients(module, batch, model, taps, dice):
                for k, grid in enumerate(tried[name]):
                    damage[name][k] += _damage(x, gradient, grid)
        seen += len(batch)
        on_fraction(seen / some.count)
    return _chosen(model, scheme, ends, damage, some.count)


@dataclass(frozen=True, kw_only=True)
class _Tap:
    """A tensor before its Q (`source`) and behind its DQ; `low` and `high` are where a Relu or Clip
    that the grid has replaced cuts off.
    """

    source: str
    read: str
    low: float
    high: float

    def exact(self, x: Tensor) -> Tensor:
        """The tensor as it is without rounding."""
        return x.clamp(self.low, self.high)


def _with_taps(model: Model, scheme: Scheme) -> tuple[Model, dict[str, _Tap]]:
    """The network with its activations quantized, and each of them as outputs before and behind."""
    bare = replace(scheme, placement=replace(scheme.placement, weights={}), weights={})
    written, _ = write_qdq(model, bare)
    program = editable(written)
    graph = program.graph
    nodes = {node.name: node for node in graph}
    clamps = {v.name: node for node in model.graph for v in node.outputs}
    taps: dict[str, _Tap] = {}
    present = {value.name for value in graph.outputs}
    for name in scheme.placement.reads:
        down, up = nodes.get(f"{name}.QuantizeLinear"), nodes.get(f"{name}.DequantizeLinear")
        if down is None or up is None or down.inputs[0] is None:
            continue
        source, read = down.inputs[0], up.outputs[0]
        low, high = -np.inf, np.inf
        if source.name not in (name, f"{name}.float") and name in clamps:
            low, high = _bounds(clamps[name])
        taps[name] = _Tap(source=source.name or "", read=read.name or "", low=low, high=high)
        for value in (source, read):
            if value.name not in present:
                graph.outputs.append(value)
                present.add(value.name)
    for name in before_squashing(model):
        if name not in present:
            value = next(v for node in graph for v in node.outputs if v.name == name)
            graph.outputs.append(value)
            present.add(name)
    return replace(written, program=program), taps


def _bounds(node: ir.Node) -> tuple[float, float]:
    if node.op_type == "Relu":
        return 0.0, np.inf
    low, high = [*map(constant_of, node.inputs[1:]), None, None][:2]
    return -np.inf if low is None else float(low), np.inf if high is None else float(high)


def _batch_size(model: Model, options: ClippingOptions) -> int:
    bytes_each = 1
    for node in model.graph:
        for value in node.outputs:
            sizes = [d for d in list(value.shape or ())[1:] if isinstance(d, int)]
            bytes_each += 8 * int(np.prod(sizes)) if value.shape else 0
    return fixed_batch(model) or max(1, min(16, options.memory_bytes // (3 * bytes_each)))


def _by_name(module: GraphModule, batch: Batch, model: Model) -> dict[str, Tensor]:
    fed = []
    for spec in model.inputs:
        x = torch.from_numpy(np.ascontiguousarray(batch.inputs[spec.name]))
        fed.append(x.requires_grad_() if x.is_floating_point() and torch.is_grad_enabled() else x)
    found = dict(zip(module.output_names, module(*fed), strict=True))
    return found | dict(zip((spec.name for spec in model.inputs), fed, strict=True))


def _gradients(
    module: GraphModule, batch: Batch, model: Model, taps: dict[str, _Tap], dice: torch.Generator
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """For each tensor its numbers without rounding, and the gradient of a random direction there.

    Both (samples, numbers), or one row where the samples are no axis of the tensor.
    """
    with torch.enable_grad():
        found = _by_name(module, batch, model)
        ends = [*(spec.name for spec in model.outputs), *before_squashing(model)]
        total = torch.zeros(())
        for name in ends:
            output = found[name]
            if output.is_floating_point() and output.requires_grad:
                signs = torch.randint(0, 2, output.shape, generator=dice) * 2.0 - 1.0
                energy = float(output.detach().square().sum()) / len(output) + _TINY
                total = total + (output * signs).sum() / energy**0.5
        read = [found[tap.read] for tap in taps.values()]
        gradients = torch.autograd.grad(total, read, allow_unused=True)
    for (name, tap), gradient in zip(taps.items(), gradients, strict=True):
        if gradient is None:
            continue
        x = tap.exact(found[tap.source].detach())
        rows = len(batch) if x.ndim and len(x) == len(batch) else 1
        yield name, x.reshape(rows, -1), gradient.reshape(rows, -1)


def _candidates(ends: tuple[float, float], scheme: Scheme, name: str) -> list[Grid]:
    """The grid that the tensor has, and those over shares of its minimum and maximum."""
    return [scheme.activations[name], *(
        activation_grid(share * ends[0], share * ends[1], scheme.dialect) for share in _SHARES
    )]  # fmt: skip


def _damage(x: Tensor, gradient: Tensor, grid: Grid) -> float:
    scale, zero = float(grid.scale), float(grid.zero_point)
    least, most = (limit - zero for limit in grid.limits)
    steps = x / scale
    clipped = (steps.clamp(least, most) - steps) * scale
    inside = clipped == 0
    rounded = (steps.round() - steps) * scale * inside
    by_chance = float((gradient * rounded).square().sum())
    aside = float((gradient * clipped).sum(1).square().sum())
    return by_chance + aside


def _chosen(
    model: Model, scheme: Scheme, ends: dict[str, tuple[float, float]], damage: dict[str, Array],
    samples: int,
) -> tuple[Model, Scheme, ClippingReport]:  # fmt: skip
    placement = scheme.placement
    sets = [*placement.shared, *(
        frozenset([name]) for name in damage if not any(name in s for s in placement.shared)
    )]  # fmt: skip
    ranges = {name: grid.range for name, grid in scheme.activations.items()}
    shares: dict[str, float] = {}
    moved = 0
    for names in sets:
        known = [name for name in sorted(names) if name in damage]
        if not known:
            continue
        least = int(np.argmin(np.sum([damage[name] for name in known], axis=0)))
        for name in known:
            low, high = ends[name]
            if least:
                share = _SHARES[least - 1]
                ranges[name] = (share * low, share * high)
                moved += 1
            now = ranges[name]
            shares[name] = min(1.0, max(abs(now[0]), abs(now[1])) / max(-low, high, _TINY))
    first = next(iter(scheme.weights.values()))
    options = WeightOptions(bits=first.grid.bits, per_tensor=not first.grid.scale.ndim)
    chosen = scheme_of(model, placement, ranges, weights=options)
    return model, chosen, ClippingReport(samples=samples, shares=shares, moved=moved)
