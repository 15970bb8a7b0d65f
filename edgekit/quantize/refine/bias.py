"""Bias correction: every layer puts out the mean that it has in the float network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from edgekit.data.batches import Batches
from edgekit.errors import InputError
from edgekit.models.model import Model, after_step
from edgekit.quantize.refine.graph import with_biases, with_parameters
from edgekit.quantize.refine.walk import Walk, some_samples
from edgekit.quantize.refine.weights import biases_like, bounded_bias
from edgekit.quantize.scheme import Scheme
from edgekit.values import Array

OnFraction = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class BiasOptions:
    """At most `samples` are looked at; `memory_bytes` bounds what is kept between layers."""

    samples: int = 512
    memory_bytes: int = 1 << 30


@dataclass(frozen=True, kw_only=True)
class BiasReport:
    """How far each node's means were off before: the largest, as a share of the channel's standard
    deviation in the float network. `left` has no bias, or no place for one.
    """

    samples: int
    shifts: dict[str, float]
    left: dict[str, str]

    def __str__(self) -> str:
        worst = max(self.shifts, key=lambda name: self.shifts[name], default="")
        most = f", the most {worst} by {self.shifts[worst]:.2f} standard deviations"
        return f"{len(self.shifts)} biases corrected on {self.samples} samples" + most * bool(worst)


def correct_biases(
    model: Model,
    scheme: Scheme,
    batches: Batches,
    options: BiasOptions | None = None,
    *,
    reference: Model | None = None,
    on_fraction: OnFraction = lambda share: None,
) -> tuple[Model, Scheme, BiasReport]:
    """The Model with biases that give each weighted node its float means, channel by channel.

    Layer after layer, with the layers before it quantized and corrected (Nagel et al. 2019,
    Data-Free Quantization, section 4.2, by measurement): b += mean(y float) - mean(y quantized)
    over all samples and places; in front of a residual Add, that of the sum. Integers and grids
    stay. `reference` is as in `round_weights`. Raises InputError where there are too few
    samples, and for NaN or infinity.
    """
    options = options or BiasOptions()
    reference = reference or model
    model, scheme = with_biases(model, scheme)
    some = some_samples(model, batches, options.samples, options.memory_bytes)
    walk = Walk(model, scheme, reference, some, options.memory_bytes)
    shifts: dict[str, float] = {}
    biases: dict[str, Array] = {}
    for done, layer in enumerate(walk.layers()):
        if not layer.place.bias:
            walk.left[layer.name] = "it adds no bias"
            continue
        channels = layer.product.channels
        count, off = 0, torch.zeros(channels, dtype=torch.float64)
        sums, squares = torch.zeros_like(off), torch.zeros_like(off)
        for found, wanted in walk.outputs(layer):
            off += (wanted - found).sum(0, dtype=torch.float64)
            sums += wanted.sum(0, dtype=torch.float64)
            squares += wanted.square().sum(0, dtype=torch.float64)
            count += len(wanted)
        if not bool(off.isfinite().all()):
            raise InputError(
                f'what "{layer.name}" puts out becomes NaN or infinite on these samples',
                where="quantize.refine",
                hint="Look for an overflow in the model, or for a bad sample.",
            )  # fmt: skip
        spread = (squares / count - (sums / count).square()).clamp_min(0).sqrt()
        shift = (off / count).abs() / spread.clamp_min(1e-3 * float(spread.max()) + 1e-12)
        shifts[layer.name] = float(shift.max())
        grid = scheme.weights[layer.name].grid
        bias = bounded_bias(walk, layer, grid, walk.bias(layer) + (off / count).numpy())
        walk.put(layer, None, bias)
        biases[layer.place.bias] = bias
        on_fraction((done + 1) / len(walk))
    program = with_parameters(model, biases_like(model, biases)).program
    report = BiasReport(samples=some.count, shifts=shifts, left=walk.left)
    return after_step(model, program, "correct_biases"), scheme, report
