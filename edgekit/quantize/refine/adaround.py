"""AdaRound: whether each weight goes up or down, learnt layer by layer by gradient descent.

With w the fitted weight in steps of its grid, every entry is floor(w) + h(v), where

    h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1)

and v is trained so that what the layer's reader sees of its output stays, plus a pull of every h to
0 or 1, 1 - |2 h - 1|^b with b falling (Nagel et al. 2020, Up or Down?, equations 21 to 24). A layer
keeps what it had where that serves better on rows of other samples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from edgekit.data.batches import Batches
from edgekit.models.model import Model, after_step
from edgekit.quantize.refine.graph import with_biases, with_parameters
from edgekit.quantize.refine.overflow import bounded
from edgekit.quantize.refine.walk import Aim, Layer, Walk, some_samples
from edgekit.quantize.refine.weights import (
    RoundOptions,
    biases_like,
    bounded_bias,
    by_channel,
    gather,
    signed_limits,
)
from edgekit.quantize.scheme import Scheme, StoredWeight, with_weights
from edgekit.values import Array

logger = logging.getLogger(__name__)

_REACH = 1.2  # of the stretched sigmoid, over 0 to 1
_WARM_UP = 0.2  # of the steps are without the pull
_SHARPNESS = (20.0, 2.0)
_TINY = 1e-12

OnFraction = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class AdaroundOptions:
    """How long and how: `steps` of Adam a layer on `batch` rows each, of at most `row_bytes` of
    rows. `pull` weighs the pull to 0 or 1, relative to the variance of the layer's output.
    """

    samples: int = 256
    steps: int = 400
    batch: int = 512
    rows: int = 8192
    row_bytes: int = 256 << 20
    learning_rate: float = 1e-2
    pull: float = 1e-2
    memory_bytes: int = 1 << 30
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class AdaroundReport:
    """For each node the error that its reader sees, on rows that were not trained on, as a share of
    what it reads: as the weight came, and as it was learnt. The better of both is stored.
    """

    samples: int
    errors: dict[str, tuple[float, float]]
    left: dict[str, str]

    def __str__(self) -> str:
        better = sum(after < before for before, after in self.errors.values())
        return f"{better} of {len(self.errors)} weights learnt better on {self.samples} samples"


def adaround(
    model: Model, scheme: Scheme, batches: Batches, options: AdaroundOptions | None = None, *,
    reference: Model | None = None,
    on_fraction: OnFraction = lambda share: None,
) -> tuple[Model, Scheme, AdaroundReport]:  # fmt: skip
    """The Scheme with learnt integers, each at most one from the fitted weight, and their biases.

    Grids and places stay. `reference` and what is raised are as in `round_weights`.
    """
    options = options or AdaroundOptions()
    reference = reference or model
    model, scheme = with_biases(model, scheme)
    some = some_samples(model, batches, options.samples, options.memory_bytes)
    walk = Walk(model, scheme, reference, some, options.memory_bytes)
    generator = torch.Generator().manual_seed(options.seed)
    errors: dict[str, tuple[float, float]] = {}
    stored: dict[str, StoredWeight] = {}
    biases: dict[str, Array] = {}
    for done, layer in enumerate(walk.layers()):
        weight, bias, said = _learnt(walk, layer, options, generator)
        errors[layer.name] = said
        if said[1] < said[0]:
            stored[layer.name] = weight
            walk.put(layer, weight, bias)
            if bias is not None:
                biases[layer.place.bias] = bias
        on_fraction((done + 1) / len(walk))
    program = with_parameters(model, biases_like(model, biases)).program
    report = AdaroundReport(samples=some.count, errors=errors, left=walk.left)
    return after_step(model, program, "adaround"), with_weights(scheme, stored), report


def _learnt(
    walk: Walk, layer: Layer, options: AdaroundOptions, generator: torch.Generator
) -> tuple[StoredWeight, Array | None, tuple[float, float]]:
    product, aim = layer.product, layer.aim
    fitted = gather(walk, layer, RoundOptions(seed=options.seed), generator).fit
    groups, width, made = fitted.weight.shape
    most = min(options.rows, max(options.row_bytes // (8 * groups * (width + made)), 64))
    x, end, other = _rows(walk, layer, most, generator)
    count = x.shape[1] // 2
    bias = torch.tensor(walk.bias(layer), dtype=torch.float32).reshape(groups, 1, made)
    moved = bias + fitted.intercept.float().reshape(groups, 1, made) * bool(layer.place.bias)
    now = walk.scheme.weights[layer.name]
    step = by_channel(now.grid.scale, fitted.weight).float()
    low, high = signed_limits(now.grid)
    target = _seen(end, aim)
    scale = float(target.square().mean()) + _TINY

    def error(weight: Tensor, offset: Tensor, part: slice) -> float:
        made_there = x[:, part] @ weight + offset + other[:, part]
        return float((_seen(made_there, aim) - target[:, part]).square().mean()) / scale

    trained = (x[:, :count], target[:, :count], other[:, :count])
    levels, offset = _train(trained, fitted.weight.float() / step, step, moved, aim, options)
    steps = levels.clamp(low, high)
    before = error(product.matrix(now.values).float(), bias, slice(count, None))
    integers = now.grid.store(product.stored(steps.double(), np.zeros(now.integers.shape)))
    weight = replace(now, integers=integers)
    if walk.scheme.dialect.adds_in_16_bits:
        weight = bounded(weight, layer.place)
    after = error(product.matrix(weight.values).float(), offset, slice(count, None))
    found = None
    if layer.place.bias:
        found = bounded_bias(walk, layer, now.grid, offset.double().numpy().reshape(-1))
    return weight, found, (before, after)


def _rows(
    walk: Walk, layer: Layer, most: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the layer, those of the earlier samples first."""
    parts = list(walk.rows(layer, [], most, generator))
    other = [torch.zeros_like(p.end) if isinstance(p.other, float) else p.other for p in parts]
    return (
        torch.cat([p.x for p in parts], 1),
        torch.cat([p.end for p in parts], 1),
        torch.cat(other, 1),
    )


def _seen(values: Tensor, aim: Aim) -> Tensor:
    """What the reader of the layer's output can tell of it."""
    return values.clamp(aim.low, aim.high)


def _train(
    rows: tuple[Tensor, Tensor, Tensor], weight: Tensor, step: Tensor, bias: Tensor, aim: Aim,
    options: AdaroundOptions,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The whole steps of each weight, and the bias."""
    x, target, other = rows
    dice = torch.Generator().manual_seed(options.seed)
    floor = weight.floor()
    share = (weight - floor).clamp(0.01, 0.99)
    logits = -torch.log(_REACH / (share + (_REACH - 1) / 2) - 1)
    logits.requires_grad_()
    offset = bias.clone().requires_grad_()
    adam = torch.optim.Adam([logits, offset], lr=options.learning_rate)
    adam.param_groups[0]["lr"] = options.learning_rate
    scale = target.square().mean() + _TINY
    for turn in range(options.steps):
        chosen = torch.randint(0, x.shape[1], (min(options.batch, x.shape[1]),), generator=dice)
        up = _stretched(logits)
        made = x[:, chosen] @ ((floor + up) * step) + offset + other[:, chosen]
        loss = (_seen(made, aim) - target[:, chosen]).square().mean() / scale
        at = turn / options.steps
        if at >= _WARM_UP:
            first, last = _SHARPNESS
            sharp = last + (first - last) * 0.5 * (
                1 + np.cos(np.pi * (at - _WARM_UP) / (1 - _WARM_UP))
            )
            loss = loss + options.pull * (1 - (2 * up - 1).abs().pow(sharp)).mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    with torch.no_grad():
        levels = floor + (_stretched(logits) >= 0.5)
        # The bias gives back the mean that the rounding took.
        gap = target - _seen(x @ (levels * step) + offset + other, aim)
        inside = gap.mean(1, keepdim=True)
    return levels, (offset.detach() + inside)


def _stretched(logits: Tensor) -> Tensor:
    found: Tensor = (_REACH * logits.sigmoid() - (_REACH - 1) / 2).clamp(0, 1)
    return found
